"""The seams of the design: imports go one way, and only ``launch/`` looks at the environment."""

import ast
import re
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


TEXTS = [
    path.relative_to(ROOT)
    for path in [
        *ROOT.glob("*.md"),
        *(p for name in ("data", "train_loop", "launch", "tests") for p in ROOT.glob(f"{name}/**/*.md")),
    ]
]


def _anchors(path: Path) -> set[str]:
    """What a link can name in a text after ``#``, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_every_relative_link_of_a_text_resolves(text: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / text).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / text).parent / name if name else ROOT / text
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
