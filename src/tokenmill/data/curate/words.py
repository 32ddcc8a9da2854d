"""Words of a whole batch at once, as arrays: split once, shared by every step that counts words.

    words = words_of(documents)
    words.hash_W[words.offset_D1[3] : words.offset_D1[4]]     # the words of the fourth document, as 64-bit hashes

The text's code points are looked up in tables and cut where their class changes, in numpy, twice as fast as one
regular expression finds them and without a Python object a word. What was found is kept with the document, and holds as
long as its text stays the same object.

A word is a run of letters, digits, marks and underscores, with apostrophes between letters and a point or comma between
digits (``don't``, ``3.14``); a character of a script written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a
word of its own; of other signs, a run of one and the same (``...``, ``==``) is a word. spaCy differs in contractions
(``do n't``), addresses and abbreviations: on English prose the counts are within some percent.

Axes: D documents, W words of all of them, C characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.data.curate.punctuation import PUNCTUATION
from tokenmill.data.curate.step import Document

U64 = NDArray[np.uint64]

LETTER, LEXICAL = 1, 2
"""Bits of `Words.kind_W`: has a letter; is more than punctuation (FineWeb's list)."""
_DIGIT = 4
_SPACE, _WORD, _SIGN, _ALONE = 0, 1, 2, 3
_GROUP_SHIFT = 4

CHUNK = 1 << 16
"""Characters that are looked at together: temporary arrays stay within the processor's second cache."""
_LIMIT = 0x33480
"""No letters are assigned from here on; tags and private characters count as one sign."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of D documents."""

    offset_D1: NDArray[np.int64]
    """Where each document's words begin among all; the last is their number."""
    start_W: NDArray[np.int64]
    """Character in its document at which the word begins."""
    length_W: NDArray[np.int64]
    """Characters."""
    kind_W: NDArray[np.uint8]
    """`LETTER` and `LEXICAL`."""
    hash_W: U64
    """Equal words have equal hashes, in every process and version."""

    @property
    def count_D(self) -> NDArray[np.int64]:
        """Words of each document."""
        return np.diff(self.offset_D1)

    @property
    def document_W(self) -> NDArray[np.int64]:
        """Number of the document that a word is in."""
        return np.repeat(np.arange(len(self.offset_D1) - 1), self.count_D)

    def sum(self, values_W: NDArray[np.generic]) -> NDArray[np.int64]:
        """Sum over the words of each document, [D]."""
        total = np.concatenate(([0], np.cumsum(values_W, dtype=np.int64)))
        return total[self.offset_D1[1:]] - total[self.offset_D1[:-1]]


@dataclass(frozen=True, slots=True)
class Lexed:
    """What is kept with a document: the words of ``text``, as `Words` of this one document has them."""

    text: str
    words: Words
    folded: bool


def words_of(documents: Sequence[Document], *, folded: bool = False) -> Words:
    """The words of a batch, from what earlier steps left with the documents where their text is still the same.

    Args:
        folded: hashes of the words in lower case.
    """
    kept = [_kept(document, folded) for document in documents]
    missing = [number for number, found in enumerate(kept) if found is None]
    for chunk in _chunks([documents[number].text for number in missing]):
        numbers = [missing[place] for place in chunk]
        texts = [documents[number].text for number in numbers]
        for number, found in zip(numbers, _split_up(_lex(texts, folded)), strict=True):
            document = documents[number]
            kept[number] = found
            setattr(document, "folded" if folded else "lexed", Lexed(document.text, found, folded))
    return _joined([found for found in kept if found is not None])


def _kept(document: Document, folded: bool) -> Words | None:
    lexed = document.folded if folded else document.lexed
    return lexed.words if lexed is not None and lexed.text is document.text else None


def words_of_text(text: str) -> list[str]:
    """The words of one text as strings: for tests, tools and the few places that need letters."""
    words = words_of([Document("", text)])
    return [text[start : start + length] for start, length in zip(words.start_W, words.length_W, strict=True)]


def hashes_of(words: Sequence[str], *, folded: bool = False) -> U64:
    """The hash of each of these words; each must be a single word."""
    found = words_of([Document("", "\n".join(words))], folded=folded)
    if len(found.hash_W) != len(words):
        raise ValueError("each entry must be one word")
    return found.hash_W


def mixed(values: U64) -> U64:
    """Hashes whose low bits are as good as their high ones (the finaliser of MurmurHash3)."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def ngrams(words: Words, n: int) -> tuple[U64, NDArray[np.int64]]:
    """Hashes of all runs of `n` words within a document, and the place of their first word among all words."""
    total = len(words.hash_W)
    if total < n:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes = words.hash_W[: total - n + 1].copy()
    for k in range(1, n):
        hashes *= np.uint64(_BASE)
        hashes += words.hash_W[k : total - n + 1 + k]
    document_W = words.document_W
    places = np.flatnonzero(document_W[: total - n + 1] == document_W[n - 1 :])
    return mixed(hashes[places]), places


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]]:
    """By code point: bits and group; its number, 0 for white space; the same in lower case."""
    codes = np.arange(_LIMIT, dtype=np.uint32)
    everything = "".join(map(chr, range(0xD800))) + "?" * 0x800 + "".join(map(chr, range(0xE000, _LIMIT)))
    letter, word, digit, space = (
        np.fromiter(map(test, everything), bool, _LIMIT)
        for test in (str.isalpha, str.isalnum, str.isdecimal, str.isspace)
    )
    group = np.where(word, _WORD, _SIGN).astype(np.uint8)
    group[ord("_")] = _WORD
    bits = np.where(letter, LEXICAL | LETTER, np.where(digit, LEXICAL | _DIGIT, LEXICAL)).astype(np.uint8)
    for code in [*range(0x300, 0x3000), *range(0xA000, 0x12000), *range(0x16000, 0x17000), *range(0x1E000, 0x1F000)]:
        character = chr(code)
        if unicodedata.category(character).startswith("M"):
            group[code] = _WORD
    for first, last in _UNSPACED:
        inside = group[first : last + 1]
        inside[inside == _WORD] = _ALONE
    group[space] = _SPACE
    for character in PUNCTUATION:
        bits[ord(character)] &= ~np.uint8(LEXICAL)
    plain = np.where(group == _SPACE, 0, codes).astype(np.uint32)
    lower = plain.copy()
    for code in np.flatnonzero(letter):
        small = chr(code).lower()
        if len(small) == 1:
            lower[code] = ord(small)
    bits[space] = 0
    return (bits | (group << _GROUP_SHIFT)).astype(np.uint8), plain, lower


_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
"""Blocks of scripts that are written without spaces: Thai, Lao, Burmese, Khmer, kana, Han."""


@cache
def _powers() -> tuple[U64, U64]:
    """The base's powers and those of its inverse, modulo 2^64, [2 CHUNK]."""
    length = 2 * CHUNK
    up, down = np.full(length, _BASE, np.uint64), np.full(length, pow(_BASE, -1, 1 << 64), np.uint64)
    up[0] = down[0] = 1
    return np.multiply.accumulate(up), np.multiply.accumulate(down)


def _lex(texts: Sequence[str], folded: bool) -> Words:
    """Split texts of at most `CHUNK` characters together; a single one may be longer."""
    if len(texts) == 1 and len(texts[0]) > CHUNK:
        return _lex_long(texts[0], folded)
    together = "\n".join(texts) + "\n"
    codes_C = np.frombuffer(together.encode("utf-32-le", "surrogatepass"), np.uint32)
    codes_C = np.minimum(codes_C, np.uint32(_LIMIT - 1))
    table, plain, lower = _tables()
    class_C = table[codes_C]
    group_C = (class_C >> _GROUP_SHIFT).astype(np.uint8, copy=False)
    _join(codes_C, class_C, group_C)
    same = group_C[1:] == group_C[:-1]
    begins_C = np.empty(len(codes_C), bool)
    begins_C[0] = True
    # a new word where the class changes, at every character that stands alone, and at a new sign
    np.logical_not(same & ((group_C[1:] == _WORD) | (codes_C[1:] == codes_C[:-1])), out=begins_C[1:])
    begins_C |= group_C == _ALONE
    begins_C &= group_C != _SPACE
    start_W = np.flatnonzero(begins_C)
    inside_C = group_C != _SPACE
    inside_C[:-1] &= begins_C[1:] | (group_C[1:] == _SPACE)  # the last character of its word
    length_W = np.flatnonzero(inside_C) + 1 - start_W
    begin_D = np.cumsum([0, *(len(text) + 1 for text in texts)])
    offset_D1 = np.searchsorted(start_W, begin_D).astype(np.int64)
    if not len(start_W):
        return Words(offset_D1, start_W, length_W, np.empty(0, np.uint8), np.empty(0, np.uint64))
    up, down = _powers()
    value_C = (lower if folded else plain)[codes_C] * up[: len(codes_C)]
    hash_W = np.add.reduceat(value_C, start_W) * down[start_W]
    kind_W = np.bitwise_or.reduceat(class_C, start_W) & np.uint8(LETTER | LEXICAL)
    relative_W = start_W - np.repeat(begin_D[:-1], np.diff(offset_D1))
    return Words(offset_D1, relative_W, length_W, kind_W, mixed(hash_W))


def _join(codes_C: NDArray[np.uint32], class_C: NDArray[np.uint8], group_C: NDArray[np.uint8]) -> None:
    """Make apostrophes between letters, and points and commas between digits, part of the word; in place."""
    middle, low, high = codes_C[1:-1], slice(None, -2), slice(2, None)
    quotes = np.flatnonzero((middle == 0x27) | (middle == 0x2019))
    quotes = quotes[(class_C[low][quotes] & class_C[high][quotes] & LETTER) != 0]
    points = np.flatnonzero((middle == 0x2E) | (middle == 0x2C))
    points = points[(class_C[low][points] & class_C[high][points] & _DIGIT) != 0]
    for places in (quotes, points):
        group_C[places + 1] = _WORD


def _lex_long(text: str, folded: bool) -> Words:
    """One text beyond `CHUNK`, in pieces that end at white space where there is any: memory stays bounded."""
    parts, start = [], 0
    while start < len(text):
        end = min(start + CHUNK, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space + 1 if space > start else end
        part = _lex([text[start:end]], folded)
        parts.append(Words(part.offset_D1, part.start_W + start, part.length_W, part.kind_W, part.hash_W))
        start = end
    joined = _joined(parts)
    return Words(joined.offset_D1[[0, -1]], joined.start_W, joined.length_W, joined.kind_W, joined.hash_W)


def _chunks(texts: Sequence[str]) -> list[list[int]]:
    """Numbers of texts that are split together: `CHUNK` characters at most, unless one alone is longer."""
    chunks: list[list[int]] = []
    room = 0
    for number, text in enumerate(texts):
        if len(text) + 1 > room:
            chunks.append([])
            room = CHUNK
        chunks[-1].append(number)
        room -= len(text) + 1
    return chunks


def _split_up(words: Words) -> list[Words]:
    """One `Words` a document, as views."""
    bounds = words.offset_D1.tolist()
    found = []
    for low, high in pairwise(bounds):
        here = slice(low, high)
        offset = np.array((0, high - low))
        parts = words.start_W[here], words.length_W[here], words.kind_W[here], words.hash_W[here]
        found.append(Words(offset, *parts))
    return found


def _joined(parts: Sequence[Words]) -> Words:
    """`Words` of single documents as one."""
    if not parts:
        none = np.empty(0, np.int64)
        return Words(np.zeros(1, np.int64), none, none, np.empty(0, np.uint8), np.empty(0, np.uint64))
    counts = [len(part.start_W) for part in parts]
    return Words(
        np.cumsum([0, *counts]),
        np.concatenate([part.start_W for part in parts]),
        np.concatenate([part.length_W for part in parts]),
        np.concatenate([part.kind_W for part in parts]),
        np.concatenate([part.hash_W for part in parts]),
    )
