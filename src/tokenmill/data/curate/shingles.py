"""Texts to hashes of their words and of every run of n words, a batch at a time: what MinHash and SimHash work on.

Words are what is left between white space and punctuation, in lower case; scripts that are written without spaces
(Chinese, Japanese, Thai and their kin) count a character as a word. Digits stay: tables that differ in their figures
are different. Everything runs in numpy over the bytes of many documents at once: a word's hash is a difference of two
running sums of a polynomial over its bytes, so no word ever becomes a Python object. The same on every machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

PIECE = 1 << 18
"""Bytes hashed at once: their powers and sums fit into a core's cache."""

_BASE = 0x9E3779B97F4A7C17
"""Of the polynomial. Odd, so that it has an inverse modulo 2^64, and 3 modulo 4, so that few differences of its powers
have many factors of two."""
_JOIN = np.uint64(0xD6E8FEB86659FD93)
"""Of the polynomial over the words of a shingle."""

_SIGNS = (
    (0x80, 0xA9), (0xAB, 0xB1), (0xB4, 0xB4), (0xB6, 0xB8), (0xBB, 0xBB), (0xBF, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7),
    (0x2C2, 0x2DF), (0x589, 0x58A), (0x5BE, 0x5BE), (0x60C, 0x60C), (0x61B, 0x61F), (0x66A, 0x66D), (0x6D4, 0x6D4),
    (0x964, 0x965), (0x1680, 0x1680), (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2190, 0x2BFF), (0x3000, 0x3004),
    (0x3008, 0x3020), (0x3030, 0x3030), (0xFE10, 0xFE6F), (0xFEFF, 0xFEFF), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0xFFF0, 0xFFFF),
)  # fmt: skip
"""Punctuation, symbols and spaces beyond ASCII, from and to; letters, marks and digits of every script stay."""
_UNSPACED = (
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)  # fmt: skip
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters."""
_SLOW, _SINGLE = 1, 2
_SPACED = re.compile("([" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNSPACED) + "])")
_TABLE = bytes(byte if chr(byte).isalnum() or byte >= 128 else 32 for byte in range(256)).lower()
"""ASCII: capitals to small letters, everything but letters and digits to a space."""


@cache
def _folding() -> tuple[np.ndarray, np.ndarray]:
    """For each of the first 65,536 characters: what it becomes (uint32), and whether it needs the slow way or stands
    alone (uint8)."""
    becomes, kind = np.arange(1 << 16, dtype="<u4"), np.zeros(1 << 16, np.uint8)
    for code in range(128, 1 << 16):
        if not 0xD800 <= code < 0xE000:
            folded = unicodedata.normalize("NFKC", chr(code)).lower()
            becomes[code], kind[code] = (ord(folded), 0) if len(folded) == 1 else (code, _SLOW)
    kind[0x300:0x370] = kind[0x1100:0x1200] = _SLOW  # marks and jamo that join with what is before them
    becomes[65:91] += 32
    for low, high in _SIGNS:
        becomes[low : high + 1], kind[low : high + 1] = 32, 0
    for low, high in _UNSPACED:
        kind[low : high + 1] |= _SINGLE
    return becomes, kind


def _folded(text: str) -> str:
    """Text beyond ASCII in NFKC and small letters, its punctuation as spaces, one space around unspaced characters."""
    becomes, kind = _folding()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    low = np.minimum(codes, 0xFFFF)
    found = int(np.bitwise_or.reduce(kind[low])) if len(codes) else 0
    if found & _SLOW:
        again = unicodedata.normalize("NFKC", text)  # small letters one by one below, as without this: no final sigma
        codes = np.frombuffer(again.encode("utf-32-le", "surrogatepass"), "<u4")
        low = np.minimum(codes, 0xFFFF)
    # beyond the first plane: pictographs are signs, the rest (rare scripts, rare Chinese) are letters
    high = np.where((codes >= 0x1F000) & (codes < 0x20000), np.uint32(32), codes)
    folded = np.where(codes > 0xFFFF, high, becomes[low]).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return _SPACED.sub(r" \1 ", folded) if found & _SINGLE else folded


def plain_words(text: str) -> bytes:
    """The words of a text in UTF-8, with spaces between them."""
    if not text.isascii():
        text = _folded(text)
    return text.encode("utf-8", "surrogatepass").translate(_TABLE)


@cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the base and of its inverse, from 0 to `size`, and a random number for each byte; uint64."""
    rows = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        row = np.full(size + 1, base, np.uint64)
        row[0] = 1
        rows.append(np.multiply.accumulate(row))
    table = mixed(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return rows[0], rows[1], table


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the input (the finaliser of splitmix64); uint64, a new array."""
    hashes = hashes ^ (hashes >> np.uint64(30))
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


def _piece_hashes(buffer: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(hash, start) of every word of at most PIECE bytes."""
    powers, inverse, table = _powers(PIECE)
    signs_T = np.frombuffer(buffer, np.uint8)
    edges = np.zeros(len(signs_T) + 2, np.bool_)
    np.not_equal(signs_T, 32, out=edges[1:-1])
    borders = np.flatnonzero(edges[1:] != edges[:-1])
    starts, ends = borders[0::2], borders[1::2]
    sums = np.zeros(len(signs_T) + 1, np.uint64)
    values = sums[1:]
    np.take(table, signs_T, out=values, mode="clip")  # clip: no byte is beyond the table, and no check is cheaper
    values *= powers[: len(values)]
    np.cumsum(values, out=values)
    return mixed((sums[ends] - sums[starts]) * inverse[starts]), starts


def _pieces(texts: Sequence[str]) -> Iterator[tuple[bytes, list[int]]]:
    """Buffers of at most PIECE bytes, and where in each a document begins. A longer document takes several, cut at
    spaces; a document that begins in no piece does not exist, an empty one begins and has no word."""
    parts: list[bytes] = []
    begins: list[int] = []
    size = 0
    for text in texts:
        words = plain_words(text)
        if size and size + len(words) > PIECE:
            yield b" ".join(parts), begins
            parts, begins, size = [], [], 0
        begins.append(size)
        while len(words) > PIECE:
            cut = words.rfind(b" ", 0, PIECE)
            cut = cut if cut > 0 else PIECE
            yield words[:cut], begins
            words, begins = words[cut:], []
        parts.append(words)
        size += len(words) + 1
    if parts:
        yield b" ".join(parts), begins


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A hash for every word of all texts, uint64 [W], and the number of words of each text, int64 [D]."""
    hashes: list[np.ndarray] = []
    borders: list[np.ndarray] = []
    words = 0
    for buffer, begins in _pieces(texts):
        found, starts = _piece_hashes(buffer)
        hashes.append(found)
        borders.append(words + np.searchsorted(starts, begins))
        words += len(found)
    if not hashes:
        return np.zeros(0, np.uint64), np.zeros(len(texts), np.int64)
    return np.concatenate(hashes), np.diff(np.concatenate([*borders, [words]])).astype(np.int64)


def shingle_hashes(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash for every run of `n` words, uint64 [S], and the number of them of each text, int64 [D].

    A text with fewer words is one run of all its words; one without a word has none.
    """
    words_W, counts = word_hashes(texts)
    short = (counts < n) & (counts > 0)
    if not len(words_W):
        return words_W, counts
    ends = np.cumsum(counts)
    joined = np.zeros(max(len(words_W) - n + 1, 0), np.uint64)
    for offset in range(n):
        joined *= _JOIN
        joined += words_W[offset : offset + len(joined)]
    shingles = np.where(short, 1, np.maximum(counts - n + 1, 0))
    # the runs that begin within the last n-1 words of a document reach into the next one
    inside = np.ones(len(words_W), np.bool_)
    for back in range(1, n):
        at = ends[counts >= back] - back
        inside[at] = False
    if not short.any():
        return mixed(joined[inside[: len(joined)]]), shingles
    whole = np.zeros(len(words_W), np.uint64)
    whole[: len(joined)] = joined
    starts = ends - counts
    for start, end in zip(starts[short].tolist(), ends[short].tolist(), strict=True):
        total = 0
        for word in words_W[start:end].tolist():
            total = (total * int(_JOIN) + word) & 0xFFFFFFFFFFFFFFFF
        whole[start], inside[start] = total, True
    return mixed(whole[inside]), shingles
