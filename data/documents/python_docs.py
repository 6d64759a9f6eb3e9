"""The embedded corpus: the documentation of the Python that is running.

It is real English text, on every machine and without a network: the language reference that ``help()`` shows
(`pydoc_data.topics`) and the docstrings of the standard library. Rows have the nested shape of the ELI5 dataset of the
Hugging Face guide: a ``title``, and ``answers.text``, a list of paragraphs.

Modules with a source are parsed, not imported or run. Built-in modules (`sys`, `math`, ...) have no source and are
imported in a new interpreter: a running program changes some of their attributes (`sys.unraisablehook`), and the
corpus must not depend on that.
"""

import ast
import importlib
import inspect
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

# Tests, generated tables and vendored packages are not documentation.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}
_MIN_CHARACTERS = 40
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def rows() -> Iterator[dict[str, Any]]:
    """Yield ``{"title": str, "answers": {"text": [paragraph, ...]}}``, in a fixed order, without duplicates.

    A docstring that an overriding method repeats word for word occurs once. Docstrings shorter than 40 characters are
    not included.
    """
    seen: set[str] = set()
    topic_texts = sorted(topics.items())
    docstrings = _source_docstrings(Path(sysconfig.get_paths()["stdlib"])), _builtin_docstrings()
    for title, text in itertools.chain(topic_texts, *docstrings):
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        paragraphs = [part for part in paragraphs if re.search(r"[A-Za-z]{2}", part)]
        key = " ".join(paragraphs)
        if len(key) >= _MIN_CHARACTERS and key not in seen:
            seen.add(key)
            yield {"title": title, "answers": {"text": paragraphs}}


def _source_docstrings(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        if _SKIPPED_FOLDERS.intersection(module.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and files that are broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
                names = [part for part in module.parts if part != "__init__"]
                yield ".".join(names if isinstance(node, ast.Module) else [*names, node.name]), text


def _builtin_docstrings() -> Iterator[tuple[str, str]]:
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        for owner_name, owner in [(name, module), *sorted(inspect.getmembers(module, inspect.isclass))]:
            for attribute, value in [("", owner), *sorted(vars(owner).items())]:
                if isinstance(text := getattr(value, "__doc__", None), str) and not attribute.startswith("__"):
                    yield f"{owner_name}.{attribute}".rstrip("."), inspect.cleandoc(text)


def cached_rows(cache_dir: Path) -> Path:
    """The file of the rows as JSON lines; written by the first call for each Python version."""
    cache_dir = cache_dir.expanduser()
    path = cache_dir / f"python-docs-{platform.python_version()}.jsonl"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            subprocess.run([sys.executable, "-I", "-S", __file__], stdout=file, check=True)
            os.fsync(file.fileno())
        temporary.replace(path)
    return path


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
