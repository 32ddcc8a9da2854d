"""Parts a model's thinking from its answer while both are being written.

Models that think write ``<think>…</think>`` and then the answer; with some, the prompt ends inside the thinking
already. White space after either tag belongs to neither. Tags later in the answer are only text, and thinking that
never ends is thinking. The result does not depend on where the text was cut.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def writes_thinking(template: str | None) -> bool:
    """Whether a model with this chat template (Jinja or Go) writes its thinking between the tags."""
    return template is not None and CLOSE in template


class ThinkingSplitter:
    """Push the model's text, get (thinking, answer); `flush` when it is over.

    ``inside``: the prompt ended with the opening tag.
    """

    def __init__(self, *, inside: bool) -> None:
        self._state = "open" if inside else "start"
        self._text = ""

    def push(self, text: str) -> tuple[str, str]:
        """What is certain by now and was not given out yet."""
        self._text += text
        thinking = ""
        if self._state == "start":
            self._start()
        if self._state == "open":
            self._skip_space("thinking")
        if self._state == "thinking":
            thinking = self._think()
        if self._state == "closed":
            self._skip_space("answer")
        if self._state != "answer":
            return thinking, ""
        answer, self._text = self._text, ""
        return thinking, answer

    def flush(self) -> tuple[str, str]:
        """What waited: half a tag is text after all."""
        rest, self._text = self._text, ""
        if self._state == "thinking":
            return rest.rstrip(), ""
        return ("", rest) if self._state == "start" else ("", "")

    def _start(self) -> None:
        said = self._text.lstrip()
        if said.startswith(OPEN):
            self._text, self._state = said[len(OPEN) :], "open"
        elif not OPEN.startswith(said):
            self._state = "answer"

    def _skip_space(self, then: str) -> None:
        self._text = self._text.lstrip()
        if self._text:
            self._state = then

    def _think(self) -> str:
        at = self._text.find(CLOSE)
        if at >= 0:
            thinking, self._text = self._text[:at].rstrip(), self._text[at + len(CLOSE) :]
            self._state = "closed"
            return thinking
        possible = next((n for n in range(len(CLOSE) - 1, 0, -1) if self._text.endswith(CLOSE[:n])), 0)
        thinking = self._text[: len(self._text) - possible].rstrip()  # white space waits: it may stand before the tag
        self._text = self._text[len(thinking) :]
        return thinking
