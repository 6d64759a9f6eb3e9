"""A tied embedding's gradient is made as one matrix of the vocabulary (that it is the right one: test_objective)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.models import tiny_model
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
    loss = MaskedLMObjective(model)(input_ids, positions, input_ids.flatten()[positions])
    with _Matrices(weight.shape) as matrices:
        loss.backward()
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    assert matrices.addresses - {weight.data_ptr()} == {weight.grad.data_ptr()}
    assert not model.get_input_embeddings().sparse
