"""Which files a recipe reads, and how their contents are cut into jobs of about equal size.

The cut depends on the files and on ``shard_mb`` alone, so that the result does not depend on who does the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenmill.core.errors import ConfigError, MissingFileError
from tokenmill.data.curate.read import Piece
from tokenmill.data.curate.recipe import Input
from tokenmill.data.curate.streams import BLOCK, COMPRESSED

SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
}
"""What a file is by the end of its name, before that of compression."""
FILES_PER_JOB = 2000


@dataclass(frozen=True)
class Source:
    """One file of the input."""

    path: str
    name: str
    """The same whatever folder the person stands in: what was given, and the way below it."""
    kind: str
    size: int
    modified: int
    """Nanoseconds, to notice a change between a kill and the resume."""


@dataclass(frozen=True)
class Scan:
    """What reading through a file once tells."""

    sha256: str
    cuts: list[tuple[int, int]]
    """Where it may be cut: the byte (or row group) and the number of the line (or row) there; the first is (0, 1)."""


@dataclass(frozen=True)
class Plan:
    """What is read, and in which jobs."""

    sources: list[Source]
    scans: list[Scan]
    unknown: int
    """Files that were left out because their names do not say what they are."""
    jobs: list[list[Piece]]


def find_sources(config: Input) -> tuple[list[Source], int]:
    """The files, by name, and how many others were left out because nothing says what they are.

    Raises:
        NotFoundError: nothing there that can be read.
    """
    found: dict[str, Source] = {}
    names: set[str] = set()
    unknown = 0
    for prefix, given in _given(config.path):
        files = [(file, prefix + name) for file, name in _files(given)]
        for file, name in files:
            kind = _kind(file) if config.format == "auto" else config.format
            if kind is None and len(files) > 1:
                unknown += 1
                continue
            if kind is None:
                raise ConfigError(f"{file}: its name does not say what it is; give input.format=text|jsonl|…")
            if str(file.resolve()) in found:
                continue
            again = 2
            while name in names:  # of another folder that is read too
                name, again = f"{name.removesuffix(f'~{again - 1}')}~{again}", again + 1
            names.add(name)
            state = file.stat()
            found[str(file.resolve())] = Source(str(file.absolute()), name, kind, state.st_size, state.st_mtime_ns)
    if not found:
        raise MissingFileError(f"{config.path}: no files there that can be read ({' '.join(SUFFIXES)})")
    return sorted(found.values(), key=lambda source: (source.name, source.path)), unknown


def _given(path: str | list[str] | dict[str, str]) -> list[tuple[str, str]]:
    """What stands before the names of files, and where they are."""
    if isinstance(path, dict):
        return [(f"{name}/", given) for name, given in path.items()]
    return [("", given) for given in ([path] if isinstance(path, str) else path)]


def _files(given: str) -> Iterator[tuple[Path, str]]:
    """Files and their names. Hidden ones and those in hidden folders are left out."""
    root = Path(given).expanduser()
    if root.is_file():
        yield root, _name(root.name)
    elif root.is_dir():
        for file in root.rglob("*"):
            below = file.relative_to(root)
            if file.is_file() and not any(part.startswith(".") for part in below.parts):
                yield file, _name(below.as_posix())
    elif any(sign in given for sign in "*?["):
        base = Path(root.anchor) if root.is_absolute() else Path()
        for file in base.glob(str(root.relative_to(root.anchor))):
            if file.is_file() and not file.name.startswith("."):
                yield file, _name(file.relative_to(base).as_posix())
    else:
        raise MissingFileError(f"{given}: no such file or folder")


def _name(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()  # names of files need not be text


def _kind(file: Path) -> str | None:
    stem = file.with_suffix("") if file.suffix in COMPRESSED else file
    return SUFFIXES.get(stem.suffix.lower())


def scan(source: Source, every: int) -> Scan:
    """Read a file once: its hash, and about every `every` bytes a place where it may be cut."""
    path = Path(source.path)
    splits = source.kind == "jsonl" and path.suffix not in COMPRESSED
    digest, cuts, at, line, due = hashlib.sha256(), [(0, 1)], 0, 1, every
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            while splits and at + len(block) > due and (end := block.find(b"\n", max(0, due - at))) >= 0:
                cuts.append((at + end + 1, line + block.count(b"\n", 0, end + 1)))
                due = at + end + 1 + every
            if splits:
                line += block.count(b"\n")
            at += len(block)
    if source.kind == "parquet":
        cuts = list(_row_groups(path, every))
    return Scan(digest.hexdigest(), [cut for cut in cuts if cut[0] < at or cut[0] == 0])


def _row_groups(path: Path, every: int) -> Iterator[tuple[int, int]]:
    import pyarrow
    from pyarrow import parquet

    yield 0, 1
    try:
        table = parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return  # told when it is read
    row, held = 1, 0
    for group in range(table.num_row_groups):
        if held >= every:
            yield group, row
            held = 0
        row += table.row_group(group).num_rows
        held += table.row_group(group).total_byte_size


def jobs(sources: list[Source], scans: list[Scan], every: int) -> list[list[Piece]]:
    """Pieces that are read together: of large files parts, of small ones many."""
    result: list[list[Piece]] = []
    held = 0
    for source, scanned in zip(sources, scans, strict=True):
        ends = [*(start for start, _ in scanned.cuts[1:]), None]
        for (start, first), end in zip(scanned.cuts, ends, strict=True):
            size = min(source.size, every) if len(ends) == 1 else every
            if not result or held + size > every or len(result[-1]) >= FILES_PER_JOB:
                result.append([])
                held = 0
            result[-1].append(Piece(source.path, source.name, source.kind, start, end, first))
            held += size
    return result
