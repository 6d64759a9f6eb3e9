"""What a run's folder tells of the run, whether it came to its end or not."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells of it.

    Attributes:
        rows: Of metrics.jsonl, each with ``tokens``, the training tokens up to it, where they were counted.
        settings: The resolved settings.
        starts: Where and with what it was started, once for each start.
        is_finished: Whether it came to its end.
    """

    name: str
    rows: list[Row]
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    is_finished: bool

    def having(self, name: str) -> list[Row]:
        """The rows with a finite number, or a list, of that name."""
        return [row for row in self.rows if is_number(value := row.get(name)) or isinstance(value, list)]


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """What a run's folder tells of it.

    Raises:
        ValueError: It holds no metrics.jsonl.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it holds no metrics.jsonl")
    config, environment = folder / "config.yaml", folder / "environment.json"
    return RunRecord(
        name=name or folder.resolve().name,
        rows=_read_rows(path),
        settings=yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {},
        starts=json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else [],
        is_finished=(folder / "model").exists(),
    )


def _read_rows(path: Path) -> list[Row]:
    """The rows; without a last one that was broken off."""
    rows: list[Row] = []
    tokens = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not is_number(row.get("step")):
            continue
        if is_number(row.get("num_tokens")):
            tokens += row["num_tokens"]
        rows.append({**row, "tokens": tokens if tokens or row["step"] == 0 else None})
    return rows


def is_number(value: object) -> bool:
    """Whether it is a finite number; JSON's true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
