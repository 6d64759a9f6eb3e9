"""Text to blocks of tokens.

`tokenization` opens or trains a tokenizer and encodes texts; `words` finds where words
begin; `tokens` keeps both, and the starts of documents, in one array. `grouping` cuts
the tokens into blocks, and `store` keeps the blocks on disk. `vocabulary` is what
masking knows of the tokenizer.
"""
