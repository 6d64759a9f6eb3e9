"""Blocks to masked batches.

`order` says which blocks an update sees, `masking` which of their tokens are
predicted, both by the hashes of `hashing`. `collator` masks some blocks, and `loader`
hands each process its batches. `streaming` does so while the text is read; its
workers run `chunks`. `hf_collator` masks for training loops that are not ours.
"""
