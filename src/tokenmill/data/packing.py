"""Best-fit-decreasing packing: documents into rows of a length, with little room left and none cut.

The longest go first, each into the row where it leaves the least room. On real document lengths it fills within a
percent of what is possible (Ding et al. 2024, arXiv 2404.10830), where packing in the order of arrival leaves a tenth.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of positions in `lengths`. Every position is in one row, in ascending order there; no row holds more than
    `capacity` unless a single document is longer than that. Rows stand in the order of their first document."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, number of the row), sorted: the first that fits, fits best
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[position]
        at = bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            room, number = open_rows.pop(at)
            rows[number].append(position)
        else:
            room, number = capacity, len(rows)
            rows.append([position])
        if room > length:
            insort(open_rows, (room - length, number))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])
