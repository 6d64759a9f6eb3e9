"""``python -m launch.report``: one page for one run or several; a user error is one line."""

import json
import subprocess
import sys
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
    assert len(path.read_text()) == len(made)  # but for the names of clip paths

    train(tmp_path / "other", "--learning_rate", "2e-3", "--max_steps", "3")
    main([str(tmp_path / "run"), str(tmp_path / "other"), "--output", str(tmp_path / "both.html")])
    assert "Compare run, other" in (tmp_path / "both.html").read_text()


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
    assert error == f"error: {words[0].format(tmp=tmp_path)} is not the folder of a run: it holds no metrics.jsonl\n"


def test_without_matplotlib_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    code = "import sys; sys.modules['matplotlib'] = None; from launch.report import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the report needs matplotlib: pip install matplotlib\n"


def test_training_without_matplotlib_says_so_once_and_ends_well(
    corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    """In a process in which matplotlib cannot be imported, as if the extra were not installed."""
    code = "import sys; sys.modules['matplotlib'] = None; from launch.train import main; main(sys.argv[1:])"
    words = tiny_run(corpus_file, cache_dir, max_steps=2, eval_steps=1)
    done = run([sys.executable, "-c", code], "--output_dir", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("matplotlib") == 2  # in the one line
    assert "report   no report.html: the report needs matplotlib: pip install matplotlib\n" in done.stdout
    assert (tmp_path / "model").exists()
    assert not list(tmp_path.glob("report.html*"))


def test_matplotlib_is_not_imported_before_a_report_is_made() -> None:
    code = "import sys, launch.train, launch.run, train_loop.loop; print('matplotlib' in sys.modules)"
    assert run([sys.executable, "-c", code]).stdout == "False\n"
