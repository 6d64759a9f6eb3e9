"""Counted operations against those worked by hand, in training and in attention, and what counting leaves alone."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from tests.batches import as_batch
from tests.models import tiny_model
from train_loop import MaskedLMObjective, gather_in_last_layer
from train_loop.speed.flops import count_flops, measure_arithmetic

_LENGTH = 16
# A layer: four matrices of attention 32 x 32 and two of 32 x 48; the head: 32 x 32 and 32 x 300.
_FEED_FORWARD = 2 * 32 * 48
_LAYER = 4 * 32 * 32 + _FEED_FORWARD
_HEAD = 32 * 32 + 32 * 300
_ATTENTION = 2 * 2 * _LENGTH * 32  # of a token in a layer's forward: queries by keys, weights by values


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flops_by_hand(attention: str) -> None:
    """A matrix of P parameters costs 2 P in the forward and 4 P in the backward; two layers."""
    model = tiny_model("roberta")
    model.set_attn_implementation(attention)
    flops = count_flops(MaskedLMObjective(model), _LENGTH)
    assert flops.per_token == 3 * (2 * 2 * _LAYER + 2 * _ATTENTION)
    assert flops.per_masked_token == 3 * 2 * _HEAD
    assert flops.of(100, 15) == 100 * flops.per_token + 15 * flops.per_masked_token


def test_the_last_layers_end_costs_masked_tokens_only() -> None:
    objective = MaskedLMObjective(tiny_model("roberta"))
    assert gather_in_last_layer(objective.logits)
    flops = count_flops(objective, _LENGTH)
    end = _FEED_FORWARD + 32 * 32  # and the attention's output matrix
    assert flops.per_token == 3 * (2 * (2 * _LAYER - end) + 2 * _ATTENTION)
    assert flops.per_masked_token == 3 * 2 * (_HEAD + end)


def test_counted_in_a_forward_are_those_of_a_forward_and_a_backward() -> None:
    model = tiny_model("roberta")
    model.set_attn_implementation("eager")
    objective = MaskedLMObjective(model)
    assert gather_in_last_layer(objective.logits)
    positions = torch.tensor([1, 4, 9])
    with FlopCounterMode(display=False) as counter:
        objective(as_batch(torch.zeros(1, _LENGTH, dtype=torch.long), positions, positions)).backward()
    assert count_flops(objective, _LENGTH).of(_LENGTH, len(positions)) == counter.get_total_flops()


def test_measuring_changes_neither_the_objective_nor_the_random_numbers_to_come() -> None:
    objective = MaskedLMObjective(tiny_model("roberta")).train()
    state = torch.get_rng_state()
    assert measure_arithmetic(Accelerator(), objective, _LENGTH).rate > 1e9
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.training
    assert all(p.grad is None for p in objective.parameters())
