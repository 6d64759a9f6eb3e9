"""``report.html``: what a person would rather look at than metrics.jsonl.

Made from a run's folder alone, so also for a run that was broken off, and for several runs side by side. One file that
fetches nothing: its plots are plotly's, whose script stands in it.
"""

import base64
import functools
import gzip
import json
import math
import os
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from train_loop import run_files
from train_loop.watching.run_record import EVAL_COLUMNS, Row, RunRecord, is_number, read_run, shown, shown_fills

_SHARE_OF_TIME = 0.05
_MOST_PROBES = 6
_MOST_NUMBERS = 90_000  # in all curves: at most 3 MB, and plots that still move at once
_NUM_COLOURS = 12
_DASHES = ("solid", "dash", "dot")  # of the first twelve runs, the next twelve, and so on; plotly's words
_WHERE = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
_AXES = {"step": "updates", "tokens": "tokens", "minutes": "minutes"}


@dataclass(frozen=True)
class Panel:
    """A plot of some numbers in the rows; those whose names begin with ``eval_`` are of evaluations."""

    title: str
    names: tuple[str, ...]
    y_axis: str = "linear"


PANELS = (
    Panel("Loss", ("loss", "eval_loss")),
    Panel("Perplexity on held-out text", ("eval_perplexity",), "log"),
    Panel("Bits per byte of held-out text", ("eval_bits_per_byte",)),
    Panel("Accuracy on held-out text", ("eval_accuracy",), "percent"),
    Panel("Learning rate", ("learning_rate", "muon_learning_rate")),
    Panel("Tokens a second", ("tokens_per_second",)),
    Panel("Share of the measured matrix rate", ("flop_utilization",), "percent"),
    Panel("Gradient norm", ("grad_norm",), "log"),
)
_NO_CURVES = {
    *("step", "epoch", "tokens", "seconds", "minutes", "model_step", "peak_memory_bytes"),
    *("num_tokens", "num_masked_tokens", "eval_num_masked_tokens"),
}

Columns = dict[str, list[float | None]]  # numbers of some rows, by name


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
    """Write a page of one run or several; while one is not finished, it reloads itself every few seconds.

    All text from data is escaped by the template. Raises ValueError if a folder holds no run, and OSError.
    """
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [read_run(folder, name=str(folder)) for folder in folders]
    rows = [run.rows for run in runs]
    panels = _panels(rows)
    names = [name for panel in panels for name in panel.names]
    most = _MOST_NUMBERS // (len(runs) * max(1, len(names)))
    columns = [_columns(of_run, names, most) for of_run in rows]
    axes = [axis for axis in _AXES if all(None not in of_run[axis] + of_run["eval_" + axis] for of_run in columns)]
    titles = [run.name for run in runs]
    styles = [(i % _NUM_COLOURS, _DASHES[i // _NUM_COLOURS % len(_DASHES)]) for i in range(len(runs))]
    settings = _side_by_side([run.settings for run in runs])
    probes = _probes(runs)
    page = (
        templates(Path(__file__).parent, autoescape=True)
        .get_template("report.html")
        .render(
            title=", ".join(titles) if len(titles) < 5 else f"{len(titles)} runs",
            plotly=_packed_plotly(),
            nonce=secrets.token_urlsafe(),
            num_colours=_NUM_COLOURS,
            runs=runs,
            names=titles,
            styles=styles,
            perplexity=shown(_evaluation(runs[0]), "eval_perplexity"),
            axes=[(axis, _AXES[axis]) for axis in axes],
            panels=[(panel, _curves(panel, columns)) for panel in panels],
            data={"panels": [asdict(panel) for panel in panels], "runs": columns, "styles": styles, "names": titles},
            figures=_side_by_side([_figures(run) for run in runs]),
            columns=EVAL_COLUMNS,
            probes=probes,
            probe_columns=max((len(row) for _, by_run in probes for _, row in by_run), default=1),
            differing=[(name, values) for name, values in settings if len(set(values)) > 1 and name not in _WHERE],
            settings=settings,
            environment=_side_by_side([_environment(run) for run in runs]),
        )
    )
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")  # a run and --watch may write at once
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(output)


def templates(folder: Path, **options: Any) -> Any:
    """Jinja's templates in a folder, with what report and card have in common; a name that nobody gave is an error."""
    import jinja2

    options |= {"loader": jinja2.FileSystemLoader(folder), "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters |= {"shown": shown, "shown_fills": shown_fills, "spread": spread}
    return environment


@functools.cache
def _packed_plotly() -> str:
    """Plotly's script in a third of its size: gzip in base64, which the page unpacks."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _panels(rows: Sequence[list[Row]]) -> list[Panel]:
    """The panels that have numbers, and one more for each other name, such as a term of the loss."""
    logged = dict.fromkeys(name for of_run in rows for row in of_run for name in row if is_number(row[name]))
    known = [replace(panel, names=tuple(name for name in panel.names if name in logged)) for panel in PANELS]
    others = logged.keys() - _NO_CURVES - {name for panel in PANELS for name in panel.names}
    return [panel for panel in known if panel.names] + [Panel(name, (name,)) for name in logged if name in others]


def _columns(rows: list[Row], names: Sequence[str], most: int) -> Columns:
    """What the plots show, of at most so many rows of each kind; ``eval_step`` and so on are evaluations' places."""
    columns: Columns = {}
    for prefix in ("", "eval_"):
        of_kind = [name for name in names if name.startswith("eval_") == bool(prefix)]
        taken = spread([row for row in rows if any(is_number(row.get(name)) for name in of_kind)], max(1, most))
        columns |= {prefix + axis: [_short(row.get(axis)) for row in taken] for axis in _AXES}
        found = [name for name in of_kind if any(is_number(row.get(name)) for row in taken)]
        columns |= {name: [_short(row.get(name)) for row in taken] for name in found}
    return columns


def spread(rows: list[Row], most: int) -> list[Row]:
    """The rows, or that many of them from the first to the last."""
    count = min(len(rows), most)
    return [rows[round(k * (len(rows) - 1) / max(1, count - 1))] for k in range(count)]


def _short(value: object) -> float | None:
    """A number in six digits, where it is one."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _curves(panel: Panel, columns: Sequence[Columns]) -> list[tuple[str, list[tuple[float, float]]]]:
    """The curves of the panel without scripts, each by its CSS and its points over updates; their logarithms on log."""
    curves = []
    for name in panel.names:
        place = "eval_step" if name.startswith("eval_") else "step"
        for i, of_run in enumerate(columns):
            style = f"stroke: var(--run-{i % _NUM_COLOURS}); stroke-width: {1.2 if name == panel.names[0] else 2.4}"
            pairs = zip(of_run[place], of_run.get(name, ()), strict=False)
            points = [(x, y) for x, y in pairs if x is not None and y is not None]
            if panel.y_axis == "log":
                points = [(x, math.log10(y)) for x, y in points if y > 0]
            curves.append((style, points))
    return [(style, points) for style, points in curves if points]


def _figures(run: RunRecord) -> dict[str, str]:
    """The last and the best of everything; of held-out text what the model is worth."""
    held_out, last = _evaluation(run), run.rows[-1] if run.rows else {}
    best = min(run.having("eval_perplexity"), key=lambda row: float(row["eval_perplexity"]), default=None)
    rates = ("tokens_per_second", "flop_utilization")
    medians = {name: statistics.median(row[name] for row in rows) for name in rates if (rows := run.having(name))}
    memory = [row["peak_memory_bytes"] for row in run.having("peak_memory_bytes")]
    figures = {
        "state": "finished" if run.is_finished else "not finished",
        **{f"held-out {name}": shown(held_out, f"eval_{name}") for name in ("perplexity", "loss", "accuracy")},
        "held-out bits per byte": shown(held_out, "eval_bits_per_byte"),
        "lowest perplexity": best and f"{shown(best, 'eval_perplexity')} at update {shown(best, 'step')}",
        "training loss, last row": shown(next(reversed(run.having("loss")), {}), "loss"),
        "updates": shown(last, "step"),
        "epochs": shown(last, "epoch"),
        "tokens": shown(last, "tokens"),
        "time (h:min:s)": str(timedelta(seconds=round(last["seconds"]))) if is_number(last.get("seconds")) else None,
        "tokens a second, median": shown(medians, "tokens_per_second"),
        "share of the measured matrix rate, median": shown(medians, "flop_utilization"),
        "peak memory of a process": memory and f"{max(memory) / 1e9:.2f} GB",
    }
    return {label: text for label, text in figures.items() if text and text != "-"}


def _evaluation(run: RunRecord) -> Row:
    """The model's own, as its card has it; while there is none, the last one."""
    return run.evaluation or next(reversed(run.having("eval_loss")), {})


def _probes(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[int, list[tuple[int, list[Row]]]]]]]:
    """(sentence, [(run, [(step, fills), ...]), ...]): some evaluations from the first to the last."""
    sentences: dict[str, dict[int, list[tuple[int, list[Row]]]]] = {}
    for i, run in enumerate(runs):
        for row in spread(run.having("probes"), _MOST_PROBES):
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
