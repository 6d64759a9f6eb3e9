"""Runs of the real entry point in this process, on tiny local folders of the shapes that the Hub has."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import PreTrainedTokenizerBase

from launch.train import main
from tests.conftest import sentences
from tests.hub import Hub, serve
from tests.models import tiny_model
from tests.pushing import python, train_words

Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def eli5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of ELI5's shape."""
    folder = tmp_path_factory.mktemp("eli5")
    rows = [
        {"q_id": str(i), "title": f"why {i}", "answers": {"a_id": ["x", "y"], "text": [a, b], "score": [1, 2]}}
        for i, (a, b) in enumerate(zip(sentences(300), sentences(600)[300:], strict=True))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A RoBERTa with its tokenizer, as a Hub repository holds them."""
    folder = tmp_path_factory.mktemp("roberta")
    tiny_model("roberta").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def train(cache_dir: str, eli5_folder: Path, model_folder: Path) -> Train:
    """Run ``mlm train`` on the tiny folders and return the rows of metrics.jsonl."""

    def run(output_dir: Path, *words: str, base: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        defaults = base or (
            *("--dataset", str(eli5_folder), "--eval_fraction", "0.2", "--model_name_or_path", str(model_folder)),
            *("--block_size", "16", "--global_batch_size", "8", "--max_steps", "6", "--eval_steps", "3"),
            *("--logging_steps", "1", "--learning_rate", "1e-3"),
        )
        main([*defaults, "--output_dir", str(output_dir), "--cache_dir", cache_dir, "--cpu_threads", "1", *words])
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture
def refusal(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The line with which ``mlm train`` refuses a run as a user error."""

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            train(tmp_path / "run", *words)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return refused


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve({}, tmp_path / "repositories") as hub:
        yield hub


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, eli5_folder: Path) -> Path:
    """A run that pushed nothing."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = python(["launch.train", *train_words(folder, model_folder, eli5_folder)], None, folder.parent)
    assert done.returncode == 0, done.stderr
    return folder
