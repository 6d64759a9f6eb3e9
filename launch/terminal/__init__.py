"""What a person reads and writes in a terminal.

    words, file or pipe -> texts -> a model's answers -> tables, or JSON lines

`texts` opens a command's texts and reports its errors, `prompt` asks for texts one
by one, `tables` prints fills. `batch` prints a masked batch: `token_text` turns
tokens into readable text, and `marks` marks those that are predicted.
"""
