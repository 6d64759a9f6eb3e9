"""Names of a run's models and data in its card: a link, or the last part of a path."""

import re
from pathlib import Path
from typing import Any

_DATA_SUFFIX = re.compile(r"\.(txt|text|jsonl?|ndjson|csv|tsv|parquet|arrow|gz|zst)$", re.IGNORECASE)


def sources(settings: dict[str, Any]) -> list[str]:
    """The sources of the training text; empty without settings."""
    return list(settings.get("mixture") or [settings["dataset"]]) if settings else []


def public(value: Any) -> Any:
    """A setting as others may see it; only the last part of a path outside the working folder."""
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", "..")) or Path(value).is_absolute()):
        return Path(value).name
    return value


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository's, and is not a file or folder here."""
    is_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not _DATA_SUFFIX.search(name)
    return bool(is_id) and name != "python-docs" and not Path(name).exists()


def linked(name: str, revision: str | None = None, kind: str = "") -> str:
    """A link to a repository of the Hub, with its revision; the name alone for anything else."""
    if not is_hub_id(name):
        return "the documentation of Python" if name == "python-docs" else f"`{public(name)}`"
    return f"[{escaped(name)}](https://huggingface.co/{kind}{name})" + (f" (revision `{revision}`)" if revision else "")


def escaped(text: str) -> str:
    """Text on one line, escaped for Markdown, which reads ``<mask>`` as HTML and ``__init__`` as bold."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", text).replace("\n", " ")
