"""What raters compare: a prompt and two answers, of which a side is drawn for each rater anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.data.files import Broken, find_files, read_rows

Text = str | Sequence[Mapping[str, Any]]
"""A text, or messages."""


@dataclass(frozen=True)
class Item:
    """Two answers to a prompt. ``id`` follows from what they say, so the same row is the same item in every file."""

    id: str
    prompt: Text
    answers: tuple[Text, Text]

    def left(self, rater: str, seed: int) -> int:
        """Which answer (0 or 1) this rater sees on the left: a coin that always falls the same way for them."""
        digest = hashlib.sha256(json.dumps([seed, rater, self.id]).encode("utf-8", "replace")).digest()
        return digest[0] & 1


def read_items(path: str) -> list[Item]:
    """The items of a file (.jsonl, .parquet): rows with ``prompt`` and ``answers`` (two), or ``chosen`` and
    ``rejected``. Equal rows are one item.

    UsageError names the first row that is none.
    """
    items: dict[str, Item] = {}
    for file in find_files(path):
        for row in read_rows(file):
            try:
                if isinstance(row, Broken):
                    raise ValueError(row.problem)
                item = parse_item(row.value)
            except ValueError as error:
                raise UsageError(f"{file}:{row.line}: {error}") from error
            items.setdefault(item.id, item)
    if not items:
        raise UsageError(f"{path}: there is nothing to compare")
    return list(items.values())


def parse_item(row: Mapping[str, Any]) -> Item:
    """The item in a row; ValueError says what is wrong with it."""
    answers = row.get("answers", [row.get("chosen"), row.get("rejected")])
    if not isinstance(answers, list) or len(answers) != 2:
        raise ValueError("a row has a prompt and two answers (answers, or chosen and rejected)")
    prompt = _text(row.get("prompt"), "prompt")
    first, second = (_text(answer, f"answer {number}") for number, answer in enumerate(answers, 1))
    if first == second:
        raise ValueError("both answers are the same")
    said = json.dumps([prompt, first, second], sort_keys=True, default=str)
    return Item(hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:16], prompt, (first, second))


def _text(given: Any, what: str) -> Text:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(isinstance(m, Mapping) and "role" in m for m in given):
        return given
    raise ValueError(f"{what} must be text or a list of messages")
