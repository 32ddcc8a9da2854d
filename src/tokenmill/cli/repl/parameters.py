"""``/set parameter``: the settings of a chat by Ollama's names.

Names, types and ranges are those of a Modelfile's PARAMETERs, so that ``/save`` writes what ``/set`` took. What
tokenmill does not use is refused with the reason, never taken and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.store.parameters import DROPPED, HONOURED, read_text


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
