"""Rows that compare answers: pairs of a chosen and a rejected one, and single answers with a verdict.

A pair is ``{"prompt", "chosen", "rejected"}``. Prompt and answers are texts or lists of messages; answers that are
whole conversations need no prompt, what they have in common is it (as UltraFeedback and TRL's implicit prompts).
``margin`` says by how much the chosen one is better, where that is known. A judged answer is ``{"prompt",
"completion", "label"}``; a pair is two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.data.formats import Chat, Completion, Document, Message, RowError, parse_message, parse_tools


@dataclass(frozen=True)
class Judged:
    """An answer in its context, and what was thought of it."""

    document: Document
    good: bool
    margin: float = 0.0
    """Of a pair: how much better the chosen side is, in the units of the reward."""


def parse_pair(row: Mapping[str, Any]) -> tuple[Judged, Judged]:
    """The chosen and the rejected answer of a row; RowError says what is wrong with it."""
    if "chosen" not in row or "rejected" not in row:
        raise RowError(f"keys {', '.join(map(str, row)) or '(none)'}: a pair has prompt, chosen and rejected")
    margin = _margin(row.get("margin"))
    prompt, sides = row.get("prompt"), (row["chosen"], row["rejected"])
    if sides[0] == sides[1]:
        raise RowError("chosen and rejected are the same")
    if all(isinstance(side, list) for side in sides) and (prompt is None or _whole(sides[0])):
        documents = _without_prompt(row)
    else:
        documents = tuple(_answered(row, prompt, name) for name in ("chosen", "rejected"))
    return Judged(documents[0], True, margin), Judged(documents[1], False, margin)


def parse_judged(row: Mapping[str, Any]) -> Iterator[Judged]:
    """The answers of a row and their verdicts: one, or both sides of a pair."""
    if "chosen" in row and "rejected" in row:
        yield from parse_pair(row)
        return
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise RowError(f"label must be true or false, not {label!r}: whether the completion is wanted")
    yield Judged(_answered(row, row.get("prompt"), "completion"), bool(label))


def _margin(given: Any) -> float:
    if given is None:
        return 0.0
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise RowError(f"margin must be a number, not {given!r}")
    return float(given)


def _whole(side: list[Any]) -> bool:
    """Whether an answer's messages begin with the question."""
    return bool(side) and isinstance(side[0], Mapping) and side[0].get("role") not in ("assistant", "tool")


def _messages(given: Any, where: str) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise RowError(f"{where} must be text or a list of messages, and not empty")
    return [parse_message(one, f"{where}[{i}]") for i, one in enumerate(given)]


def _without_prompt(row: Mapping[str, Any]) -> tuple[Document, ...]:
    chosen, rejected = (_messages(row[name], name) for name in ("chosen", "rejected"))
    common = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    if common == 0 or common in (len(chosen), len(rejected)):
        raise RowError("chosen and rejected must begin with the same messages and answer them in two ways")
    tools = parse_tools(row.get("tools"))
    return tuple(Chat(side, tools, context=common) for side in (chosen, rejected))


def _answered(row: Mapping[str, Any], prompt: Any, name: str) -> Document:
    answer = row.get(name)
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer.strip():
            raise RowError(f"{name} is empty")
        return Completion(prompt, answer)
    if prompt is None:
        raise RowError("prompt is missing: what is it that is answered?")
    if isinstance(prompt, str):
        asked: list[Message] = [{"role": "user", "content": prompt}]
    else:
        asked = _messages(prompt, "prompt")
    said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else _messages(answer, name)
    if all(message["role"] != "assistant" for message in said):
        raise RowError(f"{name}: no message has the role assistant")
    return Chat([*asked, *said], parse_tools(row.get("tools")), context=len(asked))
