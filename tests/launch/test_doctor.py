"""The doctor tries real things: two processes, a file, a Hub that is a stand-in or is not there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import serve

ROOT = Path(__file__).parents[2]


def _doctor(*words: str, **environment: str) -> tuple[int, dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "launch.doctor", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        verdict, name, text = line.split(maxsplit=2)
        found.setdefault(name, []).append(f"{verdict} {text}")
    return done.returncode, found


def test_a_machine_that_works(tmp_path: Path) -> None:
    with serve({}) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        code, found = _doctor("--output_dir", str(tmp_path / "runs"), **environment)
    assert code == 0
    assert found["processes"][0] == "ok two processes met over gloo"
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    # What other machines would be told to look for: a note, where it is an address of this machine alone.
    assert [address in line for line in found["processes"][1:]] == [True] * address.startswith("127.")
    assert found["disk"][0].startswith("ok ")
    assert "torch" in found["versions"][0]
    assert any("cores" in line for line in found["devices"])
    assert found["hub"][0] == f"ok {hub.endpoint} answers"
    assert not [*tmp_path.iterdir()]


def test_an_option_that_there_is_not_is_told_before_anything_is_tried() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.doctor", "--recipe", "quickstart"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unrecognized arguments: --recipe quickstart")


@pytest.mark.slow
def test_what_cannot_work_fails_and_what_is_only_missing_does_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, found = _doctor("--output_dir", str(tmp_path / "file"))
    assert code == 1
    assert len(found["disk"]) == 1
    assert found["disk"][0].startswith("FAIL NotADirectoryError:")
    assert str(tmp_path / "file") in found["disk"][0]
    assert "HF_HUB_OFFLINE" in found["hub"][0]
