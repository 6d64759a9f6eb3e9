"""Exports a model to ONNX: ``model.onnx``, with the tokenizer and the configuration beside it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from train_loop.checkpoint import whole_or_nothing
from train_loop.inference.predictor import load_with_tokenizer
from train_loop.model import max_positions
from train_loop.objectives.checks import random_texts

_LARGEST_FILE = 1_500_000_000  # bytes; a protobuf message holds at most 2 GB, so larger weights go to a file beside it
_LONGEST_COMPARED = 2_048  # tokens; with a vocabulary of 50,000, their logits take 400 MB


class Comparison(NamedTuple):
    """How close a graph is to its model, over the tokens of some random texts."""

    difference: float  # the largest between two logits
    spread: float  # the standard deviation of the logits
    lengths: tuple[int, ...]  # of the texts, in tokens


def export_onnx(name: str, output: Path) -> Comparison:
    """Write a folder that ONNX Runtime and Optimum open; return how close its logits are to the model's.

    The graph takes ``input_ids`` and ``attention_mask``, ``[batch, length]`` int64 of any size, and returns ``logits``,
    ``[batch, length, V]`` in fp32. The model is a folder, or an id of the Hub; the new folder is written completely or
    not at all.

    Raises:
        ValueError: A package is missing, there is no such model, or ONNX Runtime computes other logits.
        OSError: The folder could not be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise ValueError(f'the ONNX export needs {package}: pip install "mlm-train-loop[onnx]"')
    model, tokenizer = load_with_tokenizer(name)
    is_large = sum(parameter.nbytes for parameter in model.parameters()) > _LARGEST_FILE
    names = ("input_ids", "attention_mask")
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with whole_or_nothing(output) as folder:
        torch.onnx.export(
            model,
            f=str(folder / "model.onnx"),
            kwargs=dict(zip(names, random_texts(model, (16, 8)), strict=True)),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, axes),
            external_data=is_large,
            verbose=False,
        )
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        compared = compare_logits(model, folder / "model.onnx")
        if not compared.difference < 1e-4 * compared.spread:  # rounding is about 1e-6 of it; "not <" also refuses NaN
            raise ValueError(f"ONNX Runtime's logits differ by {compared.difference:.2g} from those of {name!r}")
    return compared


@torch.no_grad()
def compare_logits(model: PreTrainedModel, path: Path) -> Comparison:
    """Compare the logits of a graph with its model's, on texts up to the model's length or 2,048 tokens."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}  # the graph of a model without attention may have no mask
    longest = min(max_positions(model), _LONGEST_COMPARED)
    batches = ((5,), (31, 31, 16), (longest, longest // 2))
    differences, spreads = [], []
    for lengths in batches:
        input_ids, attention_mask = random_texts(model, lengths)
        expected = model(input_ids=input_ids, attention_mask=attention_mask).logits
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = session.run(["logits"], {name: array for name, array in inputs.items() if name in names})
        rows = zip(logits, expected.numpy(), lengths, strict=True)
        differences += [float(np.abs(ours[:length] - theirs[:length]).max()) for ours, theirs, length in rows]
        spreads.append(float(expected.std()))
    return Comparison(float(np.max(differences)), min(spreads), tuple(length for batch in batches for length in batch))
