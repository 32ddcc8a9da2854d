"""The PARAMETERs of a Modelfile: Ollama's names, their types and ranges, and which of them tokenmill honours.

Three kinds. Honoured ones are checked and kept. Ones that choose only speed, memory or placement are dropped with a
warning, because tokenmill chooses these itself and the answers stay the same. Ones that would change the answers in a
way tokenmill does not compute are refused.

Source: Ollama's docs/modelfile.mdx and api/types.go (Options and Runner).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.core.errors import did_you_mean

MAX_STOPS = 64
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Rule:
    """Type and closed range of an honoured parameter. `kind` is int, float or str (a list of strings)."""

    kind: type
    low: float = -math.inf
    high: float = math.inf
    meaning: str = ""


HONOURED: Mapping[str, Rule] = {
    "num_ctx": Rule(int, 1, _INT32, "tokens of context"),
    "num_predict": Rule(int, -2, _INT32, "tokens to generate; -1 without limit, -2 until the context is full"),
    "temperature": Rule(float, 0, 100, "0 always takes the likeliest token"),
    "top_k": Rule(int, 0, _INT32, "0 takes all"),
    "top_p": Rule(float, 0, 1),
    "min_p": Rule(float, 0, 1),
    "typical_p": Rule(float, 0, 1, "1 takes all"),
    "repeat_last_n": Rule(int, -1, _INT32, "0 none, -1 the whole context"),
    "repeat_penalty": Rule(float, 0.01, 100, "1 is none"),
    "presence_penalty": Rule(float, -2, 2),
    "frequency_penalty": Rule(float, -2, 2),
    "seed": Rule(int, -1, 2**63 - 1, "-1 takes a new one each time"),
    "stop": Rule(str),
}

_PLACEMENT = "tokenmill chooses it from the machine; answers do not depend on it"
_NEVER_DROPS = "tokenmill never drops tokens out of a full context, so there is nothing to keep"
DROPPED: Mapping[str, str] = {
    **dict.fromkeys(("num_gpu", "main_gpu", "num_thread", "num_batch", "low_vram", "numa"), _PLACEMENT),
    **dict.fromkeys(("use_mmap", "use_mlock", "f16_kv", "num_gqa", "logits_all", "vocab_only"), _PLACEMENT),
    "num_keep": _NEVER_DROPS,
    "draft_num_predict": "it sizes a draft model's guesses, and tokenmill uses no draft model",
}

_REMOVED = "Ollama itself removed it; use temperature, top_k, top_p, min_p or typical_p"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("mirostat", "mirostat_tau", "mirostat_eta", "tfs_z"), _REMOVED),
    "penalize_newline": "newlines are penalised like any other token; leave it out",
    "rope_frequency_base": "it changes the model; it belongs in the model's own configuration",
    "rope_frequency_scale": "it changes the model; it belongs in the model's own configuration",
}


def read_text(name: str, text: str) -> tuple[Any, str]:
    """(typed value, problem) of one PARAMETER line: the value of a dropped parameter is None; no problem is ``""``."""
    if name in DROPPED:
        return None, ""
    if name not in HONOURED:
        return None, _unknown(name)
    kind = HONOURED[name].kind
    if kind is str:
        return text, "" if text else "a stop string must not be empty"
    try:
        # int() and float() read "1_000" and Arabic digits, which the next program would not
        if not text.isascii() or "_" in text:
            raise ValueError
        value = kind(text)
    except ValueError:
        return None, f"{name} {text!r:.60} is not {_article(kind)}"
    return value, _range_problem(name, value)


def read_json(values: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """(parameters, warnings, problems) of a params layer, which other programs write too.

    What `read_text` refuses by name is a warning here: the model is there, and the person did not write it.
    """
    if not isinstance(values, dict):
        return {}, [], ["parameters must be a JSON object"]
    kept: dict[str, Any] = {}
    warnings, problems = [], []
    for name, value in values.items():
        if name not in HONOURED:
            reason = DROPPED.get(name) or REFUSED.get(name) or "unknown"
            warnings.append(f"parameter {name!r:.60} is not used: {reason}")
            continue
        kind = HONOURED[name].kind
        if kind is str:
            stops = [value] if isinstance(value, str) else value
            if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
                problems.append("stop must be a list of strings that are not empty")
            else:
                kept[name] = stops
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and value % 1 != 0):
            problems.append(f"{name} {value!r:.60} is not {_article(kind)}")
        elif problem := _range_problem(name, value):
            problems.append(problem)
        else:
            kept[name] = kind(value)
    return kept, warnings, problems


def dropped_warning(name: str, line: int) -> str:
    """What to tell a person whose Modelfile sets a parameter that has no effect here."""
    return f"line {line}: PARAMETER {name} has no effect: {DROPPED[name]}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A base model's parameters with a Modelfile's over them; stop strings are replaced as a whole, as in Ollama."""
    return {**base, **over}


def _range_problem(name: str, value: float) -> str:
    rule = HONOURED[name]
    if not rule.low <= value <= rule.high:  # false for NaN too
        meaning = f" ({rule.meaning})" if rule.meaning else ""
        return f"{name} {value} is out of range: {rule.low} to {rule.high}{meaning}"
    return ""


def _unknown(name: str) -> str:
    if name in REFUSED:
        return f"{name} is not supported: {REFUSED[name]}"
    return f"unknown parameter {name!r:.60}{did_you_mean(name, all_names())}; known are {', '.join(HONOURED)}"


def all_names() -> Iterable[str]:
    """Every parameter name that means something here or in Ollama."""
    return [*HONOURED, *DROPPED, *REFUSED]


def _article(kind: type) -> str:
    return "a whole number" if kind is int else "a number"
