"""What is recorded of the machine, and that the commit is the checkout's own."""

import json
import platform
import subprocess
from pathlib import Path

import pytest
from accelerate import Accelerator

from launch.run.environment import environment, git_state

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def _repository(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file.txt").write_text("one")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "first")):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    return folder


def test_the_commit_is_the_checkouts_own(tmp_path: Path) -> None:
    root = _repository(tmp_path / "project")
    state = git_state(root)
    assert len(state["git_commit"]) == 40
    assert state["git_changes"] is False
    (root / "inner" / "file.txt").write_text("two")
    assert git_state(root) == {**state, "git_changes": True}
    assert git_state(root / "inner") == {}  # installed somewhere inside another project
    assert git_state(tmp_path) == {}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _repository(tmp_path / "project")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(root) == {}


def test_no_name_of_host_or_user_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "a-host-name")
    monkeypatch.setenv("USER", "a-user-name")
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_written")
    text = json.dumps(environment(Accelerator(), 0))
    for word in ("a-host-name", "a-user-name", "hf_not_to_be_written", str(Path.home())):
        assert word not in text
