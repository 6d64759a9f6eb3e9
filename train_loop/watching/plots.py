"""A run's curves as SVG, drawn by matplotlib, in colours that the page's style chooses.

matplotlib writes fixed colours. It is given some that stand for variables of the
style sheet, so that one drawing serves a light and a dark page. Texts in a
drawing are numbers alone: names of runs stand in the page.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter

NUM_COLOURS = 8
_STEPS = (1, 2, 2.5, 5, 10)  # of the numbers on an axis
_DASHES = ("-", "--", ":")  # of the first eight runs, the next eight, and so on
_INK, _GRID = "#000001", "#000002"
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--line)"} | {
    f"#0000a{i}": f"var(--run-{i})" for i in range(NUM_COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
_TIME_UNITS = ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))


@dataclass(frozen=True)
class Curve:
    """Points of one run.

    Attributes:
        x, y: The points.
        run: Number of the run, which is its colour.
        has_marks: Whether each point shows, as an evaluation's should.
        is_faint: Whether it stands behind others.
    """

    x: Sequence[float]
    y: Sequence[float]
    run: int
    has_marks: bool = False
    is_faint: bool = False


def line_style(run: int) -> str:
    """matplotlib's word for the dashes of a run."""
    return _DASHES[run // NUM_COLOURS % len(_DASHES)]


def draw(curves: Sequence[Curve], *, x_axis: str, y_axis: str) -> str:
    """An ``<svg>`` element.

    Args:
        x_axis: step, tokens or seconds.
        y_axis: linear, log or percent.
    """
    size, unit = _time_unit(curves) if x_axis == "seconds" else (1, "")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.3))
        axes = figure.add_axes((0.12, 0.12, 0.85, 0.83))
        if y_axis == "log":
            axes.set_yscale("log")
        for curve in curves:
            axes.plot(
                [x / size for x in curve.x],
                curve.y,
                color=f"#0000a{curve.run % NUM_COLOURS}",
                linestyle=line_style(curve.run),
                linewidth=1.8 if curve.has_marks else 1.1,
                alpha=0.6 if curve.is_faint else 1,
                marker="o" if curve.has_marks or len(curve.x) == 1 else "",
                markersize=3.5,
                markeredgewidth=0,
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=x_axis == "step"))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:g} {unit}") if unit else _short_numbers(axes.get_xlim()[1])
        )
        _number_y_axis(axes, y_axis)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue())


def _time_unit(curves: Sequence[Curve]) -> tuple[int, str]:
    longest = max((x for curve in curves for x in curve.x), default=0)
    return next((size, unit) for least, size, unit in _TIME_UNITS if longest >= least)


def _number_y_axis(axes: Axes, y_axis: str) -> None:
    """Few, short and plain numbers."""
    if y_axis == "percent":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 2))
    elif y_axis == "log":
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        low, high = axes.get_ylim()
        if high < 30 * low:  # powers of ten would be one number or none
            axes.yaxis.set_minor_formatter(FuncFormatter(_one_two_five) if high > 5 * low else plain)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        if (high := axes.get_ylim()[1]) >= 1000:
            axes.yaxis.set_major_formatter(_short_numbers(high))


def _short_numbers(largest: float) -> Formatter:
    """7,500 as it is, and 75k."""
    return EngFormatter(sep="") if largest >= 20_000 else FuncFormatter(lambda value, _: f"{value:,g}")


def _one_two_five(value: float, _: int) -> str:
    text = f"{value:g}"
    return text if text.strip("0.")[:1] in "125" and len(text.strip("0.")) == 1 else ""


def _for_page(svg: str) -> str:
    """The element alone, in the page's colours and font, as wide as its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg .*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r' id="(?![pm][0-9a-f]{10}")[^"]*"', "", svg)  # all but the hashes of what is used by its id
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
