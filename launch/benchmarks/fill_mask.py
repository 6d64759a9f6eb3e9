"""Filling masks: `FillMask` beside ``pipeline("fill-mask")``, on one model and the same sentences.

- ``as it comes``: the pipeline is given the list of texts and no batch size, `FillMask` the list.
- ``batch_size=32``: the pipeline is told to batch.
- ``one at a time``: both are called text by text, as a server does.

The model has random weights, which take as long as trained ones. The word in
the middle of each sentence is masked.
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from data.blocks.vocabulary import vocab_size
from launch.benchmarks import measuring
from launch.benchmarks.text import Text, write_text
from train_loop.inference.fill_mask import FillMask
from train_loop.model import open_model

_WORDS = range(6, 41)  # in a sentence
_BATCH = 32
_WARM_UP_TEXTS = 40
_OURS, _OURS_ALONE = "FillMask", "FillMask, text by text"
_PIPELINE, _PIPELINE_BATCHED, _PIPELINE_ALONE = "pipeline", f"pipeline, batch_size={_BATCH}", "pipeline, text by text"
_CASES = {  # ours, theirs, what is required
    "as it comes": (_OURS, _PIPELINE, 4.0),
    f"batch_size={_BATCH}": (_OURS, _PIPELINE_BATCHED, 1.8),
    "one at a time": (_OURS_ALONE, _PIPELINE_ALONE, 1.3),
}


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text, the tokenizer or the model cannot be opened, or there are no sentences.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(options, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(text.tokenizer)
        sentences = masked_sentences(text, text.config(Path(folder), options.length), str(tokenizer.mask_token))
        texts = list(itertools.islice(sentences, options.texts))
    if not texts:
        raise ValueError(f"texts={options.texts}: dataset={options.dataset!r} has no sentence to fill a mask of")
    model = open_model(options.model, tokenizer, vocab_size=vocab_size(tokenizer), block_size=1, seed=0).eval()
    speeds = measure(model, tokenizer, texts, options.repeats)
    report = {
        "benchmark": "fill_mask",
        "surroundings": measuring.surroundings(),
        "repeats": options.repeats,
        "model": asdict(options.model),
        "num_texts": len(texts),
        "cases": [_case(name, speeds) for name in _CASES],
    }
    header = ["texts/s", "this project", "the pipeline", "ratio", "required"]
    measuring.print_report(report, header, [_row(case) for case in report["cases"]], as_json=options.json)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], repeats: int
) -> dict[str, list[float]]:
    """Texts per second of each way, in each round; they take turns, so that a busy moment slows all of them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fill_mask = FillMask(model, tokenizer, device)
    pipe = pipeline("fill-mask", model=model, tokenizer=tokenizer, device=device)
    ways: dict[str, Callable[[list[str]], Any]] = {
        _OURS: fill_mask,
        _PIPELINE: pipe,
        _PIPELINE_BATCHED: lambda texts: pipe(texts, batch_size=_BATCH),
        _OURS_ALONE: lambda texts: [fill_mask(text) for text in texts],
        _PIPELINE_ALONE: lambda texts: [pipe(text) for text in texts],
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(texts[:_WARM_UP_TEXTS])
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way(texts)  # returns Python numbers, so the GPU has finished
            speeds[name].append(len(texts) / (time.perf_counter() - start))
    return speeds


def masked_sentences(text: Text, config: Any, mask_token: str) -> Iterator[str]:
    """Yield the text's sentences of 6 to 40 words, each with its middle word masked."""
    for source in text.documents(config):
        for document in itertools.chain.from_iterable(source.texts()):
            for sentence in re.split(r"(?<=[.!?])\s+", document):
                words = sentence.split()
                if len(words) in _WORDS and words[len(words) // 2].isalpha():
                    words[len(words) // 2] = mask_token
                    yield " ".join(words)


def _case(name: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    ours, theirs, required = _CASES[name]
    return measuring.comparison(name, "texts/s", speeds[ours], speeds[theirs], "pipeline", required)


def _row(case: dict[str, Any]) -> list[str]:
    return [*measuring.comparison_row(case, "pipeline"), f"{case['required_ratio']:.3g}x"]
