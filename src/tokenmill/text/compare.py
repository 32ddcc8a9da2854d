"""Tokenizers side by side on the same texts: how many bytes a token carries, how many tokens a word takes, what does
not come back, and how fast they are.

A text is measured as text: control tokens that it spells are not matched, BOS and EOS are not counted. A word is a run
of letters and digits; of scripts written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) every character counts
as one. Bytes are those of UTF-8, so figures of vocabularies of any kind compare.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from tokenmill.text.tokenizer import Tokenizer

_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
SHOWN = 160
"""Characters of the sample whose tokens are drawn."""
FAILURES = 3
"""Texts that did not come back which are kept for each tokenizer."""


@cache
def sample_texts() -> Mapping[str, Sequence[str]]:
    """Short texts in ten languages, three kinds of code, and numbers. (The languages: article 1 of the Universal
    Declaration of Human Rights.)"""
    return json.loads((resources.files("tokenmill.text") / "samples.json").read_text(encoding="utf-8"))


def count_words(text: str) -> int:
    """Words of a text, see above."""
    return sum(1 for _ in _WORD.finditer(text))


@dataclass
class Measured:
    """What one tokenizer made of the texts of one group."""

    texts: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    """Unknown tokens: text that is lost."""
    failures: int = 0
    """Texts that were not decoded to what they were."""
    seconds: float = 0.0
    """Of encoding."""

    def add(self, other: Measured) -> None:
        """Add up two groups."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        """Counts and what follows from them; None where there is nothing to divide by."""
        return {
            **vars(self),
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
            "tokens_per_word": self.tokens / self.words if self.words else None,
            "mb_per_s": self.bytes / 1e6 / self.seconds if self.seconds else None,
        }


@dataclass
class Compared:
    """One tokenizer's figures."""

    name: str
    tokenizer: Tokenizer
    groups: dict[str, Measured] = field(default_factory=dict)
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    """Some texts that did not come back: group, text from where it differs, what came back there."""

    @property
    def total(self) -> Measured:
        """All groups together."""
        total = Measured()
        for group in self.groups.values():
            total.add(group)
        return total

    def measure(self, group: str, text: str) -> None:
        """Encode and decode a text and count."""
        counts = self.groups.setdefault(group, Measured())
        began = time.perf_counter()
        ids = self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        counts.seconds += time.perf_counter() - began
        back = self.tokenizer.decode(ids, skip_special_tokens=False)
        counts.texts += 1
        counts.bytes += len(text.encode("utf-8", "replace"))
        counts.words += count_words(text)
        counts.tokens += len(ids)
        counts.unknown += ids.count(self.tokenizer.unk_token_id) if self.tokenizer.unk_token_id is not None else 0
        if back != text:
            counts.failures += 1
            if len(self.lost) < FAILURES:
                at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
                self.lost.append((group, text[at : at + 40], back[at : at + 40]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "vocab_size": self.tokenizer.vocab_size,
            "total": self.total.as_dict(),
            "groups": {name: group.as_dict() for name, group in self.groups.items()},
            "lost": [{"group": group, "text": text, "decoded": back} for group, text, back in self.lost],
        }


def compare(tokenizers: Mapping[str, Tokenizer], texts: Iterable[tuple[str, str]]) -> list[Compared]:
    """Measure every tokenizer on every ``(group, text)``; groups stand in the order in which they appear."""
    compared = [Compared(name, tokenizer) for name, tokenizer in tokenizers.items()]
    for one in compared:  # what is built on first use should not count as speed
        one.tokenizer.encode("warm up", parse_special=False)
    for group, text in texts:
        for one in compared:
            one.measure(group, text)
    return compared


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pieces of the beginning of a text as a person sees them; bytes that are no characters as U+FFFD."""
    ids = tokenizer.encode(text[:SHOWN], add_special_tokens=False, parse_special=False)
    shares = (tokenizer.share(token_id, first=number == 0) or b"" for number, token_id in enumerate(ids))
    pieces = [share.decode("utf-8", "replace") for share in shares]
    if pieces:  # the space that the tokenizer put before the text
        pieces[0] = pieces[0].removeprefix(" " * tokenizer.leading_spaces)
    return pieces


def picture(compared: Sequence[Compared]) -> str:
    """An HTML page: the figures, a bar for each, and how each tokenizer cuts the sample texts."""
    from tokenmill.core.html import render_page

    groups = list(dict.fromkeys(name for one in compared for name in one.groups))
    most = max((g.bytes / g.tokens for one in compared for g in one.groups.values() if g.tokens), default=1.0)
    cuts = [
        (name, [(one.name, tokens_of(one.tokenizer, texts[0])) for one in compared])
        for name, texts in sample_texts().items()
    ]
    template = (resources.files("tokenmill.text") / "compare.html.jinja").read_text(encoding="utf-8")
    return render_page(
        template,
        compared=[one.as_dict() for one in compared],
        groups=groups,
        most=most,
        cuts=cuts,
    )
