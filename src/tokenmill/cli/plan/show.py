"""What the sub-verbs of ``plan`` share: amounts as people write them, tables and bars of Rich."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli.output import note
from tokenmill.core.errors import UsageError
from tokenmill.plan.words import short as short

if TYPE_CHECKING:
    from rich.console import RenderableType

Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one page with sliders, too.")]
WIDTH = 110
"""Of tables where stdout is no terminal."""
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}
_AMOUNT = re.compile(r"(\d+(?:[._]\d+)*(?:e[+-]?\d+)?)\s*([kmbgtp]?)", re.IGNORECASE)


def amount(flag: str, given: str) -> float:
    """``15T``, ``300M``, ``1e21``, ``2.5``. UsageError names the flag."""
    match = _AMOUNT.fullmatch(given.strip())
    if match is None or float(match[1].replace("_", "")) <= 0:
        raise UsageError(f"{flag} {given!r}: a positive number, such as 300M, 15T or 1e21")
    return float(match[1].replace("_", "")) * _UNITS[match[2].lower()]


def gigabytes(value: float) -> str:
    """Bytes in 10^9."""
    return f"{value / 1e9:.1f} GB" if abs(value) < 99.95e9 else f"{value / 1e9:,.0f} GB"


def money(value: float) -> str:
    """Dollars, as exact as is sensible."""
    return f"${value:,.2f}" if abs(value) < 100 else f"${value:,.0f}"


def seconds(value: float) -> str:
    """A time that was computed: 12 ms, 3.4 s, 2.1 h, 18 days."""
    for unit, factor in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= 2 * factor or (unit == "s" and value >= 1):
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e3:.3g} ms"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table; the first ``words`` columns are words, the others numbers on the right."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        show_header=any(header),
    )
    for n, name in enumerate(header):
        made.add_column(name, justify="left" if n < words else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return drawn(made)


def bars(title: str, values: Iterable[tuple[str, float, str]]) -> str:
    """A bar for each (name, value, text), the longest as long as there is room."""
    from rich.bar import Bar
    from rich.table import Table

    rows = list(values)
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    made = Table.grid(padding=(0, 2))
    made.title, made.title_justify, made.title_style = title, "left", "bold"
    for name, value, text in rows:
        made.add_row(name, Bar(most, 0, value, width=40), text)
    return drawn(made)


def drawn(what: RenderableType) -> str:
    """As text; colours where stdout is a terminal are left out, so that pipes and tests see the same."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(what)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n")).rstrip() + "\n"


def warn(sentences: Iterable[str]) -> None:
    """On stderr, each its line."""
    for sentence in sentences:
        note(f"note: {sentence}")
