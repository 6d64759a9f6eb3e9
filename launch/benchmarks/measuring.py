"""Measures in child processes, and prints the spread over the rounds with the machine and the versions."""

import contextlib
import json
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from data.cores import available_cores

P = ParamSpec("P")
T = TypeVar("T")

_LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "numpy")


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process, so that no cache and no setting of an earlier call matters."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as child:
        return child.submit(_Quiet(function), *args, **kwargs).result()


@dataclass(frozen=True)
class _Quiet(Generic[P, T]):
    """A function whose prints go to stderr, so that stdout holds the report alone."""

    function: Callable[P, T]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        with contextlib.redirect_stdout(sys.stderr):
            return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """The spread of one figure or more."""
        return cls(statistics.median(figures), min(figures), max(figures))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round, since a busy moment of the machine slows both of a round."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def comparison(
    name: str, unit: str, ours: Sequence[float], theirs: Sequence[float], rival: str, required_ratio: float
) -> dict[str, Any]:
    """A case of a report: this project beside a rival, round by round."""
    return {
        "name": name,
        "unit": unit,
        "ours": asdict(Spread.of(ours)),
        rival: asdict(Spread.of(theirs)),
        "ratio": asdict(ratios(ours, theirs)),
        "required_ratio": required_ratio,
    }


def comparison_row(case: dict[str, Any], rival: str) -> list[str]:
    """The case as a row of a table, without the required ratio."""
    ours, theirs, ratio = (Spread(**case[name]) for name in ("ours", rival, "ratio"))
    return [case["name"], rate(ours), rate(theirs), times(ratio)]


def surroundings() -> dict[str, Any]:
    """The machine and the versions, on which a figure depends."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": available_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def rate(spread: Spread) -> str:
    """A rate per second with its range, in a unit that fits."""
    unit, name = (1e6, " M") if spread.median >= 1e6 else (1e3, " k") if spread.median >= 1e3 else (1.0, "")
    return f"{spread.median / unit:.3g}{name} ({spread.min / unit:.3g}-{spread.max / unit:.3g})"


def times(spread: Spread) -> str:
    """A ratio with its range."""
    return f"{spread.median:.3g}x ({spread.min:.3g}-{spread.max:.3g})"


def print_report(
    report: dict[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]], *, as_json: bool
) -> None:
    """Print one JSON object, or a Markdown table and a line with the machine and the versions."""
    if as_json:
        print(json.dumps(report))
        return
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    facts = ", ".join(f"{name} {value}" for name, value in report["surroundings"].items() if value is not None)
    print(f"\nmedian (lowest-highest) of {report['repeats']} interleaved rounds; {facts}")
