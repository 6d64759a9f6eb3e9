"""``mlm report``: one page for one run or several; a user error is one line."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.report import main
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


@pytest.mark.parametrize("words", [["{tmp}"], ["{tmp}/nowhere"], ["{tmp}", "{tmp}/nowhere"]])
def test_a_folder_without_a_run_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word.format(tmp=tmp_path) for word in words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    folder = words[0].format(tmp=tmp_path)
    assert error == f"error: {folder} holds no run: there is no metrics.jsonl in it or below it\n"


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


def _append(folder: Path, **row: object) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_a_watched_page_is_written_again_when_a_row_has_come(tmp_path: Path) -> None:
    """Until Ctrl-C, which ends it without a word; and a browser that has the page open reloads it."""
    _append(tmp_path, step=10, loss=5.5)
    code = (
        "import signal, sys; from launch.report import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "--watch"]
    page = tmp_path / "report.html"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"report   {page}\n"
            assert "not finished: 10 updates" in page.read_text()
            assert '<meta http-equiv="refresh"' in page.read_text()
            _append(tmp_path, step=20, loss=4.5)
            deadline = time.monotonic() + 60
            while "not finished: 20 updates" not in page.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGINT)
            rest, error = process.communicate(timeout=60)
    assert (process.returncode, rest, error) == (0, "", "")
    (tmp_path / "model").mkdir()
    main([str(tmp_path)])
    assert "refresh" not in page.read_text().partition("<style>")[0]


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
