"""Counted operations against those worked by hand, in training and in attention, and what counting leaves alone."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from tests.batches import as_batch
from tests.models import tiny_model
from train_loop import MaskedLMObjective, gather_in_last_layer
from train_loop.speed.flops import count_flops, measure_arithmetic, published_peak

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


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA H200 NVL", "bf16", 835e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "no", 19.5e12),
        ("NVIDIA A10", "fp16", 125e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "no", 15.7e12),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("AMD Instinct MI300X", "bf16", None),
    ],
)
def test_a_published_peak_is_found_by_the_devices_name(name: str, precision: str, expected: float | None) -> None:
    assert published_peak(name, precision) == expected


def test_full_precision_counts_tf32_where_it_is_allowed() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert published_peak("NVIDIA A100-SXM4-80GB", "no") == 156e12
        assert published_peak("Tesla T4", "no") == 8.1e12
    finally:
        torch.set_float32_matmul_precision("highest")


def test_measuring_changes_neither_the_objective_nor_the_random_numbers_to_come() -> None:
    objective = MaskedLMObjective(tiny_model("roberta")).train()
    state = torch.get_rng_state()
    arithmetic = measure_arithmetic(Accelerator(), objective, _LENGTH)
    assert arithmetic.rate > 1e9
    assert arithmetic.peak is None  # of a CPU
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.training
    assert all(p.grad is None for p in objective.parameters())
