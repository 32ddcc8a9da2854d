"""Turns a stream of token ids into text, never giving out half a character.

A character may be spread over several tokens (an emoji is four bytes, each possibly a token of its own), so bytes that
could still become a character wait; bytes that cannot any more become U+FFFD, one for each maximal invalid part, as
Unicode recommends and as ``bytes.decode(errors="replace")`` does. Whatever waits at the end is invalid by then and
comes with `flush`. All text pushed and flushed together is exactly ``tokenizer.decode(ids)``: decoding *is* this class.
Each push costs the same, however long the stream.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.text.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Push ids one by one, get the text that is certain; `flush` at the end."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        # the decoder's rule says how many leading spaces are not text (SentencePiece's dummy prefix: one)
        self._strip = tokenizer.leading_spaces

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; an id outside the vocabulary (padding) gives none."""
        if token_id in self._skipped:
            return ""
        share = self._tokenizer.share(token_id, first=self._first)
        if share is None:
            return ""
        self._first = False
        return self._stripped(self._decoder.decode(share))

    def flush(self) -> str:
        """What still waited for bytes that never came. Afterwards the object begins a new text."""
        text = self._stripped(self._decoder.decode(b"", final=True))
        self._first, self._strip = True, self._tokenizer.leading_spaces
        return text

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                text, self._strip = text[1:], self._strip - 1
        return text
