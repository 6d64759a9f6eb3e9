"""The vocabulary's matrix: one gradient of it, and padding that nobody sees."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.batches import as_batch
from tests.models import FAMILIES, tiny_model
from train_loop import MaskedLMObjective


class _Matrices(TorchDispatchMode):
    """Where the dense tensors of a shape, or of its transpose, lie."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shapes = (shape, shape[::-1])
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.addresses |= {
            leaf.data_ptr()
            for leaf in tree_leaves(output)
            if isinstance(leaf, Tensor) and leaf.shape in self.shapes and not leaf.is_sparse
        }
        return output


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "albert", "electra", "modernbert", "mpnet"])
def test_the_gradient_is_made_as_one_matrix(family: str) -> None:
    model = tiny_model(family)
    weight = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is weight
    input_ids = torch.randint(5, 300, (2, 16))
    positions = torch.arange(0, 32, 5)
    loss = MaskedLMObjective(model)(as_batch(input_ids, positions, input_ids.flatten()[positions]))
    with _Matrices(weight.shape) as matrices:
        loss.backward()
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    assert matrices.addresses - {weight.data_ptr()} == {weight.grad.data_ptr()}
    assert not model.get_input_embeddings().sparse


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logit_no_gradient_and_no_shape(family: str) -> None:
    model = tiny_model(family).eval()
    objective = MaskedLMObjective(model)
    input_ids = torch.randint(5, 300, (2, 16))
    positions = torch.arange(0, 32, 5)
    labels = input_ids.flatten()[positions]
    logits, gradients, columns = [], [], []
    weight = model.get_output_embeddings().weight
    for pad_to in (1, 64):
        objective.logits.pad_vocabulary_to = pad_to
        logits.append(objective.logits(input_ids, positions))
        with _Matrices(torch.Size((320, weight.shape[1]))) as padded:
            objective(as_batch(input_ids, positions, labels)).backward()
        columns.append(bool(padded.addresses))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert columns == [False, family != "mobilebert"]  # whose head reads the weight and calls no layer
    assert logits[1].shape == (len(positions), 300)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(g.abs().max()) for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)
