"""A tied embedding's gradient as one matrix.

Where the weight of the logits is the embedding's too, autograd makes a gradient
of the whole vocabulary for each of the two uses and adds them up, though the
lookup's is zero but for the batch's tokens. On a CPU that costs a tenth of an
update, and two matrices of memory. Here the lookup's gradient is sparse, and is
added in place to that of the logits.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel


def call_model(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    """``model(**inputs)``, with the same gradients; on a GPU and without a tied embedding it is that very call.

    A GPU gains nothing by it, and would add the rows in another order each time.
    """
    lookup = model.get_input_embeddings()
    names = _uses(model, lookup)
    if lookup.weight.device.type != "cpu" or not (torch.is_grad_enabled() and lookup.weight.requires_grad) or not names:
        return model(**inputs)
    for_lookup, for_logits = _TwoUses.apply(lookup.weight)  # type: ignore[no-untyped-call]
    weights = {name: for_lookup if module is lookup else for_logits for name, module in names.items()}
    lookup.sparse = True  # for the length of the call: DDP would expect a sparse gradient of the parameter
    try:
        return functional_call(model, weights, kwargs=inputs, tie_weights=False)
    finally:
        lookup.sparse = False


def _uses(model: PreTrainedModel, lookup: nn.Module) -> dict[str, nn.Module]:
    """Where the embedding's weight stands, by full name; empty if it has one place, or is no plain embedding."""
    if not isinstance(lookup, nn.Embedding):
        return {}
    places = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is lookup.weight
    }
    return places if len(places) > 1 else {}


class _TwoUses(torch.autograd.Function):
    """The weight, once for each use."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, of_lookup: Tensor | None, of_logits: Tensor | None) -> Tensor | None:
        if of_lookup is None or of_logits is None:
            return of_logits if of_lookup is None else of_lookup.to_dense()
        return of_logits.add_(of_lookup)
