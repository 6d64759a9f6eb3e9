"""The page: what stands in it, for runs that are whole, broken off, or hostile."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from train_loop.watching.plots import Curve, draw
from train_loop.watching.report import LiveReport, write_report

PROBE = {"text": "the cat <mask> on a mat", "fills": [{"token_str": " sat", "score": 0.5}]}


def _rows(last: int = 40) -> list[dict[str, Any]]:
    """An evaluation every 20 updates, a training row every 10."""
    rows: list[dict[str, Any]] = []
    for step in range(0, last + 1, 10):
        base = {"step": step, "epoch": step / 20, "seconds": step * 3.0}
        if step:
            training = {"loss": 8.0 - step / 10, "learning_rate": 1e-3, "grad_norm": 1.5, "num_masked_tokens": 90}
            rows.append({**base, **training, "num_tokens": 5120, "tokens_per_second": 1234.0})
        if step % 20 == 0:
            loss = {"eval_loss": 7.0 - step / 10, "eval_perplexity": 1000.0 / (step + 1), "eval_accuracy": step / 100}
            rows += [{**base, **loss, "eval_num_masked_tokens": 77}, {**base, "probes": [PROBE]}]
    return rows


def _write(folder: Path, rows: list[dict[str, Any]], *, tail: str = "", **settings: object) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    (folder / "config.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-3, "output_dir": str(folder), **settings}))
    start = {"step": 0, "began": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(
        json.dumps([start, {**start, "step": 20, "versions": {"torch": "2.14.0"}}])
    )
    return folder


class _Page(HTMLParser):
    """Elements, attributes and text, as a browser takes them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _page(*folders: Path) -> _Page:
    output = folders[0].parent / "page.html"
    write_report(folders, output)
    return _Page(output.read_text(encoding="utf-8"))


def test_a_run_stands_in_it(tmp_path: Path) -> None:
    folder = _write(tmp_path / "one", _rows())
    (folder / "model").mkdir()
    page = _page(folder)
    for expected in (
        "perplexity on held-out text 24.39 finished, 40 updates",
        "tokens 20,480",
        "time 2 min 0 s",
        "tokens a second, median 1,234",
        "training loss, last row 4.0000",
        "lowest perplexity 24.39 at update 40",
        "the cat <mask> on a mat update 0 sat 50% update 20 sat 50% update 40 sat 50%",
        "20 1.00 5.0000 47.62 20.0%",
        "All 2 settings",
        "torch 2.13.0 → 2.14.0",
    ):
        assert expected in page.text, expected
    # Loss, perplexity, accuracy, rate, speed and norm, over updates, tokens and time; no row has FLOP utilisation.
    assert page.tags.count("figure") == 6
    assert page.tags.count("svg") == 18


def test_flop_utilisation_and_memory_have_their_place_where_they_are_known(tmp_path: Path) -> None:
    of_machine = {"flop_utilization": 0.25, "peak_memory_bytes": 1_234_567_890}
    rows = [{**row, **of_machine} if "loss" in row else row for row in _rows()]
    page = _page(_write(tmp_path / "one", rows))
    assert page.tags.count("figure") == 7
    assert "FLOP utilisation, median 25.0% peak memory of a process 1.23 GB" in page.text


@pytest.mark.parametrize("y", [(5.9, 5.6), (0.5, 1.9), (90, 410), (20, 2000), (1, 1e6), (3, 3)])
def test_a_logarithmic_axis_has_numbers_over_any_range(y: tuple[float, float]) -> None:
    """Also where no power of ten lies within, as in fine-tuning: a perplexity from 5.9 to 5.6."""
    svg = draw([Curve(x=(0, 1), y=y, run=0)], x_axis="step", y_axis="log")
    numbers = [float(text) for text in re.findall(r"text-anchor: end[^>]*>([^<]+)</text>", svg)]
    assert len(numbers) >= 2, svg


def test_it_is_self_contained(tmp_path: Path) -> None:
    """Nothing is fetched: no script, no address, and a policy that would forbid both."""
    folder = _write(tmp_path / "one", _rows())
    page = _page(folder)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r"https?:|@import|//[a-z]", text) == []
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"#0000[0-9a-f]{2}", text)) == set()  # every stand-in has become a variable
    assert {url.strip("#") for url in re.findall(r"url\((#[^)]*)\)", text)} <= set(re.findall(r'id="([^"]*)"', text))


def test_a_broken_off_run_has_its_rows(tmp_path: Path) -> None:
    """Half a line at the end, no model, and no value of a row that was not finite."""
    rows = [{**row, "grad_norm": None} if row["step"] == 20 and "loss" in row else row for row in _rows(30)]
    page = _page(_write(tmp_path / "one", rows, tail='{"step": 40, "lo'))
    assert "not finished: 30 updates" in page.text
    assert page.tags.count("figure") == 6


@pytest.mark.parametrize("text", ["", "not json\n[1]\n5\n", '{"step": 10, "epoch": null, "loss": null}\n'])
def test_a_run_with_hardly_a_row(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    page = _page(tmp_path)
    assert "not finished" in page.text
    assert page.tags.count("figure") == 0


def test_a_run_of_before_the_clock_has_its_curves_over_updates(tmp_path: Path) -> None:
    without = {"seconds", "num_tokens"}
    rows = [{name: value for name, value in row.items() if name not in without} for row in _rows()]
    page = _page(_write(tmp_path / "one", rows))
    assert page.tags.count("svg") == page.tags.count("figure") == 6


def test_runs_side_by_side(tmp_path: Path) -> None:
    """What differs, but for where the runs are; a fourth sentence column only where a run has it."""
    one = _write(tmp_path / "one", _rows(), optimizer="adamw")
    two = _write(tmp_path / "two", _rows(20), optimizer="muon")
    page = _page(one, two)
    assert "Settings one two optimizer adamw muon All 3 settings" in page.text
    assert "updates 40 20" in page.text
    assert page.tags.count("svg") == 18
    styles = [value for name, value in page.attributes if name == "style" and value]
    for i in (0, 1):
        assert any(f"var(--run-{i})" in style for style in styles)


def test_runs_of_the_same_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folders = [_write(tmp_path / parent / "run", _rows()) for parent in "ab"]
    page = _page(*folders)
    assert all(str(folder) in page.text for folder in folders)


def test_more_runs_than_colours_differ_in_their_dashes(tmp_path: Path) -> None:
    folders = [_write(tmp_path / f"run{i}", _rows(20)) for i in range(9)]
    page = _page(*folders)
    styles = " ".join(value for name, value in page.attributes if name == "style" and value)
    assert "border-top-style: dashed" in styles
    assert "stroke-dasharray" in styles


BAD = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"$x^2$'


def test_no_text_from_data_becomes_markup(tmp_path: Path) -> None:
    """In names, settings, metrics, probes, fills and the environment; and as a number that is none."""
    rows = _rows()
    for row in rows:
        row[BAD] = BAD
        if "probes" in row:
            row["probes"] = [{"text": BAD, "fills": [{"token_str": BAD, "score": 0.5}]}]
    rows += [{**row, "step": 50, "loss": BAD, "eval_loss": BAD, "eval_perplexity": BAD} for row in rows[:3]]
    rows += [{**rows[0], "step": BAD}]
    bad = _write(tmp_path / BAD.replace("/", ""), rows, **{BAD: BAD, "probe": [BAD]})
    environment = [{"step": 0, "began": BAD, BAD: BAD, "versions": {BAD: BAD}}]
    (bad / "environment.json").write_text(json.dumps(environment))
    for folders in ([bad], [bad, _write(tmp_path / "good", _rows())]):
        page = _page(*folders)
        assert not {"script", "img"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert page.text.count(BAD) >= 5


def test_a_live_report_that_fails_says_so_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "one", _rows())
    said: list[str] = []
    report = LiveReport(folder, said.append, writes=True)
    monkeypatch.setitem(sys.modules, "train_loop.watching.plots", None)  # as where matplotlib is missing
    report.update()
    assert said == []  # the run has just begun
    report.update(is_last=True)
    report.update(is_last=True)
    assert len(said) == 1
    assert said[0].startswith("report   no report.html: the report needs ")
    assert "pip install" in said[0]
    assert not (folder / "report.html").exists()


def test_only_the_writing_process_makes_it(tmp_path: Path) -> None:
    folder = _write(tmp_path / "one", _rows())
    LiveReport(folder, print, writes=False).update(is_last=True)
    assert not (folder / "report.html").exists()
    LiveReport(folder, print, writes=True).update(is_last=True)
    assert (folder / "report.html").exists()
    shutil.rmtree(folder)
