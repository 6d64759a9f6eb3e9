from .blocks import (
    BlockCounts as BlockCounts,
)
from .blocks import (
    JoinedBlocks as JoinedBlocks,
)
from .blocks import (
    TokenBlocks as TokenBlocks,
)
from .blocks import (
    build_blocks as build_blocks,
)
from .chunks import StreamCorpus as StreamCorpus
from .collator import Collator as Collator
from .collator import MaskedBatch as MaskedBatch
from .config import DataConfig as DataConfig
from .documents import Documents as Documents
from .documents import open_documents as open_documents
from .drop_in import MaskedLMCollator as MaskedLMCollator
from .loader import MicroBatches as MicroBatches
from .loader import TrainLoader as TrainLoader
from .loader import eval_batches as eval_batches
from .masking import MASK_RATES as MASK_RATES
from .masking import Vocabulary as Vocabulary
from .order import Order as Order
from .order import blocks_per_epoch as blocks_per_epoch
from .ranges import DataError as DataError
from .streaming import StreamLoader as StreamLoader
from .tokenization import (
    open_tokenizer as open_tokenizer,
)
from .tokenization import (
    tokenizer_fingerprint as tokenizer_fingerprint,
)
from .tokenization import (
    vocab_size as vocab_size,
)
from .tokenization import (
    vocabulary as vocabulary,
)
