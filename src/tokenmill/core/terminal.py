"""What may be written to a terminal: text that came with a model or with data must not move the cursor or set the
window's title."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """`text` without control characters (escape sequences, bells, carriage returns); newlines and tabs stay."""
    return _CONTROLS.sub("", text)
