"""A model for ONNX Runtime: ``model.onnx``, with the tokenizer and the configuration beside it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from train_loop.checkpoint import whole_or_nothing
from train_loop.model import load_model, max_positions

_LARGEST_FILE = 1_500_000_000  # bytes; a protobuf message holds two GB, and other weights go to a file beside it
_LONGEST_COMPARED = 2_048  # tokens; of a vocabulary of 50,000 their logits are 400 MB


class Comparison(NamedTuple):
    """How close an exported model is to its origin, over the tokens of some random texts.

    Attributes:
        difference: The largest of a logit.
        spread: Of the logits: their standard deviation.
        lengths: Of the texts, in tokens.
    """

    difference: float
    spread: float
    lengths: tuple[int, ...]


def export_onnx(name: str, output: Path) -> Comparison:
    """Write a folder that ONNX Runtime and Optimum open; return how close its logits are to the model's.

    The graph takes ``input_ids`` and ``attention_mask``, ``[batch, length]`` int64
    of any size, and gives ``logits``, ``[batch, length, V]`` in fp32.

    Args:
        name: A folder, or an id of the Hub.
        output: Written whole or not at all.

    Raises:
        ValueError: A package is missing, there is no such model, or ONNX Runtime computes something else than it does.
        OSError: It could not be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise ValueError(f'the ONNX export needs {package}: pip install "mlm-train-loop[onnx]"')
    model = load_model(name, needs_all_weights=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    is_large = sum(parameter.nbytes for parameter in model.parameters()) > _LARGEST_FILE
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with whole_or_nothing(output) as folder:
        torch.onnx.export(
            _Logits(model),
            _inputs(model, (16, 8)),
            str(folder / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(axes, axes),
            external_data=is_large,
            verbose=False,
        )
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        compared = compare_logits(model, folder / "model.onnx")
        if not compared.difference < 1e-4 * compared.spread:  # rounding makes 1e-6; "not <" takes NaN for a difference
            raise ValueError(
                f"ONNX Runtime's logits differ by {compared.difference:.2g} from those of "
                f"model_type {model.config.model_type!r}"
            )
    return compared


class _Logits(nn.Module):
    """The graph: tensors in, a tensor out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _inputs(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``[B, L]`` random tokens in rows of these lengths, padded to the first, which is the longest; and their mask."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(1, vocab_size, (len(lengths), lengths[0]), generator=generator)
    # Never the padding token, which has no position of its own in RoBERTa's kin.
    input_ids = (input_ids + (getattr(model.config, "pad_token_id", None) or 0)) % vocab_size
    return input_ids, (torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
def compare_logits(model: PreTrainedModel, path: Path) -> Comparison:
    """Compare the logits of a graph with its model's, on texts as long as the model takes, or 2,048 tokens."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}  # a model without attention may have no mask
    longest = min(max_positions(model), _LONGEST_COMPARED)
    batches = ((5,), (31, 31, 16), (longest, longest // 2))
    differences, spreads = [], []
    for lengths in batches:
        input_ids, attention_mask = _inputs(model, lengths)
        expected = model(input_ids=input_ids, attention_mask=attention_mask).logits
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = session.run(["logits"], {name: array for name, array in inputs.items() if name in names})
        rows = zip(logits, expected.numpy(), lengths, strict=True)
        differences += [float(np.abs(ours[:length] - theirs[:length]).max()) for ours, theirs, length in rows]
        spreads.append(float(expected.std()))
    return Comparison(float(np.max(differences)), min(spreads), tuple(length for batch in batches for length in batch))
