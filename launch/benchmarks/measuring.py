"""Measures in child processes and in rounds, and prints each figure's spread with the machine and the versions."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from data.cores import available_cores
from launch.run.environment import processor, versions

T = TypeVar("T")
Speeds = Mapping[str, Sequence[float]]
Case = tuple[str, str, str]


def in_child(function: Callable[[], T]) -> T:
    """Call a function in a new process, so that no cache and no setting of an earlier call matters."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=os.dup2, initargs=(2, 1)) as child:
        return child.submit(function).result()


def interleave(ways: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call all ways in turn, ``repeats`` times, and return what each gave in each round.

    They take turns so that a busy moment of the machine slows all of them.
    """
    rounds = [{name: way() for name, way in ways.items()} for _ in range(repeats)]
    return {name: [results[name] for results in rounds] for name in ways}


def spread(figures: Sequence[float]) -> dict[str, float]:
    """The median, the smallest and the largest of a figure over the rounds."""
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The spread of ours over theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def print_comparisons(
    options: argparse.Namespace, speeds: Speeds, compared: Iterable[Case], *, unit: str, rival: str, **facts: Any
) -> None:
    """Print the report on this project and one rival, from the ``speeds`` of each round by name.

    A case is its name, our name in ``speeds``, and the rival's. For the ``facts`` see `print_report`.
    """
    cases: list[dict[str, Any]] = [
        {
            "name": name,
            "unit": unit,
            "ours": spread(speeds[ours]),
            rival: spread(speeds[theirs]),
            "ratio": ratio(speeds[ours], speeds[theirs]),
        }
        for name, ours, theirs in compared
    ]
    table = [[unit, "this project", f"the {rival}", "ratio"]]
    table += [[case["name"], rate(case["ours"]), rate(case[rival]), times(case["ratio"])] for case in cases]
    print_report(options, table, cases, **facts)


def print_report(
    options: argparse.Namespace, table: list[list[str]], cases: list[dict[str, Any]], **facts: Any
) -> None:
    """Print one JSON object of cases and ``facts``, or the table, its header first; and the machine and versions."""
    surroundings = {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": available_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions(),
    }
    if options.json:
        report = {"benchmark": options.name, "surroundings": surroundings, "repeats": options.repeats, **facts}
        print(json.dumps({**report, "cases": cases}))
        return
    header, *rows = table
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")
    shown = ", ".join(f"{name} {value}" for name, value in surroundings.items() if value is not None)
    print(f"\nmedian (lowest-highest) of {options.repeats} interleaved rounds; {shown}")


def rate(spread: Mapping[str, float]) -> str:
    """A rate per second with its range, in a unit that fits."""
    median = spread["median"]
    unit, name = (1e6, " M") if median >= 1e6 else (1e3, " k") if median >= 1e3 else (1.0, "")
    return f"{median / unit:.3g}{name} ({spread['min'] / unit:.3g}-{spread['max'] / unit:.3g})"


def times(spread: Mapping[str, float]) -> str:
    """A ratio with its range."""
    return f"{spread['median']:.3g}x ({spread['min']:.3g}-{spread['max']:.3g})"
