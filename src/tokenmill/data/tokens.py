"""Tokenised documents on disk, memory-mapped: written once in one pass, read in any order, whatever their size.

A folder holds ``tokens.bin`` (uint16 or uint32), ``learned.bin`` (a byte a token: whether it is to be predicted),
``documents.bin`` (a `RECORD` each) and ``meta.json``, which is written last: a folder without it is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tokenmill.core.paths import atomic_write

RECORD = np.dtype(
    [
        ("start", "<i8"),  # of its tokens in tokens.bin
        ("length", "<i8"),  # tokens
        ("learned", "<i8"),  # of them to be predicted
        ("content", "<u8"),  # hash of the row that it comes from; equal rows are duplicates
        ("row", "<i8"),  # number of the row; a row may give several documents
        ("line", "<i8"),
        ("file", "<i4"),  # number in meta["files"]
        ("source", "<i4"),  # number of the source in the recipe
        ("held_out", "?"),  # the end of a plain text, which is kept for evaluation
        ("ends", "?"),  # its last learned token is an end token
        ("good", "?"),  # an answer that was chosen, or judged to be good; the rejected one of a pair follows it
        ("margin", "<f4"),  # how much better the chosen side of a pair is
    ]
)
"""What is known of a document without reading its tokens."""


@dataclass(frozen=True)
class TokenFiles:
    """A finished folder, opened. Arrays are views of the files and take no memory until they are read."""

    folder: Path
    tokens: np.ndarray
    learned: np.ndarray
    documents: np.ndarray
    """Of dtype RECORD."""
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TokenFiles:
        """Map a folder that `TokenWriter` finished."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return cls(
            folder,
            _mapped(folder / "tokens.bin", np.dtype(meta["dtype"])),
            _mapped(folder / "learned.bin", np.dtype("?")),
            _mapped(folder / "documents.bin", RECORD),
            meta,
        )

    def where(self, document: int) -> str:
        """``file:line`` of a document."""
        record = self.documents[document]
        return f"{self.meta['files'][record['file']]}:{record['line']}"


def _mapped(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")


class TokenWriter:
    """Writes a folder document by document.

    Args:
        folder: an empty one.
        vocab_size: 65,536 and fewer take two bytes a token.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._tokens = (folder / "tokens.bin").open("wb")
        self._learned = (folder / "learned.bin").open("wb")
        self._documents = (folder / "documents.bin").open("wb")
        self._at = 0

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._tokens, self._learned, self._documents):
            file.close()

    def append(self, ids: np.ndarray | Sequence[int], learned: np.ndarray | bool) -> None:
        """More tokens of the document that is being written."""
        tokens = np.asarray(ids, dtype=self.dtype)
        self._tokens.write(tokens.tobytes())
        self._learned.write(np.broadcast_to(np.asarray(learned, dtype="?"), tokens.shape).tobytes())

    def end_document(self, length: int, learned: int, **fields: Any) -> None:
        """The document is complete: `length` tokens were appended, `learned` of them to be predicted."""
        record = np.zeros(1, RECORD)
        for name, value in {"start": self._at, "length": length, "learned": learned, **fields}.items():
            record[name] = value
        self._documents.write(record.tobytes())
        self._at += length

    def finish(self, meta: dict[str, Any]) -> None:
        """Say what is in the folder; from now on it counts."""
        self.__exit__(None, None, None)
        with atomic_write(self.folder / "meta.json") as file:
            file.write(json.dumps({**meta, "dtype": self.dtype.str}, ensure_ascii=False).encode())
