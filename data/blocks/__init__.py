"""Text to blocks of tokens.

`tokenization` opens or trains a tokenizer and encodes texts. `words` finds where words begin, and `tokens` stores that
and the starts of documents in one array with the ids. `grouping` cuts tokens into blocks, `store` keeps the blocks on
disk, and `vocabulary` says which tokens are special.
"""
