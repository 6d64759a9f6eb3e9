"""Which layers are compiled, and when; tests/launch/test_torch_compile.py trains with them."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.models import tiny_model
from train_loop import MaskedLMObjective, gather_in_last_layer
from train_loop.speed.compile import compile_layers
from train_loop.speed.flops import count_flops


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_all_layers_but_one_that_gathers_and_nothing_outside_of_training(family: str) -> None:
    plain, compiled = (MaskedLMObjective(tiny_model(family)) for _ in range(2))
    gathers = [gather_in_last_layer(objective.logits) for objective in (plain, compiled)]
    assert compile_layers(compiled) == (1 if all(gathers) else 2)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    counters.clear()
    input_ids, positions = torch.arange(5, 37).reshape(2, 16), torch.tensor([3, 20])
    logits = [objective.eval().logits(input_ids, positions) for objective in (plain, compiled)]
    assert torch.equal(*logits)
    assert count_flops(compiled.train(), 16) == count_flops(plain.train(), 16)
    assert not counters["frames"]
