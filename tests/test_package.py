"""The wheel as a user installs it: it is complete, and ``mlm`` works beside packages that have our names."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchers import ROOT, environment, rows, tiny_run

_PACKAGES = ("data", "launch", "train_loop")
_NOT_FOR_USERS = {".md", ".pyc", ".sbatch", ".sh", ".png"}  # texts and scripts of the repository

Command = Callable[..., subprocess.CompletedProcess[str]]


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves its files in the folder, and a later one would pack them again."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in _PACKAGES:
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with this wheel, and with the libraries of the environment of the tests.

    A line of a .pth file adds a folder without the .pth files in it: the editable installation stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    _pip("--python", str(Path(paths["scripts"], "python")), "install", "--no-index", "--no-deps", str(wheel))
    return Path(paths["scripts"])


@pytest.fixture(scope="module")
def beside_our_names(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """A project whose own packages have our names, and a function that runs an installed command in it."""
    project = tmp_path_factory.mktemp("project")
    for package in _PACKAGES:
        (project / package).mkdir()
        (project / package / "__init__.py").write_text('raise ImportError("this is the package of the project")\n')

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words,
            cwd=project,
            env={**environment(), "PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    return project, run


def test_the_wheel_has_every_file_that_a_user_needs(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in _PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in _NOT_FOR_USERS
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files
    assert {f"{package}/py.typed" for package in _PACKAGES} < packed


@pytest.mark.slow
def test_mlm_works_where_the_project_has_packages_of_our_names(beside_our_names: tuple[Path, Command]) -> None:
    project, run = beside_our_names
    quickstart = ("--recipe", "quickstart", "--max_steps", "3", "--eval_steps", "3", "--cache_dir", "cache")
    said = run("mlm", "train", *quickstart, "--dataloader_num_workers", "2", "--output_dir", "runs/one").stdout
    assert [row["step"] for row in rows(project / "runs" / "one") if "eval_loss" in row] == [0, 3]
    assert "report     runs/one/report.html" in said

    filled = run("mlm", "fill", "--model", "runs/one/model", "The default <mask> is None.").stdout
    assert "The default <mask> is None." in filled
    assert "perplexity" in run("mlm", "score", "--model", "runs/one/model", "The default value is None.").stdout
    assert "update 1 of 3" in run("mlm", "show-batch", *quickstart, "--step", "1").stdout


@pytest.mark.slow
def test_two_processes_of_mlm_work_there_too(
    beside_our_names: tuple[Path, Command], corpus_file: Path, cache_dir: str
) -> None:
    project, run = beside_our_names
    accelerate = ("python", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--no_python")
    said = run(*accelerate, "mlm", "train", *tiny_run(corpus_file, cache_dir), "--output_dir", "runs/two").stdout
    assert "2 process(es)" in said
    assert rows(project / "runs" / "two")[-1]["step"] == 8
