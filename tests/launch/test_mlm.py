"""The script ``mlm``, and what holds for every command behind it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from launch.mlm import COMMANDS
from tests.launchers import ROOT

_MLM = Path(sys.executable).parent / "mlm"  # as pip installs it
_FILES = {path.stem: path for path in (ROOT / "launch").glob("*.py") if path.stem not in ("__init__", "mlm")}


def _mlm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_MLM, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_file_of_launch_is_a_command_with_a_line_of_its_own() -> None:
    assert sorted(COMMANDS.values()) == sorted(_FILES)
    for words in ((), ("--help",)):
        done = _mlm(*words)
        assert (done.returncode, done.stderr) == (0, "")
        _, _, _, *lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(COMMANDS)
        assert all(10 < len(line.split(maxsplit=1)[1]) < 100 for line in lines)
        assert "``" not in done.stdout


@pytest.mark.parametrize("path", _FILES.values(), ids=_FILES)
def test_commands_do_not_import_each_other(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "launch":
            assert (node.module or "").split(".")[1:2] in (["run"], ["terminal"], ["benchmarks"]), node.module


def test_the_words_after_the_command_are_the_commands(tmp_path: Path) -> None:
    done = _mlm("report", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / "none") in done.stderr
    assert _mlm("show_batch", "--help").stdout == _mlm("show-batch", "--help").stdout != ""


@pytest.mark.parametrize(
    ("word", "message"), [("trian", "did you mean train?"), ("fill_mask", "did you mean fill?"), ("x", "prepare, ")]
)
def test_an_unknown_command_is_one_line_with_the_nearest(word: str, message: str) -> None:
    done = _mlm(word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: unknown command {word!r}; ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


_WRONG = {  # what each command refuses, besides an unknown option
    "train": ["--block_size", "many"],
    "prepare": ["--recipe", "none"],
    "show_batch": ["--model_type", "bert", "--step", "0"],
    "fill_mask": ["--model", "x", "--file", "missing.txt"],
    "score": ["--model", "x", "--file", "missing.txt"],
    "generate": ["--model", "x", "--num_texts", "0"],
    "report": ["no/such/run"],
    "publish": ["--model", "x", "--repo_id", "without-user"],
    "evaluate": ["--model", "x", "--block_size", "many"],
    "vocabulary": ["--model", "x", "--add", "0", "--output", "x"],
    "benchmark": ["train", "--shape", "hidden_size=big"],
}


@pytest.mark.parametrize("module", _FILES)
def test_help_and_mistakes_answer_before_torch_is_imported(module: str) -> None:
    """torch, transformers and datasets take seconds."""
    wrong = [["--no_such_option"], _WRONG[module]]
    code = (
        f"import sys, launch.{module} as command\n"
        f"for words in {[['--help'], *wrong]}:\n"
        "    try: command.main(words)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: "), done.stderr
    assert done.stdout.endswith("\n[]\n"), done.stdout[-100:] + done.stderr
    assert [line.startswith("error: ") for line in done.stderr.splitlines()] == [True] * len(wrong), done.stderr
