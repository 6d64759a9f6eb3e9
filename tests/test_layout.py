"""The rules of the house: imports go one way, from room to room too, and only ``launch/`` looks at the environment."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("data", "train_loop") for path in sorted((ROOT / package).rglob("*.py"))]
COMMANDS = {f"launch.{path.stem}" for path in (ROOT / "launch").glob("*.py") if path.name != "__init__.py"}
PRODUCT = [*FILES, *sorted((ROOT / "launch").rglob("*.py"))]

DATA_ROOMS = ("batches", "blocks", "documents")  # each imports those to its right
DATA_ROOT = ("batch", "config", "cores", "functions")  # the files at data's root that a room may import
TRAINING_ROOMS = ("objectives", "optimizers", "speed", "watching", "inference", "sharing")

# (importer, imported) against the rules, with the reason. The set only shrinks: what is mended since must leave it.
EXCEPTIONS = {
    # The settings are checked by the registries, which import nothing that imports the settings.
    ("data.config", "data.batches.masking"),
    ("data.config", "data.blocks.grouping"),
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, at its top or within a function."""
    modules = {_name(file) for file in PRODUCT}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module or ""}
    return {module for module in found if module.split(".")[0] in ("data", "train_loop", "launch")}


def _is_allowed(importer: str, imported: str) -> bool:
    package, *inner = importer.split(".")
    target, *rest = imported.split(".")
    room, target_room = (names[0] if names else "" for names in (inner, rest))
    if package == "data":
        if room in DATA_ROOMS:
            return target == "data" and target_room in (*DATA_ROOMS[DATA_ROOMS.index(room) :], *DATA_ROOT)
        return target == "data" and target_room in DATA_ROOT
    if package == "train_loop":
        if target != "train_loop":
            return imported in ("data.batch", "data.functions")  # the second knows no text
        is_core = room not in TRAINING_ROOMS
        return not is_core or target_room not in TRAINING_ROOMS or (room, target_room) == ("loop", "watching")
    return imported not in COMMANDS


def _forbidden() -> Iterator[tuple[str, str]]:
    for path in PRODUCT:
        for imported in _imports(path):
            if not _is_allowed(_name(path), imported):
                yield _name(path), imported


def test_imports_go_one_way_from_room_to_room() -> None:
    """What is against the rules is exactly what is listed above: nothing new, and nothing that is mended since."""
    assert set(_forbidden()) == EXCEPTIONS


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("data.batches.loader", "data.blocks.store", True),
        ("data.blocks.store", "data.batches.order", False),
        ("data.documents.rows", "data.blocks.tokens", False),
        ("data.documents.rows", "data.config", True),
        ("data.config", "data.blocks.grouping", False),
        ("data.batch", "train_loop.step", False),
        ("train_loop.step", "data.batch", True),
        ("train_loop.speed.memory", "data.batches.loader", False),
        ("train_loop.speed.memory", "launch.run.settings", False),
        ("train_loop.loop", "train_loop.watching.metrics", True),
        ("train_loop.step", "train_loop.watching.metrics", False),
        ("train_loop.watching.metrics", "train_loop.speed.flops", True),
        ("launch.train", "launch.run.assemble", True),
        ("launch.train", "launch.prepare", False),
        ("launch.run.assemble", "launch.train", False),
    ],
)
def test_a_rule_that_is_broken_is_seen(importer: str, imported: str, allowed: bool) -> None:
    assert _is_allowed(importer, imported) == allowed


def test_nothing_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter({_name(path): _imports(path) - {_name(path)} for path in FILES}).prepare()


@pytest.mark.parametrize("path", FILES, ids=_name)
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
