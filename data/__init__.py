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

import importlib
from typing import Any

_HOMES = {
    "data.batches.chunks": "StreamCorpus",
    "data.batch": "Loader MaskedBatch",
    "data.batches.collator": "Collator",
    "data.batches.hf_collator": "MaskedLMCollator",
    "data.batches.loader": "MicroBatches TrainLoader eval_batches",
    "data.batches.masking": "MASK_RATES",
    "data.batches.order": "Order blocks_per_epoch",
    "data.batches.streaming": "StreamLoader",
    "data.blocks.store": "BlockCounts JoinedBlocks TokenBlocks build_blocks",
    "data.blocks.tokenization": "open_tokenizer tokenizer_fingerprint",
    "data.blocks.vocabulary": "Vocabulary vocab_size vocabulary",
    "data.config": "DataConfig",
    "data.documents.documents": "Documents open_documents",
    "data.documents.ranges": "DataError",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: torch and transformers take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
