"""Bytes out of files that may be compressed, broken or both: in blocks, and as lines of bounded length.

The decompressors of the standard library are used block by block, so that everything before the place where a file is
broken is still given out.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
BLOCK = 1 << 20


class BrokenStream(Exception):
    """A compressed file ends early or is not what its name says. What came before it has been given out."""


@dataclass(frozen=True)
class Line:
    """One line without its end."""

    number: int
    """From 1 in the file."""
    content: bytes
    length: int
    """Bytes; more than ``content`` has where the line was longer than allowed, and `content` is then empty."""


def blocks(file: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, decompressed; of a plain one those from `start` to `end`.

    Raises:
        BrokenStream: the compressed file is broken there.
    """
    with file.open("rb") as stream:
        if file.suffix == ".zst":
            yield from _zstd(file)
        elif file.suffix in _OPENERS:
            yield from _decompressed(stream, _OPENERS[file.suffix])
        else:
            stream.seek(start)
            left = (1 << 62) if end is None else end - start
            while left > 0 and (block := stream.read(min(BLOCK, left))):
                left -= len(block)
                yield block


_OPENERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


def _decompressed(stream: BinaryIO, opener: Callable[[], Any]) -> Iterator[bytes]:
    """Any number of compressed streams one after the other, as ``cat a.gz b.gz`` makes them."""
    decompressor, started = opener(), False
    while block := stream.read(BLOCK):
        while block:
            if decompressor.eof:
                block = block.lstrip(b"\0")  # padding of tapes and block devices
                if not block:
                    break
                decompressor = opener()
            started = True
            yield from _inflated(decompressor, block)
            block = decompressor.unused_data if decompressor.eof else b""
    if started and not decompressor.eof:
        raise BrokenStream("the compressed file ends early")


def _inflated(decompressor: Any, block: bytes) -> Iterator[bytes]:
    """What a block decompresses to, some MB at a time: a few KB of zeros can be a GB."""
    try:
        if hasattr(decompressor, "needs_input"):  # bz2 and lzma keep what they have not yet given out
            yield decompressor.decompress(block, 4 * BLOCK)
            while not decompressor.eof and not decompressor.needs_input:
                yield decompressor.decompress(b"", 4 * BLOCK)
        else:
            yield decompressor.decompress(block, 4 * BLOCK)
            while decompressor.unconsumed_tail:
                yield decompressor.decompress(decompressor.unconsumed_tail, 4 * BLOCK)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
        raise BrokenStream(f"the compressed file is broken: {error}") from error


def _zstd(file: Path) -> Iterator[bytes]:
    import pyarrow

    if file.stat().st_size == 0:
        return
    try:
        with pyarrow.input_stream(str(file), compression="zstd") as stream:
            while block := stream.read(BLOCK // 16):  # small: the block in which a file breaks off is lost
                yield block
    except OSError as error:
        raise BrokenStream(f"the compressed file is broken: {error}") from error


def lines(stream: Iterator[bytes], most: int, first: int = 1) -> Iterator[Line]:
    """The lines of a stream, none of them held beyond `most` bytes. Numbers begin at `first`.

    A stream that breaks gives its last lines, all complete, before BrokenStream is raised.
    """
    number, rest, dropped = first, b"", 0
    for block in stream:
        if b"\n" not in block:
            if dropped or len(rest) + len(block) > most:
                dropped, rest = dropped + len(rest) + len(block), b""
            else:
                rest += block
            continue
        head, *middle = block.split(b"\n")
        tail = middle.pop()
        yield _line(number, rest, head, dropped, most)
        number, dropped = number + 1, 0
        for content in middle:
            yield _line(number, b"", content, 0, most)
            number += 1
        rest = tail
    if rest or dropped:
        yield _line(number, rest, b"", dropped, most)


def _line(number: int, rest: bytes, head: bytes, dropped: int, most: int) -> Line:
    length = dropped + len(rest) + len(head)
    return Line(number, rest + head if length <= most else b"", length)


class Stream:
    """Blocks as a file that can be read, for libraries that want one."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source, self._rest, self._at = source, b"", 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left where it is negative; empty at the end."""
        if size < 0:
            parts = [self._rest, *self._source]
            self._rest = b""
            return b"".join(parts)
        while not self._rest:
            block = next(self._source, None)
            if block is None:
                return b""
            self._rest = block
        given, self._rest = self._rest[:size], self._rest[size:]
        self._at += len(given)
        return given

    def seek(self, offset: int, whence: int = 0) -> int:
        """Refused: a stream is read once."""
        raise OSError("a stream cannot be read again")

    def close(self) -> None:
        """The end; what was not read is let go."""
        self._source, self._rest = iter(()), b""

    def tell(self) -> int:
        """Bytes given out so far."""
        return self._at
