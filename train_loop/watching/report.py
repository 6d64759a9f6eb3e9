"""``report.html``: what a person would rather look at than metrics.jsonl.

Made from a run's folder alone, so also for a run that was broken off, and for
several runs side by side. One file, without scripts or anything from elsewhere.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_loop import run_files
from train_loop.watching.run_record import EVAL_COLUMNS, Row, RunRecord, is_number, read_run, shown

_SHARE_OF_TIME = 0.05
_MOST_PROBES = 6
_WHERE = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
_AXES = {"step": "updates", "tokens": "tokens", "seconds": "time"}


@dataclass(frozen=True)
class Panel:
    """A plot: a name in training rows, one in evaluation rows, or both."""

    title: str
    training: str | None = None
    evaluation: str | None = None
    y_axis: str = "linear"


PANELS = (
    Panel("Loss", "loss", "eval_loss"),
    Panel("Perplexity on held-out text", evaluation="eval_perplexity", y_axis="log"),
    Panel("Accuracy on held-out text", evaluation="eval_accuracy", y_axis="percent"),
    Panel("Learning rate", "learning_rate"),
    Panel("Tokens a second", "tokens_per_second"),
    Panel("FLOP utilisation", "flop_utilization", y_axis="percent"),
    Panel("Gradient norm", "grad_norm", y_axis="log"),
)


class LiveReport:
    """``report.html`` of a run that is under way; its failure is one line, and does not harm the run."""

    def __init__(self, folder: Path, say: Callable[[str], None], *, writes: bool) -> None:
        """Make it for the run in ``folder``, on the process that writes; ``say`` prints a line."""
        self._folder = folder
        self._say = say
        self._next = time.monotonic() + 10
        self._is_off = not writes

    def update(self, *, is_last: bool = False) -> None:
        """Make it anew, but not so often that it takes more than a twentieth of the run's time."""
        start = time.monotonic()
        if self._is_off or (start < self._next and not is_last):
            return
        try:
            write_report([self._folder], self._folder / run_files.REPORT)
        except Exception as error:  # whatever it is, it is not worth a run
            self._is_off = True
            self._say(f"report   no report.html: {' '.join(str(error).split())}")
        end = time.monotonic()
        self._next = end + (end - start) / _SHARE_OF_TIME


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write a page of one run or several.

    Raises:
        ValueError: A folder holds no run, or the packages that draw the page are not installed.
        OSError: It could not be written.
    """
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [read_run(folder, name=str(folder)) for folder in folders]
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(render(runs), encoding="utf-8")
    temporary.replace(output)


def render(runs: Sequence[RunRecord]) -> str:
    """The page. All text from data is escaped by the template.

    Raises:
        ValueError: The packages that draw it are not installed.
    """
    try:
        import jinja2

        from train_loop.watching.plots import NUM_COLOURS, line_style
    except ImportError as error:
        raise ValueError(f"the report needs {error.name}: pip install {error.name}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    dashes = {"-": "solid", "--": "dashed", ":": "dotted"}
    axes = [axis for axis in _AXES if all(_has_axis(run, axis) for run in runs)] or ["step"]
    settings = _side_by_side([run.settings for run in runs])
    probes = _probes(runs)
    differing = [(name, values) for name, values in settings if len(set(values)) > 1 and name not in _WHERE]
    return environment.get_template("report.html").render(
        title="Compare " + ", ".join(run.name for run in runs) if len(runs) > 1 else runs[0].name,
        names=[run.name for run in runs],
        styles=[(i % NUM_COLOURS, dashes[line_style(i)]) for i in range(len(runs))],
        headlines=[_headline(run) for run in runs],
        axes=[(axis, _AXES[axis]) for axis in axes],
        panels=[(panel.title, plots) for panel in PANELS if (plots := _plots(runs, panel, axes))],
        figures=_side_by_side([_figures(run) for run in runs]),
        evaluations=[_evaluations(run) for run in runs],
        probes=probes,
        probe_columns=max((len(row) for _, by_run in probes for _, row in by_run), default=1),
        differing=differing,
        settings=settings,
        environment=_side_by_side([_environment(run) for run in runs]),
    )


def _has_axis(run: RunRecord, axis: str) -> bool:
    return all(is_number(row.get(axis)) for row in run.rows)


def _plots(runs: Sequence[RunRecord], panel: Panel, axes: Sequence[str]) -> list[tuple[str, str]]:
    """(axis, drawing) for each axis; none where no run has such numbers."""
    from train_loop.watching.plots import Curve, draw

    plots = []
    for axis in axes:
        curves = [
            Curve(
                x=[row[axis] for row in rows],
                y=[row[name] for row in rows],
                run=i,
                has_marks=name == panel.evaluation,
                is_faint=name == panel.training and panel.evaluation is not None,
            )
            for name in (panel.training, panel.evaluation)
            if name is not None
            for i, run in enumerate(runs)
            if (rows := [row for row in run.having(name) if panel.y_axis != "log" or row[name] > 0])
        ]
        if curves:
            plots.append((axis, draw(curves, x_axis=axis, y_axis=panel.y_axis)))
    return plots


def _headline(run: RunRecord) -> dict[str, str]:
    updates = f"{run.rows[-1]['step']:,} updates" if run.rows else "nothing logged yet"
    return {
        "perplexity": shown(_evaluation(run), "eval_perplexity"),
        "state": f"finished, {updates}" if run.is_finished else f"not finished: {updates}",
    }


def _figures(run: RunRecord) -> dict[str, str]:
    """The last and the best of everything; of held-out text what the model is worth."""
    figures: dict[str, str] = {}
    if run.rows:
        last = run.rows[-1]
        figures["updates"] = f"{last['step']:,}"
        if is_number(last.get("epoch")):
            figures["epochs"] = f"{last['epoch']:.2f}"
        if last["tokens"] is not None:
            figures["tokens"] = f"{last['tokens']:,}"
        if is_number(last.get("seconds")):
            figures["time"] = _duration(last["seconds"])
    for label, name, form in (
        ("tokens a second, median", "tokens_per_second", ",.0f"),
        ("FLOP utilisation, median", "flop_utilization", ".1%"),
    ):
        if rows := run.having(name):
            figures[label] = format(statistics.median(row[name] for row in rows), form)
    if rows := run.having("peak_memory_bytes"):
        figures["peak memory of a process"] = f"{max(row['peak_memory_bytes'] for row in rows) / 1e9:.2f} GB"
    if rows := run.having("loss"):
        figures["training loss, last row"] = f"{rows[-1]['loss']:.4f}"
    for name in ("loss", "perplexity", "accuracy"):
        if (text := shown(_evaluation(run), f"eval_{name}")) != "-":
            figures[f"held-out {name}"] = text
    if rows := run.having("eval_perplexity"):
        best = min(rows, key=lambda row: float(row["eval_perplexity"]))
        figures["lowest perplexity"] = f"{shown(best, 'eval_perplexity')} at update {shown(best, 'step')}"
    return figures


def _evaluation(run: RunRecord) -> Row:
    """The model's own, as its card has it; while there is none, the last one."""
    return run.evaluation or next(reversed(run.having("eval_loss")), {})


def _evaluations(run: RunRecord) -> list[tuple[str, ...]]:
    """A row of the table for each evaluation."""
    return [tuple(shown(row, name) for name in EVAL_COLUMNS) for row in run.having("eval_loss")]


def _probes(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[int, list[tuple[int, list[Row]]]]]]]:
    """(sentence, [(run, [(step, fills), ...]), ...]): some evaluations from the first to the last."""
    sentences: dict[str, dict[int, list[tuple[int, list[Row]]]]] = {}
    for i, run in enumerate(runs):
        rows = run.having("probes")
        count = min(len(rows), _MOST_PROBES)
        for row in (rows[round(k * (len(rows) - 1) / max(1, count - 1))] for k in range(count)):
            for probe in row["probes"]:
                sentences.setdefault(probe["text"], {}).setdefault(i, []).append((row["step"], probe["fills"]))
    return [(text, list(by_run.items())) for text, by_run in sentences.items()]


def _environment(run: RunRecord) -> dict[str, Any]:
    """By name; what changed from one start to the next stands with an arrow."""
    flat = [{**start, **start.get("versions", {})} for start in run.starts]
    names = dict.fromkeys(name for start in flat for name in start if name not in ("versions", "step"))
    return {name: " → ".join(dict.fromkeys(_text(start[name]) for start in flat if name in start)) for name in names}


def _side_by_side(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(name, its value in each column) for all names that occur."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [_text(column[name]) if name in column else "-" for column in columns]) for name in names]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
