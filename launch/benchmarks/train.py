"""Compares updates per second of this loop, `Trainer`, a tuned `Trainer`, and a plain Accelerate loop.

Or texts side by side in one row with the same texts padded or masked, both by this loop; ``--grouping`` other than
concatenate asks for that. Tokens of padding do not count.

All start from the same weights and train on the same blocks, with the model's own dropout, AdamW and clipping. Each
runs in a process of its own, in every round. A contender is a function of a run's settings, which say how many updates
it makes, and of a function that it calls after each of them, with the tokens of text where blocks are not full.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedModel
from transformers.optimization import get_scheduler

from data.batches.hf_collator import MaskedLMCollator
from data.batches.loader import Place
from data.blocks.vocabulary import vocab_size
from data.cores import available_cores
from launch.benchmarks.measuring import in_child, interleave, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.run.corpus import Corpus, open_corpus
from launch.run.folder import RunFolder
from launch.run.loaders import train_loader
from launch.run.settings import Settings
from launch.run.training import set_up
from train_loop.config import TrainConfig
from train_loop.loop import update
from train_loop.model import open_model
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.hf_loss import MaskedLMLoss
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.speed.flops import count_flops, matmul_rate
from train_loop.watching.metrics import peak_memory

Tick = Callable[..., None]
Contender = Callable[[Settings, Tick], None]


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    contenders = CONTENDERS if options.grouping == "concatenate" else WAYS
    by_sentence, rival = options.grouping == "line_by_line", list(contenders)[1]
    train = TrainConfig(
        global_batch_size=options.batch,
        # Sentences are sorted by length within an update, so that padding is what it is in a run.
        per_device_train_batch_size=max(1, options.batch // 4) if by_sentence else None,
        max_steps=options.warm_up + options.steps,
        mixed_precision=options.precision,
        torch_compile=options.torch_compile,
    )
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(options, Path(folder), by_sentence=by_sentence)
        data = replace(text, grouping=options.grouping, document_attention=options.grouping == "pack")
        settings = Settings(data, options.model, train)
        num_blocks = len(open_corpus(settings).train[0])
        if num_blocks < options.batch:
            raise ValueError(f"batch={options.batch}: the text has {num_blocks} blocks: use --batch {num_blocks}")
        flops_per_token = in_child(partial(_flops_per_token, settings))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ways: dict[str, Any] = {}
        ways |= {name: partial(measured, way, settings, options.steps) for name, way in contenders.items()}
        ways["matmul"] = partial(matmul_rate, device, options.precision, seconds=3.0)
        results = interleave({name: partial(in_child, way) for name, way in ways.items()}, options.repeats)
    speeds = {name: [result["tokens_per_second"] for result in results[name]] for name in contenders}
    most = [flops / flops_per_token for flops in results["matmul"]]  # tokens per second
    cases = [
        {
            "name": name,
            "tokens_per_second": spread(speeds[name]),
            "ratio": ratio(speeds[name], speeds[rival]),
            "peak_memory_bytes": spread([result["peak_memory"] for result in results[name]]),
            "share_of_matmul_rate": ratio(speeds[name], most),
        }
        for name in contenders
    ]
    facts = {name: getattr(options, name) for name in ("grouping", "batch", "length", "precision", "torch_compile")}
    facts |= {"model": asdict(options.model), "flops_per_token": flops_per_token}
    facts["matmul_flops_per_second"] = spread(results["matmul"])
    header = ["training", "tokens/s", f"ratio to {rival}", "peak memory", "of the matrix-product rate"]
    print_report(options, [header, *map(_row, cases)], cases, **facts)


def _row(case: dict[str, Any]) -> list[str]:
    memory, share = (case[name]["median"] for name in ("peak_memory_bytes", "share_of_matmul_rate"))
    speed, compared = rate(case["tokens_per_second"]), times(case["ratio"])
    return [case["name"], speed, compared, f"{memory / 1e9:.2f} GB", f"{share:.0%}"]


def _flops_per_token(settings: Settings) -> float:
    """The operations that the loss needs, also for contenders that compute more."""
    corpus, model = opened(settings)
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective.logits)
    return count_flops(objective, corpus.config.block_size).of(1, corpus.config.mlm_probability)


def opened(settings: Settings) -> tuple[Corpus, PreTrainedModel]:
    """The corpus, whose tokenizer returns RoBERTa's columns alone, and the model, always with the same weights."""
    corpus = open_corpus(settings)
    tokenizer = corpus.tokenizer
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    sizes = {"vocab_size": vocab_size(tokenizer), "block_size": settings.data.block_size}
    return corpus, open_model(settings.model, tokenizer, **sizes, seed=settings.train.seed).train()


def measured(contender: Contender, settings: Settings, steps: int) -> dict[str, float]:
    """Tokens per second of the last ``steps`` updates, and the peak of the memory in bytes."""
    num_updates = settings.train.max_steps or 0
    full = (settings.train.global_batch_size or 0) * settings.data.block_size
    sizes: list[int] = []
    times: list[float] = []

    def tick(num_tokens: int = full) -> None:
        sizes.append(num_tokens)
        if len(sizes) in (num_updates - steps, num_updates):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    contender(settings, tick)
    start, end = times
    return {"tokens_per_second": sum(sizes[-steps:]) / (end - start), "peak_memory": peak_memory()}


def this_project(settings: Settings, tick: Tick, *, side_by_side: bool = True) -> None:
    """`train_step` on cached blocks. Texts are padded or masked unless they stand side by side."""
    folder = tempfile.mkdtemp(dir=settings.data.cache_dir)  # goes with the cache
    config = replace(settings.train, output_dir=folder, tf32=False)  # which the others do not use
    ready = set_up(replace(settings, train=config), RunFolder(config))
    run, loader = ready.run, ready.run.loader
    if not side_by_side:
        loader = train_loader(settings, ready.at.corpus, run.plan, Place(device=run.accelerator.device))
    run.objective.train()
    for batches in loader.steps(0, run.plan.total_steps):
        update(run, batches)
        tick(sum(b.num_tokens if b.attention_mask is None else int(b.attention_mask.sum()) for b in batches))


def trainer(settings: Settings, tick: Tick, *, with_mask: bool, is_right: bool = False, **options: Any) -> None:
    """`Trainer` with the stock collator, as the guide uses it; ``options`` are more `TrainingArguments`.

    One that ``is_right`` has this project's collator and loss.
    """
    from transformers import TrainerCallback  # 50 MB, which the others do without

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            tick()

    corpus, model = opened(settings)
    made = make_trainer(settings, corpus, model, with_mask=with_mask, is_right=is_right, **options)
    made.add_callback(Ticks())
    made.train()


def make_trainer(
    settings: Settings,
    corpus: Corpus,
    model: PreTrainedModel,
    *,
    with_mask: bool,
    is_right: bool = False,
    optimizers: Any = (None, None),
    **options: Any,
) -> Any:
    """A `Trainer` for a run's settings; its ``optimizers`` are AdamW and a linear schedule unless they are given."""
    from transformers import Trainer, TrainingArguments

    config = settings.train
    collator: Any = _collator(corpus)
    loss = None
    if is_right:
        masks: dict[str, Any] = {"mlm_probability": corpus.config.mlm_probability, "gives_positions": True}
        collator, loss = MaskedLMCollator(corpus.tokenizer, **masks), MaskedLMLoss(model)
    if not with_mask:
        corpus.tokenizer.model_input_names = ["input_ids"]  # or the collator makes a mask of ones
        if hasattr(model, "sparse_prediction"):  # ModernBERT's own head on masked positions
            model.sparse_prediction = not is_right
    arguments = TrainingArguments(
        output_dir=settings.data.cache_dir,  # where it writes nothing
        per_device_train_batch_size=config.global_batch_size,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),  # or it refuses bf16 there
        disable_tqdm=True,
        seed=config.seed,
        torch_compile=config.torch_compile and not with_mask,
        **options,
    )
    data: Any = (collator, _rows(corpus, with_mask=with_mask))
    return Trainer(model, arguments, *data, compute_loss_func=loss, optimizers=optimizers)


def accelerate_loop(settings: Settings, tick: Tick) -> None:
    """A loop like transformers' run_mlm_no_trainer.py, with clipping."""
    corpus, model = opened(settings)
    config = settings.train
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    decays: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays["bias" not in name and "LayerNorm.weight" not in name].append(parameter)
    groups: list[dict[str, Any]] = [{"params": decays[True]}, {"params": decays[False], "weight_decay": 0.0}]
    optimizer: Any = AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    rows: Any = _rows(corpus, with_mask=True)
    size = config.global_batch_size
    loader: Any = DataLoader(rows, shuffle=True, collate_fn=_collator(corpus), batch_size=size, drop_last=True)
    schedule = get_scheduler("linear", optimizer, 0, config.max_steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    epochs: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, config.max_steps):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tick()


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
CONTENDERS: dict[str, Contender] = {
    "this project": this_project,
    "Trainer": partial(trainer, with_mask=True),
    "Trainer, tuned": partial(trainer, with_mask=False, **_TUNED),
    "Trainer, MaskedLMLoss": partial(trainer, with_mask=False, is_right=True, **_TUNED),
    "Accelerate loop": accelerate_loop,
}
_padded: Contender = partial(this_project, side_by_side=False)
WAYS: dict[str, Contender] = {"this project": this_project, "padded or masked": _padded}
