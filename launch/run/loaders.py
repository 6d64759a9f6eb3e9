"""What hands a process its batches, as the settings name it."""

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

from data.batch import MaskedBatch
from data.batches.collator import Collator
from data.batches.loader import MicroBatches, Place, TrainLoader, eval_batches
from data.batches.masking import Choose, choose_token
from data.batches.order import Order
from data.batches.streaming import StreamCorpus, StreamLoader
from data.blocks.store import JoinedBlocks
from data.config import DataConfig
from data.documents.ranges import DataError
from launch.run.corpus import Corpus
from launch.run.settings import Settings
from train_loop.plan import BatchPlan

_ALONE = Place()


def train_loader(
    settings: Settings,
    corpus: Corpus,
    plan: BatchPlan,
    place: Place = _ALONE,
    *,
    state: dict[str, Any] | None = None,
    is_flat: bool = False,
) -> TrainLoader | StreamLoader:
    """The loader of a process's micro-batches; when streaming, from where a checkpoint's ``state`` was taken."""
    seed, size, rate = settings.train.seed, plan.global_batch_size, mask_rate(corpus.config, plan.total_steps)
    shared: dict[str, Any] = {"mlm_probability": rate, "micro_batch_size": plan.micro_batch_size, "place": place}
    masks = collator(corpus, corpus.config.choose, seed, is_flat=is_flat)
    if not corpus.train:
        sources = StreamCorpus(corpus.documents, corpus.weights, corpus.tokenizer, corpus.config, seed)
        return StreamLoader(sources, masks, blocks_before=plan.blocks_before, state_before=state or {}, **shared)
    blocks = corpus.train[0] if len(corpus.train) == 1 else JoinedBlocks(corpus.train)
    # Blocks of other groupings are of one length, or nearly.
    lengths = blocks.lengths if corpus.config.grouping == "line_by_line" else None
    grows = plan.blocks_before if plan.batch_warmup_steps else None
    order = Order(tuple(map(len, corpus.train)), corpus.weights, size, seed, lengths, grows)
    names = [source.name for source in corpus.documents]
    return TrainLoader(MicroBatches(blocks, masks), order, config=corpus.config, source_names=names, **shared)


def eval_loader(settings: Settings, corpus: Corpus, place: Place, *, is_flat: bool) -> Iterator[MaskedBatch]:
    """Yield a process's evaluation batches.

    Tokens are chosen one by one whatever the training does, so that runs compare.
    """
    masks = collator(corpus, choose_token, settings.train.eval_seed, is_flat=is_flat)
    size = settings.train.per_device_eval_batch_size
    mlm_probability = settings.data.eval_mlm_probability or settings.data.mlm_probability
    blocks = MicroBatches(corpus.eval, masks)
    return eval_batches(blocks, size, mlm_probability, place, corpus.config)


def collator(corpus: Corpus, choose: Choose, seed: int, *, is_flat: bool = False) -> Collator:
    """What masks blocks, by the settings."""
    config = corpus.config
    return Collator(
        corpus.vocabulary,
        seed,
        pad_token_id=corpus.tokenizer.pad_token_id or 0,
        choose=choose,
        shares=(config.mask_replace_prob, config.random_replace_prob),
        document_attention=config.document_attention,
        trims=config.grouping == "line_by_line",
        is_flat=is_flat,
    )


def mask_rate(config: DataConfig, total_steps: int) -> Callable[[int], float]:
    """Step -> the rate at which tokens are chosen; when called, DataError if it is no probability."""
    start = config.mlm_probability
    end = start if config.mlm_probability_end is None else config.mlm_probability_end

    def rate(step: int) -> float:
        value = config.mask_rate(step / max(1, total_steps - 1), start, end)
        if not (isinstance(value, Real) and 0 <= value <= 1):  # which nan is not
            wrong = f"mlm_probability_schedule={config.mlm_probability_schedule!r} gives {value!r}"
            raise DataError(f"{wrong} for step {step + 1}: it must be from 0 to 1")
        return value

    return rate
