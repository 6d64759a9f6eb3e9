"""Reads from and prints to a terminal, a file or a pipe.

    arguments, file or pipe -> texts -> a model's answers -> tables, or JSON lines

`texts` opens a command's texts, `fills` prints fills and asks for texts one by one. `batch` prints a masked batch:
`token_text` turns its tokens into readable text.
"""
