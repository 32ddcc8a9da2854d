"""Several runs of one recipe: a grid of values, or a space that a search draws from. Hydra's grammar for both.

``lr=1e-4,3e-4`` · ``seed=range(0,3)`` · ``adapter.rank=choice(8,16)`` make a grid; ``lr=interval(1e-5,1e-3)`` is a
space, ``lr=tag(log,interval(1e-5,1e-3))`` one whose logarithm is even.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenmill.config.compose import known_keys
from tokenmill.config.hydra_compose import parse_override
from tokenmill.core.errors import UsageError, did_you_mean


def grid(sweeps: Sequence[str]) -> list[list[str]]:
    """The overrides of every run: all combinations of the values of ``key=a,b``, the last key changing fastest."""
    columns: list[list[str]] = []
    for text in sweeps:
        override = _known(text)
        if override.is_interval_sweep():
            raise UsageError(f"{text!r} has no steps; a grid needs values, --sweep-optuna draws from an interval")
        if override.is_sweep_override():
            columns.append([f"{override.key_or_group}={_text(value)}" for value in override.sweep_iterator()])
        else:
            columns.append([text])
    return [list(run) for run in itertools.product(*columns)]


@dataclass(frozen=True)
class Range:
    """What a search may choose for one key."""

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def override(self, value: Any) -> str:
        """The override that sets this value."""
        return f"{self.key}={_text(value)}"


def space(sweeps: Sequence[str]) -> list[Range]:
    """What ``--sweep-optuna`` searches: intervals, ranges of integers, lists of values."""
    ranges = []
    for text in sweeps:
        override = _known(text)
        key, value = override.key_or_group, override.value()
        if override.is_interval_sweep():
            log = "log" in value.tags
            whole = _takes_whole_numbers(known_keys()[key])
            ranges.append(Range(key, "int" if whole else "float", float(value.start), float(value.end), log))
        elif override.is_sweep_override():
            ranges.append(Range(key, "choice", choices=tuple(override.sweep_iterator())))
        else:
            raise UsageError(f"{text!r} leaves nothing to search; use interval(a,b), or values a,b")
        if ranges[-1].kind != "choice" and not ranges[-1].low < ranges[-1].high:
            raise UsageError(f"{text!r}: an interval goes from the smaller to the larger number")
        if ranges[-1].log and ranges[-1].low <= 0:
            raise UsageError(f"{text!r}: a logarithm needs numbers above 0")
    return ranges


def _known(text: str) -> Any:
    override = parse_override(text, sweep=True)
    known = known_keys()
    if override.key_or_group not in known:
        near = did_you_mean(override.key_or_group, known)
        raise UsageError(f"{text!r}: no such key in a recipe{near}")
    return override


def _takes_whole_numbers(kind: Any) -> bool:
    """Whether a key is an integer and no other number."""
    parts, members = [kind], set()
    while parts:
        part = parts.pop()
        members.add(part)
        parts += get_args(part)
    return int in members and float not in members


def _text(value: Any) -> str:
    """A value as an override spells it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
