"""Bars for the terminal: stacked, to one scale, with the device's limit as a mark. In colour where there is a terminal;
in a file or a pipe each part has a letter of its own, and a line says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white", "bright_black")
WIDTH = 48


def stacked(rows: Sequence[tuple[str, Mapping[str, float], str]], *, limit: float | None = None) -> None:
    """Print a bar a row (label, size by part, what stands behind it). ``limit``: where the mark goes, in the parts'
    unit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    parts = list(dict.fromkeys(part for _, sizes, _ in rows for part in sizes))
    longest = max([sum(sizes.values()) for _, sizes, _ in rows] + [limit or 0.0, 1e-30])
    marks = {part: (chr(ord("A") + i), COLOURS[i % len(COLOURS)]) for i, part in enumerate(parts)}
    grid = Table.grid(padding=(0, 1))
    for label, sizes, behind in rows:
        bar = Text()
        begin = 0.0
        for part, size in sizes.items():
            # rounded at the ends, not at the lengths, so that a bar is as long as its sum
            cells = round((begin + size) / longest * WIDTH) - round(begin / longest * WIDTH)
            letter, colour = marks[part]
            bar.append(("█" if console.is_terminal else letter) * cells, style=colour)
            begin += size
        if limit is not None:
            bar.append(" " * (WIDTH - len(bar)))
            at = min(WIDTH - 1, int(limit / longest * WIDTH))
            bar = Text.assemble(bar[:at], ("│", "bold"), bar[at + 1 :])
        grid.add_row(Text(label), bar, Text(behind))
    console.print(grid)
    legend = Text("  ")
    for part, (letter, colour) in marks.items():
        legend.append(("█ " if console.is_terminal else f"{letter} ") + part + "   ", style=colour)
    if limit is not None:
        legend.append("│ what the device has")
    console.print(legend)
