"""Text written by the command."""

import json
from pathlib import Path

import pytest

from launch.generate import main
from tests.launch.conftest import Train
from tests.launchers import DIFFUSION


@pytest.fixture(scope="module")
def how() -> list[str]:
    return ["--num_tokens", "5", "--num_texts", "3", "--num_steps", "2", "the cat", "a [MASK] dog"]


def test_texts_are_written_from_each_prompt(
    train: Train, tmp_path: Path, how: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", *DIFFUSION, "--max_steps", "2")
    capsys.readouterr()
    main(["--model", str(tmp_path / "run"), *how, "--json"])
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat"] * 3 + ["a [MASK] dog"] * 3
    assert all(row["text"].startswith(row["prompt"].partition(" [MASK]")[0]) for row in rows)
    assert len({row["text"] for row in rows}) == 6
    assert "<mask>" not in "".join(row["text"] for row in rows)
    assert "note" not in captured.err
    main(["--model", str(tmp_path / "run"), *how])
    assert capsys.readouterr().out.splitlines() == [row["text"].replace("\n", "⏎") for row in rows]


def test_a_model_of_80_10_10_writes_too_and_a_line_says_it(
    model_folder: Path, how: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", str(model_folder), *how])
    captured = capsys.readouterr()
    assert captured.err.startswith("note: trained with masking=unknown, not diffusion: ")
    assert captured.err.count("\n") == 1
    assert captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["the cat"], "no mask token in 'the cat' (text 1)"),
        (["the cat", "--num_tokens", "-1"], "num_tokens=-1 must be 0 or more"),
        (["the cat", "--num_tokens", "4", "--temperature", "0"], "temperature=0.0 above 0"),
        (["the cat", "--num_texts", "0", "--num_tokens", "4"], "--num_texts 0 must be 1 or more"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    model_folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(model_folder), *words])
    assert caught.value.code == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert message in error
