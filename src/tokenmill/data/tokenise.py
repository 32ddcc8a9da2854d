"""One pass over the files: every row parsed, rendered, tokenised and written; what cannot be used is put aside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tokenmill.config.parts import DataConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.files import TEXTS, Broken, Row, kind_of, read_rows
from tokenmill.data.formats import Chat, Completion, Document, PreferenceError, RowError, Text, parse_row
from tokenmill.data.preferences import Judged, parse_judged, parse_pair
from tokenmill.data.render import Encoded, Renderer
from tokenmill.data.report import SHOWN
from tokenmill.data.tokens import TokenWriter

Kind = Literal["documents", "pairs", "judged"]
"""What a row is: a document to learn, a chosen and a rejected answer, or an answer with a verdict."""


@dataclass
class _Pass:
    """What is counted on the way."""

    files: list[str]
    texts: list[str] = field(default_factory=list)
    rows: int = 0
    empty: int = 0
    broken: int = 0
    broken_rows: list[str] = field(default_factory=list)
    all_text: bool = True
    """No row is a prompt or a conversation."""


def tokenise(
    config: DataConfig,
    listed: Sequence[Sequence[Path]],
    renderer: Renderer,
    folder: Path,
    key: str,
    eval_share: float,
    progress: Callable[[str, int], None] | None = None,
    kind: Kind = "documents",
) -> None:
    """Write the tokens of the files of every source into `folder` (see `tokens`).

    Args:
        listed: the files of each source.
        key: goes into ``meta.json``, as the name of what is inside.
        eval_share: of every plain text file, how much of its end is a document of its own that is held out.

    Raises:
        ConfigError: rows of a kind that cannot be used here at all. FormatError: a file that cannot be read.
    """
    counts = _Pass([str(file) for files in listed for file in files])
    with TokenWriter(folder, renderer.tokenizer.vocab_size) as writer:
        number = 0
        for source, files in enumerate(listed):
            for file in files:
                place = {"file": number, "source": source}
                if kind_of(file) in TEXTS and kind == "documents":
                    counts.texts.append(str(file))
                    _text_file(file, renderer, writer, counts, eval_share, place)
                else:
                    _table(file, config, renderer, writer, counts, place, progress, kind)
                if progress is not None:
                    progress(file.name, counts.rows)
                number += 1
        writer.finish({**asdict(counts), "key": key})


def _table(
    file: Path,
    config: DataConfig,
    renderer: Renderer,
    writer: TokenWriter,
    counts: _Pass,
    place: dict[str, int],
    progress: Callable[[str, int], None] | None,
    kind: Kind,
) -> None:
    if kind != "documents" and kind_of(file) in TEXTS:
        raise ConfigError(f"{file}: a plain text compares no answers; give rows (.jsonl, .parquet)")
    for row in read_rows(file):
        counts.rows += 1
        try:
            if isinstance(row, Broken):
                raise RowError(row.problem)
            answers = _answers(row, config, kind)
            if all(_is_empty(one.document) for one in answers):
                counts.empty += 1
                continue
            encoded = [(one, example) for one in answers for example in _encoded(one, renderer, kind)]
        except PreferenceError as error:
            raise ConfigError(f"{file}:{row.line}: {error}") from error
        except RowError as error:
            _put_aside(counts, Broken(file, row.line, str(error)))
            continue
        counts.all_text = counts.all_text and isinstance(answers[0].document, Text)
        content = _content(answers)
        for one, example in encoded:
            writer.append(example.ids, example.learned)
            writer.end_document(
                len(example),
                int(example.learned.sum()),
                content=content,
                row=counts.rows,
                line=row.line,
                ends=example.ends,
                good=one.good,
                margin=one.margin,
                **place,
            )
        if progress is not None and counts.rows % 1000 == 0:
            progress(file.name, counts.rows)


def _answers(row: Row, config: DataConfig, kind: Kind) -> list[Judged]:
    """What a row holds: its document, or its answers."""
    if kind == "documents":
        return [Judged(parse_row(row.value, format=config.format, text_field=config.text_field), True)]
    return list(parse_pair(row.value) if kind == "pairs" else parse_judged(row.value))


def _encoded(one: Judged, renderer: Renderer, kind: Kind) -> list[Encoded]:
    examples = renderer.encode(one.document)
    if kind != "documents" and len(examples) != 1:
        raise RowError(
            "the chat template writes earlier turns of this answer in another way when it goes on, so it cannot be "
            "scored as one; keep its last turn alone and put the others into the prompt"
        )
    return examples


def _put_aside(counts: _Pass, broken: Broken) -> None:
    counts.broken += 1
    if len(counts.broken_rows) < SHOWN:
        counts.broken_rows.append(str(broken))


def _is_empty(document: Document) -> bool:
    if isinstance(document, Text):
        return not document.text.strip()
    if isinstance(document, Completion):
        return not document.completion.strip()
    said = (message for message in document.messages if message["role"] == "assistant")
    return all(not message.get("content") and not message.get("tool_calls") for message in said) and any(
        message["role"] == "assistant" for message in document.messages
    )


def _content(answers: Sequence[Judged]) -> np.uint64:
    """A hash of what a row says: equal for equal rows, whatever file and format they come in."""
    if len(answers) == 1:
        said = _said(answers[0].document)
    else:
        said = json.dumps([_said(one.document) for one in answers])
    digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _said(document: Document) -> str:
    if isinstance(document, Chat):
        return json.dumps([list(document.messages), document.tools], sort_keys=True, default=str)
    if isinstance(document, Completion):
        return json.dumps([document.prompt, document.completion])
    return document.text


def _text_file(
    file: Path, renderer: Renderer, writer: TokenWriter, counts: _Pass, eval_share: float, place: dict[str, int]
) -> None:
    """A plain text: one document, or two where its end is held out."""
    part = _TextPart(renderer, writer, place, held_out=False)
    for row in read_rows(file):
        counts.rows += 1
        if isinstance(row, Broken):
            _put_aside(counts, row)
            continue
        if eval_share and not part.held_out and row.at is not None and row.at >= 1 - eval_share and part.length:
            part.end(counts)
            part = _TextPart(renderer, writer, place, held_out=True)
        part.append(row, counts)
    part.end(counts)


class _TextPart:
    """A document that arrives in pieces."""

    def __init__(self, renderer: Renderer, writer: TokenWriter, place: dict[str, int], *, held_out: bool) -> None:
        self._renderer, self._writer, self._place = renderer, writer, place
        self.held_out, self.length, self._line = held_out, 0, 0
        self._last: list[int] = []
        self._digest = hashlib.blake2b(digest_size=8)

    def append(self, row: Row, counts: _Pass) -> None:
        text = row.value["text"]
        if not self.length and not text.strip():
            return
        ids = self._renderer.piece(text)
        if not self.length:
            self._line, self._row = row.line, counts.rows
            ids = [*self._renderer.begin(), *ids]
        self._write(ids)
        self._digest.update(text.encode())

    def _write(self, ids: list[int]) -> None:
        self._writer.append(ids, True)
        self.length += len(ids)
        self._last = ids[-1:] or self._last

    def end(self, counts: _Pass) -> None:
        """Write the record; a part without text is an empty row."""
        if not self.length:
            counts.empty += 1
            return
        self._write(self._renderer.end())
        self._writer.end_document(
            self.length,
            self.length,
            content=np.uint64(int.from_bytes(self._digest.digest(), "little")),
            row=self._row,
            line=self._line,
            held_out=self.held_out,
            ends=self._last[0] in self._renderer.tokenizer.eos_token_ids,
            **self._place,
        )
