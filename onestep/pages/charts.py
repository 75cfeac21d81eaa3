"""Curves as inline SVG, in the colours of the page."""

import math
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from onestep.pages.markup import element
from onestep.reports.tables import format_value

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 310, 8, 160  # of the plane
#: Colours, and of dashes where there are more curves: see page.css.
_COLOURS, _DASHES = 6, 3
#: Points of a curve, of which a screen shows no more.
_POINTS = 240


def chart(title: str, curves: Mapping[str, Points], logarithmic: bool = False) -> Element:
    """A figure of curves over images seen; values that are not finite are left out.

    Args:
        title: what they show.
        curves: points (images seen, value), in order, by name; one without points keeps its colour.
        logarithmic: a logarithmic scale, if all values are positive.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    shown = {name: points for name, points in finite.items() if points}
    values = [value for points in shown.values() for _, value in points]
    if not values:
        return element("figure", element("figcaption", title), element("p", "No finite value."), class_="chart")
    logarithmic = logarithmic and min(values) > 0
    last = max(place for points in shown.values() for place, _ in points)
    across = _Axis(0.0, float(last) or 1.0, _LEFT, _RIGHT, False)
    up = _Axis(min(values), max(values), _BOTTOM, _TOP, logarithmic)
    parts = [_grid(across, up)]
    numbers = {name: number for number, name in enumerate(finite)}
    for name, points in shown.items():
        places = [(across.place(x), up.place(y)) for x, y in thinned(points)]
        style = _style(numbers[name])
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(element("polyline", points=drawn, class_=style))
        if len(places) < 30:
            parts += [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2", class_=style) for x, y in places]
    ends = [f"{name or 'the value'} ends at {format_value(points[-1][1])}" for name, points in shown.items()]
    label = f"{title} over images seen: {', '.join(ends)}"
    drawing = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
    scale = element("small", " (logarithmic)") if logarithmic else None
    legend = element("ul", *(_entry(name, numbers[name]) for name in shown), class_="legend")
    return element(
        "figure", element("figcaption", title, scale), drawing, legend if len(finite) > 1 else None, class_="chart"
    )


def thinned(points: Points, most: int = _POINTS) -> list[tuple[float, float]]:
    """At most about ``most`` of the points: the least and the greatest of each stretch, so no peak is lost."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), length):
        stretch = list(enumerate(points[start : start + length]))
        ends = {min(stretch, key=lambda one: one[1][1]), max(stretch, key=lambda one: one[1][1])}
        kept += [point for _, point in sorted(ends)]
    return kept


class _Axis:
    """A scale from values between ``low`` and ``high`` to places between ``start`` and ``end``."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool) -> None:
        self.logarithmic, self.start, self.end = logarithmic, start, end
        if low == high:
            low, high = (low / 2, high * 2) if logarithmic else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        low, high, at = (math.log10(it) if self.logarithmic else it for it in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        from matplotlib.ticker import MaxNLocator  # here, as a training needs none at its start

        found: list[float] = []
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            step = math.ceil(len(powers) / 4)
            factors = (1, 2, 5) if len(powers) < 3 else (1,)
            found = [factor * 10.0**power for power in powers[::step] for factor in factors]
            found = [value for value in found if self.low <= value <= self.high]
        if len(found) < 2:
            found = [float(value) for value in MaxNLocator(4).tick_values(self.low, self.high)]
        room = 1e-9 * (self.high - self.low)
        return [value for value in found if self.low - room <= value <= self.high + room]


def _grid(across: _Axis, up: _Axis) -> Element:
    """Lines and numbers at the ticks, and the name of the axis of images."""
    parts = []
    for value in up.ticks():
        y = f"{up.place(value):.1f}"
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y))
        parts.append(element("text", format_value(value, 5), x=_LEFT - 5, y=y, dy="0.35em", text_anchor="end"))
    for value in across.ticks():
        x = f"{across.place(value):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM))
        parts.append(element("text", _short(value), x=x, y=_BOTTOM + 13, text_anchor="middle"))
    middle = (_LEFT + _RIGHT) / 2
    return element("g", *parts, element("text", "images seen", x=middle, y=_HEIGHT - 3, text_anchor="middle"))


def _short(count: float) -> str:
    """A count in thousands, millions or billions."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{name}"
    return f"{count:.4g}"


def _style(number: int) -> str:
    return f"colour{number % _COLOURS} dash{number // _COLOURS % _DASHES}"


def _entry(name: str, number: int) -> Element:
    line = element("line", x1="0", x2="22", y1="5", y2="5", class_=_style(number))
    return element("li", element("svg", line, viewBox="0 0 22 10", aria_hidden="true"), name)
