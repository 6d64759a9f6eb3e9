"""What a card calls the models and data of a run: by a link, or by the last part of a path."""

import re
from pathlib import Path
from typing import Any

_DATA_SUFFIX = re.compile(r"\.(txt|text|jsonl?|ndjson|csv|tsv|parquet|arrow|gz|zst)$", re.IGNORECASE)


def sources(settings: dict[str, Any]) -> list[str]:
    """The sources of the training text; none where there are no settings."""
    return list(settings.get("mixture") or [settings["dataset"]]) if settings else []


def public(value: Any) -> Any:
    """A setting as others may see it: of an absolute path, or one from the home folder, the last part."""
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", "..")) or Path(value).is_absolute()):
        return Path(value).name
    return value


def is_hub_id(name: str) -> bool:
    """Whether a name can be of a repository, and is not of something here."""
    is_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not _DATA_SUFFIX.search(name)
    return bool(is_id) and name != "python-docs" and not Path(name).exists()


def linked(name: str, revision: str | None = None, kind: str = "") -> str:
    """A link to a repository, with the revision that was asked for; the bare name of anything else."""
    if not is_hub_id(name):
        return "the documentation of Python" if name == "python-docs" else f"`{public(name)}`"
    return f"[{escaped(name)}](https://huggingface.co/{kind}{name})" + (f" (revision `{revision}`)" if revision else "")


def escaped(text: str) -> str:
    """Text on one line as it is: a bare ``<mask>`` would be taken for HTML, ``__init__`` for bold."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", text).replace("\n", " ")
