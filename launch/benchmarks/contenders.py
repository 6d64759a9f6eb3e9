"""The training loops that are compared, each a function that a child process runs on the same weights and blocks."""

import itertools
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
from data.cores import available_cores
from launch.benchmarks.text import MLM_PROBABILITY, train_loader
from train_loop.config import ModelConfig, TrainConfig
from train_loop.model import open_model
from train_loop.model_checks import gather_in_last_layer
from train_loop.objective import MaskedLMObjective
from train_loop.optim import build_optimizers
from train_loop.speed.compile import compile_layers
from train_loop.step import train_step
from train_loop.watching.metrics import peak_memory

_SEED = 0
_CONFIG = TrainConfig()  # all contenders use its learning rate, weight decay and clipping


@dataclass(frozen=True)
class Setup:
    """The model, the data and the measure that all contenders share.

    Attributes:
        tokenizer, blocks: Folders.
        length: Tokens in a block.
        batch: Blocks in a batch.
        steps: Updates that are timed.
        warm_up: Updates before those.
        precision: As Accelerate names it: no, bf16, fp16.
        torch_compile: Whether this project compiles the layers.
    """

    tokenizer: Path
    blocks: Path
    model: ModelConfig
    length: int
    batch: int
    steps: int
    warm_up: int
    precision: str
    torch_compile: bool

    @property
    def total_steps(self) -> int:
        """Updates in all."""
        return self.warm_up + self.steps

    def open(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """The tokenizer, which returns no columns but RoBERTa's, and the model, with the same weights each time."""
        tokenizer = AutoTokenizer.from_pretrained(str(self.tokenizer))
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        size = vocab_size(tokenizer)
        model = open_model(self.model, tokenizer, vocab_size=size, block_size=self.length, seed=_SEED)
        return tokenizer, model.train()

    def rows(self, *, with_mask: bool) -> datasets.Dataset:
        """The blocks as rows of a dataset, as the guide makes them."""
        blocks = TokenBlocks(self.blocks)
        ids = blocks[np.arange(len(blocks))].astype(np.int32)
        columns = {"input_ids": list(ids)}
        if with_mask:
            columns["attention_mask"] = list(np.ones_like(ids, dtype=np.int8))
        return datasets.Dataset.from_dict(columns)


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times the updates that follow the warm-up."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._num_updates = 0
        self._start = 0.0
        self._seconds = 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Count an update that has ended."""
        self._num_updates += 1
        if self._num_updates in (self._setup.warm_up, self._setup.total_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds, self._start = time.perf_counter() - self._start, time.perf_counter()

    def result(self) -> dict[str, float]:
        """Tokens per second, and the peak of the memory in bytes."""
        num_tokens = self._setup.steps * self._setup.batch * self._setup.length
        return {"tokens_per_second": num_tokens / self._seconds, "peak_memory": peak_memory()}


def this_project(setup: Setup) -> dict[str, float]:
    """`train_step` on cached blocks; as in a run, the head and the last feed-forward compute masked positions only."""
    tokenizer, model = setup.open()
    accelerator = Accelerator(mixed_precision=setup.precision)
    model.to(accelerator.device)
    optimizers = [accelerator.prepare(optimizer) for optimizer in build_optimizers(model, _CONFIG)]
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective)
    if accelerator.device.type == "cuda":
        objective.pad_vocabulary_to = _CONFIG.pad_vocabulary_to
    if setup.torch_compile:
        compile_layers(objective)
    objective = accelerator.prepare(objective)
    loader = train_loader(TokenBlocks(setup.blocks), tokenizer, setup.batch, accelerator.device)
    clock = _Clock(setup)
    for step, batches in enumerate(loader.steps(0, setup.total_steps)):
        train_step(
            accelerator,
            objective,
            optimizers,
            batches,
            step=step,
            lr_factor=1 - step / setup.total_steps,
            max_grad_norm=_CONFIG.max_grad_norm,
            seed=_SEED,
        )
        clock.on_step_end()
    return clock.result()


def trainer(setup: Setup) -> dict[str, float]:
    """`Trainer` with the stock collator, as the guide uses it."""
    return _trainer(setup, with_mask=True)


def tuned_trainer(setup: Setup) -> dict[str, float]:
    """`Trainer` with worker processes, fused AdamW and no attention mask."""
    return _trainer(setup, with_mask=False, dataloader_num_workers=available_cores(), optim="adamw_torch_fused")


def _trainer(setup: Setup, *, with_mask: bool, **options: Any) -> dict[str, float]:
    tokenizer, model = setup.open()
    if not with_mask:
        tokenizer.model_input_names = ["input_ids"]  # or the collator makes a mask of ones
    clock = _Clock(setup)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setup.batch,
            max_steps=setup.total_steps,
            learning_rate=_CONFIG.learning_rate,
            weight_decay=_CONFIG.weight_decay,
            max_grad_norm=_CONFIG.max_grad_norm,
            bf16=setup.precision == "bf16",
            fp16=setup.precision == "fp16",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=_SEED,
            **options,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=setup.rows(with_mask=with_mask),
            data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=MLM_PROBABILITY),
            callbacks=[clock],
        ).train()
    return clock.result()


def accelerate_loop(setup: Setup) -> dict[str, float]:
    """A loop like transformers' run_mlm_no_trainer.py, with clipping."""
    tokenizer, model = setup.open()
    accelerator = Accelerator(mixed_precision=setup.precision)
    decays: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays["bias" not in name and "LayerNorm.weight" not in name].append(parameter)
    groups: list[dict[str, Any]] = [{"params": decays[True]}, {"params": decays[False], "weight_decay": 0.0}]
    optimizer: Any = AdamW(groups, lr=_CONFIG.learning_rate, weight_decay=_CONFIG.weight_decay)
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=MLM_PROBABILITY)
    loader: Any = DataLoader(
        setup.rows(with_mask=True), shuffle=True, collate_fn=collator, batch_size=setup.batch, drop_last=True
    )
    schedule = get_scheduler("linear", optimizer, 0, setup.total_steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    clock = _Clock(setup)
    epochs: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, setup.total_steps):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), _CONFIG.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.on_step_end()
    return clock.result()


CONTENDERS: dict[str, Callable[[Setup], dict[str, float]]] = {
    "this project": this_project,
    "Trainer": trainer,
    "Trainer, tuned": tuned_trainer,
    "Accelerate loop": accelerate_loop,
}
