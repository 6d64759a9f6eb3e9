"""A panel's curves as a small SVG: the picture where no script runs, and until one draws a better one."""

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 410, 12, 208  # of the frame

Curve = tuple[str, list[tuple[float, float]]]
"""The CSS of the line, and its points from left to right."""


def draw(curves: Sequence[Curve], *, y_axis: str) -> str:
    """An ``<svg>`` element with the least and the greatest number at each axis; nothing where there is no point.

    ``y_axis`` is linear, percent, or log, which leaves out what is not positive. Curves overlap in their order.
    """
    if y_axis == "log":
        curves = [(style, [(x, math.log10(y)) for x, y in points if y > 0]) for style, points in curves]
    if not any(points for _, points in curves):
        return ""
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

    paths = [
        f'<path d="M{" L".join(place(*point) for point in points)} h0" style="{style}"/>'  # h0: one point is a dot
        for style, points in curves
        if points
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f'<path class="frame" d="M{_LEFT} {_TOP} H{_RIGHT} M{_LEFT} {_BOTTOM} H{_RIGHT}"/>{"".join(paths)}'
        f'<text class="end" x="{_LEFT - 6}" y="{_TOP + 4}">{number(high)}</text>'
        f'<text class="end" x="{_LEFT - 6}" y="{_BOTTOM + 4}">{number(low)}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{left:,}</text>'
        f'<text class="end" x="{_RIGHT}" y="{_HEIGHT - 4}">{right:,}</text></svg>'
    )
