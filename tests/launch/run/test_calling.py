"""`launch.train.train`: the command as a function, in a process that goes on."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from datasets import Dataset, DatasetDict

from launch.run.calling import settings_of_call
from launch.train import main, train
from tests.conftest import sentences
from tests.launchers import OF_THE_MACHINE, ROOT, environment, rows
from train_loop.inference.fill_mask import FillMask
from train_loop.run import Stopped

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def tiny(cache_dir: str) -> dict[str, Any]:
    return {
        "model_type": "modernbert", "model_config": _SHAPE, "train_tokenizer": True, "vocab_size": 300,
        "block_size": 16, "eval_fraction": 0.2, "max_steps": 3, "logging_steps": 1, "cpu_threads": 1,
        "probe": ["the cat <mask> on a mat"], "cache_dir": cache_dir,
    }  # fmt: skip


def test_a_list_and_a_dataset_train_the_same_model_one_after_the_other(tiny: dict[str, Any], tmp_path: Path) -> None:
    texts = sentences(100)
    one = train(dataset=texts, output_dir=tmp_path / "one", **tiny)
    table = Dataset.from_dict({"body": texts, "other": range(100)})
    two = train(dataset=table, text_column="body", output_dir=tmp_path / "two", **tiny)
    assert [row["step"] for row in one.metrics if "loss" in row] == [1, 2, 3]
    assert two.folder == tmp_path / "two"
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert {k: v for k, v in a.items() if k not in OF_THE_MACHINE} == {
            k: v for k, v in b.items() if k not in OF_THE_MACHINE
        }
    weights = two.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())
    assert not one.model.training
    assert len(FillMask(one.model, one.tokenizer)("the cat <mask> on a mat", top_k=2)) == 2


@pytest.mark.slow
def test_a_run_goes_on_in_the_same_process_and_by_the_command(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(dataset=iter(sentences(100)), output_dir=tmp_path / "run", **tiny)
    more = {**tiny, "max_steps": 6, "resume_from_checkpoint": "latest"}
    resumed = train(dataset=sentences(100), output_dir=tmp_path / "run", **more)
    assert [row["step"] for row in resumed.metrics if "loss" in row] == [1, 2, 3, 4, 5, 6]
    main(["--recipe", str(tmp_path / "run" / "config.yaml"), "--max_steps", "7"])
    assert rows(tmp_path / "run")[-1]["step"] == 7


def test_the_process_is_as_before(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Also after an error: log, handlers of signals, threads, Accelerate; and others may use the folder."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    loggers, threads = list(logging.getLogger("data").handlers), torch.get_num_threads()
    with pytest.raises(ValueError, match="is longer than the model's 8 positions"):
        shape = {**_SHAPE, "max_position_embeddings": 8}
        train(dataset=sentences(100), output_dir=tmp_path, **{**tiny, "cpu_threads": 2, "model_config": shape})
    train(dataset=sentences(100), output_dir=tmp_path / "run", **tiny)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (logging.getLogger("data").handlers, torch.get_num_threads()) == (loggers, threads)
    assert PartialState._shared_state == {}
    code = f"import fcntl; fcntl.lockf(open({str(tmp_path / 'run' / '.lock')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_callers_accelerator_stays(tiny: dict[str, Any], tmp_path: Path) -> None:
    own = Accelerator()
    train(dataset=sentences(100), output_dir=tmp_path, **tiny)
    assert own.state.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, "unknown setting --lerning_rate"),
        ({"num_processes": 2}, "unknown setting --num_processes"),
        ({"block_size": "many"}, "block_size='many' is not a whole number"),
        ({"mlm_probability": 2.0}, "mlm_probability=2.0 must be between 0 and 1"),
        ({"recipe": "nope"}, "recipe='nope'"),
        ({"dataset": 5}, "dataset is a int: give one Dataset, an iterable of strings, or a path"),
        ({"dataset": DatasetDict()}, "dataset is a DatasetDict: give one"),
        ({"dataset": ["a", None]}, "row 1: text_column='text' holds no text"),
        ({"dataset": "no/such/file.txt"}, "no/such/file.txt"),
    ],
)
def test_a_mistake_is_one_line_and_never_an_exit(
    changes: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError) as raised:
        train(**{"dataset": sentences(100), "output_dir": tmp_path / "run", **tiny, **changes})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "run").exists()


def test_values_of_python_are_those_of_the_command(tiny: dict[str, Any]) -> None:
    values = {"hidden_size": 16, "attention_dropout": 5e-5, "tie_word_embeddings": False, "hidden_activation": "gelu"}
    settings = settings_of_call({**tiny, "model_config": values, "learning_rate": 1e-9, "eval_steps": None})
    assert settings.model.model_config == values
    assert settings.train.probe == tuple(tiny["probe"])
    assert (settings.train.learning_rate, settings.train.eval_steps) == (1e-9, None)


def test_an_interrupt_stops_after_a_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    """As a notebook's stop button sends it."""

    def interrupt() -> None:
        while not (tmp_path / "metrics.jsonl").exists() or not rows(tmp_path):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped, match="stopped after step"):
        train(dataset=sentences(100), output_dir=tmp_path, **{**tiny, "max_steps": 100_000, "eval_steps": 100_000})
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{rows(tmp_path)[-1]['step']:08d}"


@pytest.mark.slow
def test_a_plain_python_process_needs_no_main_guard(tiny: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "from launch.train import train\n"
        f"settings = {tiny | {'dataset': sentences(100)}!r}\n"
        f"runs = [train(output_dir={str(tmp_path)!r} + '/' + name, **settings) for name in 'ab']\n"
        "print(len({run.metrics[-1]['step'] for run in runs}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n1\n")
