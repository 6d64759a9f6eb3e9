"""Where text comes from.

`sources` finds what a setting names: the embedded corpus (`python_docs`), files or
the Hub. `readers` and `tables` read the formats, through `compression`; `rows` takes
the text out of a row; `documents` puts this together and holds documents out for
evaluation. A part of a file can be read alone (`ranges`), so that many can share one.
"""
