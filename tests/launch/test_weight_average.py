"""``--ema_decay``: which average it is, that it is evaluated and published, and that it resumes and skips exactly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from launch.evaluate import main as evaluate
from tests.launch.conftest import Train
from train_loop.optim import WeightAverage

AVERAGED = ("--ema_decay", "0.8", "--save_steps", "1", "--save_total_limit", "none", "--lr_scheduler_type", "constant")


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _step(run: Path, number: int) -> dict[str, Tensor]:
    return _weights(run / "checkpoints" / f"step-{number:08d}")


def test_the_model_is_the_average_of_the_weights_after_each_update(
    train: Train, tmp_path: Path, eli5_folder: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its training is that of a run without an average; the evaluation is of the model that is published."""
    rows = train(tmp_path / "run", *AVERAGED)
    plain = train(tmp_path / "plain", *AVERAGED[2:])
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in plain if "loss" in row]
    counts = [0.8 ** (6 - number) for number in range(1, 7)]
    steps = [_step(tmp_path / "plain", number) for number in range(1, 7)]
    model = _weights(tmp_path / "run" / "model")
    for name, tensor in model.items():
        average = sum(count * step[name].double() for count, step in zip(counts, steps, strict=True)) / sum(counts)
        torch.testing.assert_close(tensor.double(), average, rtol=0, atol=1e-6)
    assert not torch.equal(next(iter(model.values())), next(iter(steps[-1].values())))
    assert all(torch.equal(tensor, _step(tmp_path / "run", 6)[name]) for name, tensor in steps[-1].items())

    capsys.readouterr()
    words = ("--dataset", str(eli5_folder), "--eval_fraction", "0.2", "--block_size", "16", "--cache_dir", cache_dir)
    evaluate(["--model", str(tmp_path / "run"), *words, "--cpu_threads", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(rows[-1]["eval_loss"], rel=1e-6)


def test_it_resumes_bit_for_bit(train: Train, tmp_path: Path) -> None:
    """Also in the middle of evaluations, which exchange the weights and the average."""
    train(tmp_path / "whole", *AVERAGED, "--eval_steps", "2")
    train(tmp_path / "cut", *AVERAGED, "--eval_steps", "2", "--max_steps", "3")
    train(tmp_path / "cut", *AVERAGED, "--eval_steps", "2", "--resume_from_checkpoint", "latest")
    whole, cut = (
        load_file(tmp_path / run / "checkpoints" / "step-00000006" / "optimizer.safetensors")
        for run in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert {name.rpartition("/")[2] for name in whole} >= {"exp_avg", "weight_average", "weight_average_updates"}
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    whole, cut = (_weights(tmp_path / run / "model") for run in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


def test_the_best_model_is_the_best_average(train: Train, tmp_path: Path) -> None:
    """The learning rate is so high that the loss rises again."""
    words = (*AVERAGED, "--eval_steps", "2", "--learning_rate", "3", "--load_best_model_at_end", "true")
    rows = train(tmp_path / "run", *words)
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert best < 6
    saved = load_file(tmp_path / "run" / "checkpoints" / f"step-{best:08d}" / "optimizer.safetensors")
    for name, tensor in _weights(tmp_path / "run" / "model").items():
        if f"{name}/weight_average" in saved:
            assert torch.equal(tensor, saved[f"{name}/weight_average"])


def test_a_skipped_update_does_not_count() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage([p], 0.5)
    for value, is_bad in ((9.0, 1.0), (2.0, 0.0), (7.0, 1.0), (5.0, 0.0)):
        p.data.fill_(value)
        average.found_inf = torch.tensor(is_bad)
        average.step()
    average.eval()
    assert p.item() == pytest.approx((0.5 * 2 + 5) / 1.5)
    average.train()
    assert p.item() == 5.0


def test_the_decay_is_below_1(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, "--ema_decay", "1")
    assert "ema_decay=1.0 must be in [0, 1)" in capsys.readouterr().err
