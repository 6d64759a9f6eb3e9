"""Where text comes from.

`documents` gives the texts of a source, which `sources` finds and `rows` reads: `readers` and `tables` know the
formats, and `files` opens files and knows their compression. `python_docs` is the embedded corpus.
"""
