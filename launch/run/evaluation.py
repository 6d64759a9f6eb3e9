"""Evaluates trained models on texts: a row for each."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from tqdm import tqdm

from data.batches.loader import Place
from data.blocks.vocabulary import vocab_size
from launch.run.corpus import open_corpus
from launch.run.loaders import eval_loader
from launch.run.processes import start_accelerator
from launch.run.settings import Settings
from launch.run.summary import show_log
from launch.terminal.tables import print_rows
from train_loop.evaluate import evaluate, sum_over_processes
from train_loop.inference.scoring import TextScorer
from train_loop.model import check_fit, load_model
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.processes import Processes

Row = dict[str, Any]
Work = Callable[[Settings, Accelerator, Processes], list[Row]]  # all processes do it; the rows are the main process's

_PLL = "PLL_bits_per_byte"
_FORMS = {"loss": ".4f", "perplexity": ".2f", "accuracy": ".1%", "masked_tokens": ",", "bits_per_byte": ".4f"}
_FORMS |= {_PLL: ".4f", "num": ",", "low": ".1%", "high": ".1%"}


def evaluate_all(cases: Sequence[tuple[Settings, Work]], *, as_json: bool) -> None:
    """Do some work with the model of each of the settings, and print its rows as tables or JSON lines."""
    show_log()
    transformers.utils.logging.disable_progress_bar()
    first = cases[0][0].train
    accelerator = start_accelerator(first)
    processes = Processes(accelerator, first.process_timeout, lambda: False)
    tables: dict[tuple[str, ...], list[Row]] = {}
    for settings, work in cases:
        for row in work(settings, accelerator, processes):
            tables.setdefault(tuple(row), []).append(row)
            if as_json and processes.is_main:
                print(json.dumps(row), flush=True)
    if processes.is_main and not as_json:
        for rows in tables.values():
            print_rows(rows, _FORMS)
    processes.close()
    accelerator.end_training()


def evaluate_text(
    settings: Settings, accelerator: Accelerator, processes: Processes, *, num_scored: int | None
) -> list[Row]:
    """Evaluate on the evaluation text of the settings; the first texts, so many, by pseudo-likelihood too."""
    corpus = processes.first_of_machine_first(lambda: open_corpus(settings, trains=False))
    data, config = corpus.config, settings.model
    name = str(config.model_name_or_path)

    def load() -> MaskedLMObjective:
        model = load_model(name, config.model_revision, config.attn_implementation, needs_all_weights=True)
        check_fit(model, config, vocab_size=vocab_size(corpus.tokenizer), block_size=data.block_size)
        objective = MaskedLMObjective(model.to(accelerator.device))
        kinds = {"document_attention": data.document_attention, "has_padding": data.has_padding}
        with accelerator.autocast():
            objective.adapt(settings.train, data.block_size, **kinds)
        return objective

    objective = processes.together(load)
    place = Place(processes.rank, processes.number, accelerator.device)
    batches = eval_loader(settings, corpus, place, is_flat=objective.takes_documents)
    total = -(-len(corpus.eval) // processes.number // settings.train.per_device_eval_batch_size)
    metrics = evaluate(accelerator, objective, _bar(batches, "evaluating", total, processes))
    numbers = metrics.row(corpus.eval_tokens_per_byte)
    row: Row = {"model": name, "text": ", ".join(source.name for source in corpus.held_out)}
    row |= {key.removeprefix("eval_").removeprefix("num_"): value for key, value in numbers.items()}
    if num_scored is not None:
        texts = itertools.chain.from_iterable(batch for source in corpus.held_out for batch in source.texts())
        row |= _scored(name, texts, num_scored, accelerator, processes)
    return [row]


def _scored(name: str, texts: Iterable[str], most: int, accelerator: Accelerator, processes: Processes) -> Row:
    """Bits per byte by pseudo-likelihood, of the first texts that the model has positions for."""
    score = TextScorer.from_pretrained(name, device=accelerator.device)
    fitting = (text for text in texts if len(score.tokenizer(text, verbose=False)["input_ids"]) <= score.longest)
    if not (taken := list(itertools.islice(fitting, most))):
        raise ValueError(f"--pll {most}: no text fits into the {score.longest:,} positions of {name!r}")
    mine = taken[processes.rank :: processes.number]
    scored = _bar(score(iter(mine)), "pseudo-likelihood", len(mine), processes)
    sums = torch.tensor([sum(text.pseudo_log_likelihood for text in scored)], dtype=torch.double)
    (log_likelihood,) = sum_over_processes(accelerator, [sums])
    num_bytes = sum(len(text.encode()) for text in taken)
    return {_PLL: -log_likelihood / math.log(2) / num_bytes, "PLL_texts": len(taken)}


def _bar(items: Iterable[Any], title: str, total: int, processes: Processes) -> Iterable[Any]:
    return tqdm(items, title, total, leave=False, disable=None if processes.is_main else True)
