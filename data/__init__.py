"""Text to masked batches.

    documents -> token blocks -> masked batches

`open_documents` opens any source of text; `open_tokenizer` loads or trains a
tokenizer; `build_blocks` tokenizes and groups, once. `Order` says which blocks a
step sees, `masking` which of their tokens are predicted, both as pure functions
of (seed, step); `TrainLoader` hands a process its share as `MaskedBatch` es.
`StreamLoader` does the same while the text is read. `MaskedLMCollator` serves
other loops in place of transformers' collator. Nothing here knows a model
or a training loop.
"""

import lazy_loader

# The names are those of __init__.pyi. Each is imported when it is first used: torch and transformers take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
