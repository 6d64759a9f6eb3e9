"""Text to masked batches.

    documents -> blocks -> batches

Text passes through three rooms. `documents` is where it comes from, `blocks` cuts it into blocks of tokens, and
`batches` masks them. A room imports only those before it. `config` has the settings of all three. `batch` is what
training knows of them: the batch, and who hands out batches. Nothing here knows a model or a training loop.
"""

import importlib
from typing import Any

_HOMES = {
    "data.batch": "DocumentBorders Loader MaskedBatch",
    "data.batches.collator": "Collator",
    "data.batches.hf_collator": "MaskedLMCollator",
    "data.batches.loader": "MicroBatches Place TrainLoader eval_batches",
    "data.batches.masking": "MASK_RATES",
    "data.batches.order": "Order blocks_per_epoch",
    "data.batches.streaming": "StreamCorpus StreamLoader",
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
