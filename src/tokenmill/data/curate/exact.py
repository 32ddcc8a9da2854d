"""Exact duplicates: equal documents, or equal paragraphs and lines within and across documents.

Compared are hashes of 128 bits (xxh3), so that no two different texts are expected to meet in any corpus. Of equal
documents one stays by the rule of `copies`; of equal paragraphs or lines the first one in the input, and a document of
which nothing is left is dropped. Conversations and other rows without a text of their own are compared whole only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from tokenmill.data.curate.components import Components
from tokenmill.data.curate.copies import CopyOptions, DropCopies, Keep, hashes128, join_equal
from tokenmill.data.curate.groups import Groups
from tokenmill.data.curate.shingles import plain_words
from tokenmill.data.curate.step import Context, Document, GlobalStep, Tally


class ExactOptions(CopyOptions):
    """Exact duplicates."""

    unit: Literal["documents", "paragraphs", "lines"] = "documents"
    """What is compared. Paragraphs are what empty lines part."""
    keep: Keep = "first"
    """Of documents; equal ones are equally long, so ``longest`` means the one whose id has the smaller hash."""
    normalise: bool = False
    """Compare words only: capitals, punctuation and white space do not count."""
    min_chars: Annotated[int, Field(ge=0)] = 30
    """Paragraphs and lines shorter than this stay: headings, braces, bullets."""

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> ExactOptions:
        if self.unit == "documents" and self.min_chars != 30:
            raise ValueError("min_chars is for unit=paragraphs or lines")
        if self.unit != "documents" and (self.keep != "first" or self.score is not None):
            raise ValueError(f"keep and score are for unit=documents; of equal {self.unit} the first one stays")
        return self


def build(options: ExactOptions, context: Context) -> GlobalStep:
    """The step ``exact``; nothing in it is random."""
    return ExactDocuments(options) if options.unit == "documents" else ExactParts(options)


def compared(texts: Sequence[str], normalise: bool) -> np.ndarray:
    """128 bits of what counts of each text, uint64 [2, n]."""
    if normalise:
        texts = [" ".join(plain_words(text).decode("utf-8", "surrogatepass").split()) for text in texts]
    return hashes128(texts)


class ExactDocuments(DropCopies):
    """Equal documents: one stays."""

    reason = "duplicate"

    def __init__(self, options: ExactOptions) -> None:
        super().__init__(options)
        self.normalise = options.normalise

    def keys(self, documents: Sequence[Document]) -> np.ndarray:
        """128 bits a document, uint64 [2, n]."""
        return compared([document.text for document in documents], self.normalise)

    def join(self, observed: Sequence[Path], components: Components, folder: Path) -> None:
        """Join what is equal."""
        join_equal(observed, components, folder, 1, wide=True)


_PARTS = {"paragraphs": re.compile(r"\n[^\S\n]*\n\s*"), "lines": re.compile(r"\n")}


class ExactParts:
    """Equal paragraphs or lines: the first one stays."""

    def __init__(self, options: ExactOptions) -> None:
        self.unit, self.normalise, self.min_chars = options.unit, options.normalise, options.min_chars
        self.border = _PARTS[options.unit]

    def parts(self, document: Document) -> list[tuple[int, int]]:
        """Start and end of those parts of a document that count; the end is that of the border behind it."""
        if document.derived:
            return []
        text, start, found = document.text, 0, []
        for border in self.border.finditer(text):
            found.append((start, border.start(), border.end()))
            start = border.end()
        found.append((start, len(text), len(text)))
        return [(begin, after) for begin, end, after in found if len(text[begin:end].strip()) >= max(self.min_chars, 1)]

    def observe(self, documents: list[Document]) -> bytes:
        """128 bits a part, uint64 [n, 2]."""
        parts = [document.text[start:end].strip() for document in documents for start, end in self.parts(document)]
        return np.ascontiguousarray(compared(parts, self.normalise).T).tobytes()

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """``again.bin``: a byte a part, whether it was met before; ``starts.npy``: where each shard begins in it."""
        counts = [path.stat().st_size // 16 for path in observed]
        starts = np.cumsum([0, *counts])
        np.save(folder / "starts.npy", starts)
        if not starts[-1]:
            return
        again = np.memmap(folder / "again.bin", np.bool_, "w+", shape=(int(starts[-1]),))
        with Groups(folder / "groups", int(starts[-1]), 3) as groups:
            for start, path in zip(starts.tolist(), observed, strict=False):
                keys = np.fromfile(path, np.uint64).reshape(-1, 2)
                groups.add(keys[:, 0], keys[:, 1], np.arange(start, start + len(keys)))
            for records in groups.sorted():
                same = (records[1:, :2] == records[:-1, :2]).all(axis=1)
                again[records[1:, 2][same].astype(np.int64)] = True

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Cut out what was met before."""
        start, end = np.load(folder / "starts.npy", allow_pickle=False)[shard : shard + 2].tolist()
        again = np.fromfile(folder / "again.bin", np.bool_, end - start, offset=start) if end > start else np.zeros(0)
        at, kept = 0, []
        for document in documents:
            parts = self.parts(document)
            repeated = [part for part, known in zip(parts, again[at : at + len(parts)], strict=True) if known]
            at += len(parts)
            if not repeated or self._cut(document, repeated, tally):
                kept.append(document)
        assert at == len(again), "the documents are not those that were observed"
        tally.keep(len(kept))
        return kept

    def _cut(self, document: Document, repeated: list[tuple[int, int]], tally: Tally) -> bool:
        """Whether anything is left."""
        pieces, at = [], 0
        for start, end in repeated:
            pieces.append(document.text[at:start])
            at = end
        text = "".join([*pieces, document.text[at:]])
        if at == len(document.text):
            text = text.rstrip()
        if not text.strip():
            tally.drop(document, "all_repeated")
            return False
        before, document.text = document.text, text
        tally.change(document, f"repeated_{self.unit}", before, len(repeated))
        return True
