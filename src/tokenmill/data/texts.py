"""The texts of data files, one after the other: what a tokenizer is trained on, compared with, and shards are made of.

Streamed: a file of any size takes little memory. Of more than `most_bytes` a fixed share is taken all over the files,
so that the last of them has as much to say as the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.config.parts import Format
from tokenmill.data.files import COMPRESSED, Broken, Row, find_files, read_rows
from tokenmill.data.formats import Chat, Completion, RowError, Text, parse_row

SWELL = 4
"""How much text a compressed file or a Parquet is taken to hold for its size, to choose the share."""

Progress = Callable[[int, int], None]
"""(bytes of files read, of all files)."""


@dataclass(frozen=True)
class TextRow:
    """The text of one row."""

    file: Path
    line: int
    text: str
    row: Row


class Texts:
    """All texts of files, folders and patterns; may be passed over several times, and says the same each time.

    Args:
        paths: what `find_files` understands.
        most_bytes: of UTF-8 that are given out in a pass, about; None for all.
        until: the share of every plain text file that counts; its end may be held out for evaluation.

    Raises:
        NotFoundError, ConfigError: no files.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        format: Format = "auto",
        text_field: str = "text",
        most_bytes: int | None = None,
        until: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        self.files = [file for path in paths for file in find_files(path)]
        self._format, self._text_field = format, text_field
        self._most, self._until, self._progress = most_bytes, until, progress
        self.size = sum(file.stat().st_size for file in self.files)
        self.broken = 0
        """Rows of the last pass that could not be read, or have no text."""
        self.bytes = 0
        """UTF-8 bytes that the last pass gave out."""

    def __iter__(self) -> Iterator[str]:
        return (row.text for row in self.rows())

    def rows(self) -> Iterator[TextRow]:
        """The same with their places."""
        self.broken = self.bytes = done = 0
        share = self._share()
        for number, file in enumerate(self.files):
            size, before = file.stat().st_size, self.bytes
            for row in read_rows(file):
                if isinstance(row, Row) and row.at is not None and row.at >= self._until:
                    break
                if share < 1.0 and _draw(number, row.line) >= share:
                    continue
                for text in self._texts(row):
                    self.bytes += len(text.encode("utf-8", "replace"))
                    assert isinstance(row, Row), "only rows that could be read have texts"
                    yield TextRow(file, row.line, text, row)
                if self._progress is not None:
                    self._progress(done + min(size, int((self.bytes - before) / share)), max(1, self.size))
                if self._most is not None and self.bytes >= self._most:
                    return
            done += size
        if self._progress is not None:
            self._progress(max(1, self.size), max(1, self.size))

    def _share(self) -> float:
        """Of rows that are taken, so that about `most_bytes` come out."""
        if self._most is None:
            return 1.0
        packed = (*COMPRESSED, ".parquet")
        size = sum(file.stat().st_size * (SWELL if file.suffix in packed else 1) for file in self.files)
        return min(1.0, self._most / max(1, size))

    def _texts(self, row: Row | Broken) -> list[str]:
        try:
            if isinstance(row, Broken):
                raise RowError(row.problem)
            return texts_of(row.value, self._format, self._text_field)
        except RowError:
            self.broken += 1
            return []


def texts_of(row: dict[str, Any], format: Format, text_field: str) -> list[str]:
    """What a row says, without roles and control tokens; RowError for a row that says nothing that is understood."""
    document = parse_row(row, format=format, text_field=text_field)
    if isinstance(document, Text):
        return [document.text]
    if isinstance(document, Completion):
        return [document.prompt, document.completion]
    assert isinstance(document, Chat)
    return [message["content"] for message in document.messages if isinstance(message.get("content"), str)]


def _draw(file: int, line: int) -> float:
    """A number in [0, 1) for a row, the same in every pass."""
    return zlib.crc32(line.to_bytes(8, "little"), zlib.crc32(file.to_bytes(8, "little"))) / (1 << 32)
