"""Reads what a run's folder records about the run and its models, whether or not the run is finished."""

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

EVAL_COLUMNS = ("step", "epoch", "eval_loss", "eval_perplexity", "eval_accuracy", "eval_bits_per_byte")
_FORMS = {
    **dict.fromkeys(("step", "tokens", "eval_num_masked_tokens"), ","),
    **dict.fromkeys(("loss", "eval_loss", "eval_bits_per_byte"), ".4f"),
    **{"epoch": ".2f", "eval_perplexity": ",.2f", "tokens_per_second": ",.0f"},
    **dict.fromkeys(("eval_accuracy", "eval_original_share", "eval_replaced_accuracy", "flop_utilization"), ".1%"),
}


@dataclass(frozen=True)
class RunRecord:
    """The record of a run, or of one of its models.

    Each row of metrics.jsonl also has ``tokens``, the training tokens up to it, and ``minutes``, the run's time up to
    it; None if not counted.
    """

    name: str
    rows: list[Row]
    settings: dict[str, Any]  # as resolved
    starts: list[dict[str, Any]]  # for each start of the run, its machine, versions and commit
    is_finished: bool  # whether the run has written its final model
    step: int | None  # updates that made the model, which is the newest of an unfinished run; None if unknown

    def having(self, name: str) -> list[Row]:
        """The rows whose value of that name is a finite number or a list."""
        return [row for row in self.rows if is_number(value := row.get(name)) or isinstance(value, list)]

    @property
    def evaluation(self) -> Row | None:
        """The evaluation row of the model; None if it was not evaluated."""
        return next((row for row in reversed(self.rows) if "eval_loss" in row and row["step"] == self.step), None)


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read the record of a run. Raises ValueError if it has no metrics.jsonl, or another file is damaged."""
    path = folder / run_files.METRICS
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it holds no metrics.jsonl")
    settings = _parse(yaml.safe_load, folder / run_files.CONFIG) or {}
    rows = _read_rows(path)
    starts = _parse(json.loads, folder / run_files.ENVIRONMENT) or []
    is_finished = (folder / run_files.MODEL).exists()
    step = _model_step(settings, rows, is_finished=is_finished)
    return RunRecord(name or folder.resolve().name, rows, settings, starts, is_finished, step)


def _parse(parse: Callable[[str], Any], path: Path) -> Any:
    """What a file says, or None where it is not there."""
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.parent}: {path.name} is damaged: {error}") from error


def read_record(model: Path) -> RunRecord:
    """Read the record of one model, ``run/model`` or ``run/checkpoints/step-00000010``, up to its step."""
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
    """Read the rows; a last one that is incomplete is skipped."""
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
        minutes = row["seconds"] / 60 if is_number(row.get("seconds")) else None
        rows.append({**row, "tokens": tokens if tokens or row["step"] == 0 else None, "minutes": minutes})
    return rows


def _model_step(settings: dict[str, Any], rows: list[Row], *, is_finished: bool) -> int | None:
    """The last step, or that of the best evaluation if the final model is the best one; None without rows."""
    keeps_best = settings.get("load_best_model_at_end") or settings.get("early_stopping_patience")
    evaluations = [row for row in rows if is_number(row.get("eval_loss"))]
    if is_finished and keeps_best and evaluations and "model_step" not in rows[-1]:  # it is there if no best was loaded
        return min(evaluations, key=lambda row: row["eval_loss"])["step"]
    return rows[-1]["step"] if rows else None


def shown(row: Row, name: str) -> str:
    """A number of a row as report and card show it; a dash if there is none."""
    value = row.get(name)
    if not is_number(value):
        return "-"
    form = _FORMS.get(name, ".4g")  # an objective's own
    return shown_perplexity(value, form) if name == "eval_perplexity" else format(value, form)


def shown_perplexity(value: float, form: str = ".2f") -> str:
    """A perplexity in a format; from a million on with three digits, because it may have hundreds."""
    return f"{value:.3g}" if value >= 1e6 else format(value, form)


def shown_fills(probe: Row, separator: str) -> str:
    """The fills of a probe sentence with their probabilities, such as ``value 34%, key 7%``."""
    return separator.join(f"{fill['token_str'].strip()} {fill['score']:.0%}" for fill in probe["fills"])


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
