"""Reads from and prints to a terminal, a file or a pipe.

    arguments, file or pipe -> texts -> a model's answers -> tables, or JSON lines

`texts` opens a command's texts, `prompt` asks for texts one by one, `tables` prints fills. `batch` prints a masked
batch: `token_text` turns tokens into readable text, and `marks` marks those that are predicted.
"""
