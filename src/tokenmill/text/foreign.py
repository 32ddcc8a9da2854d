"""Tells the control tokens that a chat template wrote from those that people spelled in their messages.

Before rendering, each control token in a message, a tool or a variable is put between two marks; afterwards an unmarked
one is the template's own, a marked one is text. The marks are digits, fresh for each rendering: nobody can guess them,
and templates that trim, lower, capitalise or escape leave them alone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any


class Foreign:
    """Marks control tokens in what people wrote, and finds the unmarked ones after rendering."""

    def __init__(self, controls: list[str]) -> None:
        self._open, self._close = (str(10**23 + secrets.randbelow(9 * 10**23)) for _ in range(2))
        longest_first = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True))
        self._control = re.compile(longest_first or "(?!)")
        self.found = False

    def marked(self, value: Any) -> Any:
        if isinstance(value, str):
            text, count = self._control.subn(lambda match: f"{self._open}{match[0]}{self._close}", value)
            self.found = self.found or count > 0
            return text
        if isinstance(value, Mapping):
            return {key: self.marked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.marked(item) for item in value]
        return value

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is a control token that the template wrote)."""
        begun, at = "", 0
        foreign = re.compile(f"{self._open}(.*?){self._close}|({self._control.pattern})", re.DOTALL)
        for match in foreign.finditer(text):
            begun += text[at : match.start()]
            at = match.end()
            if match[2] is None:
                begun += match[1]
                continue
            if begun:
                yield self._cleaned(begun), False
            yield match[2], True
            begun = ""
        if rest := begun + text[at:]:
            yield self._cleaned(rest), False

    def _cleaned(self, text: str) -> str:
        # a template that cut a marked string in two leaves half a mark
        return text.replace(self._open, "").replace(self._close, "")
