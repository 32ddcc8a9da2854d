"""Multi-line input: a message that begins with three quotes goes on until three quotes end a line, as in Ollama.

Quotes inside a line that did not begin with them are ordinary text.
"""

from __future__ import annotations

QUOTES = '"""'


class LineCollector:
    """Turns typed lines into messages. ``open`` says that a message has begun and not ended yet."""

    def __init__(self) -> None:
        self._lines: list[str] | None = None

    @property
    def open(self) -> bool:
        return self._lines is not None

    def push(self, line: str) -> str | None:
        """The finished message, or None when more lines are wanted."""
        if self._lines is None:
            if not line.startswith(QUOTES):
                return line
            line, self._lines = line[len(QUOTES) :], []
        if line.endswith(QUOTES):
            message = "\n".join([*self._lines, line[: -len(QUOTES)]])
            self._lines = None
            return message
        self._lines.append(line)
        return None

    def drop(self) -> None:
        """Forget what was typed (Ctrl-C)."""
        self._lines = None
