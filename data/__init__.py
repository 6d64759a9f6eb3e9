"""Text to masked batches.

    documents -> token blocks -> masked batches

`open_documents` opens any source of text; `open_tokenizer` loads or trains a
tokenizer; `build_blocks` tokenizes, concatenates and cuts, once; `order` says
which blocks a step sees, `masking` which of their tokens are predicted, both as
pure functions of (seed, epoch, step); `TrainLoader` hands a process its share
as `MaskedBatch` es. Nothing here knows a model or a training loop.

`MaskedLMCollator` gives the same masks to other loops: a drop-in for
`transformers.DataCollatorForLanguageModeling`.
"""

from data.blocks import BlockCounts, TokenBlocks, build_blocks
from data.collator import MaskedBatch, collate
from data.config import DataConfig
from data.documents import Documents, open_documents
from data.drop_in import MaskedLMCollator
from data.loader import MicroBatches, TrainLoader, eval_batches
from data.masking import Vocabulary
from data.tokenization import open_tokenizer, tokenizer_fingerprint, vocab_size, vocabulary

__all__ = [
    "BlockCounts",
    "DataConfig",
    "Documents",
    "MaskedBatch",
    "MaskedLMCollator",
    "MicroBatches",
    "TokenBlocks",
    "TrainLoader",
    "Vocabulary",
    "build_blocks",
    "collate",
    "eval_batches",
    "open_documents",
    "open_tokenizer",
    "tokenizer_fingerprint",
    "vocab_size",
    "vocabulary",
]
