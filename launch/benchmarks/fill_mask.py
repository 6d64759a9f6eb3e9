"""Compares `FillMask` with ``pipeline("fill-mask")``, on one model and the same sentences.

Both get a list of texts, which the pipeline takes one by one unless it is told to batch, or text by text, as a server.
The model has random weights, which take as long as trained ones. The word in the middle of each sentence is masked.
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from data.blocks.vocabulary import vocab_size
from data.documents.documents import Documents
from launch.benchmarks.measuring import interleave, print_comparisons
from launch.benchmarks.text import open_text, write_text
from train_loop.inference.fill_mask import FillMask
from train_loop.model import open_model

_WORDS = range(6, 41)  # in a sentence
_BATCH, _WARM_UP_TEXTS = 32, 40


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        documents, tokenizer, _ = open_text(write_text(options, Path(folder)))
        texts = list(itertools.islice(masked_sentences(documents, str(tokenizer.mask_token)), options.texts))
    if not texts:
        raise ValueError(f"texts={options.texts}: dataset={options.dataset!r} has no sentence to fill a mask of")
    model = open_model(options.model, tokenizer, vocab_size=vocab_size(tokenizer), block_size=1, seed=0).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fill_mask = FillMask(model, tokenizer, device)
    pipe = pipeline("fill-mask", model=model, tokenizer=tokenizer, device=device)
    ways: dict[str, Callable[[list[str]], Any]] = {
        "ours": fill_mask,
        "pipeline": pipe,
        "pipeline, batched": lambda texts: pipe(texts, batch_size=_BATCH),
        "ours, alone": lambda texts: [fill_mask(text) for text in texts],
        "pipeline, alone": lambda texts: [pipe(text) for text in texts],
    }
    for way in ways.values():
        way(texts[:_WARM_UP_TEXTS])
    speeds = interleave({name: partial(_rate, way, texts) for name, way in ways.items()}, options.repeats)
    compared = [
        ("as it comes", "ours", "pipeline"),
        (f"batch_size={_BATCH}", "ours", "pipeline, batched"),
        ("one at a time", "ours, alone", "pipeline, alone"),
    ]
    facts = {"model": asdict(options.model), "num_texts": len(texts)}
    print_comparisons(options, speeds, compared, unit="texts/s", rival="pipeline", **facts)


def _rate(way: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Texts per second."""
    start = time.perf_counter()
    way(texts)  # returns Python numbers, so the GPU has finished
    return len(texts) / (time.perf_counter() - start)


def masked_sentences(documents: Sequence[Documents], mask_token: str) -> Iterator[str]:
    """Yield the sentences of 6 to 40 words, each with its middle word masked."""
    for source in documents:
        for document in itertools.chain.from_iterable(source.texts()):
            for sentence in re.split(r"(?<=[.!?])\s+", document):
                words = sentence.split()
                if len(words) in _WORDS and words[len(words) // 2].isalpha():
                    words[len(words) // 2] = mask_token
                    yield " ".join(words)
