"""The embedded corpus: about 2 MB of real English, in the guide's nested shape, the same at every call."""

import json
import sys
from pathlib import Path

import pytest

from data import DataConfig, open_documents
from data.documents import python_docs


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return list(python_docs.rows())


def test_rows_have_the_guides_shape_and_are_distinct(rows: list[dict]) -> None:  # type: ignore[type-arg]
    for row in rows:
        assert set(row) == {"title", "answers"}
        assert set(row["answers"]) == {"text"}
        assert all(isinstance(part, str) and part.strip() for part in row["answers"]["text"])
    joined = [" ".join(row["answers"]["text"]) for row in rows]
    assert len(set(joined)) == len(joined)


def test_there_is_about_2_mb_of_text(rows: list[dict]) -> None:  # type: ignore[type-arg]
    assert 1_500_000 < sum(len(part) for row in rows for part in row["answers"]["text"]) < 4_000_000


def test_it_holds_topics_python_modules_and_builtins(rows: list[dict]) -> None:  # type: ignore[type-arg]
    titles = {row["title"] for row in rows}
    assert {"assignment", "json.dumps", "str.split"} <= titles


def test_it_is_written_once_in_the_home_and_opens_through_the_common_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig()
    (train,), (evaluation,) = open_documents(config)
    (file,) = (tmp_path / ".cache/mlm-train-loop").iterdir()
    written = file.stat().st_mtime_ns
    sizes = [sum(map(len, side.texts())) for side in (train, evaluation)]
    lines = file.read_text().splitlines()
    assert sum(sizes) == len(lines)
    assert 0.03 < sizes[1] / sum(sizes) < 0.07
    open_documents(config)
    assert file.stat().st_mtime_ns == written
    assert json.loads(lines[0])["title"] == "assert"


def test_it_does_not_depend_on_what_the_asking_program_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", print)
    file = python_docs.cached_rows(tmp_path)
    assert '"title": "sys.unraisablehook"' in file.read_text()
