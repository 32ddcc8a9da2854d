"""Rows out of files: JSONL, Parquet, JSON lists and plain text, plain or compressed, one at a time.

A line that cannot be read is a `Broken`, not an exception: the caller counts them and decides. Plain text is one long
document, given out in pieces that end at line ends, so that a file of any size takes little memory.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenmill.core.errors import ConfigError, FormatError, MissingFileError, NotFoundError

TABLES, TEXTS, COMPRESSED = (".jsonl", ".ndjson", ".json", ".parquet"), (".txt", ".md", ".text"), (".gz", ".zst")
MANIFEST, CURATED = "manifest.json", "tokenmill-data-1"
"""Of a curated set: its name, and the format that it says it has (`data.curate.manifest`)."""
HELD_BACK = ("validation", "test")
"""Splits that are no training data; each can be named as a file."""
MAX_LINE = 64 << 20
"""Bytes of a line of JSON; longer ones are broken."""
MAX_JSON = 1 << 30
"""Bytes of a .json file, which has to be read as a whole."""
PIECE = 1 << 16
"""Bytes of a piece of plain text, at most; small files are given out in about 200 pieces."""


@dataclass(frozen=True)
class Row:
    """One row, and where it stands."""

    file: Path
    line: int
    """From 1; for Parquet and JSON lists the number of the row, for plain text of the line that the piece begins at."""
    value: dict[str, Any]
    at: float | None = None
    """For a piece of plain text: the share of the file before it."""


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read or used, and why."""

    file: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


def kind_of(file: Path) -> str:
    """The suffix that says what is inside: ``.jsonl`` of ``x.jsonl.gz``."""
    return (Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix).lower()


def find_files(path: str) -> list[Path]:
    """The data files that a path, a folder (with all folders in it) or a pattern means, sorted. A curated set's
    manifest, or its folder, means the files that it lists, without those kept for validation and test.

    Raises:
        NotFoundError: there are none. ConfigError: a file of a kind that cannot be read.
    """
    given = Path(path).expanduser()
    if (curated := _curated(given)) is not None:
        return curated
    if given.is_file():
        if kind_of(given) not in (*TABLES, *TEXTS):
            raise ConfigError(f"{path}: data files end in {', '.join((*TABLES, *TEXTS))}, also with .gz or .zst")
        return [given]
    if given.is_dir():
        found = [file for file in given.rglob("*") if file.is_file()]
    elif any(sign in path for sign in "*?["):
        root = Path(given.anchor) if given.is_absolute() else Path()
        found = [file for file in root.glob(str(given.relative_to(given.anchor))) if file.is_file()]
    else:
        raise MissingFileError(f"{path}: no such file or folder")
    files = sorted(file for file in found if kind_of(file) in (*TABLES, *TEXTS) and not file.name.startswith("."))
    if not files:
        raise MissingFileError(f"{path}: no data files there ({', '.join((*TABLES, *TEXTS))})")
    return files


def _curated(given: Path) -> list[Path] | None:
    """What the manifest of a curated set lists (``data run``), or None where there is no such manifest."""
    file = given if given.name == MANIFEST else given / MANIFEST
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_bytes())
        if values.get("format") != CURATED:
            return None
        listed = [one for one in values["outputs"] if one["split"] not in HELD_BACK]
        files = [file.parent / one["file"] for one in listed]
        sizes = [one["bytes"] for one in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(file, "", f"is not a manifest that can be read: {error!r}") from error
    for one, size in zip(files, sizes, strict=True):
        if not one.is_file() or one.stat().st_size != size:
            raise FormatError(one, "", f"is not as {file} says ({size} bytes): curate the set again")
    if not files:
        raise NotFoundError(f"{file}: the set is empty")
    return files


def read_rows(file: Path) -> Iterator[Row | Broken]:
    """All rows of a file in order. FormatError where the file as a whole cannot be read."""
    kind = kind_of(file)
    if kind == ".parquet":
        yield from _parquet(file)
    elif kind in TEXTS:
        yield from _text(file)
    elif kind == ".json":
        yield from _json_list(file)
    else:
        yield from _json_lines(file)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed. Errors of compression become FormatErrors."""
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as unzipped:
                yield io.BufferedReader(unzipped)
        elif file.suffix == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(file), compression="zstd") as stream:
                yield io.BufferedReader(stream)
        else:
            with file.open("rb") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile) as error:
        raise FormatError(file, "", f"the compressed file is broken: {error}") from error
    except OSError as error:
        if file.suffix not in COMPRESSED or error.errno is not None:
            raise
        raise FormatError(file, "", f"the compressed file is broken: {error}") from error


def _json_lines(file: Path) -> Iterator[Row | Broken]:
    with _opened(file) as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
                yield Broken(file, number, f"the line is longer than {MAX_LINE >> 20} MiB")
            elif line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield _parsed(file, number, line)


def _parsed(file: Path, number: int, line: bytes) -> Row | Broken:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Broken(file, number, f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Broken(file, number, f"not JSON: {error}")
    return _as_row(file, number, value)


def _as_row(file: Path, number: int, value: Any) -> Row | Broken:
    if not isinstance(value, dict):
        return Broken(file, number, f"a row is a JSON object, not {type(value).__name__}")
    return Row(file, number, value)


def _json_list(file: Path) -> Iterator[Row | Broken]:
    with _opened(file) as stream:
        text = stream.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise FormatError(file, "", "too large for one JSON list; make it JSONL, one object a line")
    try:
        rows = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(file, "", f"not JSON: {error} (one object a line is .jsonl)") from error
    if not isinstance(rows, list):
        raise FormatError(file, "", "must be a list of objects")
    for number, value in enumerate(rows, 1):
        yield _as_row(file, number, value)


def _parquet(file: Path) -> Iterator[Row | Broken]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Row(file, number, _without_nulls(value))
    except pyarrow.ArrowException as error:
        raise FormatError(file, "", f"not a Parquet file that can be read: {error}") from error


def _without_nulls(value: Any) -> Any:
    """Columns give every struct all keys that any row has; a null is a key that this row lacks."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _text(file: Path) -> Iterator[Row | Broken]:
    total = _size(file)
    with _opened(file) as stream:
        line, done, rest = 1, 0, b""
        size = min(PIECE, max(total // 200, 1 << 10))
        while block := stream.read(size):
            block = rest + block
            cut = _cut(block)
            piece, rest = block[:cut], block[cut:]
            if piece:
                yield _text_row(file, line, piece, done / total)
                line, done = line + piece.count(b"\n"), done + len(piece)
        if rest:
            yield _text_row(file, line, rest, done / total)


def _size(file: Path) -> int:
    if file.suffix not in COMPRESSED:
        return file.stat().st_size
    with _opened(file) as stream:
        return sum(len(block) for block in iter(lambda: stream.read(1 << 20), b""))


def _cut(block: bytes) -> int:
    """Behind the last line end; in a line without end before its last space, else between two characters."""
    if (at := block.rfind(b"\n")) >= 0:
        return at + 1
    if (at := block.rfind(b" ")) > 0:
        return at
    at = len(block)
    while at > 0 and block[at - 1] & 0xC0 == 0x80:  # continuation bytes of the last character
        at -= 1
    return max(at - 1, 0)


def _text_row(file: Path, line: int, piece: bytes, at: float) -> Row | Broken:
    try:
        return Row(file, line, {"text": piece.decode("utf-8-sig" if line == 1 else "utf-8")}, at)
    except UnicodeDecodeError as error:
        return Broken(file, line + piece[: error.start].count(b"\n"), "not UTF-8")
