"""What training makes of the rows of a file: their tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.config.parts import DataConfig
from tokenmill.data.files import TEXTS, Broken, find_files, kind_of, read_rows
from tokenmill.data.formats import Document, PreferenceError, RowError, parse_row
from tokenmill.data.preferences import parse_judged
from tokenmill.data.render import Encoded, Renderer


@dataclass(frozen=True)
class ShownToken:
    """One token as a person sees it."""

    id: int
    text: str
    """Its text, or its name for a control token; bytes that are no text as U+FFFD."""
    learned: bool
    special: bool


@dataclass(frozen=True)
class ShownRow:
    """An example made of a row, or why there is none."""

    file: Path
    line: int
    tokens: tuple[ShownToken, ...] = ()
    problem: str | None = None

    @property
    def learned(self) -> int:
        """Tokens that count in the loss."""
        return sum(token.learned for token in self.tokens)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        if self.problem is not None:
            return {"file": str(self.file), "line": self.line, "problem": self.problem}
        tokens = [{"id": token.id, "text": token.text, "learned": token.learned} for token in self.tokens]
        return {"file": str(self.file), "line": self.line, "learned": self.learned, "tokens": tokens}


def show_rows(config: DataConfig, renderer: Renderer, *, limit: int, line: int | None = None) -> Iterator[ShownRow]:
    """The first `limit` examples of ``config.path``, or those of one line. A row that gives several gives several."""
    shown = 0
    for file in find_files(str(config.path)):
        for row in read_rows(file):
            if line is not None and row.line != line:
                continue
            for one in _examples(row, config, renderer):
                yield one
                shown += 1
                if shown >= limit:
                    return


def _examples(row: Any, config: DataConfig, renderer: Renderer) -> Iterator[ShownRow]:
    try:
        if isinstance(row, Broken):
            raise RowError(row.problem)
        documents = _documents(row.value, config)
        if kind_of(row.file) in TEXTS:  # a piece from the middle of a document: neither BOS nor end token
            ids = renderer.piece(row.value["text"])
            yield ShownRow(row.file, row.line, tuple(_token(renderer, token_id, True) for token_id in ids))
            return
        for example in (example for document in documents for example in renderer.encode(document)):
            yield ShownRow(row.file, row.line, _tokens(example, renderer))
    except RowError as error:
        yield ShownRow(row.file, row.line, problem=str(error))


def _documents(row: Any, config: DataConfig) -> list[Document]:
    """The document of a row; of one that compares answers both, or the judged one."""
    try:
        return [parse_row(row, format=config.format, text_field=config.text_field)]
    except PreferenceError:
        return [one.document for one in parse_judged(row)]


def _tokens(example: Encoded, renderer: Renderer) -> tuple[ShownToken, ...]:
    pairs = zip(example.ids.tolist(), example.learned.tolist(), strict=True)
    return tuple(_token(renderer, token_id, learned) for token_id, learned in pairs)


def _token(renderer: Renderer, token_id: int, learned: bool) -> ShownToken:
    tokenizer = renderer.tokenizer
    special = token_id in tokenizer.special_ids
    text = tokenizer.id_to_token(token_id) if special else tokenizer.token_bytes(token_id).decode(errors="replace")
    return ShownToken(token_id, text or "", learned, special)
