"""What a run's folder tells of the run and of its models, whether it came to its end or not."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from train_loop import run_files

Row = dict[str, Any]

EVAL_COLUMNS = ("step", "epoch", "eval_loss", "eval_perplexity", "eval_accuracy")
_FORMS = {
    "step": ",",
    "epoch": ".2f",
    "eval_loss": ".4f",
    "eval_perplexity": ",.2f",
    "eval_accuracy": ".1%",
    "eval_num_masked_tokens": ",",
}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells of it.

    Attributes:
        rows: Of metrics.jsonl, each with ``tokens``, the training tokens up to it, where they were counted.
        settings: The resolved settings.
        starts: Where and with what it was started, once for each start.
        is_finished: Whether it came to its end.
        step: Updates that made the model: the final one, or that of a run under way; None where nobody knows.
    """

    name: str
    rows: list[Row]
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    is_finished: bool
    step: int | None

    def having(self, name: str) -> list[Row]:
        """The rows with a finite number, or a list, of that name."""
        return [row for row in self.rows if is_number(value := row.get(name)) or isinstance(value, list)]

    @property
    def evaluation(self) -> Row | None:
        """The evaluation of the model itself."""
        return next((row for row in reversed(self.rows) if "eval_loss" in row and row["step"] == self.step), None)


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """What a run's folder tells of it.

    Raises:
        ValueError: It holds no metrics.jsonl, or its settings or its environment cannot be read.
    """
    path = folder / run_files.METRICS
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it holds no metrics.jsonl")
    settings = _parse(yaml.safe_load, folder / run_files.CONFIG) or {}
    starts = _parse(json.loads, folder / run_files.ENVIRONMENT) or []
    rows = _read_rows(path)
    is_finished = (folder / run_files.MODEL).exists()
    return RunRecord(
        name=name or folder.resolve().name,
        rows=rows,
        settings=settings,
        starts=starts,
        is_finished=is_finished,
        step=_final_step(settings, rows) if is_finished else _last_step(rows),
    )


def _parse(parse: Callable[[str], Any], path: Path) -> Any:
    """What a file says, or None where it is not there."""
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.parent}: {path.name} is damaged: {error}") from error


def read_record(model: Path) -> RunRecord:
    """What the run around ``run/model`` or ``run/checkpoints/step-00000010`` tells of that model, and up to it."""
    model = model.resolve()
    for folder in (model.parent, model.parent.parent):
        if (folder / run_files.CONFIG).is_file() and (folder / run_files.METRICS).is_file():
            break
    else:
        return RunRecord(model.name, rows=[], settings={}, starts=[], is_finished=False, step=None)
    record = read_run(folder)
    match = re.fullmatch(r"step-(\d+)", model.name)
    step = record.step if match is None else int(match[1])
    rows = [row for row in record.rows if step is None or row["step"] <= step]
    starts = [start for start in record.starts if step is None or start["step"] <= step]
    return replace(record, rows=rows, starts=starts, step=step)


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


def _last_step(rows: list[Row]) -> int | None:
    return rows[-1]["step"] if rows else None


def _final_step(settings: dict[str, Any], rows: list[Row]) -> int | None:
    """The step of the run's final model: the best evaluation's where the settings keep the best, or the last."""
    evaluations = [row for row in rows if is_number(row.get("eval_loss"))]
    if rows and "model_step" in rows[-1]:  # the best was not to be had
        return rows[-1]["model_step"]
    if evaluations and (settings.get("load_best_model_at_end") or settings.get("early_stopping_patience")):
        return min(evaluations, key=lambda row: row["eval_loss"])["step"]
    return _last_step(rows)


def shown(row: Row, name: str) -> str:
    """A number of an evaluation as every page shows it; a dash where there is none."""
    value = row.get(name)
    if not is_number(value):
        return "-"
    return shown_perplexity(value, _FORMS[name]) if name == "eval_perplexity" else format(value, _FORMS[name])


def shown_perplexity(value: float, form: str = ".2f") -> str:
    """In that form, or where it is a million and more in three digits: it may have hundreds."""
    return f"{value:.3g}" if value >= 1e6 else format(value, form)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
