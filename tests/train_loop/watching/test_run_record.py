"""What is read back of a run: for the whole of it, and for one of its models."""

import json
from pathlib import Path

import pytest
import yaml

from train_loop.watching.run_record import read_record, read_run, shown

LOSSES = {0: 7.0, 2: 5.0, 4: 6.0}  # the best is not the last


def _run(folder: Path, *, is_finished: bool = True, **settings: object) -> Path:
    for name in ("checkpoints/step-00000002", "model")[: 1 + is_finished]:
        (folder / name).mkdir(parents=True)
    rows = [{"step": step, "eval_loss": loss} for step, loss in LOSSES.items()]
    rows += [{"step": 5, "loss": 4.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "environment.json").write_text(json.dumps([{"step": 0}, {"step": 4}]))
    return folder


def test_the_final_model_is_the_last_or_the_best(tmp_path: Path) -> None:
    last = read_run(_run(tmp_path / "last"))
    assert (last.name, last.step, last.evaluation, last.is_finished) == ("last", 5, None, True)
    for setting in ({"load_best_model_at_end": True}, {"early_stopping_patience": 2}):
        best = read_run(_run(tmp_path / next(iter(setting)), **setting))
        assert best.step == 2
        assert best.evaluation is not None
        assert best.evaluation["eval_loss"] == 5.0
        assert best.rows[-1]["step"] == 5  # all of them: it is the whole run's record
    under_way = read_run(_run(tmp_path / "under way", is_finished=False, load_best_model_at_end=True))
    assert under_way.step == 5


def test_of_a_model_nothing_that_came_later_is_told(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", load_best_model_at_end=True)
    for model in ("checkpoints/step-00000002", "model"):
        record = read_record(folder / model)
        assert (record.name, record.step) == ("run", 2)
        assert [row["step"] for row in record.rows] == [0, 2]
        assert record.starts == [{"step": 0}]


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_model_without_a_run_around_it(tmp_path: Path, missing: str) -> None:
    folder = _run(tmp_path / "run")
    (folder / missing).unlink()
    record = read_record(folder / "model")
    assert (record.name, record.step, record.settings, record.rows) == ("model", None, {}, [])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("eval_perplexity", 1234.567, "1,234.57"),
        ("eval_perplexity", 2e7, "2e+07"),
        ("eval_perplexity", None, "-"),
        ("eval_accuracy", 0.4567, "45.7%"),
    ],
)
def test_numbers_as_every_page_shows_them(name: str, value: float | None, text: str) -> None:
    assert shown({name: value}, name) == text
    assert shown({}, name) == "-"
