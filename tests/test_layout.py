"""The seams of the design: imports go one way, and only ``launch/`` looks at the environment."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("data", "train_loop") for path in sorted((ROOT / package).glob("*.py"))]


def _imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_go_one_way(path: Path) -> None:
    for module, name in _imports(path):
        package = module.split(".")[0]
        assert package != "launch", module
        if path.parent.name == "data":
            assert package != "train_loop", module
        elif package == "data":
            assert (module, name) == ("data", "MaskedBatch")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_below_launch_reads_the_environment_or_pickles(path: Path) -> None:
    text = path.read_text()
    for word in (
        "os.environ",
        "getenv",
        "import pickle",
        " torch.save(",
        " torch.load(",
        "sys.argv",
        "trust_remote_code",
    ):
        assert word not in text
