"""Figures of comparisons as inline SVG, in the style of :mod:`tokenmill.core.html.charts`: a radar of several models
over several abilities, and intervals beside a line at zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmill.core.html.charts import COLOURS, figure_text, round_ticks

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, RADIUS, ROOM = 560, 130, 44
"""Of a radar: its drawing's width, the outer ring, and the room for labels above and below."""
RINGS = 4
ROW, LABEL, RIGHT, HEAD, FOOT = 24, 210, 14, 8, 24
"""Of intervals: a row's height, the room for labels, for nothing on the right, above, and for the axis."""
LONGEST = 26
"""Letters of a label; more are cut, and all of it is in its tooltip."""


@dataclass(frozen=True)
class Interval:
    """A difference with its interval. ``tone``: ``good``, ``bad`` or ``""`` where nothing can be said."""

    label: str
    value: float
    low: float
    high: float
    tone: str = ""


def radar_chart(title: str, axes: Sequence[str], series: Mapping[str, Sequence[float]]) -> Markup:
    """A ``<figure>`` with a spoke for each of ``axes`` and an outline for each of ``series``, values from 0 (middle) to
    1 (outer ring); what lies outside is drawn at the edge. Empty markup for fewer than three axes: a radar of two is a
    line. A value that is not finite is drawn as 0 and told as missing."""
    from markupsafe import Markup, escape

    if len(axes) < 3 or not series:
        return Markup("")
    height = 2 * (RADIUS + ROOM)
    parts = [*_rings(len(axes)), *_spokes(axes)]
    legend = []
    for n, (name, values) in enumerate(series.items()):
        colour = n % COLOURS
        corners = [_corner(place, len(axes), _inside(value)) for place, value in enumerate(values)]
        outline = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
        parts.append(f'<g class="c{colour}"><path d="{outline}"/><path class="area" d="{outline}"/>')
        for (x, y), axis, value in zip(corners, axes, values, strict=True):
            told = figure_text(value) if math.isfinite(value) else "missing"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(f"{name}, {axis}: {told}")}</title>')
            parts.append("</circle>")
        parts.append("</g>")
        legend.append(f'<span><i class="c{colour}"></i>{escape(name)}</span>')
    return Markup(
        f"<figure><figcaption>{escape(title)} {''.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def interval_chart(title: str, rows: Sequence[Interval], *, x_label: str = "") -> Markup:
    """A ``<figure>`` with a dot and a bar a row, and a line at zero; empty markup without rows of finite numbers."""
    from markupsafe import Markup, escape

    rows = [row for row in rows if all(map(math.isfinite, (row.value, row.low, row.high)))]
    if not rows:
        return Markup("")
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    room = 0.06 * (high - low) or 0.1
    low, high = low - room, high + room
    bottom = HEAD + ROW * len(rows)

    def x(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - LABEL - RIGHT)

    parts = []
    for value in round_ticks(low, high, 5):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{HEAD}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{figure_text(value)}</text>')
    parts.append(f'<line class="mark" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{HEAD}" y2="{bottom}"/>')
    for n, row in enumerate(rows):
        y = HEAD + ROW * (n + 0.5)
        told = f"{row.label}: {row.value:+.4g} ({row.low:+.4g} to {row.high:+.4g})"
        parts.append(f'<g class="interval {escape(row.tone)}"><title>{escape(told)}</title>')
        parts.append(f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(row.label))}</text>')
        parts.append(f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle cx="{x(row.value):.1f}" cy="{y:.1f}" r="4"/></g>')
    caption = f"<figcaption>{escape(title)} <span>{escape(x_label)}</span></figcaption>"
    return Markup(
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _rings(count: int) -> Iterator[str]:
    for ring in range(1, RINGS + 1):
        corners = [_corner(place, count, ring / RINGS) for place in range(count)]
        yield f'<path class="grid" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}Z"/>'


def _spokes(axes: Sequence[str]) -> Iterator[str]:
    from markupsafe import escape

    middle_x, middle_y = _corner(0, len(axes), 0.0)
    for place, axis in enumerate(axes):
        x, y = _corner(place, len(axes), 1.0)
        yield f'<line class="grid" x1="{middle_x:.1f}" x2="{x:.1f}" y1="{middle_y:.1f}" y2="{y:.1f}"/>'
        at_x, at_y = _corner(place, len(axes), 1.0 + 14 / RADIUS)
        side = at_x - middle_x
        anchor = "middle" if abs(side) < 1 else "start" if side > 0 else "end"
        # straight above and below the label must not touch the ring; at the sides it is centred on its corner
        down = 4 + 6 * (at_y - middle_y) / (RADIUS + 14)
        yield f'<text x="{at_x:.1f}" y="{at_y + down:.1f}" text-anchor="{anchor}">{escape(_short(axis))}'
        yield f"<title>{escape(axis)}</title></text>"


def _corner(place: int, count: int, share: float) -> tuple[float, float]:
    angle = 2 * math.pi * place / count
    return WIDTH / 2 + RADIUS * share * math.sin(angle), RADIUS + ROOM - RADIUS * share * math.cos(angle)


def _inside(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
