"""The training loops that are compared, each a function that a child process runs on the same weights and blocks."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from data.blocks.store import TokenBlocks
from data.blocks.vocabulary import vocab_size
from launch.benchmarks.text import MLM_PROBABILITY, train_loader
from train_loop.config import ModelConfig, TrainConfig
from train_loop.model import open_model
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.optim import build_optimizers
from train_loop.speed.compile import compile_layers
from train_loop.step import train_step
from train_loop.watching.metrics import peak_memory

_SEED = 0


@dataclass(frozen=True)
class Setup:
    """The model, the data and the measure that all contenders share.

    Attributes:
        tokenizer, blocks: Folders.
        batch: Blocks in a batch.
        steps: Updates that are timed.
        warm_up: Updates before those.
        precision: As Accelerate names it: no, bf16, fp16.
        num_workers: Processes that prepare batches for the tuned `Trainer`.
        torch_compile: Whether this project compiles the layers.
    """

    tokenizer: Path
    blocks: Path
    model: ModelConfig
    batch: int
    steps: int
    warm_up: int
    precision: str
    num_workers: int
    torch_compile: bool

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which returns no columns but RoBERTa's."""
        tokenizer = AutoTokenizer.from_pretrained(str(self.tokenizer))
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        return tokenizer

    def open_model(self, tokenizer: PreTrainedTokenizerBase, block_size: int) -> PreTrainedModel:
        """The model, with the same weights each time."""
        size = vocab_size(tokenizer)
        return open_model(self.model, tokenizer, vocab_size=size, block_size=block_size, seed=_SEED).train()

    def rows(self, *, with_mask: bool) -> datasets.Dataset:
        """The blocks as rows of a dataset, as the guide makes them."""
        blocks = TokenBlocks(self.blocks)
        ids = blocks[np.arange(len(blocks))].astype(np.int32)
        columns = {"input_ids": list(ids)}
        if with_mask:
            columns["attention_mask"] = list(np.ones_like(ids, dtype=np.int8))
        return datasets.Dataset.from_dict(columns)

    @property
    def training(self) -> TrainConfig:
        """Learning rate, weight decay, clipping: `Trainer` gets the same."""
        return TrainConfig()


class _Clock:
    """Times the updates that follow the warm-up."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._num_updates = 0
        self._start = 0.0
        self.seconds = 0.0

    def tick(self) -> None:
        """Count an update that has ended."""
        self._num_updates += 1
        if self._num_updates in (self._setup.warm_up, self._setup.warm_up + self._setup.steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds, self._start = time.perf_counter() - self._start, time.perf_counter()

    def result(self, length: int) -> dict[str, float]:
        """Tokens per second, and the peak of the memory."""
        num_tokens = self._setup.steps * self._setup.batch * length
        return {"tokens_per_second": num_tokens / self.seconds, "peak_memory": peak_memory()}


def this_project(setup: Setup) -> dict[str, float]:
    """`train_step` on cached blocks; as in a run, the head and the last feed-forward compute masked positions only."""
    blocks = TokenBlocks(setup.blocks)
    tokenizer = setup.open_tokenizer()
    accelerator = Accelerator(mixed_precision=setup.precision)
    model = setup.open_model(tokenizer, blocks.block_size).to(accelerator.device)
    optimizers = [accelerator.prepare(optimizer) for optimizer in build_optimizers(model, setup.training)]
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective.logits)
    if accelerator.device.type == "cuda":
        objective.logits.pad_vocabulary_to = setup.training.pad_vocabulary_to
    if setup.torch_compile:
        compile_layers(objective)
    objective = accelerator.prepare(objective)
    loader = train_loader(blocks, tokenizer, setup.batch, accelerator.device)
    clock = _Clock(setup)
    total = setup.warm_up + setup.steps
    for step, batches in enumerate(loader.steps(0, total)):
        train_step(
            accelerator,
            objective,
            optimizers,
            batches,
            step=step,
            lr_factor=1 - step / total,
            max_grad_norm=setup.training.max_grad_norm,
            seed=_SEED,
        )
        clock.tick()
    return clock.result(blocks.block_size)


def trainer(setup: Setup) -> dict[str, float]:
    """`Trainer` with the stock collator, as the guide uses it."""
    return _trainer(setup, setup.open_tokenizer(), with_mask=True)


def tuned_trainer(setup: Setup) -> dict[str, float]:
    """`Trainer` with worker processes, fused AdamW and no attention mask."""
    tokenizer = setup.open_tokenizer()
    tokenizer.model_input_names = ["input_ids"]  # or the collator makes a mask of ones
    options = {"dataloader_num_workers": setup.num_workers, "optim": "adamw_torch_fused"}
    return _trainer(setup, tokenizer, with_mask=False, **options)


def _trainer(setup: Setup, tokenizer: PreTrainedTokenizerBase, *, with_mask: bool, **options: Any) -> dict[str, float]:
    length = TokenBlocks(setup.blocks).block_size
    clock = _Clock(setup)

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    config = setup.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setup.batch,
            max_steps=setup.warm_up + setup.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=setup.precision == "bf16",
            fp16=setup.precision == "fp16",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=_SEED,
            **options,
        )
        Trainer(
            model=setup.open_model(tokenizer, length),
            args=arguments,
            train_dataset=setup.rows(with_mask=with_mask),
            data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=MLM_PROBABILITY),
            callbacks=[Ticks()],
        ).train()
    return clock.result(length)


def accelerate_loop(setup: Setup) -> dict[str, float]:
    """A loop like transformers' run_mlm_no_trainer.py, with clipping."""
    tokenizer = setup.open_tokenizer()
    length = TokenBlocks(setup.blocks).block_size
    model = setup.open_model(tokenizer, length)
    accelerator = Accelerator(mixed_precision=setup.precision)
    config = setup.training
    no_decay = ["bias", "LayerNorm.weight"]
    decays = {True: [], False: []}  # type: dict[bool, list[torch.nn.Parameter]]
    for name, parameter in model.named_parameters():
        decays[not any(part in name for part in no_decay)].append(parameter)
    optimizer: Any = AdamW(
        [{"params": decays[True], "weight_decay": config.weight_decay}, {"params": decays[False], "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=MLM_PROBABILITY)
    loader: Any = DataLoader(
        setup.rows(with_mask=True), shuffle=True, collate_fn=collator, batch_size=setup.batch, drop_last=True
    )
    schedule = get_scheduler("linear", optimizer, 0, setup.warm_up + setup.steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    clock = _Clock(setup)
    for _, batch in zip(range(setup.warm_up + setup.steps), _forever(loader), strict=False):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.result(length)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


CONTENDERS: dict[str, Callable[[Setup], dict[str, float]]] = {
    "this project": this_project,
    "Trainer": trainer,
    "Trainer, tuned": tuned_trainer,
    "Accelerate loop": accelerate_loop,
}
