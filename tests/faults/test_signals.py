"""SIGTERM and SIGINT: all processes save at the same step and are gone within 30 s, and the run goes on exactly."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import sentences
from tests.faults.running import ENDLESS, assert_gone, start
from tests.launchers import assert_same_run, launcher, rows, run, tiny_run


@pytest.mark.parametrize(
    ("name", "num_processes", "number", "whole_group"),
    [
        pytest.param("python", 1, signal.SIGTERM, False, marks=pytest.mark.slow),
        ("torchrun", 2, signal.SIGTERM, False),
        pytest.param("python", 1, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("accelerate", 1, signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param("accelerate", 2, signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param("accelerate", 1, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("accelerate", 2, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("torchrun", 1, signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param("torchrun", 2, signal.SIGINT, True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_exactly(
    name: str,
    num_processes: int,
    number: signal.Signals,
    whole_group: bool,
    corpus_file: Path,
    cache_dir: str,
    tmp_path: Path,
) -> None:
    """The signal goes to the launcher alone, as from a scheduler, or to the whole group, as Ctrl-C does."""
    words = tiny_run(
        corpus_file,
        cache_dir,
        eval_steps=ENDLESS,
        lr_scheduler_type="constant",
        dataloader_num_workers=2,
        cpu_threads=1,
    )
    folder = tmp_path / "run"
    process = start(
        [*launcher(name, num_processes), *words, "--output_dir", str(folder), "--max_steps", str(ENDLESS)], tmp_path
    )
    family = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    code = process.wait(timeout=30)
    assert_gone(family)
    output = (tmp_path / "output.txt").read_text()
    assert f"not finished: {rows(folder)[-1]['step']} updates" in (folder / "report.html").read_text()
    if name == "python":
        assert code == 128 + number, output
        assert f"stopped after step {rows(folder)[-1]['step']} by {number.name}" in output
        assert "Traceback" not in output
    else:
        assert code != 0

    (checkpoint,) = (folder / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert rows(folder)[-1]["step"] == step >= 3
    assert not (folder / "model").exists()

    last = str(step + 2)
    resumed = run(
        launcher(name, num_processes), *words, "--output_dir", str(folder), "--max_steps", last,
        "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in rows(folder) if "loss" in row] == list(range(1, step + 3))
    if num_processes == 1:
        whole = tmp_path / "whole"
        done = run(launcher(name, 1), *words, "--output_dir", str(whole), "--max_steps", last)
        assert done.returncode == 0, done.stderr
        one, other = (load_file(path / "model" / "model.safetensors") for path in (folder, whole))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_processes"), [("python", 1), ("torchrun", 2)])
def test_a_signal_during_an_evaluation_breaks_it_off_and_the_run_that_goes_on_makes_it_again(
    name: str, num_processes: int, cache_dir: str, tmp_path: Path
) -> None:
    """The whole evaluation takes half a minute, a block at a time; all of it would be finished first."""
    corpus = tmp_path / "many.txt"
    corpus.write_text("\n".join(sentences(8_000, length=20)) + "\n")
    words = tiny_run(
        corpus, cache_dir, eval_steps=2, max_steps=4, per_device_eval_batch_size=1, global_batch_size=4,
        early_stopping_patience=3, block_size=16,
    )  # fmt: skip
    folder = tmp_path / "run"
    process = start([*launcher(name, num_processes), *words, "--output_dir", str(folder)], tmp_path, after_rows=2)
    family = psutil.Process(process.pid).children(recursive=True)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    began = time.monotonic()
    process.wait(timeout=30)
    assert_gone(family)
    assert time.monotonic() - began < 10
    assert [row["step"] for row in rows(folder)] == [1, 2]  # no evaluation
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]

    quickly = (*words, "--per_device_eval_batch_size", "512")
    for where, more in ((folder, ("--resume_from_checkpoint", "latest")), (tmp_path / "whole", ())):
        done = run(launcher(name, num_processes), *quickly, "--output_dir", str(where), *more)
        assert done.returncode == 0, done.stderr
    assert_same_run(folder, tmp_path / "whole")
