"""Parameter groups, Muon's share of the parameters, and the schedule step by step against transformers'."""

import itertools

import pytest
import torch
from transformers import get_scheduler

from tests.models import tiny_model
from train_loop import TrainConfig, build_optimizers, build_schedule
from train_loop.optim import set_learning_rates
from train_loop.optimizers.muon import Muon, orthogonalize


def _names(model: torch.nn.Module, group: dict[str, list[torch.nn.Parameter]]) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay(family: str, optimizer: str) -> None:
    model = tiny_model(family)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.1))  # type: ignore[arg-type]
    groups = [group for o in optimizers for group in o.param_groups]
    names = [name for group in groups for name in _names(model, group)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        for name in _names(model, group):
            is_norm_or_bias = name.endswith(".bias") or "norm" in name.lower()
            assert group["weight_decay"] == (0.0 if is_norm_or_bias else 0.1), name


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert"])
def test_muon_has_the_hidden_matrices_and_no_embedding(family: str) -> None:
    model = tiny_model(family)
    muon, adamw = build_optimizers(model, TrainConfig(optimizer="muon"))
    hidden = _names(model, muon.param_groups[0])
    rest = {name for group in adamw.param_groups for name in _names(model, group)}
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert rest & matrices == {name for name in matrices if "embedding" in name}
    assert hidden == matrices - rest


def test_muon_is_torchs_up_to_the_precision_of_its_iteration() -> None:
    """torch's is in bf16, of 8 bits: an update's entries agree to some 2 % of its size; the momentum bit for bit."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((32, 32), (24, 64), (64, 24))]
    mine, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizers: list[torch.optim.Optimizer] = [
        Muon(mine, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    ]
    for _ in range(3):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, before in zip(mine, theirs, start, strict=True):
        assert torch.equal(optimizers[0].state[p]["momentum_buffer"], optimizers[1].state[q]["momentum_buffer"])
        assert (p - q).norm() < 0.02 * (q - before).norm()


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24)])
def test_orthogonalized_the_singular_values_are_alike_and_the_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.T @ result @ vh.T
    assert (diagonal - diagonal.diag().diag()).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("polynomial", {"power": 2.0}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 20, "decay_type": "linear"}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 10, 0.1])
def test_the_rate_at_each_step_is_that_of_a_stepped_transformers_scheduler(
    name: str, options: dict[str, object], warmup: float
) -> None:
    config = TrainConfig(lr_scheduler_type=name, lr_scheduler_kwargs=options, warmup_steps=warmup, learning_rate=0.3)
    factor = build_schedule(config, total_steps=100)
    mine = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = get_scheduler(name, theirs, 10 if warmup else 0, 100, dict(options))
    for step in range(100):
        set_learning_rates([mine], factor(step))
        assert mine.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12, abs=1e-12)
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize("total_steps", [3, 100, 300, 1100])
def test_a_schedule_in_fractions_has_its_shape_on_a_run_of_any_length(total_steps: int) -> None:
    """The warmup of 0.2 and the decay of 0.5 meet no cliff: the factor never falls faster than the decay."""
    options = {"num_decay_steps": 0.5, "decay_type": "linear"}
    config = TrainConfig(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=options, warmup_steps=0.2)
    factor = build_schedule(config, total_steps)
    decay = round(0.5 * total_steps)
    factors = [factor(step) for step in range(total_steps + 1)]
    assert max(factors) == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.0)
    assert min(b - a for a, b in itertools.pairwise(factors)) == pytest.approx(-1 / decay)
    assert factors[total_steps - decay // 2] == pytest.approx((decay // 2) / decay)


def test_the_quickstarts_updates_are_those_of_20_of_warmup_and_660_of_decay() -> None:
    ours = {"num_decay_steps": 0.6, "decay_type": "linear"}
    before = {"num_decay_steps": 660, "decay_type": "linear"}
    factors = [
        build_schedule(
            TrainConfig(lr_scheduler_type="warmup_stable_decay", warmup_steps=warmup, lr_scheduler_kwargs=options), 1100
        )
        for warmup, options in ((0.018, ours), (20, before))
    ]
    assert [factors[0](step) for step in range(1100)] == [factors[1](step) for step in range(1100)]


@pytest.mark.parametrize(
    ("name", "warmup", "options", "message"),
    [
        ("linear", 0, {"num_decay_steps": 3}, "num_decay_steps'; a recipe's options go by --lr_scheduler_kwargs none"),
        ("warmup_stable_decay", 0, {}, "num_decay_steps"),
        ("warmup_stable_decay", 0, {"num_decay_steps": "all"}, "num_decay_steps"),
        ("linear", 101, {}, "warmup_steps=101 are more than the run's 100 updates: use values below 1"),
        ("warmup_stable_decay", 50, {"num_decay_steps": 51}, "warmup_steps=50 and num_decay_steps=51 are more than"),
        (
            "warmup_stable_decay",
            0.5,
            {"num_decay_steps": 0.6},
            "warmup_steps=0.5 and num_decay_steps=0.6 are more than",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_one_clear_line(
    name: str, warmup: float, options: dict[str, object], message: str
) -> None:
    config = TrainConfig(lr_scheduler_type=name, warmup_steps=warmup, lr_scheduler_kwargs=options)
    with pytest.raises(ValueError, match=message) as caught:
        build_schedule(config, total_steps=100)
    assert "\n" not in str(caught.value)
