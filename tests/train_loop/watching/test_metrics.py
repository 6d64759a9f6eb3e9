"""A training row says what happened in its window, and nothing of the updates that were left out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from train_loop import StepMetrics
from train_loop.speed.flops import Arithmetic, Flops, matmul_rate
from train_loop.watching.metrics import MetricsFile, TrainWindow

_ARITHMETIC = Arithmetic(Flops(per_token=10.0, per_masked_token=100.0), rate=1e9, peak=None)


def _update(step: int, losses: list[float], num_masked: int, *, is_skipped: bool = False) -> StepMetrics:
    return StepMetrics(
        step=step,
        lr_factor=1 / (step + 1),
        block_ids=[torch.tensor([step, 100 + i]) for i in range(len(losses))],
        loss_sums=torch.tensor(losses).unsqueeze(1),
        counts=torch.tensor([num_masked]),
        grad_norm=torch.tensor(float(step)),
        is_skipped=torch.tensor(is_skipped),
        num_tokens=64,
        num_masked=num_masked,
    )


def test_a_row_worked_by_hand() -> None:
    """Loss (2 + 4 + 3) / (4 + 2), not the mean of 6/4 and 3/2; rate and norm of the last update that was made."""
    window = TrainWindow(Accelerator(), {"loss": 1.0}, peaks={"learning_rate": 0.5}, arithmetic=_ARITHMETIC)
    window.add(_update(0, [2.0, 4.0], 4))
    window.add(_update(1, [3.0], 2))
    window.add(_update(2, [5.0, torch.nan], 9, is_skipped=True))
    (skipped,) = window.take_skipped()
    assert skipped.step == 2
    assert window.num_steps == 2
    row = window.read()
    seconds = 128 / row.pop("tokens_per_second")
    assert row.pop("flop_utilization") == pytest.approx((128 * 10 + 6 * 100) / seconds / 1e9)
    assert 50e6 < row.pop("peak_memory_bytes") < 50e9
    assert row == {"loss": 1.5, "learning_rate": 0.25, "grad_norm": 1.0, "num_masked_tokens": 6, "num_tokens": 128}
    assert window.num_steps == 0


def test_mfu_is_the_share_of_the_published_peak() -> None:
    window = TrainWindow(Accelerator(), {"loss": 1.0}, {"learning_rate": 0.5}, replace(_ARITHMETIC, peak=2e9))
    window.add(_update(0, [2.0], 4))
    row = window.read()
    assert row["mfu"] == pytest.approx(row["flop_utilization"] / 2)


def test_each_optimizer_has_its_rate() -> None:
    """Muon's follows the same schedule from its own peak."""
    peaks = {"learning_rate": 1e-3, "muon_learning_rate": 0.02}
    window = TrainWindow(Accelerator(), {"loss": 1.0}, peaks, _ARITHMETIC)
    window.add(_update(1, [2.0], 4))
    row = window.read()
    assert (row["learning_rate"], row["muon_learning_rate"]) == (5e-4, 0.01)


def test_a_rate_below_what_was_reached_is_measured_again() -> None:
    """As on a machine that was busy at the start; then a share of more than 1 is impossible."""
    window = TrainWindow(Accelerator(), {"loss": 1.0}, {"learning_rate": 0.5}, replace(_ARITHMETIC, rate=1.0))
    shares = []
    for _ in range(2):
        window.add(_update(0, [2.0], 4))
        row = window.read()
        flops = 64 * 10 + 4 * 100
        shares.append(row["flop_utilization"] / (flops * row["tokens_per_second"] / 64))
    assert shares[0] == pytest.approx(shares[1])  # one rate for both rows
    measured = matmul_rate(torch.device("cpu"), "no")
    assert measured / 10 < 1 / shares[0] < measured * 10


def test_counts_are_exact_beyond_what_fp32_holds() -> None:
    """2 ** 24 + 1 is the first whole number that fp32 has not."""
    window = TrainWindow(Accelerator(), {"loss": 1.0}, peaks={"learning_rate": 0.5}, arithmetic=_ARITHMETIC)
    window.add(replace(_update(0, [2.0], 2**24), num_tokens=2**24))
    window.add(replace(_update(1, [3.0], 1), num_tokens=1))
    row = window.read()
    assert (row["num_tokens"], row["num_masked_tokens"]) == (2**24 + 1, 2**24 + 1)
    assert row["loss"] == 5.0 / (2**24 + 1)


def test_a_window_of_nothing_but_updates_left_out_is_empty() -> None:
    window = TrainWindow(Accelerator(), {"loss": 1.0}, peaks={"learning_rate": 0.5}, arithmetic=_ARITHMETIC)
    window.add(_update(0, [torch.inf], 4, is_skipped=True))
    assert [update.step for update in window.take_skipped()] == [0]
    assert window.num_steps == 0


def test_the_clock_goes_on_from_the_last_row_that_is_kept(tmp_path: Path) -> None:
    """The time between two starts does not count, nor what came after the checkpoint."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "seconds": 100.0 * step} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "sec')
    assert 200 <= MetricsFile(path, keep=lambda row: row["step"] <= 2, writes=True).seconds < 290
    assert MetricsFile(path, keep=lambda row: False, writes=True).seconds < 90
