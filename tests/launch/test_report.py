"""``mlm report``: one page for one run or several; a user error is one line."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from launch.report import main
from tests.browser import open_page, wait_until
from tests.launch.conftest import Train
from tests.launchers import run, tiny_run


def test_a_run_leaves_a_report_and_the_command_makes_it_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "--probe", "the cat <mask> on a mat")
    path = tmp_path / "run" / "report.html"
    made = path.read_text()
    assert "finished, 6 updates" in made
    path.unlink()
    main([str(tmp_path / "run")])
    assert capsys.readouterr().out.endswith(f"report   {path}\n")
    assert len(path.read_text()) == len(made)  # but for the nonce

    train(tmp_path / "other", "--learning_rate", "2e-3", "--max_steps", "3")
    main([str(tmp_path / "run"), str(tmp_path / "other"), "--output", str(tmp_path / "both.html")])
    assert "<title>run, other</title>" in (tmp_path / "both.html").read_text()
    main([str(tmp_path)])
    assert capsys.readouterr().out.endswith(f"report   {tmp_path / 'report.html'}\n")
    assert "<title>other, run</title>" in (tmp_path / "report.html").read_text()


def test_the_environment_of_each_start_that_counts(train: Train, tmp_path: Path) -> None:
    """It names no host and no user; a start whose updates were made again is dropped."""
    train(tmp_path, "--max_steps", "9", "--save_total_limit", "none")
    for words in ((), ()):
        for path in (tmp_path / "checkpoints" / "step-00000009").iterdir():
            path.unlink()
        train(tmp_path, "--max_steps", "9", "--save_total_limit", "none", "--resume_from_checkpoint", "latest", *words)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 6]
    assert set(starts[0]) - {"git_commit", "git_changes"} == {
        *("step", "began", "python", "system", "cpu", "cpu_cores", "memory_gib", "device", "gpus", "num_processes"),
        *("mixed_precision", "versions"),
    }


@pytest.mark.parametrize("words", [["{tmp}"], ["{tmp}/nowhere"], ["{tmp}", "{tmp}/nowhere"], ["{tmp}", "--watch"]])
def test_a_folder_without_a_run_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word.format(tmp=tmp_path) for word in words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    folder = words[0].format(tmp=tmp_path)
    assert error == f"error: {folder} holds no run: there is no metrics.jsonl in it or below it\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--watch", "--output", "x.html"], "--output goes without --watch"),
        (["--watch", "--port", "70000"], "--port 70000: "),
        (["--watch", "--port", "{taken}"], "choose another, or leave --port out"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        main([str(tmp_path), *(word.format(taken=taken.getsockname()[1]) for word in words)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1"), ("environment.json", "[{")])
def test_a_damaged_file_is_one_line(name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: {name} is damaged: ")
    assert error.count("\n") == 1


@contextmanager
def _watching(folder: Path) -> Iterator[str]:
    """The address of a server in a process of its own, which Ctrl-C must end without a word."""
    code = (
        "import signal, sys; from launch.report import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(folder), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("report   http://127.0.0.1:")
            yield line.split()[1]
        finally:
            process.send_signal(signal.SIGINT)
            rest, error = process.communicate(timeout=60)
    assert (process.returncode, rest, error) == (0, "\n", "")


def _append(folder: Path, **row: object) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_a_watched_page_is_sent_again_when_a_row_has_come(tmp_path: Path) -> None:
    _append(tmp_path, step=10, loss=5.5)
    with _watching(tmp_path) as url:
        with urlopen(url, timeout=60) as answer:
            assert "not finished: 10 updates" in answer.read().decode()
            known = Request(url, headers={"If-None-Match": answer.headers["ETag"]})
        with pytest.raises(HTTPError) as unchanged:
            urlopen(known, timeout=60)
        with unchanged.value as error:
            assert error.code == 304
        _append(tmp_path, step=20, loss=4.5)
        with urlopen(known, timeout=60) as answer:
            assert "not finished: 20 updates" in answer.read().decode()
        (tmp_path / "config.yaml").write_text("a: [1")
        _append(tmp_path, step=30, loss=4.5)
        with pytest.raises(HTTPError) as damaged:
            urlopen(url, timeout=60)
        with damaged.value as error:
            assert error.code == 503
            assert "config.yaml is damaged" in error.read().decode()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_a_watched_page_follows_the_run_and_keeps_what_was_chosen(tmp_path: Path) -> None:
    """In a browser, from its first row on, and over a row, a panel and a run that come later."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        _append(folder, step=10, loss=5.5)
    with _watching(tmp_path) as url, open_page(url) as page:
        page.locator("#runs tbody input").first.uncheck()
        page.get_by_role("button", name="updates").click()
        page.locator("#smoothing").fill("0.5")
        page.locator("details").first.evaluate("details => details.open = true")
        _append(folders[1], step=20, loss=3.5)
        wait_until(page, "document.querySelector('.values b').textContent != '5.5'")
        smoothed = (3.5 / 2 + 5.5 / 4) / (3 / 4)
        assert page.locator(".values b").all_inner_texts() == [f"{smoothed:.3f}"]
        assert page.locator("#runs tbody input:checked").count() == 1
        assert page.locator("#runs [aria-sort=ascending]").inner_text().startswith("updates")
        assert page.locator("details").first.evaluate("details => details.open")
        _append(folders[1], step=20, eval_loss=3.0, eval_perplexity=20.0)
        page.wait_for_selector("figure >> nth=1")
        (tmp_path / "c").mkdir()
        _append(tmp_path / "c", step=10, loss=5.5)
        page.wait_for_selector("#runs tbody tr >> nth=2")


@pytest.mark.slow
def test_training_without_plotly_says_so_once_and_ends_well(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    """A report is not worth a run."""
    code = "import sys; sys.modules['plotly'] = None; from launch.train import main; main(sys.argv[1:])"
    words = tiny_run(corpus_file, cache_dir, max_steps=2, eval_steps=1)
    done = run([sys.executable, "-c", code], "--output_dir", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("no report.html") == 1
    assert re.search("^report   no report.html: .*plotly", done.stdout, re.MULTILINE)
    assert (tmp_path / "model").exists()
    assert not list(tmp_path.glob("report.html*"))


@pytest.mark.slow
def test_plotly_is_not_imported_before_a_report_is_made() -> None:
    code = "import sys, launch.train, launch.run, train_loop.loop; print('plotly' in sys.modules)"
    assert run([sys.executable, "-c", code]).stdout == "False\n"
