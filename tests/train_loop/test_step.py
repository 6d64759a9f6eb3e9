"""P1: the update is that of the mean over all masked tokens of the global batch, however it is cut."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import DataConfig, Documents, MaskedBatch, MicroBatches
from tests.batches import batch_of, micro_batches_of
from tests.models import tiny_model, without_dropout
from tests.waits import Waits, untied
from train_loop import MaskedLMObjective, StepMetrics, TrainConfig, build_optimizers, train_step
from train_loop.step import dropout_seed
from train_loop.watching.metrics import non_finite_error


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator()


@pytest.fixture
def fp16_accelerator() -> Iterator[Accelerator]:
    """fp16 with its loss scaler, of which Accelerate wants a GPU and torch does not."""
    accelerator = Accelerator()
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    yield accelerator
    accelerator.state._mixed_precision = "no"


@pytest.fixture(scope="module")
def dataset(
    documents: tuple[Documents, Documents], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> MicroBatches:
    return micro_batches_of(documents[0], tokenizer, data_config, seed=1)


def _cut(dataset: MicroBatches, num_blocks: int, size: int) -> list[MaskedBatch]:
    return [batch_of(dataset, np.arange(i, min(i + size, 11 + num_blocks))) for i in range(11, 11 + num_blocks, size)]


def _gradients_after(
    accelerator: Accelerator,
    model: PreTrainedModel,
    batches: Sequence[MaskedBatch],
    objective: MaskedLMObjective | None = None,
) -> tuple[dict[str, torch.Tensor], StepMetrics]:
    """The gradients that the optimizer sees in one step."""
    seen: dict[str, torch.Tensor] = {}
    objective, *optimizers = accelerator.prepare(
        objective or MaskedLMObjective(model), *build_optimizers(model, TrainConfig(learning_rate=1e-3))
    )
    for parameter_name, parameter in model.named_parameters():
        optimizers[0].optimizer.register_step_pre_hook(
            lambda *_, name=parameter_name, p=parameter: seen.update({name: p.grad.clone()})
        )
    metrics = train_step(
        accelerator, objective, optimizers, batches, step=0, lr_factor=1.0, max_grad_norm=0.0, seed=0
    )  # fmt: skip
    return seen, metrics


@pytest.mark.parametrize("family", ["roberta", "modernbert", "electra"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("layout", ["blocks", "masked", "side by side"])
def test_nothing_in_an_update_waits_for_the_device(
    accelerator: Accelerator,
    dataset: MicroBatches,
    family: str,
    optimizer: Literal["adamw", "muon"],
    layout: str,
) -> None:
    """No number is read and no shape follows from values; with dropout, in micro-batches, and with documents."""
    bare = MaskedLMObjective(untied(tiny_model(family)))
    if layout == "side by side":
        dataset = replace(dataset, collator=replace(dataset.collator, is_flat=True))
        bare.adapt(TrainConfig(), 8, document_attention=True, has_padding=False)
        assert bare.takes_documents
    batches = _cut(dataset, 8, 4)
    if layout == "masked":
        positions = torch.arange(batches[0].input_ids.shape[1]) % 5
        batches = [replace(batch, position_ids=positions.expand_as(batch.input_ids)) for batch in batches]
    objective, *optimizers = accelerator.prepare(bare, *build_optimizers(bare, TrainConfig(optimizer=optimizer)))
    for step in range(2):  # the first one makes the optimizers' state
        with Waits(batches) as waits:
            metrics = train_step(
                accelerator, objective, optimizers, batches, step=step, lr_factor=1.0, max_grad_norm=1.0, seed=0
            )  # fmt: skip
    assert waits.count == {}
    with Waits(batches) as waits:
        metrics.loss_sums.sum().item()
        metrics.loss_sums[metrics.loss_sums > 0].sum()
    assert waits.count == {"_local_scalar_dense": 1, "index": 1}  # so it sees them


@pytest.mark.parametrize("size", [8, 4, 3, 1])
def test_micro_batches_do_not_change_the_gradient(accelerator: Accelerator, dataset: MicroBatches, size: int) -> None:
    """1x8, 2x4, ragged 3+3+2 and 8x1 against one plain mean over all masked tokens with full logits."""
    reference = without_dropout(tiny_model("roberta"))
    (whole,) = _cut(dataset, 8, 8)
    logits = reference(input_ids=whole.input_ids).logits.flatten(0, 1)[whole.masked_positions]
    loss = F.cross_entropy(logits, whole.labels)
    loss.backward()

    batches = _cut(dataset, 8, size)
    assert len({batch.num_masked for batch in batches}) > 1 or size == 8  # or a mean of means would do as well
    gradients, metrics = _gradients_after(accelerator, without_dropout(tiny_model("roberta")), batches)
    expected = {name: p.grad for name, p in reference.named_parameters()}
    assert set(gradients) == set(expected)
    scale = max(g.abs().max().item() for g in expected.values() if g is not None)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * scale, msg=name)
    assert int(metrics.num_masked) == whole.num_masked
    assert float(metrics.loss_sums.sum()) / whole.num_masked == pytest.approx(loss.item(), rel=1e-6)


class _TwoTerms(MaskedLMObjective):
    """Cross-entropy over masked tokens, and the squares of all hidden values over all tokens."""

    terms: ClassVar = {"masked_lm": 1.0, "squares": 0.25}

    def count(self, batch: MaskedBatch) -> Sequence[int]:
        return (batch.num_masked, batch.num_tokens)

    def forward(self, batch: MaskedBatch) -> torch.Tensor:
        squares = self.model.base_model(input_ids=batch.input_ids)[0].square().sum()
        return torch.cat([super().forward(batch), squares.unsqueeze(0)])


@pytest.mark.parametrize("size", [8, 3])
def test_each_term_is_divided_by_its_own_count(accelerator: Accelerator, dataset: MicroBatches, size: int) -> None:
    """Against one plain mean for each term over the whole batch, added up with their weights."""
    reference = without_dropout(tiny_model("roberta"))
    (whole,) = _cut(dataset, 8, 8)
    logits = reference(input_ids=whole.input_ids).logits.flatten(0, 1)[whole.masked_positions]
    hidden = reference.base_model(input_ids=whole.input_ids)[0]
    loss = F.cross_entropy(logits, whole.labels) + 0.25 * hidden.square().sum(-1).mean()
    loss.backward()

    model = without_dropout(tiny_model("roberta"))
    gradients, metrics = _gradients_after(accelerator, model, _cut(dataset, 8, size), _TwoTerms(model))
    scale = max(float(p.grad.abs().max()) for p in reference.parameters() if p.grad is not None)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6 * scale, msg=name)
    assert metrics.counts.tolist() == [whole.num_masked, whole.num_tokens]
    means = metrics.loss_sums.sum(0) / metrics.counts
    assert float(means[0] + 0.25 * means[1]) == pytest.approx(loss.item(), rel=1e-6)


def test_the_gradient_is_clipped_after_it_is_whole(accelerator: Accelerator, dataset: MicroBatches) -> None:
    batches = _cut(dataset, 8, 2)
    norms = []
    for max_grad_norm in (0.0, 0.05):
        model = without_dropout(tiny_model("roberta"))
        objective, optimizer = accelerator.prepare(
            MaskedLMObjective(model), torch.optim.SGD(model.parameters(), lr=1.0)
        )
        before = [p.detach().clone() for p in model.parameters()]
        metrics = train_step(
            accelerator, objective, [optimizer], batches, step=0, lr_factor=1.0, max_grad_norm=max_grad_norm, seed=0
        )
        moved = torch.stack([(p.detach() - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
        norms.append((float(metrics.grad_norm), float(moved)))
    (free_norm, free_move), (clipped_norm, clipped_move) = norms
    assert free_norm == pytest.approx(clipped_norm, rel=1e-6)  # what is logged is the norm before clipping
    assert free_move == pytest.approx(free_norm, rel=1e-4)
    assert clipped_move == pytest.approx(0.05, rel=1e-3)


def test_dropout_follows_the_micro_batch_and_the_step(accelerator: Accelerator, dataset: MicroBatches) -> None:
    """The same micro-batches draw the same dropout in any order of processes; another step draws another."""
    batches = _cut(dataset, 8, 4)
    model = tiny_model("roberta")
    first, _ = _gradients_after(accelerator, model, batches)
    swapped, _ = _gradients_after(accelerator, tiny_model("roberta"), batches[::-1])
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, swapped[name], rtol=1e-4, atol=1e-6, msg=name)
    without, _ = _gradients_after(accelerator, without_dropout(tiny_model("roberta")), batches)
    assert any(not torch.allclose(first[name], without[name], rtol=1e-3) for name in first)
    assert len({dropout_seed(s, t, b) for s in range(5) for t in range(5) for b in range(5)}) == 125


def test_a_batch_with_nothing_masked_changes_nothing_but_by_weight_decay(
    accelerator: Accelerator, dataset: MicroBatches
) -> None:
    empty = batch_of(dataset, np.zeros(0, dtype=np.int64))
    gradients, metrics = _gradients_after(accelerator, tiny_model("roberta"), [empty])
    assert all(not g.any() for g in gradients.values())
    assert float(metrics.loss_sums.sum()) == 0.0


def _tensors(model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    states = [state[key] for o in optimizers for state in o.state.values() for key in sorted(state)]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("where", ["loss", "gradient", "a matrix", "a bias"])
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_an_update_that_is_not_finite_is_skipped_bit_for_bit(
    dataset: MicroBatches,
    precision: str,
    where: str,
    optimizer: Literal["adamw", "muon"],
    max_grad_norm: float,
    request: pytest.FixtureRequest,
) -> None:
    """Also where one optimizer alone would see it; under fp16 the scale is halved, once."""
    accelerator: Accelerator = request.getfixturevalue("accelerator" if precision == "no" else "fp16_accelerator")
    model = tiny_model("roberta")
    config = TrainConfig(learning_rate=1e-3, optimizer=optimizer)
    objective, *optimizers = accelerator.prepare(MaskedLMObjective(model), *build_optimizers(model, config))
    assert len(optimizers) == (1 if optimizer == "adamw" else 2)
    batches = _cut(dataset, 8, 2)
    calls = []

    def poison(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if where not in ("loss", "gradient") or len(calls) != 4 + 3:  # the third micro-batch of the second update
            return output
        return output * torch.nan if where == "loss" else output + (output * 0).sqrt()  # a finite 0 with gradient inf

    objective.register_forward_hook(poison)
    layer = model.roberta.encoder.layer[0].intermediate.dense
    for kind, parameter in (("a matrix", layer.weight), ("a bias", layer.bias)):
        parameter.register_hook(lambda g, k=kind: g * torch.inf if where == k and len(calls) == 4 + 3 else g)
    history = []
    for step in (3, 4, 5):
        metrics = train_step(
            accelerator, objective, optimizers, batches, step=step, lr_factor=1.0, max_grad_norm=max_grad_norm, seed=0
        )
        history.append((bool(metrics.is_skipped), _tensors(model, optimizers)))
        if metrics.is_skipped:
            message = str(non_finite_error(metrics))
    is_error = precision == "no" or where == "loss"  # fp16's scaler searches for its scale by overflows
    assert [is_skipped for is_skipped, _ in history] == [False, is_error, False]
    (_, before), (_, skipped), (_, after) = history
    assert all(map(torch.equal, before, skipped))
    assert not any(map(torch.equal, skipped, after))
    assert precision == "no" or accelerator.scaler.get_scale() == 2**15
    if is_error:
        assert message.startswith("step 5: ")
        assert ("blocks [15, 16]" if where == "loss" else "the gradient") in message


def test_under_fp16_every_gradient_is_unscaled_once(
    accelerator: Accelerator, fp16_accelerator: Accelerator, dataset: MicroBatches
) -> None:
    """Muon's and AdamW's moments after an update are those in fp32, but for 11 bits of precision."""
    moments = []
    for precision in ("fp16", "no"):
        accelerator.state._mixed_precision = precision
        model = without_dropout(tiny_model("roberta"))
        objective, *optimizers = (fp16_accelerator if precision == "fp16" else accelerator).prepare(
            MaskedLMObjective(model), *build_optimizers(model, TrainConfig(optimizer="muon"))
        )
        train_step(
            fp16_accelerator if precision == "fp16" else accelerator,
            objective, optimizers, _cut(dataset, 8, 4), step=0, lr_factor=1.0, max_grad_norm=0.0, seed=0,
        )  # fmt: skip
        moments.append([s.get("momentum_buffer", s.get("exp_avg")) for o in optimizers for s in o.state.values()])
    assert fp16_accelerator.scaler.get_scale() == 2**16
    largest = max(m.abs().max() for m in moments[1])
    for half, full in zip(*moments, strict=True):
        torch.testing.assert_close(half, full, rtol=0.02, atol=1e-3 * float(largest))


def test_a_gradient_that_no_scale_of_fp16_makes_finite_is_skipped_as_an_error(
    fp16_accelerator: Accelerator, dataset: MicroBatches
) -> None:
    """Or the run would go on for ever and change nothing."""
    model = tiny_model("roberta")
    model.lm_head.bias.register_hook(lambda gradient: gradient * torch.nan)
    objective, *optimizers = fp16_accelerator.prepare(MaskedLMObjective(model), *build_optimizers(model, TrainConfig()))
    are_skipped = []
    for step in range(20):
        metrics = train_step(
            fp16_accelerator, objective, optimizers, _cut(dataset, 2, 2), step=step, lr_factor=1.0, max_grad_norm=1.0,
            seed=0,
        )  # fmt: skip
        are_skipped.append(bool(metrics.is_skipped))
    assert are_skipped == [False] * 17 + [True] * 3  # from 2 ** 16 down to 1, then below


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_the_step_reads_nothing_from_the_device(
    dataset: MicroBatches,
    precision: str,
    optimizer: Literal["adamw", "muon"],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU each of these would wait for all that was asked of it before."""
    accelerator: Accelerator = request.getfixturevalue("accelerator" if precision == "no" else "fp16_accelerator")
    model = tiny_model("roberta")
    objective, *optimizers = accelerator.prepare(
        MaskedLMObjective(model), *build_optimizers(model, TrainConfig(optimizer=optimizer))
    )
    batches = _cut(dataset, 8, 4)

    def wait(*args: object) -> None:
        raise AssertionError("this waits for the GPU")

    with monkeypatch.context() as patch:
        for name in ("__bool__", "__float__", "item", "tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, wait)
        train_step(accelerator, objective, optimizers, batches, step=0, lr_factor=1.0, max_grad_norm=1.0, seed=0)
