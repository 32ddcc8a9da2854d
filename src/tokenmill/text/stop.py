"""Finds stop strings in streamed text, however the text is cut into pieces.

Which match counts: the one that is *complete* first, for generation ends at that moment; of several complete at the
same character, the longest (so it begins earliest). With stops ``bc`` and ``abcd``, the text ``abcd`` ends at ``bc``
after giving out ``a``. The result does not depend on where the pieces are cut.

What waits: only the longest tail that some stop string begins with. With ``include_stop`` nothing waits, since all text
up to the end of the stop string is given out anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.core.errors import UsageError


class StopMatcher:
    """Push text, get what is safe to give out. After a match `matched` is the stop string and nothing more comes."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        if isinstance(stops, str) or any(not isinstance(stop, str) or not stop for stop in stops):
            raise UsageError(f"stop strings must be a list of non-empty strings, not {stops!r}")
        # longest first, so that the first found of several ending together is the longest
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._include_stop = include_stop
        self._tail = ""  # what could still become a stop string
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The part of all text so far that is certain not to belong to a stop string, and was not given out yet."""
        if self.matched is not None:
            return ""
        waited = len(self._tail)
        text = self._tail + text
        if (found := self._first_complete(text)) is not None:
            end, self.matched = found
            self._tail = ""
            return text[waited:end] if self._include_stop else text[: end - len(self.matched)]
        keep = self._possible_beginning(text)
        self._tail = text[len(text) - keep :]
        return text[waited:] if self._include_stop else text[: len(text) - keep]

    def flush(self) -> str:
        """What waited and, the text being over, is not a stop string."""
        tail, self._tail = self._tail, ""
        return "" if self._include_stop else tail

    def _first_complete(self, text: str) -> tuple[int, str] | None:
        ends = [(at + len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(ends, key=lambda found: found[0], default=None)

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest tail of `text` that a stop string begins with."""
        longest = min(len(self._stops[0]) - 1 if self._stops else 0, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
