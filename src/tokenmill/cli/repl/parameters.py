"""``/set parameter``: the settings of a chat by Ollama's names, and what they are called in SamplingParams.

Names, types and ranges are those of a Modelfile's PARAMETERs, so that ``/save`` writes what ``/set`` took. What
tokenmill does not use is refused with the reason, never taken and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.store.parameters import DROPPED, HONOURED, read_text

# Ollama's name -> field of SamplingParams, where they differ. num_ctx belongs to the loaded model.
FIELDS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}


def parse_parameter(name: str, words: Sequence[str]) -> Any:
    """The typed value of ``/set parameter NAME WORDS…``; stop takes several."""
    name = name.lower()
    if name in DROPPED:
        raise UsageError(f"{name} has no effect: {DROPPED[name]}")
    if name in HONOURED and name != "stop" and len(words) != 1:
        raise UsageError(f"{name} takes one value, not {len(words)}")
    values = []
    for word in words or [""]:
        value, problem = read_text(name, word)
        if problem:
            raise UsageError(problem)
        values.append(value)
    return values if name == "stop" else values[0]


def sampling_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by Ollama's names -> fields of SamplingParams. Negative: no limit (num_predict), a new one (seed)."""
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("num_predict", "seed") and value < 0:
            value = None
        if name != "num_ctx":
            changes[FIELDS.get(name, name)] = tuple(value) if name == "stop" else value
    return changes


def parameter_help() -> str:
    """The list that ``/set parameter`` prints."""
    rows = []
    for name, rule in HONOURED.items():
        value = "<string> <string> ..." if name == "stop" else f"<{rule.kind.__name__}>"
        bounds = [f"{low:g}" for low in (rule.low, rule.high) if math.isfinite(low) and abs(low) < 2**31 - 1]
        limits = f"{' to '.join(bounds)}" if len(bounds) == 2 else f"at least {bounds[0]}" if bounds else ""
        meaning = "; ".join(part for part in (limits, rule.meaning) if part)
        rows.append(f"  /set parameter {f'{name} {value}':<30} {meaning}".rstrip() + "\n")
    return "Available Parameters:\n" + "".join(rows)
