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

from tests.browser import open_page, wait_until
from train_loop.watching.report import PANELS, LiveReport, write_report

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
        self.scripts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())
        self.data = json.loads(self.scripts[1])  # after plotly; what the plots show

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        (self.scripts if self.tags and self.tags[-1] == "script" and self.cdata_elem else self.words).append(data)


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
        "time (h:min:s) 0:02:00",
        "tokens a second, median 1,234",
        "training loss, last row 4.0000",
        "lowest perplexity 24.39 at update 40",
        "the cat <mask> on a mat update 0 sat 50% update 20 sat 50% update 40 sat 50%",
        "20 1.00 5.0000 47.62 20.0%",
        "All 2 settings",
        "torch 2.13.0 → 2.14.0",
    ):
        assert expected in page.text, expected
    # Loss, perplexity, accuracy, rate, speed and norm; no row has a share of the matrix rate.
    assert page.tags.count("figure") == page.tags.count("svg") == 6
    assert [panel["names"] for panel in page.data["panels"]][:2] == [["loss", "eval_loss"], ["eval_perplexity"]]
    (columns,) = page.data["runs"]
    assert columns["loss"] == [7.0, 6.0, 5.0, 4.0]
    assert columns["step"] == [10, 20, 30, 40]
    assert columns["tokens"] == [5120, 10240, 15360, 20480]
    assert columns["minutes"] == [0.5, 1.0, 1.5, 2.0]
    assert columns["eval_loss"] == [7.0, 5.0, 3.0]
    assert columns["eval_minutes"] == [0.0, 1.0, 2.0]


def test_share_of_the_matrix_rate_and_memory_have_their_place_where_they_are_known(tmp_path: Path) -> None:
    of_machine = {"flop_utilization": 0.25, "peak_memory_bytes": 1_234_567_890}
    rows = [{**row, **of_machine} if "loss" in row else row for row in _rows()]
    page = _page(_write(tmp_path / "one", rows))
    assert page.tags.count("figure") == 7
    assert "share of the measured matrix rate, median 25.0% peak memory of a process 1.23 GB" in page.text


def test_what_else_is_logged_has_a_panel_too(tmp_path: Path) -> None:
    """Such as a term of the loss, or a number of one's own; but no count, and nothing that is no number."""
    own = {"loss_first": 1.5, "own": 2.5, "text": "a"}
    page = _page(_write(tmp_path / "one", [{**row, **own} if "loss" in row else row for row in _rows()]))
    assert [panel["title"] for panel in page.data["panels"]][6:] == ["loss_first", "own"]
    assert page.data["runs"][0]["own"] == [2.5] * 4


def _pictures(tmp_path: Path, name: str, values: tuple[float, ...]) -> list[str]:
    """Those of a run with a number that has these values at updates 0, 10 and so on."""
    folder = _write(tmp_path / "one", [{"step": 10 * i, name: value} for i, value in enumerate(values)])
    write_report([folder], tmp_path / "page.html")
    return re.findall(r"<svg.*?</svg>", (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    ("name", "y", "ends"),
    [
        ("loss", (5.9, 5.6, 5.7), ["5.9", "5.6"]),
        ("grad_norm", (0, 1, 20_000), ["20,000", "1"]),
        ("flop_utilization", (0.1, 0.25, 0.2), ["25.0%", "10.0%"]),
        ("loss", (3, 3, 3), ["3", "3"]),
    ],
)
def test_a_still_picture_has_the_ends_of_its_axes(
    name: str, y: tuple[float, ...], ends: list[str], tmp_path: Path
) -> None:
    """On a linear axis, one of logarithms and one of percent."""
    (picture,) = _pictures(tmp_path, name, y)
    assert re.findall(r">([^<]+)</text>", picture) == [*ends, "10" if name == "grad_norm" else "0", "20"]
    assert len(re.findall(r"[ML]([\d.]+ [\d.]+)", picture.partition('"/>')[2])) == (2 if name == "grad_norm" else 3)


def test_a_still_picture_of_one_point_is_a_dot_in_the_middle(tmp_path: Path) -> None:
    (picture,) = _pictures(tmp_path, "loss", (2.0,))
    assert '"M233.0 110.0 h0"' in picture


def test_the_page_draws_the_still_pictures(tmp_path: Path) -> None:
    write_report([_write(tmp_path / "one", _rows())], tmp_path / "page.html")
    loss = re.findall(r"<svg.*?</svg>", (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert re.findall(r">([^<]+)</text>", loss) == ["7", "3", "0", "40"]
    assert re.findall(r"[ML]([\d.]+ [\d.]+)", loss.partition('"/>')[2]) == [
        *("144.5 12.0", "233.0 61.0", "321.5 110.0", "410.0 159.0"),
        *("56.0 12.0", "233.0 110.0", "410.0 208.0"),
    ]


def test_a_still_picture_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert _pictures(tmp_path, "grad_norm", (0.0,)) == []  # which has no logarithm


def test_the_rate_of_muon_is_beside_the_other(tmp_path: Path) -> None:
    rows = [{**row, "muon_learning_rate": 0.01} if "loss" in row else row for row in _rows()]
    page = _page(_write(tmp_path / "one", rows))
    (panel,) = (panel for panel in page.data["panels"] if panel["title"] == "Learning rate")
    assert panel["names"] == ["learning_rate", "muon_learning_rate"]
    assert page.data["runs"][0]["muon_learning_rate"] == [0.01] * 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"mlm_probability": 0.3, "eval_mlm_probability": 0.15},
            "training masks 30% of the tokens, and held-out text 15%",
        ),
        (
            {"mlm_probability": 0.3, "mlm_probability_end": 0.15, "eval_mlm_probability": None},
            "training masks 30% to 15% of the tokens, and held-out text 30%",
        ),
        ({"mlm_probability": 0.15, "mlm_probability_end": None, "eval_mlm_probability": 0.15}, None),
        ({"mlm_probability": 0.15, "eval_mlm_probability": None}, None),
        ({}, None),
    ],
)
def test_masking_rates_are_named_where_they_differ(
    settings: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    """Because the loss on fewer masks is a lower one."""
    page = _page(_write(tmp_path / "one", _rows(), **settings))
    assert ("do not compare" in page.text) == (expected is not None)
    assert expected is None or f"In one, {expected}: the two losses do not compare." in page.text


def test_it_is_self_contained(tmp_path: Path) -> None:
    """Nothing is fetched: no address, and a policy that runs the page's own script and would forbid everything else."""
    folder = _write(tmp_path / "one", _rows())
    page = _page(folder)
    assert not {"link", "img", "iframe", "object", "image"} & set(page.tags)
    assert page.tags.count("script") == 3
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r"https?:|@import|src=|url\(", text) == []
    (nonce,) = re.findall(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-([\w-]{20,})'\">", text)
    assert ("nonce", nonce) in page.attributes
    assert nonce not in (write_report([folder], tmp_path / "two.html"), (tmp_path / "two.html").read_text())[1]
    assert "prefers-color-scheme: dark" in text


def test_many_long_runs_are_a_page_of_five_megabytes_at_the_most(tmp_path: Path) -> None:
    """Where rows are left out, the last one is not."""
    names = [name for panel in PANELS for name in panel.names]
    rows = [
        {"step": step, "seconds": step * 1.234567, "num_tokens": 2048, **dict.fromkeys(names, 1.2345678)}
        for step in range(1, 2_501)
    ]
    folders = [_write(tmp_path / f"run{i}", rows) for i in range(12)]
    page = _page(*folders)
    assert (tmp_path / "page.html").stat().st_size < 5e6
    steps = page.data["runs"][0]["step"]
    assert 500 <= len(steps) <= 1000
    assert steps[-1] == 2_500


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
    assert [value for name, value in page.attributes if name == "value"][:2] == ["step", "0"]  # no other axis


def test_runs_side_by_side(tmp_path: Path) -> None:
    """A row for each, with the settings that differ, but for where the runs are, and the figures."""
    one = _write(tmp_path / "one", _rows(), optimizer="adamw", seed=0)
    two = _write(tmp_path / "two", _rows(20), optimizer="muon", seed=0, muon_learning_rate=0.02)
    page = _page(one, two)
    assert "run optimizer muon_learning_rate state held-out perplexity" in page.text
    assert "one adamw - not finished 24.39 3.0000 40.0% 24.39 at update 40 4.0000 40 2.00 20,480 0:02:00" in page.text
    assert "two muon 0.02 not finished 47.62 5.0000 20.0% 47.62 at update 20 6.0000 20 1.00 10,240 0:01:00" in page.text
    assert page.data["names"] == ["one", "two"]
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
    folders = [_write(tmp_path / f"run{i:02}", _rows(20)) for i in range(13)]
    page = _page(*folders)
    assert len({tuple(style) for style in page.data["styles"]}) == 13
    assert page.data["styles"][12] == [0, "dash"]
    assert ("class", "swatch run-0 dash") in page.attributes


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
        assert page.tags.count("script") == 3
        assert "img" not in page.tags
        assert page.data["names"][0] == bad.name
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert page.text.count(BAD) >= 5


def test_a_live_report_that_fails_says_so_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "one", _rows())
    said: list[str] = []
    report = LiveReport(folder, said.append, writes=True)
    monkeypatch.setitem(sys.modules, "jinja2", None)  # as where it is missing
    report.update()
    assert said == []  # the run has just begun
    report.update(is_last=True)
    report.update(is_last=True)
    assert len(said) == 1
    assert said[0].startswith("report   no report.html: import of jinja2 halted")
    assert not (folder / "report.html").exists()


def test_only_the_writing_process_makes_it(tmp_path: Path) -> None:
    folder = _write(tmp_path / "one", _rows())
    LiveReport(folder, print, writes=False).update(is_last=True)
    assert not (folder / "report.html").exists()
    LiveReport(folder, print, writes=True).update(is_last=True)
    assert (folder / "report.html").exists()
    shutil.rmtree(folder)


_VALUES = "figures => figures.map(f => [...f.querySelectorAll('.values b')].map(b => b.textContent))"
_RANGES = "figures => figures.map(f => f.querySelector('.plot')._fullLayout.xaxis.range)"


def _compared(tmp_path: Path) -> Path:
    """The page of three runs, of which one has a hostile name and ended earlier."""
    for name, last, loss in (("b", 40, 0.0), (BAD.replace("/", ""), 20, 1.0), ("a", 40, 2.0)):
        muon = {"muon_learning_rate": 0.02}
        rows = [{**row, **muon, "loss": row["loss"] + loss} if "loss" in row else row for row in _rows(last)]
        for row in rows:
            if "probes" in row:
                row["probes"] = [{"text": BAD, "fills": [{"token_str": BAD, "score": 0.5}]}]
        _write(tmp_path / name, rows, optimizer="muon", **muon, seed=loss)
    write_report(list(tmp_path.iterdir()), tmp_path / "page.html")
    return tmp_path / "page.html"


def _names(page: Any) -> list[str]:
    return [text.strip()[:1] for text in page.locator("#runs tbody th").all_inner_texts()]


def test_a_pointer_on_one_plot_shows_the_values_there_on_all(tmp_path: Path) -> None:
    write_report([_write(tmp_path / "one", _rows())], tmp_path / "page.html")
    with open_page((tmp_path / "page.html").as_uri()) as page:
        last = [["4 | 3"], ["24.39"], ["40.0%"], ["0.001"], ["1234"], ["1.5"]]
        assert page.eval_on_selector_all("figure", _VALUES) == last
        plot = page.locator(".plot").nth(1).bounding_box()
        left, width = page.eval_on_selector(".plot", "p => [p._fullLayout._size.l, p._fullLayout.xaxis._length]")
        page.mouse.move(plot["x"] + left + width * 0.65, plot["y"] + 100)  # the axis ends at 40.4, so update 26
        expected = [["5 | 5"], ["47.62"], ["20.0%"], ["0.001"], ["1234"], ["1.5"]]
        assert page.eval_on_selector_all("figure", _VALUES) == expected
        assert page.locator(".crosshair:visible").count() == 6
        page.mouse.move(0, 0)
        assert page.eval_on_selector_all("figure", _VALUES) == last
        assert page.locator(".crosshair:visible").count() == 0


def test_a_touch_shows_the_values_too(tmp_path: Path) -> None:
    write_report([_write(tmp_path / "one", _rows())], tmp_path / "page.html")
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with open_page((tmp_path / "page.html").as_uri(), **phone) as page:
        plot = page.locator(".plot").first.bounding_box()
        page.touchscreen.tap(plot["x"] + plot["width"] / 2, plot["y"] + 100)  # update 18
        page.wait_for_selector(".crosshair:visible")
        assert page.eval_on_selector_all("figure", _VALUES)[1] == ["47.62"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out


def test_dragging_looks_closer_on_all_plots_and_two_clicks_go_back(tmp_path: Path) -> None:
    write_report([_write(tmp_path / "one", _rows())], tmp_path / "page.html")
    with open_page((tmp_path / "page.html").as_uri()) as page:
        whole = page.eval_on_selector_all("figure", _RANGES)
        assert whole == [[0, 40.4]] * 6
        plot = page.locator(".plot").first.bounding_box()
        x, y = plot["x"], plot["y"] + 100
        page.mouse.move(x + plot["width"] * 0.4, y)
        page.mouse.down()
        page.mouse.move(x + plot["width"] * 0.7, y, steps=4)
        page.mouse.up()
        wait_until(page, "document.querySelector('.plot')._fullLayout.xaxis.range[0] > 0")
        closer = page.eval_on_selector_all("figure", _RANGES)
        assert all(range_ == closer[0] for range_ in closer)
        assert 10 < closer[0][0] < closer[0][1] < 30
        page.mouse.dblclick(x + plot["width"] * 0.5, y)
        wait_until(page, "document.querySelector('.plot')._fullLayout.xaxis.range[0] == 0")
        assert page.eval_on_selector_all("figure", _RANGES) == whole


def test_axes_and_smoothing_are_chosen(tmp_path: Path) -> None:
    rows = [{**row, "learning_rate": row["step"] * 5e-5} if "loss" in row else row for row in _rows()]
    write_report([_write(tmp_path / "one", rows)], tmp_path / "page.html")
    kind = "document.querySelector('.plot')._fullLayout.yaxis.type"
    with open_page((tmp_path / "page.html").as_uri()) as page:
        assert page.evaluate(kind) == "linear"
        page.locator("figure button").first.click()
        assert page.evaluate(kind) == "log"
        page.get_by_label("minutes").check()
        assert page.eval_on_selector_all("figure", _RANGES)[0] == [0, 2.02]
        page.locator("#smoothing").fill("0.5")
        # Losses of 7, 6, 5 and 4, the last with half of the weight, the one before with a quarter, and so on.
        smoothed = (4 / 2 + 5 / 4 + 6 / 8 + 7 / 16) / (15 / 16)
        values = page.eval_on_selector_all("figure", _VALUES)
        assert values[0] == [f"{smoothed:.3f} | 3"]
        assert values[3] == ["0.002"]  # a rate is exact


def test_runs_are_sorted_and_switched_off(tmp_path: Path) -> None:
    """A name is no markup in the table, at the values, or anywhere: nothing opens a dialog."""
    with open_page(_compared(tmp_path).as_uri()) as page:
        assert sorted(_names(page)) == _names(page) == ["<", "a", "b"]
        head = page.get_by_role("button", name="training loss, last row")
        head.click()
        assert _names(page) == ["b", "a", "<"]  # 4, 6 and 7
        head.click()
        assert _names(page) == ["<", "a", "b"]
        assert [len(values) for values in page.eval_on_selector_all("figure", _VALUES)] == [3] * 6
        page.locator("#runs tbody input").first.uncheck()
        values = page.eval_on_selector_all("figure", _VALUES)
        assert sorted(values[0]) == ["4 | 3", "6 | 3"]
        assert sorted(values[3]) == ["0.001 | 0.02"] * 2
        assert not page.locator(".values", has_text="<script>").count()
        page.locator("#runs tbody input").first.check()
        assert page.locator(".values", has_text="<script>").count() == 6


def test_without_scripts_there_are_still_pictures(tmp_path: Path) -> None:
    page_of_three = _compared(tmp_path).as_uri()
    with open_page(page_of_three, java_script_enabled=False, color_scheme="dark") as page:
        assert page.locator("figure svg:visible").count() == 6
        assert page.locator(".controls:visible, button:visible >> text=log, #runs input:visible").count() == 0
