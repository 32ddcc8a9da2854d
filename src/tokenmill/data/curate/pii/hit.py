"""What a finder yields, and the words around it."""

from __future__ import annotations

import re
from typing import NamedTuple

BEHIND = 48
"""Characters before a number in which a word says what it is."""


class Hit(NamedTuple):
    """Personal data from ``start`` up to ``end`` of the text."""

    start: int
    end: int
    kind: str
    """``email``, ``phone``, ``ip``, ``iban``, ``card``, ``national``, ``address`` or ``secret``."""
    detail: str = ""
    """Which one: ``us_ssn``, ``aws``, ``v6``."""


def said_before(text: str, start: int, words: re.Pattern[str]) -> bool:
    """Whether one of `words` (a pattern for lower case) stands shortly before `start`."""
    return words.search(text[max(0, start - BEHIND) : start].lower()) is not None
