"""Documents out of files. Whatever cannot be read is told as `Bad`, with file, line and reason; the rest goes on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.data.curate.chatgpt import is_export, spoken
from tokenmill.data.curate.recipe import Input
from tokenmill.data.curate.step import Document
from tokenmill.data.curate.streams import BrokenStream, Stream, blocks, lines


@dataclass(frozen=True)
class Piece:
    """A part of a file that is read in one go."""

    file: str
    name: str
    """What documents are named after, and the quarantine."""
    kind: str
    start: int = 0
    """First byte of plain JSONL, first row group of Parquet."""
    end: int | None = None
    """Behind the last of them; None: to the end."""
    first: int = 1
    """Number of its first line, or row."""


@dataclass(frozen=True)
class Bad:
    """Something in a file that is no document."""

    file: str
    line: int
    """Of text and JSONL the line, of tables the row, of web archives the record; 0: the file as a whole."""
    reason: str

    def as_json(self) -> str:
        """One line of the quarantine."""
        return json.dumps({"file": self.file, "line": self.line, "reason": self.reason})


class MissingLibrary(TokenmillError):
    """An extra is not installed."""


def read_piece(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    """All documents of a piece, in order, and what is wrong with it."""
    try:
        if Path(piece.file).stat().st_size == 0:
            yield Bad(piece.name, 0, "empty file")
            return
        yield from _READERS[piece.kind](piece, config)
    except BrokenStream as error:
        yield Bad(piece.name, 0, str(error))
    except OSError as error:
        yield Bad(piece.name, 0, f"cannot be read: {error.strerror or error}")


# --- tables


def _json_lines(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    most = config.max_mb << 20
    for line in lines(blocks(Path(piece.file), piece.start, piece.end), most, piece.first):
        if line.length > most:
            yield Bad(piece.name, line.number, _too_long("line", line.length, config))
            continue
        content = line.content.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.content
        if not content.strip():
            continue
        try:
            value = _json(content)
        except UnicodeDecodeError as error:
            yield Bad(piece.name, line.number, f"not UTF-8 at byte {error.start} of the line")
        except (ValueError, RecursionError) as error:
            yield Bad(piece.name, line.number, f"not JSON: {error}")
        else:
            yield _row(piece, line.number, value, config)


def _json(content: bytes) -> Any:
    """What Python reads beyond the standard (NaN, halves of surrogate pairs) could not be written again."""
    value = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    if b"\\ud" in content.lower() and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half of a surrogate pair, which no text file can hold")
    return value


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _json_list(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    found = _whole(piece, config)
    if isinstance(found, Bad):
        yield found
        return
    try:
        rows = _json(found.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        yield Bad(piece.name, getattr(error, "lineno", 0), f"not JSON: {error} (one object a line is .jsonl)")
        return
    if not isinstance(rows, list):
        yield Bad(piece.name, 0, "not a list of objects")
        return
    for number, value in enumerate(rows, 1):
        yield _row(piece, number, value, config)


def _parquet(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    import pyarrow
    from pyarrow import parquet

    number = piece.first - 1
    try:
        # without a buffer a whole column chunk is read at once, which may be as large as the file
        table = parquet.ParquetFile(piece.file, buffer_size=1 << 20, pre_buffer=False)
        groups = list(range(piece.start, piece.end if piece.end is not None else table.num_row_groups))
        for batch in table.iter_batches(batch_size=256, row_groups=groups):
            for value in batch.to_pylist():
                number += 1
                yield _table_row(piece, number, value, config)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield Bad(piece.name, number + 1, f"not Parquet that can be read: {_first_line(error)}")


def _arrow(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    import pyarrow
    from pyarrow import ipc

    number = 0
    try:
        with pyarrow.OSFile(piece.file) as source:
            start = source.read(6)
            source.seek(0)
            if start == b"ARROW1":
                reader = ipc.open_file(source)
                batches: Iterable[Any] = (reader.get_batch(n) for n in range(reader.num_record_batches))
            else:
                batches = ipc.open_stream(source)
            for batch in batches:
                for value in batch.to_pylist():
                    number += 1
                    yield _table_row(piece, number, value, config)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield Bad(piece.name, number + 1, f"not an Arrow file that can be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _table_row(piece: Piece, number: int, value: Any, config: Input) -> Document | Bad:
    try:
        return _row(piece, number, _plain(value), config)
    except UnicodeDecodeError:
        return Bad(piece.name, number, "a column of bytes that are not UTF-8")


def _plain(value: Any) -> Any:
    """JSON values. Columns give every struct all keys that any row has; a null is a key that this row lacks."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


SPEECH = ("messages", "conversations", "chosen", "rejected", "instruction", "input", "output", "prompt", "completion")
"""Columns in which rows without a text say something."""
_SPOKEN = (*SPEECH, "content", "value", "text")


def _row(piece: Piece, number: int, value: Any, config: Input) -> Document | Bad:
    if not isinstance(value, Mapping):
        return Bad(piece.name, number, f"not an object with columns but a {type(value).__name__}")
    meta = dict(value)
    text = meta.pop(config.text_field, None)
    derived = text is None and (is_export(meta) or any(column in meta for column in SPEECH))
    if derived:
        text = "\n".join(contents(meta)) or spoken(meta)
    if not isinstance(text, str):
        found = ", ".join(map(str, list(value)[:8])) or "none"
        problem = f"no column {config.text_field!r}" if text is None else f"column {config.text_field!r} is no text"
        return Bad(piece.name, number, f"{problem}; its columns: {found}")
    return _document(piece, number, text, meta, config, derived)


def contents(value: Any, inside: bool = False) -> Iterator[str]:
    """Everything that is said in a row without a text: of conversations the contents, else the known columns."""
    if isinstance(value, str):
        if inside:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key in _SPOKEN:
                yield from contents(item, True)
    elif isinstance(value, list):
        for item in value:
            yield from contents(item, inside)


def _document(
    piece: Piece, number: int, text: str, meta: dict[str, Any], config: Input, derived: bool = False
) -> Document | Bad:
    if len(text) > config.max_mb << 20:
        return Bad(piece.name, number, _too_long("text", len(text), config))
    if not text.strip():
        return Bad(piece.name, number, "empty text")
    return Document(f"{piece.name}#{number}", text, meta, derived)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _too_long(what: str, length: int, config: Input) -> str:
    return f"{what} of {length:,} bytes, longer than input.max_mb={config.max_mb}"


# --- texts and pages


def _whole(piece: Piece, config: Input) -> bytes | Bad:
    """All bytes of a file that has to be read as one."""
    most = config.max_mb << 20
    parts, length = [], 0
    for block in blocks(Path(piece.file)):
        length += len(block)
        if length > most:
            hint = "; text_as=paragraphs cuts it" if piece.kind == "text" else ""
            return Bad(piece.name, 0, f"longer than input.max_mb={config.max_mb}{hint}")
        parts.append(block)
    if not length:
        return Bad(piece.name, 0, "empty file")
    return b"".join(parts)


def _text(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    if config.text_as != "file":
        yield from _lines_of_text(piece, config)
        return
    found = _whole(piece, config)
    if isinstance(found, Bad):
        yield found
        return
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + found.count(b"\n", 0, error.start)
        yield Bad(piece.name, line, f"not UTF-8 at byte {error.start} of the file")
    else:
        yield _document(piece, 1, text, {}, config)


def _lines_of_text(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    """Each line a document, or each run of lines without an empty one between."""
    most = config.max_mb << 20
    held: list[bytes] = []
    first = size = 0
    for line in lines(blocks(Path(piece.file)), most):
        content = line.content.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.content
        if line.length > most:
            yield Bad(piece.name, line.number, _too_long("line", line.length, config))
            continue
        filled = bool(content.strip())
        if filled:
            first = first if held else line.number
            held.append(content)
            size += len(content)
        if held and (not filled or config.text_as == "lines" or size > most):
            yield _decoded(piece, first, b"\n".join(held), config)
            held, size = [], 0
    if held:
        yield _decoded(piece, first, b"\n".join(held), config)


def _decoded(piece: Piece, line: int, content: bytes, config: Input) -> Document | Bad:
    try:
        return _document(piece, line, content.decode("utf-8"), {}, config)
    except UnicodeDecodeError as error:
        return Bad(piece.name, line + content.count(b"\n", 0, error.start), "not UTF-8")


_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?\s*([\w-]+)", re.IGNORECASE)


def _page(piece: Piece, number: int, content: bytes, charset: str | None, meta: dict[str, Any], config: Input) -> Any:
    """A web page. Its encoding is what the server or the page says, else UTF-8."""
    if content.startswith(b"\xef\xbb\xbf"):
        charset = "utf-8-sig"
    if charset is None and (found := _CHARSET.search(content, 0, 4096)):
        charset = found[1].decode("ascii")
    try:
        # browsers read both names as windows-1252
        known = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252"}
        text = content.decode(known.get((charset or "utf-8").lower(), charset or "utf-8"))
    except LookupError:
        return Bad(piece.name, number, f"unknown encoding {charset!r}")
    except ValueError as error:
        said = charset or "UTF-8, and no other encoding is declared"
        return Bad(piece.name, number, f"not {said}: {_first_line(error)}")
    return _document(piece, number, text, meta, config)


def _html(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    found = _whole(piece, config)
    if isinstance(found, Bad):
        yield found
    else:
        yield _page(piece, 1, found, None, {"content_type": "text/html"}, config)


def _warc(piece: Piece, config: Input) -> Iterator[Document | Bad]:
    """Pages of a web archive: responses with HTML or text, and conversions (the text that archives hold of pages)."""
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError as error:
        raise MissingLibrary(f'{piece.name}: web archives need `pip install "tokenmill[data]"`') from error

    wanted = WarcRecordType.response | WarcRecordType.conversion
    number = 0
    try:
        source = Stream(blocks(Path(piece.file)))
        for record in ArchiveIterator(source, record_types=wanted, auto_decode="all"):
            number += 1
            found = _record(piece, number, record, config)
            if found is not None:
                yield found
    except (OSError, ValueError) as error:
        yield Bad(piece.name, number + 1, f"not a web archive that can be read: {_first_line(error)}")
    except BrokenStream as error:
        yield Bad(piece.name, number + 1, str(error))


def _record(piece: Piece, number: int, record: Any, config: Input) -> Document | Bad | None:
    """None: a record that is no page, such as a picture or an error."""
    headers = record.http_headers if record.is_http else None
    mime = record.http_content_type if headers is not None else (record.headers.get("Content-Type") or "")
    mime = (mime or "").partition(";")[0].strip().lower()
    page = mime in ("text/html", "application/xhtml+xml")
    if not page and mime != "text/plain":
        return None
    if headers is not None and headers.status_code is not None and headers.status_code != 200:
        return None
    if record.content_length > config.max_mb << 20:
        return Bad(piece.name, number, _too_long("record", record.content_length, config))
    content = record.reader.read()
    meta = {"url": record.headers.get("WARC-Target-URI"), "date": record.headers.get("WARC-Date")}
    meta = {key: value for key, value in meta.items() if value}
    if page:
        meta["content_type"] = "text/html"
    return _page(piece, number, content, record.http_charset if headers is not None else None, meta, config)


_READERS: dict[str, Callable[[Piece, Input], Iterator[Document | Bad]]] = {
    "jsonl": _json_lines,
    "json": _json_list,
    "parquet": _parquet,
    "arrow": _arrow,
    "text": _text,
    "html": _html,
    "warc": _warc,
}
