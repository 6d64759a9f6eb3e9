"""A suite that a run asks at some of its evaluations: its rows, its report and its card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.report import main as report
from tests.conftest import sentences

Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "pairs").mkdir()
    for name in ("agreement", "order"):
        rows = [{"sentence_good": text, "sentence_bad": text[::-1]} for text in sentences(4)]
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = "".join(f"{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(sentences(20)))
    (tmp_path / "topics.tsv").write_text("text\tlabel\n" + texts)
    path = tmp_path / "suite.yaml"
    path.write_text(f"pairs: [{tmp_path / 'pairs'}]\nlabels: [{tmp_path / 'topics.tsv'}]\nevery: 2\n")
    return path


def test_a_run_asks_it_at_every_second_evaluation_and_at_the_last(train: Train, suite: Path, tmp_path: Path) -> None:
    words = ("--eval_suite", str(suite), "--max_steps", "5", "--eval_steps", "1", "--probe", "a <mask> ball")
    rows = [row for row in train(tmp_path / "run", *words) if "eval_loss" in row]
    asked = [row["step"] for row in rows if "suite" in row]
    assert asked == [2, 4, 5]
    last = rows[-1]
    kinds = [(score["suite"], score["about"], score["num"]) for score in last["suite"]]
    assert kinds == [
        ("pairs", "agreement", 4), ("pairs", "order", 4), ("pairs", "all", 8), ("topics", "2 labels, one is 50.0%", 20)
    ]  # fmt: skip
    assert (last["eval_pairs"], last["eval_topics"]) == tuple(last["suite"][i]["accuracy"] for i in (2, 3))
    for score in last["suite"]:
        assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    shares = " to ".join(f"{last['suite'][2][end]:.1%}" for end in ("low", "high"))
    assert f"| pairs | all | 8 | {last['eval_pairs']:.1%} | {shares} |" in card
    report([str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert '"eval_pairs"' in page
    assert '"eval_topics"' in page
    without = train(tmp_path / "without", *words[2:])
    names = ("loss", "grad_norm", "eval_loss")
    ours = [row for row in train(tmp_path / "run", *words, "--overwrite_output_dir") if "probes" not in row]
    theirs = [row for row in without if "probes" not in row]
    assert [[row.get(n) for n in names] for row in ours] == [[row.get(n) for n in names] for row in theirs]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("pears: [a]", "the names are: pairs, labels"),
        ("pairs: [nothing.jsonl]", "nothing.jsonl: no such file"),
        ("every: 0", "every=0 must be 1 or more"),
        ("[", "while parsing"),
        ("just words", "it must map names to values"),
    ],
)
def test_a_wrong_file_is_told_before_the_training(
    content: str | None, message: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "suite.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run", "--eval_suite", str(path))
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: eval_suite={path}: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_row_without_its_columns_is_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.evaluate import main as evaluate

    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"sentence_good": "a", "sentence_bad": "b"}) + "\n" + json.dumps({"good": "a"}) + "\n")
    with pytest.raises(SystemExit):
        evaluate(["--model", str(model_folder), "--pairs", str(path)])
    error = capsys.readouterr().err
    assert (
        "pairs.jsonl, line 2: --text_column sentence_good, sentence_bad holds no text; the columns are: good" in error
    )
