"""A model for ONNX Runtime: ``model.onnx``, with the tokenizer and the configuration beside it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from train_loop.checkpoint import whole_or_nothing
from train_loop.model import load_model

_LARGEST_FILE = 1_500_000_000  # bytes; a protobuf message holds two GB, and other weights go to a file beside it


def export_onnx(name: str, output: Path) -> float:
    """Write a folder that ONNX Runtime and Optimum open; return the largest difference of a logit from the model's.

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
            _inputs(model, batch=2, length=16),
            str(folder / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(axes, axes),
            external_data=is_large,
            verbose=False,
        )
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        difference, spread = _compare(model, folder / "model.onnx")
        if not difference < 1e-4 * spread:  # rounding makes 1e-6 of it; "not <" takes NaN for a difference
            raise ValueError(
                f"ONNX Runtime's logits differ by {difference:.2g} from those of model_type {model.config.model_type!r}"
            )
    return difference


class _Logits(nn.Module):
    """The graph: tensors in, a tensor out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _inputs(model: PreTrainedModel, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random tokens; the last block is padded to twice its length."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(vocab_size, (batch, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, (length + 1) // 2 :] = 0
    return input_ids, attention_mask


@torch.no_grad()
def _compare(model: PreTrainedModel, path: Path) -> tuple[float, float]:
    """The largest difference of a logit, over several shapes, and the logits' spread."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}  # a model without attention may have no mask
    differences, spreads = [], []
    for batch, length in ((1, 5), (3, 31)):
        input_ids, attention_mask = _inputs(model, batch, length)
        expected = model(input_ids=input_ids, attention_mask=attention_mask).logits
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = session.run(["logits"], {name: array for name, array in inputs.items() if name in names})
        is_token = attention_mask.bool().numpy()
        differences.append(float(np.abs(logits - expected.numpy())[is_token].max()))
        spreads.append(float(expected.std()))
    return max(differences), min(spreads)
