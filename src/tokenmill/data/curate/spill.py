"""Documents on disk between two stages: an Arrow file a shard, written aside and renamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenmill.core.paths import atomic_write
from tokenmill.data.curate.step import Document

ROWS = 4096


def write_spill(path: Path, documents: list[Document]) -> None:
    """Put the documents at `path`. It is there whole or not at all."""
    import pyarrow
    from pyarrow import ipc

    # the kind with 64-bit offsets: a batch may hold more than 2 GB of text
    large = pyarrow.large_string()
    schema = pyarrow.schema([("id", large), ("text", large), ("meta", large), ("derived", pyarrow.bool_())])
    options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with atomic_write(path) as file, ipc.new_file(file, schema, options=options) as writer:
        for start in range(0, len(documents), ROWS):
            some = documents[start : start + ROWS]
            columns = [
                pyarrow.array([document.id for document in some], large),
                pyarrow.array([document.text for document in some], large),
                pyarrow.array([json.dumps(document.meta) if document.meta else "" for document in some], large),
                pyarrow.array([document.derived for document in some], pyarrow.bool_()),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema))


def read_spill(path: Path) -> Iterator[Document]:
    """The documents that were put there, in order."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.OSFile(str(path)) as source:
        reader = ipc.open_file(source)
        for number in range(reader.num_record_batches):
            columns = (column.to_pylist() for column in reader.get_batch(number).columns)
            for id, text, meta, derived in zip(*columns, strict=True):
                yield Document(id, text, json.loads(meta) if meta else {}, derived)
