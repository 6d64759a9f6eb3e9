"""A panel's curves as a small SVG: the picture where no script runs, and until one draws a better one."""

import math
from collections.abc import Sequence
from typing import Any

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 410, 12, 208  # of the frame, as report.html draws it


def draw(curves: Sequence[tuple[str, list[tuple[float, float]]]], *, y_axis: str) -> dict[str, Any] | None:
    """What the page needs to draw some lines, each by its CSS and its points from left to right; None without points.

    ``y_axis`` is linear, percent, or log, which leaves out what is not positive. Lines overlap in their order.
    """
    if y_axis == "log":
        curves = [(style, [(x, math.log10(y)) for x, y in points if y > 0]) for style, points in curves]
    if not any(points for _, points in curves):
        return None
    xs, ys = zip(*(point for _, points in curves for point in points), strict=True)
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        """The point in the frame; in its middle where all are alike."""
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + across * (_RIGHT - _LEFT):.1f} {_BOTTOM - up * (_BOTTOM - _TOP):.1f}"

    def number(y: float) -> str:
        value = 10**y if y_axis == "log" else y
        return f"{value:.1%}" if y_axis == "percent" else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    paths = [(style, f"M{' L'.join(place(*point) for point in points)}") for style, points in curves if points]
    return {"paths": paths, "high": number(high), "low": number(low), "left": f"{left:,}", "right": f"{right:,}"}
