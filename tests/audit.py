"""Audit another training loop: are its gradient and its loss right, with your model and versions?

python -m tests.audit trainer --model roberta-base    # Trainer, with its own loss and with MaskedLMLoss
python -m tests.audit accelerate --model_type bert    # a loop like run_mlm_no_trainer.py; tiny random weights
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from launch.run.errors import OneLineParser, one_line_errors
from launch.terminal.tables import print_rows
from train_loop.objectives.hf_loss import MaskedLMLoss

_MEANING = """
One update of 8 texts of 64 tokens, 15 % of them masked, cut in each way, without dropout and clipping. The true
gradient is that of the mean over all masked tokens of the update.
gradient x: how many times too long the loop's gradient is. cosine: 1 if it has the right direction.
eval loss x: the loss that the loop reports for other texts, over the mean over all of their masked tokens."""
_NUM_TEXTS, _LENGTH, _MASKED = 8, 64, 0.15
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TINY |= {"vocab_size": 160, "embedding_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FORMS = {"processes": "d", "accumulation": "d", "gradient x": ".3f", "cosine": ".4f"}
_FORMS |= {"eval loss": ".4f", "true eval loss": ".4f", "eval loss x": ".3f"}

Row = dict[str, Any]
Texts = list[dict[str, Tensor]]
Gradient = dict[str, Tensor]  # by the names of the parameters


def audit(options: argparse.Namespace) -> None:
    """Measure and print. Raises ValueError for a model that cannot be opened, or a number that does not divide."""
    for processes, accumulation in itertools.product(options.processes, options.accumulation):
        if min(processes, accumulation) < 1 or _NUM_TEXTS % (processes * accumulation):
            raise ValueError(f"{processes} processes x accumulation {accumulation} must divide the {_NUM_TEXTS} texts")
    _open(options)  # a wrong name is told here, in one line
    rows = [row for processes in options.processes for row in _in_processes(options, processes)]
    if options.json:
        print("\n".join(map(json.dumps, rows)))
        return
    print_rows(rows, _FORMS)
    print("\n".join(_advice([row for row in rows if "MaskedLMLoss" not in row["loop"]])))


def _advice(rows: list[Row]) -> Iterator[str]:
    """What is wrong with the loop of these rows, and what to do."""
    worst = max(rows, key=lambda row: abs(row["gradient x"] - 1))
    if abs(worst["gradient x"] - 1) > 1e-3 or min(row["cosine"] for row in rows) < 0.9999:
        yield f"\nThe gradient is wrong: up to {worst['gradient x']:.2f} times the true one, in another direction."
        if worst["loop"] == "Trainer":
            yield "Trainer(..., compute_loss_func=MaskedLMLoss(model)), from train_loop, is right on all of these rows."
        else:
            yield "Divide the summed loss of each micro-batch by the number of masked tokens of the whole update."
    else:
        yield "\nThe gradient is right with this model."
    if max(abs(row["eval loss x"] - 1) for row in rows) > 1e-3:
        yield "The eval loss is a mean of means, which depends on the batch size: mlm evaluate gives the true one."


def _in_processes(options: argparse.Namespace, processes: int) -> list[Row]:
    """The rows of all loops and accumulations."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_child, (options, processes, Path(folder)), nprocs=processes)  # type: ignore[no-untyped-call]
        except Exception as error:  # with the traceback of a process
            *_, reason = str(error).strip().splitlines()
            raise ValueError(f"a loop failed on {processes} processes: {reason}") from error
        return json.loads((Path(folder) / "rows.json").read_text())


@dataclass(frozen=True)
class Case:
    """An update to make: the texts of all processes, those to evaluate on, and how the update is cut."""

    model: PreTrainedModel
    texts: Texts
    others: Texts
    accumulation: int
    size: int  # texts in a micro-batch
    folder: Path


def _child(rank: int, options: argparse.Namespace, processes: int, folder: Path) -> None:
    """Make updates with the loops in one process of several; the first writes what was found."""
    for output in (1, 2):  # what the libraries say is of no use
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # wanted, and not used: they meet in the folder
        distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    rows = []
    for (name, loop), accumulation in itertools.product(LOOPS[options.loop].items(), options.accumulation):
        model = _open(options).train()
        size = _NUM_TEXTS // (accumulation * processes)
        case = Case(model, _texts(model, 0, _NUM_TEXTS), _texts(model, 1, _NUM_TEXTS - 2), accumulation, size, folder)
        _true_loss(model, case.texts).backward()  # type: ignore[no-untyped-call]
        true = _gradient(model)
        model.zero_grad()
        found, told = loop(case)
        with torch.no_grad():
            loss = float(_true_loss(model.eval(), case.others))
        ours, theirs = (torch.cat([of[name].flatten() for name in true]).double() for of in (true, found))
        row: Row = {"loop": name, "processes": processes, "accumulation": accumulation}
        row |= {"gradient x": float(theirs.norm() / ours.norm()), "cosine": float(F.cosine_similarity(ours, theirs, 0))}
        rows.append(row | {"eval loss": told, "true eval loss": loss, "eval loss x": told / loss})
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))


def _open(options: argparse.Namespace) -> PreTrainedModel:
    """The model without dropout, the same in each process."""
    torch.manual_seed(0)
    name = options.model or options.model_type
    try:
        config = AutoConfig.from_pretrained(name) if options.model else AutoConfig.for_model(name, **_TINY)
        for rate in [key for key, value in vars(config).items() if "drop" in key and isinstance(value, float)]:
            setattr(config, rate, 0.0)
        if options.model:
            return AutoModelForMaskedLM.from_pretrained(name, config=config, dtype=torch.float32, use_safetensors=True)
        return AutoModelForMaskedLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{name!r} cannot be opened as a masked language model: {problem}") from error


def _texts(model: PreTrainedModel, seed: int, number: int) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(number):
        ids = torch.randint(5, model.get_input_embeddings().num_embeddings, (_LENGTH,), generator=generator)
        chosen = torch.rand(_LENGTH, generator=generator) < _MASKED
        labels = torch.where(chosen, ids, -100)
        ids[chosen] = 4
        texts.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return texts


def _collate(texts: Texts, *, gives_positions: bool = False) -> dict[str, Tensor]:
    batch = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
    positions = torch.nonzero(batch["labels"].flatten() != -100).flatten()
    return batch | {"masked_positions": positions} if gives_positions else batch


def _true_loss(model: PreTrainedModel, texts: Texts) -> Tensor:
    """The mean over all masked tokens."""
    batch = _collate(texts)
    labels = batch.pop("labels").flatten()
    return F.cross_entropy(model(**batch).logits.flatten(0, 1), labels)


def _gradient(model: torch.nn.Module) -> Gradient:
    named = model.named_parameters()
    return {name.removeprefix("module."): p.grad.clone() for name, p in named if p.grad is not None}


class _Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of the last update, as the optimizer gets it."""

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradient = _gradient(model)


def trainer(case: Case, *, mends: bool) -> tuple[Gradient, float]:
    """`Trainer`, with its own loss or with `MaskedLMLoss`."""
    arguments = TrainingArguments(
        output_dir=str(case.folder),
        max_steps=1,
        per_device_train_batch_size=case.size,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=case.accumulation,
        max_grad_norm=0.0,
        learning_rate=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    gradients, loss = _Gradients(), MaskedLMLoss(case.model) if mends else None
    data: Any = (partial(_collate, gives_positions=mends), case.texts, case.others)
    loop = Trainer(case.model, arguments, *data, compute_loss_func=loss, callbacks=[gradients])
    loop.train()
    return gradients.gradient, float(loop.evaluate()["eval_loss"])


def accelerate_loop(case: Case) -> tuple[Gradient, float]:
    """The loop of transformers' run_mlm_no_trainer.py."""
    accelerator = Accelerator(gradient_accumulation_steps=case.accumulation)
    loaders: Any = (DataLoader(case.texts, case.size), DataLoader(case.others, 2))  # type: ignore[arg-type]
    optimizer: Any = torch.optim.SGD(case.model.parameters(), lr=0.0)
    model, optimizer, train_loader, eval_loader = accelerator.prepare(case.model, optimizer, *loaders)
    gradient: Gradient = {}
    for batch in train_loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            gradient = _gradient(model)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        losses = [accelerator.gather_for_metrics(model(**batch).loss.repeat(2)) for batch in eval_loader]
    return gradient, float(torch.cat(losses)[: len(case.others)].mean())


LOOPS: dict[str, dict[str, Callable[[Case], tuple[Gradient, float]]]] = {
    "trainer": {"Trainer": partial(trainer, mends=False), "Trainer with MaskedLMLoss": partial(trainer, mends=True)},
    "accelerate": {"Accelerate loop": accelerate_loop},
}


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print a row for each loop and each way, and what to do."""
    parser = OneLineParser(prog="python -m tests.audit", description=f"{__doc__}{_MEANING}")
    parser.add_argument("loop", choices=("trainer", "accelerate"), help="the loop to audit")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="DIR_OR_ID", help="a model as AutoModelForMaskedLM opens it")
    model.add_argument("--model_type", metavar="TYPE", help="random weights of a tiny model of this type")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    parser.add_argument("--json", action="store_true", help="print one JSON line a row")
    options = parser.parse_args(arguments)
    audit(options)


if __name__ == "__main__":
    main(sys.argv[1:])
