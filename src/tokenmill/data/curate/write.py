"""The files that come out: JSONL or Parquet, the same bytes for the same documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from tokenmill.core.checksums import sha256_of
from tokenmill.core.paths import atomic_write
from tokenmill.data.curate.recipe import Output
from tokenmill.data.curate.step import Document


def suffix(config: Output) -> str:
    """End of the files' names."""
    if config.format == "parquet":
        return ".parquet"
    return ".jsonl" if config.compression == "none" else f".jsonl.{config.compression}"


def row(document: Document) -> dict[str, Any]:
    """What is written of a document. ``id`` says where it came from; a column of that name of its own stays."""
    values = {} if "id" in document.meta else {"id": document.id}
    if document.derived:
        return values | document.meta
    values["text"] = document.text
    for key, value in document.meta.items():
        values["other_text" if key == "text" else key] = value
    return values


def write_documents(path: Path, documents: list[Document], config: Output) -> dict[str, Any]:
    """Write one file; returns its ``documents``, ``bytes`` and ``sha256``."""
    with atomic_write(path) as file:
        if config.format == "parquet":
            _parquet(file, documents)
        else:
            _json_lines(file, documents, config.compression)
    return {"documents": len(documents), "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _json_lines(file: IO[bytes], documents: Iterable[Document], compression: str) -> None:
    rows = (json.dumps(row(document), ensure_ascii=False).encode("utf-8") + b"\n" for document in documents)
    if compression == "gz":
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:  # no name, no time: the same bytes every day
            for line in rows:
                zipped.write(line)
    elif compression == "zst":
        import pyarrow

        file.write(pyarrow.compress(b"".join(rows), codec="zstd", asbytes=True))
    else:
        file.writelines(rows)


def _parquet(file: IO[bytes], documents: list[Document]) -> None:
    """One column for each key that a document has. A key whose values are not of one kind becomes JSON text."""
    import pyarrow
    from pyarrow import parquet

    rows = [row(document) for document in documents]
    names = list(dict.fromkeys(name for one in rows for name in one))
    columns = [_column([one.get(name) for one in rows]) for name in names]
    table = pyarrow.table(dict(zip(names, columns, strict=True)))
    parquet.write_table(table, file, compression="zstd", row_group_size=4096)


def _column(values: list[Any]) -> Any:
    import pyarrow

    try:
        if any(isinstance(value, Mapping) and not value for value in values):
            raise pyarrow.ArrowInvalid("Parquet knows no struct without keys")
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, TypeError):
        return pyarrow.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])
