"""``tokenmill tokenizer encode``: text to token shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli.output import Json, Meter, emit, human_count, human_duration, human_size, note

if TYPE_CHECKING:
    from tokenmill.data.texts import Texts

EPILOG = """\b
Examples:
  tokenmill tokenizer encode curated/ --tokenizer tok --out shards
  tokenmill train pretrain size=tiny data=shards tokenizer=tok
"""


def encode(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA…", help="Files (JSONL, Parquet, text), folders, patterns.")
    ],
    tokenizer: Annotated[str, typer.Option(metavar="NAME", help="A folder or a store name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the order of documents.")] = 0,
    shard_mtokens: Annotated[int, typer.Option(min=1, help="Million tokens of a shard, about.")] = 64,
    text_field: Annotated[str, typer.Option(help="The column of plain text rows.")] = "text",
    as_json: Json = False,
) -> None:
    """Write text as token shards: packed, shuffled, memory-mapped by training. A plain text file is cut into documents
    of some kilobytes; conversations are refused."""
    from tokenmill.data.sharding import shards_of_texts
    from tokenmill.data.texts import Texts
    from tokenmill.models.load import load_tokenizer

    loaded = load_tokenizer(Path(tokenizer) if Path(tokenizer).is_dir() else tokenizer)
    began = time.perf_counter()
    with Meter(in_bytes=True) as meter:
        texts = Texts(
            data,
            format="text",
            text_field=text_field,
            progress=lambda done, total: meter.update("encoding", done, total),
        )
        index = shards_of_texts(
            _documents(texts),
            out,
            loaded,
            seed=seed,
            shard_tokens=shard_mtokens * 10**6,
            manifest=_manifest(data),
        )
    if texts.broken:
        note(f"{texts.broken} rows could not be read or have no text")
    document = {
        "folder": str(out),
        **{key: value for key, value in index.items() if key not in ("format", "shards")},
        "shards": len(index["shards"]),
        "text_bytes": texts.bytes,
        "rows_without_text": texts.broken,
        "seconds": time.perf_counter() - began,
    }
    said = (
        f"{out}: {human_count(index['tokens'])} tokens of {index['documents']:,} documents in "
        f"{len(index['shards'])} shards, {human_size(texts.bytes)} of text in {human_duration(document['seconds'])}"
    )
    emit(document, as_json, said)


def _documents(texts: Texts) -> Iterator[tuple[str, str]]:
    """Texts by names that do not change when the folder is moved."""
    for row in texts.rows():
        yield f"{row.file.name}#{row.line}", row.text


def _manifest(data: list[str]) -> str | None:
    """The hash of the curated set's manifest, where that is what is encoded."""
    given = Path(data[0])
    file = given if given.name == "manifest.json" else given / "manifest.json"
    if len(data) > 1 or not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()
