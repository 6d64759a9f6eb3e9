"""Compiled layers train as the others do, and compile once, whatever the number of masked tokens."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from tests.models import tiny_model, without_dropout
from train_loop import MaskedLMObjective, gather_in_last_layer
from train_loop.compilation import compile_layers

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # the compiler looks at it, and hides the warning itself
]


def _losses(objective: MaskedLMObjective) -> list[float]:
    """Of a few updates, each with another number of masked tokens."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for num_masked in (3, 7, 5, 4):
        input_ids = torch.randint(5, 300, (2, 16), generator=generator)
        positions = torch.randperm(32, generator=generator)[:num_masked].sort().values
        loss = objective(input_ids, positions, input_ids.flatten()[positions])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_compiled_layers_give_the_same_losses_and_compile_once(family: str) -> None:
    plain, compiled = (MaskedLMObjective(without_dropout(tiny_model(family))) for _ in range(2))
    gathers = [gather_in_last_layer(objective) for objective in (plain, compiled)]
    assert compile_layers(compiled) == (1 if all(gathers) else 2)
    torch.compiler.reset()
    counters.clear()
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-5)
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # ModernBERT's first layer has no norm
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
