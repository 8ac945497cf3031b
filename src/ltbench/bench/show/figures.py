"""The report's figures, as inline SVG: no script, no font, no file beside the page.

A figure is 360 units wide, so that its text is as large as the page's on a phone. Colours are
classes ``c0`` ... ``c9`` and ``rest``, which the page's style defines for light and dark mode.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 36
COLOURS = 10

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The data of one row."""

    name: str  # of the row
    colour: int  # index; rows after the last colour are grey, and drawn first
    points: Sequence[Point]  # (x, y), in the units of the axes
    bounds: Sequence[tuple[float, float] | None] = ()  # (low, high) of y per point
    across: tuple[float, float] | None = None  # (low, high) of x of a single point


@dataclass
class Canvas:
    """An SVG with axes."""

    x_range: tuple[float, float]  # left and right end; a reversed pair flips the axis
    y_range: tuple[float, float]  # bottom and top
    log_x: bool = False
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high, value = ((math.log10(v) if self.log_x else v) for v in (*self.x_range, value))
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_title: str, y_title: str, x_ticks: Iterable[tuple[float, str]]) -> None:
        """Draw grid lines, ticks and titles."""
        for value in ticks(*self.y_range):
            y = self.y(value)
            self.parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            self.text(LEFT - 5, y + 3.5, f"{value:g}", "end")
        for value, label in x_ticks:
            self.text(self.x(value), HEIGHT - BOTTOM + 14, label, "middle")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_title, "middle", "title")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = f' transform="rotate(-90 10 {middle})"'
        self.text(10, middle, y_title, "middle", "title", turned)

    def text(
        self, x: float, y: float, text: str, anchor: str, kind: str = "", more: str = ""
    ) -> None:
        """Write text."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{more}>'
            f"{escape(text)}</text>"
        )

    def line(self, series: Series, dots: bool) -> None:
        """Draw a line through points, with dots or without."""
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in series.points)
        marks = [f'<path class="line" d="M{path}"/>']
        if dots:
            marks += [self.dot(x, y, 2.2) for x, y in series.points]
        self.group(series, "".join(marks))

    def dot(self, x: float, y: float, radius: float) -> str:
        """Return a dot."""
        return f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}"/>'

    def whisker(self, x: float, bounds: tuple[float, float]) -> str:
        """Return a vertical interval at ``x`` pixels."""
        low, high = (self.y(bound) for bound in bounds)
        return f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'

    def group(self, series: Series, marks: str, more: str = "") -> None:
        """Add the marks of a row, in its colour, with its name as a tooltip."""
        name = escape(series.name, quote=True)
        colour = f"c{series.colour}" if series.colour < COLOURS else "rest"
        self.parts.append(
            f'<g class="series {colour}" data-row="{name}">'
            f"<title>{name}{escape(more)}</title>{marks}</g>"
        )

    def svg(self, label: str) -> str:
        """Return the whole figure; the label describes it to those who cannot see it."""
        label = escape(label, quote=True)
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        return f"{head}{''.join(self.parts)}</svg>"


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Return about ``number`` round values in a range."""
    raw = (high - low) / number
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def span(values: Iterable[float], floor: float = -math.inf, ceiling: float = math.inf) -> Point:
    """Return a range with some room around all values, within two limits."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return max(low - room, floor), min(high + room, ceiling)


def scatter(rows: Sequence[Series], x_title: str, y_title: str, label: str) -> str:
    """Draw rows of one point with intervals, and the front that no row beats on both axes."""
    points = [row.points[0] for row in rows]
    xs = [x for x, _ in points] + [v for row in rows for v in row.across or ()]
    ys = [y for _, y in points] + [v for row in rows for b in row.bounds for v in b or ()]
    canvas = Canvas(span(xs, 0, 100), span(ys, -2, 100))
    canvas.axes(x_title, y_title, [(v, f"{v:g}") for v in ticks(*canvas.x_range)])
    front = sorted({points[n] for n in front_of(points)})
    if len(front) > 1:
        canvas.parts.append(f'<path class="front" d="{_staircase(canvas, front)}"/>')
    for row in _grey_first(rows):
        (x, y), marks = row.points[0], ""
        if row.bounds and row.bounds[0]:
            marks += canvas.whisker(canvas.x(x), row.bounds[0])
        if row.across:
            low, high = (canvas.x(bound) for bound in row.across)
            marks += f'<path class="whisker" d="M{low:.1f} {canvas.y(y):.1f}H{high:.1f}"/>'
        canvas.group(row, marks + canvas.dot(x, y, 4.5), f": {x:.1f}, {y:.1f}")
    return canvas.svg(label)


def _grey_first(rows: Sequence[Series]) -> list[Series]:
    return sorted(rows, key=lambda row: -row.colour)


def _staircase(canvas: Canvas, front: Sequence[Point]) -> str:
    """Return the edge of the area that a front beats, from the x axis to the y axis."""
    path = f"M{canvas.x(front[-1][0]):.1f} {HEIGHT - BOTTOM}"
    lefts = [LEFT, *(canvas.x(x) for x, _ in front)]
    for (_, y), left in zip(reversed(front), reversed(lefts[:-1]), strict=True):
        path += f"V{canvas.y(y):.1f}H{left:.1f}"
    return path


def front_of(points: Sequence[Point]) -> list[int]:
    """Return the points that no other beats in both coordinates, from left to right."""
    front = [n for n, p in enumerate(points) if not any(beats(other, p) for other in points)]
    return sorted(front, key=lambda n: points[n])


def beats(one: Point, other: Point) -> bool:
    """Say whether a point is at least as good in both coordinates and better in one."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def by_frequency(rows: Sequence[Series], label: str) -> str:
    """Draw recall over the training images of a class, the head on the left."""
    images = [x for row in rows for x, _ in row.points]
    canvas = Canvas((max(images) * 1.05, max(min(images) / 1.05, 0.5)), (0, 100), log_x=True)
    decades = {10.0**n * m for n in range(7) for m in (1, 2, 5)}
    shown = [v for v in sorted(decades) if canvas.x_range[1] <= v <= canvas.x_range[0]]
    if len(shown) > 7:
        shown = [v for v in shown if math.log10(v).is_integer()]
    canvas.axes("training images of the class", "recall, %", [(v, f"{v:g}") for v in shown])
    for row in _grey_first(rows):
        canvas.line(row, dots=len(row.points) <= 25)
    return canvas.svg(label)


def curves(rows: Sequence[Series], y_title: str, label: str, percent: bool = True) -> str:
    """Draw a metric over the completed part of the training: rows have any number of epochs."""
    canvas = Canvas(
        (0, 100), span((y for row in rows for _, y in row.points), 0, 100 if percent else math.inf)
    )
    canvas.axes("part of the training, %", y_title, [(v, f"{v:g}") for v in ticks(0, 100)])
    for row in _grey_first(rows):
        canvas.line(row, dots=len(row.points) <= 12)
    return canvas.svg(label)


def bars(rows: Sequence[Series], groups: Sequence[str], label: str) -> str:
    """Draw a bar per row and group, with intervals; points are (index of the group, value)."""
    canvas = Canvas((-0.5, len(groups) - 0.5), (0, 100))
    canvas.axes("", "recall, %", [(n, name) for n, name in enumerate(groups)])
    room = 0.84 * (WIDTH - LEFT - RIGHT) / len(groups) / len(rows)
    for n, row in enumerate(rows):
        marks = ""
        for (group, value), bounds in zip(row.points, row.bounds, strict=True):
            left = canvas.x(group) + (n - len(rows) / 2) * room
            top = canvas.y(value)
            marks += (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{room * 0.86:.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}" rx="1.5"/>'
            )
            if bounds:
                marks += canvas.whisker(left + room * 0.43, bounds)
        values = ", ".join(f"{groups[int(g)]} {v:.1f}" for g, v in row.points)
        canvas.group(row, marks, f": {values}")
    return canvas.svg(label)
