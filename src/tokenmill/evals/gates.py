"""Conditions under which a check in CI fails: ``exact_match<0.8``, ``arithmetic.acc<=0.5``, ``change:acc<-0.02``,
``regression``.

``change:`` is of the difference to the base model, ``regression`` any figure that counts and is certainly worse; both
need a comparison. A condition that no figure answers to is a mistake, not a pass.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmill.core.errors import UsageError, did_you_mean

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FORM = re.compile(
    r"\s*(?P<change>change:)?(?P<name>[\w.@-]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*", re.I
)
REGRESSION = "regression"


@dataclass(frozen=True)
class Gate:
    """One condition."""

    text: str
    name: str
    sign: str = ""
    bound: float = 0.0
    change: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure that gates are held against. ``change`` and ``worse`` are None and False outside of comparisons."""

    model: str
    task: str
    metric: str
    value: float
    change: float | None = None
    worse: bool = False
    counts: bool = True
    """Whether it is its task's main figure."""


def read_gate(text: str) -> Gate:
    """A condition as the person writes it; UsageError where it is none."""
    if text.strip() == REGRESSION:
        return Gate(text, REGRESSION)
    found = _FORM.fullmatch(text)
    try:
        bound = float(found["bound"]) if found else 0.0
    except ValueError:
        found = None
    if not found:
        raise UsageError(
            f"--fail-if {text!r} is no condition: write METRIC<0.8 or TASK.METRIC<0.8 (also <=, >, >=), "
            "change:METRIC<-0.02, or regression"
        )
    return Gate(text, found["name"], found["sign"], bound, found["change"] is not None)


def failures(gates: Sequence[Gate], figures: Sequence[Figure]) -> list[str]:
    """What the gates find, one line each. UsageError for a gate that no figure answers to."""
    return [line for gate in gates for line in _failures(gate, figures)]


def _failures(gate: Gate, figures: Sequence[Figure]) -> list[str]:
    if gate.name == REGRESSION and not gate.sign:
        if all(one.change is None for one in figures):
            raise UsageError(f"--fail-if {gate.text}: there is nothing to be worse than; `eval compare` has a base")
        return [f"{_called(one)} is worse by {-(one.change or 0):.4g}" for one in figures if one.worse and one.counts]
    known: Mapping[str, None] = dict.fromkeys(n for one in figures for n in (one.metric, f"{one.task}.{one.metric}"))
    if gate.name not in known:
        raise UsageError(f"--fail-if {gate.text}: no figure {gate.name!r}{did_you_mean(gate.name, known)}; "
                         f"there are {', '.join(known)}")  # fmt: skip
    lines = []
    for one in figures:
        if gate.name not in (one.metric, f"{one.task}.{one.metric}"):
            continue
        value = one.change if gate.change else one.value
        if value is None:
            raise UsageError(f"--fail-if {gate.text}: there is no base to differ from; `eval compare` has one")
        if _OPERATORS[gate.sign](value, gate.bound):
            what = "changed by" if gate.change else "is"
            lines.append(f"{_called(one)} {what} {value:.4g} ({gate.text})")
    return lines


def _called(one: Figure) -> str:
    return f"{one.model}: {one.task}.{one.metric}"
