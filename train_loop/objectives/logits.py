"""Faster products with the vocabulary's matrix, a model's largest one.

**One gradient, on a CPU.** Where the logits and the embedding share a weight, autograd makes a dense gradient for each
of the two uses and adds them up. The lookup's is zero except at the batch's tokens. This costs a tenth of an update and
two matrices of memory. Here the lookup's gradient is sparse, and is added in place to that of the logits. A GPU gains
nothing from this, and would add the rows in a different order each time.

**Padding, on a GPU.** Tensor cores need rows that begin at multiples of 16 bytes. RoBERTa's 50,265 logits do not, so
they are computed as if there were 50,304, and the surplus is cut off. No parameter changes its shape.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel


def compute_logits(model: PreTrainedModel, inputs: dict[str, Any], *, pad_to: int = 1) -> Tensor:
    """``model(**inputs).logits``, ``[..., V]``, with its gradients, computed as if V were a multiple of ``pad_to``."""
    lookup, to_logits = model.get_input_embeddings(), model.get_output_embeddings()
    if not (torch.is_grad_enabled() and isinstance(lookup, nn.Embedding) and isinstance(to_logits, nn.Linear)):
        return model(**inputs).logits
    weight = to_logits.weight
    weights: dict[str, Tensor] = {}
    if type(weight) is nn.Parameter and weight is lookup.weight and weight.requires_grad and weight.is_cpu:  # no shard
        names = {module: f"{name}.weight" for name, module in model.named_modules()}
        weights[names[lookup]], weights[names[to_logits]] = _TwoUses.apply(weight)  # type: ignore[no-untyped-call]
    # Only during the call: otherwise DDP would expect a sparse gradient of the parameter.
    lookup.sparse = bool(weights)
    if len(weight) % pad_to:
        vars(to_logits)["forward"] = partial(_padded, to_logits, pad_to)
    try:
        return functional_call(model, weights, kwargs=inputs, tie_weights=False).logits
    finally:
        lookup.sparse = False
        vars(to_logits).pop("forward", None)


def _padded(layer: nn.Linear, pad_to: int, hidden: Tensor) -> Tensor:
    """``layer(hidden)``, computed with rows of zeros below its weight."""
    vocab_size = len(layer.weight)
    missing = -vocab_size % pad_to
    bias = None if layer.bias is None else F.pad(layer.bias, (0, missing))
    return F.linear(hidden, F.pad(layer.weight, (0, 0, 0, missing)), bias)[..., :vocab_size]


class _TwoUses(torch.autograd.Function):
    """The weight for the lookup, and for the logits."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, of_lookup: Tensor | None, of_logits: Tensor | None) -> Tensor | None:
        if of_lookup is None or of_logits is None:
            return of_logits if of_lookup is None else of_lookup.to_dense()
        return of_logits.add_(of_lookup)
