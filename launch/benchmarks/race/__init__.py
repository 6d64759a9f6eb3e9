"""A race of recipes: who learns a fixed text best, in a fixed time or with a fixed count of operations?

An entry is a recipe of ``mlm train``, in the folder that is named for the loop that trains it. `text` is what they
learn, by the same tokenizer; all are scored by bits per byte on the same held-out files and masks. ``ledger.jsonl``
holds the results, each with its recipe, seeds and commit, from which it can be raced again.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.cores import available_cores
from launch.benchmarks.measuring import in_child
from launch.benchmarks.race.text import write_text
from launch.benchmarks.train import make_trainer, opened
from launch.run.calling import settings_of_call
from launch.run.environment import git_state, processor
from launch.run.evaluation import evaluate_text
from launch.run.folder import RunFolder
from launch.run.processes import start_accelerator
from launch.run.settings import Settings
from launch.run.training import set_up, train_to_end
from launch.terminal.tables import print_rows
from train_loop import run_files
from train_loop.inference.pairs import T_95
from train_loop.optim import build_schedule
from train_loop.optimizers.groups import build_optimizers
from train_loop.processes import Processes
from train_loop.speed.flops import count_flops, flops_of
from train_loop.watching.run_record import read_run

LIMITS = {"seconds": 60.0, "flops": 2e12}
_FOLDER = Path(__file__).parent
_FORMS = {"updates": ",", "seconds": ".1f", "TFLOP": ".2f", "bits_per_byte": ".4f", "±95%": ".4f"}
_FORMS |= {"perplexity": ".2f", "replayed": "+.4f"}
# Bits per byte of models with other tokenizers compare by pseudo-likelihood only, which would take too long.
_SAME_FOR_ALL = {"train_tokenizer": True, "vocab_size": 2048, "max_eval_blocks": 1, "eval_on_start": False, "probe": ()}
_SCORED = {"block_size": 128, "mlm_probability": 0.15, "eval_seed": 0}

Row = dict[str, Any]


def run(options: argparse.Namespace) -> None:
    """Race the entries, or replay them, and print the ledger. Raises ValueError for an entry that is not there."""
    path = Path(options.ledger)
    ledger = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    results = {(row["entry"], row["limit"]): row for row in ledger}
    for path_or_name in options.entries:
        recipe_file = _recipe_file(path_or_name)
        entry = f"{recipe_file.parent.name}/{recipe_file.stem}"
        key = (entry, options.limit)
        if options.replay:
            row = _found(results, key)
            again = _race(entry, row["recipe"], row["seeds"][0], options.cache_dir)
            row["replayed"] = {"bits_per_byte": again["bits_per_byte"], **git_state(_FOLDER.parents[2])}
        else:
            recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8")) or {}
            if "max_steps" not in recipe:
                raise ValueError(f"{recipe_file}: max_steps is missing, as many updates as the limit allows")
            if options.limit == "flops":
                by_seconds = _found(results, (entry, "seconds"))
                updates = by_seconds["recipe"]["max_steps"] * LIMITS["flops"] / statistics.mean(by_seconds["flops"])
                recipe = by_seconds["recipe"] | {"max_steps": int(updates)}
            seeds = list(range(options.seeds))
            raced = [_race(entry, recipe, seed, options.cache_dir) for seed in seeds]
            of_all = {name: [one[name] for one in raced] for name in raced[0]}
            machine = {"processor": processor(), "cores": available_cores(), "torch": torch.__version__}
            head = {"entry": entry, "limit": options.limit, **git_state(_FOLDER.parents[2]), **machine}
            results[key] = {**head, "recipe": recipe, "seeds": seeds, **of_all}
        path.write_text("".join(json.dumps(row) + "\n" for row in results.values()), encoding="utf-8")
    if results:
        lines = sorted(map(_line, results.values()), key=lambda line: (line["within"], line["bits_per_byte"]))
        print_rows(lines, _FORMS)


def _recipe_file(entry: str) -> Path:
    path = (Path(entry) if entry.endswith(".yaml") else _FOLDER / f"{entry}.yaml").resolve()
    if path.parent.name not in _LOOPS or not path.is_file():
        known = sorted(f"{path.parent.name}/{path.stem}" for path in _FOLDER.glob("*/*.yaml"))
        raise ValueError(f"entry={entry!r} is none of {', '.join(known)}, nor a file in a folder named as theirs")
    return path


def _found(results: dict[tuple[str, str], Row], key: tuple[str, str]) -> Row:
    if key not in results:
        raise ValueError(f"the ledger has no result of {key[0]!r} by {key[1]}: race it first")
    return results[key]


def _race(entry: str, recipe: Row, seed: int, cache_dir: str) -> Row:
    """Train by a recipe and a seed, and score the model."""
    train, held_out = (str(path) for path in write_text(Path(cache_dir).expanduser()))
    texts = {"dataset": train, "eval_dataset": held_out, "cache_dir": cache_dir}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        given = {"recipe": path, "seed": seed, "output_dir": str(Path(folder, "run")), **texts, **_SAME_FOR_ALL}
        settings = settings_of_call({**given, "eval_steps": recipe["max_steps"]})
        cost = in_child(partial(_LOOPS[entry.partition("/")[0]], settings))
        model = {"model_name_or_path": Path(folder, "run", run_files.MODEL)}
        return cost | in_child(partial(_score, settings_of_call({**model, **texts, **_SCORED})))


def _ours(settings: Settings) -> Row:
    """Train as ``mlm train`` does."""
    ready = set_up(settings, RunFolder(settings.train))
    train_to_end(ready)
    rows = read_run(ready.run.output_dir).having("loss")
    counted = count_flops(ready.run.bare_objective, settings.data.block_size)
    flops = sum(counted.of(row["num_tokens"], row["num_masked_tokens"]) for row in rows)
    return {"seconds": rows[-1]["seconds"], "flops": flops}


def _trainer(settings: Settings, *, with_mask: bool, **options: Any) -> Row:
    """Train by `Trainer`, which is handed the recipe's optimizers and schedule."""
    corpus, model = opened(settings)
    total_steps = settings.train.max_steps
    assert total_steps is not None
    optimizer = _AsOne(build_optimizers(model, settings.train))
    optimizers = (optimizer, LambdaLR(optimizer, build_schedule(settings.train, total_steps)))
    trainer = make_trainer(settings, corpus, model, with_mask=with_mask, optimizers=optimizers, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    flops = 3 * flops_of(lambda: model(**batch)) * total_steps  # a backward takes twice a forward
    seconds = trainer.train().metrics["train_runtime"]
    folder = Path(settings.train.output_dir, run_files.MODEL)
    model.save_pretrained(folder)
    corpus.tokenizer.save_pretrained(folder)
    return {"seconds": seconds, "flops": flops}


class _AsOne(Optimizer):
    """Several optimizers as the one that `Trainer` takes."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for one in self.optimizers for group in one.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        theirs = (group for one in self.optimizers for group in one.param_groups)
        for mine, its in zip(self.param_groups, theirs, strict=True):
            its["lr"] = mine["lr"]
        for one in self.optimizers:
            one.step()


_LOOPS: dict[str, Callable[[Settings], Row]] = {
    "ours": _ours,
    "trainer": partial(_trainer, with_mask=True),  # as the guide uses it
    # No column of masks, ModernBERT's own head on the masked tokens, and loader workers.
    "tuned_trainer": partial(_trainer, with_mask=False, dataloader_num_workers=available_cores()),
}


def _score(settings: Settings) -> Row:
    accelerator = start_accelerator(settings.train)
    processes = Processes(accelerator, settings.train.process_timeout, lambda: False)
    (row,) = evaluate_text(settings, accelerator, processes, num_scored=None)
    return {name: row[name] for name in ("bits_per_byte", "perplexity")}


def _line(row: Row) -> Row:
    """What is shown of a result. One whose median is over the limit has no place."""
    scores, limit = row["bits_per_byte"], row["limit"]
    medians = {name: statistics.median(row[name]) for name in ("seconds", "flops", "perplexity")}
    half = T_95[len(scores)] * statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) in T_95 else math.nan
    return {
        "within": f"{LIMITS[limit]:g} {limit}" if medians[limit] <= LIMITS[limit] else f"over {limit}",
        "entry": row["entry"],
        "updates": row["recipe"]["max_steps"],
        "seconds": medians["seconds"],
        "TFLOP": medians["flops"] / 1e12,
        "bits_per_byte": statistics.mean(scores),
        "±95%": half,
        "perplexity": medians["perplexity"],
        "replayed": row.get("replayed", {}).get("bits_per_byte", math.nan) - scores[0],
        "commit": row.get("git_commit", "")[:7],
    }
