"""Curves as inline SVG: no script, no library; the colours follow the page's light or dark style.

A long run has more points than a screen has columns. Each column keeps its lowest and its highest point, so that a
spike of one step is still seen. Values that are not finite leave a gap. Moving the pointer over the chart shows the
values there, by style rules alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 16, 22
COLUMNS = 240
"""Buckets that a curve is thinned to."""
READINGS = 60
"""Places along the x axis where the pointer shows values."""
COLOURS = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve. Points are ``(x, y)``, x rising; ``faint`` draws it thin, behind one that tells the same smoothed."""

    name: str
    points: Sequence[Point]
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at x: a dashed line with a tooltip."""

    x: float
    label: str
    bad: bool = False


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str = "step", marks: Sequence[Mark] = (), log: bool = False
) -> Markup:
    """A ``<figure>`` with the curves; empty markup when no curve has a finite point. ``log``: the y axis by powers of
    ten (values at or below zero are left out)."""
    from markupsafe import Markup, escape

    series = [s for s in series if any(_drawable(y, log) for _, y in s.points)]
    kept = [Series(s.name, [p for p in s.points if _drawable(p[1], log)], s.faint) for s in series]
    if not kept:
        return Markup("")
    frame = _Frame.around(kept, log)
    parts = [*frame.axes(x_label), *frame.marks(marks)]
    colours = _colours(kept)
    for colour, s in zip(colours, series, strict=True):
        parts.append(f'<g class="{_colour(colour)}"><path{_drawn(s)} d="{frame.path(s.points)}"/></g>')
    parts += frame.readings(kept)
    legend = [
        f'<span><i class="{_colour(c)}"></i>{escape(s.name)}</span>'
        for c, s in zip(colours, kept, strict=True)
        if not s.faint and colours[-1] > 0
    ]
    return Markup(
        f"<figure><figcaption>{escape(title)} {''.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def smoothed(points: Sequence[Point], share: float = 0.015) -> list[Point]:
    """Running mean whose memory is `share` of the points: what shows the trend of a noisy curve (bias-corrected)."""
    keep = 1 - 1 / max(1.0, share * len(points))
    mean = weight = 0.0
    result = []
    for x, y in points:
        if math.isfinite(y):
            mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
            result.append((x, mean / weight))
    return result


def figure_text(value: float) -> str:
    """A number for an axis or a tile, three digits at most: 0.0123, 1.5k, 3e-05."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}" if size / limit < 1e3 else f"{value:.2e}"
    return f"{value:.3g}"


def _drawable(y: float, log: bool) -> bool:
    return math.isfinite(y) and (not log or y > 0)


def _drawn(series: Series) -> str:
    """A faint curve is thin, a lone point a dot that can be seen."""
    if series.faint:
        return ' class="faint"'
    return ' class="dot"' if len(series.points) == 1 else ""


def _colours(series: Sequence[Series]) -> list[int]:
    """Numbers of curves; a faint one has that of the full one after it: it is the same thing."""
    colours, next_colour = [], 0
    for s in series:
        colours.append(next_colour)
        next_colour += not s.faint
    return colours


def _colour(number: int) -> str:
    """Style classes of a curve: where colours are used up they come again, dashed."""
    return f"c{number % COLOURS} again" if number // COLOURS % 2 else f"c{number % COLOURS}"


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    @staticmethod
    def around(series: Sequence[Series], log: bool) -> _Frame:
        xs = [x for s in series for x, _ in s.points]
        ys = [math.log10(y) if log else y for s in series for _, y in s.points]
        y0, y1 = min(ys), max(ys)
        room = (y1 - y0) * 0.05 or abs(y1) * 0.05 or 1.0
        bottom = y0 - room if log or y0 < 0 or y0 - room > 0 else 0.0
        return _Frame(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, bottom, y1 + room, log)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return TOP + (self.y1 - at) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> Iterable[str]:
        from markupsafe import escape

        for value in _log_ticks(self.y0, self.y1) if self.log else round_ticks(self.y0, self.y1, 5):
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{figure_text(value)}</text>'
        ticks = [t for t in round_ticks(self.x0, self.x1, 6) if self.x(t) < WIDTH - 60]
        for value in ticks:
            yield f'<text x="{self.x(value):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{figure_text(value)}</text>'
        yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'

    def marks(self, marks: Iterable[Mark]) -> Iterable[str]:
        from markupsafe import escape

        for mark in marks:
            if self.x0 <= mark.x <= self.x1:
                x, bad = f"{self.x(mark.x):.1f}", " bad" if mark.bad else ""
                yield f'<line class="mark{bad}" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                yield f"<title>{escape(mark.label)}</title></line>"

    def path(self, points: Sequence[Point]) -> str:
        pen, words = "M", []
        for x, y in thinned(points, self.x0, self.x1):
            if not _drawable(y, self.log):
                pen = "M"
                continue
            words.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        if len(words) == 1:  # a lone point: a line of no length with round ends is a dot
            words.append("h0")
        return "".join(words)

    def readings(self, series: Sequence[Series]) -> Iterable[str]:
        """Invisible stripes that show, under the pointer, the values nearest to them."""
        from markupsafe import escape

        told = [s for s in series if not s.faint]
        every = sorted({x for s in told for x, _ in s.points})
        step = max(1, math.ceil(len(every) / READINGS))
        chosen = every[::step] if every[-1] in every[::step] else [*every[::step], every[-1]]
        wide = (WIDTH - LEFT - RIGHT) / max(1, len(chosen) - 1)
        cursors = [0] * len(told)
        for x in chosen:
            said = [figure_text(x) if x != int(x) else f"{int(x):,}"]
            for n, s in enumerate(told):
                while cursors[n] + 1 < len(s.points) and s.points[cursors[n] + 1][0] <= x:
                    cursors[n] += 1
                at, value = s.points[cursors[n]]
                if at <= x:
                    said.append(f"{s.name} {value:.4g}" if len(told) > 1 else f"{value:.4g}")
            at_x = self.x(x)
            yield f'<g class="at"><rect x="{at_x - wide / 2:.1f}" y="{TOP}" width="{wide:.1f}" '
            yield f'height="{HEIGHT - TOP - BOTTOM}"/>'
            yield f'<line x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            text = escape(" · ".join(said))
            yield f'<text class="read" x="{WIDTH - RIGHT}" y="10" text-anchor="end">{text}</text></g>'


def thinned(points: Sequence[Point], x0: float, x1: float) -> list[Point]:
    """At most two points a column, the lowest and the highest, in order; one that is not finite stays, as the gap."""
    if len(points) <= 2 * COLUMNS:
        return list(points)
    columns: dict[int, list[Point]] = {}
    for point in points:
        columns.setdefault(int((point[0] - x0) / (x1 - x0) * COLUMNS), []).append(point)
    result = []
    for column in columns.values():
        finite = [p for p in column if math.isfinite(p[1])]
        odd = [p for p in column if not math.isfinite(p[1])][:1]
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        result += sorted([*ends, *odd], key=lambda p: p[0])
    return result


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range (the axis is in decades), with 2 and 5 between them where the range is short; round
    numbers where it is shorter still."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    stride = max(1, round((high - low) / 5))
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [10.0**p * f for p in powers if p % stride == 0 for f in factors]
    ticks = [t for t in ticks if low <= math.log10(t) <= high]
    return ticks if len(ticks) > 2 or high - low >= 2 else round_ticks(10**low, 10**high, 4)
