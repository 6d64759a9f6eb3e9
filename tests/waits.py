"""Finds what would wait for a GPU, on a machine that has none: operations whose result the processor needs."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from data import MaskedBatch

# A number read, and results whose shape follows from values. An index of booleans is one of these.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Counts such operations within it, by name. Block ids, and what follows from them, are on the processor anyway."""

    def __init__(self, batches: Iterable[MaskedBatch]) -> None:
        super().__init__()
        self.count = Counter[str]()
        self._on_the_processor = [batch.block_ids for batch in batches]  # held, so that no other takes their place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        by_flags = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        is_free = bool(args) and isinstance(args[0], Tensor) and any(args[0] is one for one in self._on_the_processor)
        if (name in _WAITS or by_flags) and not is_free:
            self.count[name] += 1
        result = func(*args, **(kwargs or {}))
        if is_free and isinstance(result, Tensor):
            self._on_the_processor.append(result)
        return result


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with an output layer of its own: for a tied one, a CPU has a way of its own for the gradient."""
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    return model
