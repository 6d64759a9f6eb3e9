"""The training loops that are compared, each a function that a child process runs on the same weights and blocks."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedModel
from transformers.optimization import get_scheduler

from data.batches.hf_collator import MaskedLMCollator
from data.blocks.vocabulary import vocab_size
from data.cores import available_cores
from launch.run.corpus import Corpus, open_corpus
from launch.run.loaders import train_loader
from launch.run.settings import Settings
from train_loop.model import open_model
from train_loop.objectives.hf_loss import MaskedLMLoss
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.optimizers.groups import build_optimizers
from train_loop.plan import plan_batches
from train_loop.speed.compile import compile_layers
from train_loop.step import train_step
from train_loop.watching.metrics import peak_memory


@dataclass(frozen=True)
class Setup:
    """What all contenders share.

    Attributes:
        settings: Those of a run; all contenders use its text, model, learning rate, weight decay and clipping.
        batch: Blocks in a batch.
        steps: Updates that are timed, the last ones.
        total_steps: All updates.
        precision: As Accelerate names it: no, bf16, fp16.
    """

    settings: Settings
    batch: int
    steps: int
    total_steps: int
    precision: str

    def open(self) -> tuple[Corpus, PreTrainedModel]:
        """The corpus, whose tokenizer returns RoBERTa's columns alone, and the model, always with the same weights."""
        settings, corpus = self.settings, open_corpus(self.settings)
        tokenizer = corpus.tokenizer
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        sizes = {"vocab_size": vocab_size(tokenizer), "block_size": settings.data.block_size}
        return corpus, open_model(settings.model, tokenizer, **sizes, seed=settings.train.seed).train()


class _Clock:
    """Times the last updates."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._num_updates = 0
        self._start = 0.0
        self._seconds = 0.0
        self._num_tokens = 0

    def tick(self, num_tokens: int | None = None) -> None:
        """Count an update that has ended, and its tokens; blocks are full where it is not said."""
        full = self._setup.batch * self._setup.settings.data.block_size
        self._num_tokens += (full if num_tokens is None else num_tokens) * bool(self._start)
        self._num_updates += 1
        if self._num_updates in (self._setup.total_steps - self._setup.steps, self._setup.total_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds, self._start = time.perf_counter() - self._start, time.perf_counter()

    def result(self) -> dict[str, float]:
        """Tokens per second, and the peak of the memory in bytes."""
        return {"tokens_per_second": self._num_tokens / self._seconds, "peak_memory": peak_memory()}


def updates(setup: Setup, *, side_by_side: bool = True) -> Iterator[int]:
    """Make an update of this project's loop, as in a run, and yield its tokens of text; and so on.

    Texts are padded or masked unless they stand side by side.
    """
    corpus, model = setup.open()
    data = corpus.config
    config = setup.settings.train
    accelerator = Accelerator(mixed_precision=setup.precision)
    device = accelerator.device
    model.to(device)
    optimizers = [accelerator.prepare(optimizer) for optimizer in build_optimizers(model, config)]
    objective = MaskedLMObjective(model)
    objective.adapt(config, data.block_size, document_attention=data.document_attention, has_padding=data.has_padding)
    is_flat = objective.takes_documents and side_by_side
    if config.torch_compile:
        compile_layers(objective)
    objective = accelerator.prepare(objective)
    plan = plan_batches(config, corpus.blocks_per_epoch, num_processes=1)
    world: dict[str, Any] = {"rank": 0, "num_processes": 1, "device": device, "state": {}}
    loader = train_loader(setup.settings, corpus, plan, **world, is_flat=is_flat)
    for step, batches in enumerate(loader.steps(0, setup.total_steps)):
        train_step(
            accelerator,
            objective,
            optimizers,
            batches,
            step=step,
            lr_factor=1 - step / setup.total_steps,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
        )
        masks = (batch.attention_mask for batch in batches)
        num_padding = sum(int((mask == 0).sum()) for mask in masks if mask is not None)
        yield sum(batch.num_tokens for batch in batches) - num_padding


def this_project(setup: Setup, *, side_by_side: bool = True) -> dict[str, float]:
    """`train_step` on cached blocks: see `updates`."""
    clock = _Clock(setup)
    for num_tokens in updates(setup, side_by_side=side_by_side):
        clock.tick(num_tokens)
    return clock.result()


def trainer(setup: Setup, *, with_mask: bool, is_right: bool = False, **options: Any) -> dict[str, float]:
    """`Trainer` with the stock collator, as the guide uses it; ``options`` are more `TrainingArguments`.

    One that ``is_right`` has this project's collator and loss.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments  # 50 MB, which the others do without

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    corpus, model = setup.open()
    if not with_mask:
        corpus.tokenizer.model_input_names = ["input_ids"]  # or the collator makes a mask of ones
        if hasattr(model, "sparse_prediction") and not is_right:  # ModernBERT's own head on masked positions
            model.sparse_prediction = True
    config, clock = setup.settings.train, _Clock(setup)
    collator: Any = _collator(corpus)
    loss = None
    if is_right:
        masks: dict[str, Any] = {"mlm_probability": corpus.config.mlm_probability, "gives_positions": True}
        collator, loss = MaskedLMCollator(corpus.tokenizer, **masks), MaskedLMLoss(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setup.batch,
            max_steps=setup.total_steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=setup.precision == "bf16",
            fp16=setup.precision == "fp16",
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),  # or it refuses bf16 there
            disable_tqdm=True,
            seed=config.seed,
            torch_compile=config.torch_compile and not with_mask,
            **options,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=_rows(corpus, with_mask=with_mask),
            data_collator=collator,
            compute_loss_func=loss,
            callbacks=[Ticks()],
        ).train()
    return clock.result()


def accelerate_loop(setup: Setup) -> dict[str, float]:
    """A loop like transformers' run_mlm_no_trainer.py, with clipping."""
    corpus, model = setup.open()
    config = setup.settings.train
    accelerator = Accelerator(mixed_precision=setup.precision)
    decays: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays["bias" not in name and "LayerNorm.weight" not in name].append(parameter)
    groups: list[dict[str, Any]] = [{"params": decays[True]}, {"params": decays[False], "weight_decay": 0.0}]
    optimizer: Any = AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    rows: Any = _rows(corpus, with_mask=True)
    loader: Any = DataLoader(rows, shuffle=True, collate_fn=_collator(corpus), batch_size=setup.batch, drop_last=True)
    schedule = get_scheduler("linear", optimizer, 0, setup.total_steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    clock = _Clock(setup)
    epochs: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, setup.total_steps):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.result()


def _rows(corpus: Corpus, *, with_mask: bool) -> Any:
    """The blocks as rows of a dataset, as the guide makes them."""
    import datasets

    (blocks,) = corpus.train
    ids = blocks[np.arange(len(blocks))].astype(np.int32)
    masks = {"attention_mask": list(np.ones_like(ids, dtype=np.int8))} if with_mask else {}
    return datasets.Dataset.from_dict({"input_ids": list(ids), **masks})


def _collator(corpus: Corpus) -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(corpus.tokenizer, mlm_probability=corpus.config.mlm_probability)


_TUNED: dict[str, Any] = {"dataloader_num_workers": available_cores(), "optim": "adamw_torch_fused"}
CONTENDERS: dict[str, Callable[[Setup], dict[str, float]]] = {
    "this project": this_project,
    "Trainer": partial(trainer, with_mask=True),
    "Trainer, tuned": partial(trainer, with_mask=False, **_TUNED),
    "Trainer, MaskedLMLoss": partial(trainer, with_mask=False, is_right=True, **_TUNED),
    "Accelerate loop": accelerate_loop,
}
