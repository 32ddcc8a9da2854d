"""The file of verdicts: one JSON line each, appended and synced as it is given, so nothing is lost with a crash.

A rater's later verdict on an item takes the place of the earlier one (that is how a slip is mended).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.align.label.items import Item
from tokenmill.core.errors import FormatError

VERDICTS = ("first", "second", "tie", "skip")
"""Of the item's two answers, whatever side they were shown on."""


@dataclass(frozen=True)
class Label:
    """What a rater said of an item."""

    item: str
    rater: str
    verdict: str
    """One of :data:`VERDICTS`."""
    left: int
    """The answer (0 or 1) that stood on the left."""
    seconds: float = 0.0
    """From the page's showing it to the verdict."""
    time: float = 0.0
    """When, seconds since 1970."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS or self.left not in (0, 1):
            raise ValueError(f"{self.verdict!r}, {self.left!r}: not one of {', '.join(VERDICTS)} with 0 or 1")


class LabelLog:
    """The verdicts of a file, which need not be there yet. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._labels: dict[tuple[str, str], Label] = {}
        for label in _read(path):
            self._labels[label.rater, label.item] = label

    @property
    def labels(self) -> list[Label]:
        """The verdicts that count, in the order in which they were first given."""
        with self._lock:
            return list(self._labels.values())

    def done(self, rater: str) -> set[str]:
        """Items that a rater has judged or skipped."""
        return {label.item for label in self.labels if label.rater == rater}

    def add(self, label: Label) -> None:
        """Write a verdict down."""
        line = json.dumps(asdict(label), ensure_ascii=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(line if whole else "\n" + line)
                file.flush()
                os.fsync(file.fileno())
            self._labels[label.rater, label.item] = label


def _read(path: Path) -> Iterator[Label]:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Label(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # torn by a crash while it was written
                return
            raise FormatError(path, f"line {number}", f"is no verdict: {error}") from error


def majorities(labels: Iterable[Label]) -> dict[str, str]:
    """What most raters of an item say of it: ``first`` or ``second`` where that outweighs all else, ``tie`` where
    somebody judged it and nothing does. Items that were only skipped are left out."""
    votes: dict[str, Counter[str]] = {}
    for label in labels:
        if label.verdict != "skip":
            votes.setdefault(label.item, Counter())[label.verdict] += 1
    found = {}
    for item, said in votes.items():
        first, second, ties = (said.get(verdict, 0) for verdict in ("first", "second", "tie"))
        decided = max(first, second) > min(first, second) + ties
        found[item] = ("first" if first > second else "second") if decided else "tie"
    return found


def pairs_of(items: Iterable[Item], labels: Iterable[Label]) -> list[dict[str, Any]]:
    """Rows to train on (``prompt``, ``chosen``, ``rejected``): what most raters of an item prefer.

    Items without a majority (ties, as many for the one as for the other) are left out.
    """
    most = majorities(labels)
    rows: list[dict[str, Any]] = []
    for item in items:
        if most.get(item.id) in ("first", "second"):
            chosen, rejected = item.answers if most[item.id] == "first" else item.answers[::-1]
            rows.append({"prompt": item.prompt, "chosen": chosen, "rejected": rejected})
    return rows


def new_label(item: Item, rater: str, verdict: str, left: int, seconds: float) -> Label:
    """A verdict of now."""
    return Label(item.id, rater, verdict, left, round(max(0.0, seconds), 3), round(time.time(), 3))
