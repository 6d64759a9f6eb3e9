"""Blocks to masked batches.

`order` says which blocks an update sees and `masking` which of their tokens are predicted, both by the hashes of
`hashing`. `collator` masks blocks, and `loader` gives each process its batches; `streaming` does so while the text is
read. `hf_collator` masks for other training loops.
"""
