"""``FillMask`` against ``pipeline("fill-mask")``, on one model and real sentences.

A RoBERTa of DistilRoBERTa's shape with random weights, which take the time that trained
ones do; sentences of the embedded corpus with one mask each; a byte-level BPE trained on
that corpus. The four ways take turns, so that a busy moment of the machine meets them all;
a ratio is the median over the turns.
"""

import argparse
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_VOCAB_SIZE = 50_265
_TOKENIZER_VOCAB_SIZE = 8_192  # the corpus is small
_WORDS = range(6, 41)  # in a sentence
_PIPELINE, _BATCHED, _OURS, _ALONE = "pipeline", "pipeline, batch_size=32", "FillMask", "FillMask, one at a time"
RATIOS = {
    "over the pipeline as it comes": (_PIPELINE, _OURS),
    "over the pipeline with batch_size=32": (_BATCHED, _OURS),
    "one text at a time": (_PIPELINE, _ALONE),
}


def run(repeats: int = 3, num_texts: int = 1000, device: str | None = None) -> dict[str, Any]:
    """Time all ways ``repeats`` times.

    Args:
        device: Default: the GPU if there is one.

    Returns:
        ``num_texts``, ``device``, ``num_threads``, median ``seconds`` of each way, and ``ratios``, larger than 1
        where `FillMask` is faster.
    """
    import torch
    from transformers import pipeline

    from train_loop import FillMask
    from train_loop.predictor import default_device

    device = device or default_device()
    model, tokenizer = _model_and_tokenizer()
    texts = list(itertools.islice(masked_sentences(str(tokenizer.mask_token)), num_texts))
    fill_mask = FillMask(model, tokenizer, device)
    pipe = pipeline("fill-mask", model=model, tokenizer=tokenizer, device=device)
    ways: dict[str, Callable[[list[str]], Any]] = {
        _PIPELINE: pipe,
        _OURS: fill_mask,
        _BATCHED: lambda texts: pipe(texts, batch_size=32),
        _ALONE: lambda texts: [fill_mask(text) for text in texts],
    }
    for way in ways.values():
        way(texts[:40])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way(texts)  # ends with Python numbers, so nothing is left under way on a GPU
            seconds[name].append(time.perf_counter() - start)
    return {
        "num_texts": len(texts),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "num_threads": torch.get_num_threads(),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": {
            name: statistics.median(a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True))
            for name, (theirs, ours) in RATIOS.items()
        },
    }


def print_result(result: dict[str, Any]) -> None:
    """A few lines to read."""
    print(f"{result['num_texts']:,} sentences, {result['device']}, {result['num_threads']} threads")
    for name, seconds in result["seconds"].items():
        print(f"  {name:<28} {seconds:8.2f} s  {result['num_texts'] / seconds:8.1f} texts/s")
    for name, ratio in result["ratios"].items():
        print(f"  {ratio:5.2f} times as fast: {name}")


def masked_sentences(mask_token: str) -> Iterator[str]:
    """Yield sentences of the embedded corpus, each with its middle word masked."""
    from data.python_docs import rows

    for row in rows():
        for paragraph in row["answers"]["text"]:
            for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
                words = sentence.split()
                if len(words) in _WORDS and words[len(words) // 2].isalpha():
                    words[len(words) // 2] = mask_token
                    yield " ".join(words)


def _model_and_tokenizer() -> tuple[Any, Any]:
    import torch
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    from data.python_docs import rows
    from data.tokenization import train_bpe

    torch.manual_seed(0)
    shape = RobertaConfig(
        vocab_size=_VOCAB_SIZE, num_hidden_layers=6, max_position_embeddings=514, type_vocab_size=1,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    backend = train_bpe((row["answers"]["text"] for row in rows()), _TOKENIZER_VOCAB_SIZE)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", **special)
    return RobertaForMaskedLM(shape).eval(), tokenizer


def main(arguments: list[str]) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m launch.benchmarks.fill_mask", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--num_texts", type=int, default=1000, metavar="N")
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    print_result(run(options.repeats, options.num_texts, options.device))


if __name__ == "__main__":
    main(sys.argv[1:])
