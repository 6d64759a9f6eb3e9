"""Runs by masked diffusion, by the command."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.conftest import Train
from tests.launchers import DIFFUSION


def test_a_run_by_diffusion_is_the_same_in_any_micro_batches_and_resumed(train: Train, tmp_path: Path) -> None:
    words = (*DIFFUSION, "--save_steps", "3", "--optimizer", "muon")
    whole = train(tmp_path / "whole", *words)
    folder = tmp_path / "whole" / "checkpoints" / "step-00000003"
    resumed = train(tmp_path / "resumed", *words, "--resume_from_checkpoint", str(folder))
    names = ("loss", "grad_norm", "eval_loss", "eval_bits_per_byte")
    for row, other in zip([row for row in whole if row["step"] > 3], resumed, strict=True):
        assert [row.get(name) for name in names] == [other.get(name) for name in names]
    evaluated = [row["eval_loss"] for row in whole if "eval_loss" in row]
    assert evaluated[-1] < evaluated[0]


def test_the_bound_is_the_same_in_any_evaluation_batches(train: Train, tmp_path: Path) -> None:
    losses = [
        train(tmp_path / size, *DIFFUSION, "--max_steps", "1", "--per_device_eval_batch_size", size)[-1]["eval_loss"]
        for size in ("1", "5", "64")
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--masking", "diffusion"), "masking=diffusion needs --mask_replace_prob 1"),
        (("--diffusion_warmup", "0.1"), "diffusion_warmup=0.1 must be from 0 to 1, with --masking diffusion"),
    ],
)
def test_settings_that_give_no_bound_are_one_line(
    words: tuple[str, ...], message: str, refusal: Callable[..., str]
) -> None:
    assert message in refusal(*words)
