"""The script for the first hour with a GPU runs to its table, here in tiny sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # several minutes
def test_every_check_gives_a_row(corpus_file: Path, tmp_path: Path) -> None:
    """All but flash attention, which needs a GPU and says so; the others do not mind."""
    done = subprocess.run(
        ["bash", "launch/gpu.sh", str(tmp_path), str(corpus_file)],
        cwd=ROOT,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")},  # another test may write the same file
        capture_output=True,
        text=True,
        timeout=3200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(cells) >= 11
    for name, result, _, figure in cells:
        assert result == ("failed" if name == "flash attention" else "ok"), (name, result, figure)
        assert figure, name
