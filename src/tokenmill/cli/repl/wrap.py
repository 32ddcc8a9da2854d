"""Word wrap for text that arrives in pieces.

A word is held back until it ends, because only then is it known whether it still fits the line. Wide characters (CJK,
emoji) take two columns and may stand at a line's end without a space between them. A word longer than the line is
left to the terminal. Lines that the model breaks itself keep their breaks.
"""

from __future__ import annotations

from collections.abc import Callable


class WordWrap:
    """Feeds `write` with wrapped text. `width` is asked before each word, so a resized terminal is honoured."""

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._write, self._width = write, width
        self._column, self._word, self._word_width = 0, "", 0

    def push(self, text: str) -> None:
        from prompt_toolkit.utils import get_cwidth

        for char in text:
            columns = get_cwidth(char)
            if char == "\n":
                self.flush()
                self._write(char)
                self._column = 0
            elif char.isspace():
                self.flush()
                if self._column < self._width():
                    self._write(char)
                    self._column += max(columns, 1)
            else:
                self._word += char
                self._word_width += max(columns, 0)
                if columns > 1:
                    self.flush()

    def flush(self) -> None:
        """Write the word held back; call it at the end too."""
        if self._word:
            if self._column > 0 and self._column + self._word_width > self._width():
                self._write("\n")
                self._column = 0
            self._write(self._word)
            self._column += self._word_width
            self._word, self._word_width = "", 0
