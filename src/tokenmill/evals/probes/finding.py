"""What a probe is told and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError
from tokenmill.data.files import Broken, read_rows
from tokenmill.evals.tasks.aggregate import mean_stderr

Figures = Mapping[str, float | int | None]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header and rows."""


@dataclass(frozen=True)
class Options:
    """How probes are made."""

    lengths: tuple[int, ...] = (200, 600, 1200)
    """Words of the texts that needles are hidden in."""
    samples: int = 5
    """Answers to one question, for self-consistency."""
    temperature: float = 0.7
    """Of these answers."""
    max_tokens: int = 128
    seed: int = 0
    limit: int | None = None
    """Only the first so many rows of each set."""
    price: tuple[float, float] | None = None
    """For a million tokens in and out."""


@dataclass(frozen=True)
class Case:
    """One thing that was asked."""

    id: str
    asked: str
    said: str
    right: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """What a probe found."""

    kind: str
    what: str
    """What ``value`` is: the probe's main figure."""
    value: float
    stderr: float
    figures: Figures
    cases: tuple[Case, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """What has to be minded when the figures are read."""

    def as_dict(self) -> dict[str, Any]:
        """The figures, without the cases."""
        return {
            "what": self.what,
            "value": self.value,
            "stderr": self.stderr,
            "cases": len(self.cases),
            **self.figures,
            "notes": list(self.notes),
        }


def shipped(name: str, keys: Sequence[str], limit: int | None, *, of: str = "probes") -> list[dict[str, Any]]:
    """The rows of a set that comes with tokenmill, with the probes or with the tasks."""
    return read_set(Path(str(resources.files(f"tokenmill.evals.{of}"))) / "sets" / f"{name}.jsonl", keys)[:limit]


def read_set(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a set. FormatError where one lacks a key."""
    rows = []
    for row in read_rows(path):
        if isinstance(row, Broken):
            raise FormatError(path, f"line {row.line}", row.problem)
        missing = [key for key in ("id", *keys) if key not in row.value]
        if missing:
            raise FormatError(path, f"line {row.line}", f"has no {', '.join(missing)}")
        rows.append(dict(row.value))
    return rows


def share(cases: Sequence[Case]) -> tuple[float, float]:
    """Of right ones, with its standard error."""
    return mean_stderr([float(case.right) for case in cases])


def shares(cases: Sequence[Case], key: str) -> list[tuple[str, str, str]]:
    """Of right ones by a detail: rows of its value, the share and the number of cases."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(str(case.details[key]), []).append(case)
    return [(name, f"{share(group)[0]:.0%}", str(len(group))) for name, group in groups.items()]
