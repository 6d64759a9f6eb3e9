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

from data.blocks import BlockCounts, JoinedBlocks, TokenBlocks, build_blocks
from data.collator import Collator, MaskedBatch
from data.config import DataConfig
from data.documents import Documents, open_documents
from data.drop_in import MaskedLMCollator
from data.loader import MicroBatches, TrainLoader, eval_batches
from data.masking import MASK_RATES, Vocabulary
from data.order import Order, blocks_per_epoch
from data.readers import DataError
from data.streaming import StreamCorpus, StreamLoader
from data.tokenization import open_tokenizer, tokenizer_fingerprint, vocab_size, vocabulary

__all__ = [
    "MASK_RATES",
    "BlockCounts",
    "Collator",
    "DataConfig",
    "DataError",
    "Documents",
    "JoinedBlocks",
    "MaskedBatch",
    "MaskedLMCollator",
    "MicroBatches",
    "Order",
    "StreamCorpus",
    "StreamLoader",
    "TokenBlocks",
    "TrainLoader",
    "Vocabulary",
    "blocks_per_epoch",
    "build_blocks",
    "eval_batches",
    "open_documents",
    "open_tokenizer",
    "tokenizer_fingerprint",
    "vocab_size",
    "vocabulary",
]
