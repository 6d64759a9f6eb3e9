"""What hands a process its batches, as the settings name it."""

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np

from data.batch import MaskedBatch
from data.batches.collator import Collator
from data.batches.hashing import key64
from data.batches.loader import MicroBatches, Place, TrainLoader, eval_batches
from data.batches.masking import Choose, choose_token
from data.batches.order import Order, strata
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
    seed, size = settings.train.seed, plan.global_batch_size
    rates = mask_rates(corpus.config, plan.total_steps, seed)
    shared: dict[str, Any] = {"rates": rates, "micro_batch_size": plan.micro_batch_size, "place": place}
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

    Tokens are chosen one by one, whatever masking the training has, so that runs compare; in diffusion, at all rates.
    """
    config, seed, number = corpus.config, settings.train.eval_seed, len(corpus.eval)
    masks = collator(corpus, config.choose if config.is_diffusion else choose_token, seed, is_flat=is_flat)
    size = settings.train.per_device_eval_batch_size
    constant = np.full(number, config.eval_mlm_probability or config.mlm_probability)
    rates = strata(number, seed) if config.is_diffusion else constant
    return eval_batches(MicroBatches(corpus.eval, masks), size, rates, place, config)


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


def mask_rates(config: DataConfig, total_steps: int, seed: int) -> Callable[[int, int], np.ndarray]:
    """(step, blocks) -> the rate at which each one's tokens are chosen; DataError if that is no probability."""
    start = config.mlm_probability
    end = start if config.mlm_probability_end is None else config.mlm_probability_end

    def rates(step: int, number: int) -> np.ndarray:
        value = config.mask_rate(step / max(1, total_steps - 1), start, end)
        if not (isinstance(value, Real) and 0 <= value <= 1):  # which nan is not
            wrong = f"mlm_probability_schedule={config.mlm_probability_schedule!r} gives {value!r}"
            raise DataError(f"{wrong} for step {step + 1}: it must be from 0 to 1")
        if not config.is_diffusion:
            return np.full(number, value)
        spread = min(1.0, step / max(1.0, config.diffusion_warmup * total_steps)) if config.diffusion_warmup else 1.0
        return value + spread * (strata(number, key64(seed, step)) - value)

    return rates
