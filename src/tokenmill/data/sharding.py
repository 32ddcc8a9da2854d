"""Writes token shards (see `shards`): an external shuffle that holds one shard at a time in memory.

`Shardable.observe` (tokens of some documents, with their place in the order; in any process) → `write_shards` (dealt
out to the shards, each then put in order). What comes out follows from the documents, their ids, the tokenizer and the
seed, not from how the documents were spread over files and processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import atomic_write
from tokenmill.data.formats import Text
from tokenmill.data.render import Renderer
from tokenmill.data.shards import BORDER, FORMAT, INDEX
from tokenmill.text.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 26
"""Tokens of a shard, about."""
MOST_SHARDS = 256
"""Twice as many files are open while documents are dealt out; beyond, shards grow."""
_DRAWN = np.dtype([("rank", "<u8"), ("length", "<u4"), ("content", "<u8"), ("ends", "?")])


class Shardable:
    """Turns texts into what `write_shards` reads; one in every process."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self._renderer = Renderer(tokenizer, train_on="all")
        self._dtype = _dtype(tokenizer)

    def observe(self, documents: Iterable[tuple[str, str]]) -> bytes:
        """``(id, text)`` of some documents as tokens, each with its place in the order; texts of white space are left
        out. RowError for a text that the tokenizer refuses."""
        rows: list[tuple[int, int, int, bool]] = []
        parts: list[np.ndarray] = []
        for name, text in documents:
            if not text.strip():
                continue
            (example,) = self._renderer.encode(Text(text))
            parts.append(example.ids.astype(self._dtype))
            rows.append((_hash(name, self.seed), len(example), _hash(text, 0), example.ends))
        out = io.BytesIO()
        np.save(out, np.array(rows, _DRAWN))
        np.save(out, np.concatenate(parts) if parts else np.zeros(0, self._dtype))
        return out.getvalue()


def write_shards(
    observed: Sequence[Path],
    folder: Path,
    tokenizer: Tokenizer,
    *,
    seed: int,
    shard_tokens: int = SHARD_TOKENS,
    manifest: str | None = None,
) -> dict[str, Any]:
    """Write `folder` out of files that hold what `Shardable.observe` gave, and give its index.

    Args:
        manifest: the version of the data set that the documents are from, for the index.

    Raises:
        ConfigError: there is no text.
    """
    total = sum(int(rows["length"].sum(dtype=np.int64)) for rows, _ in map(_read, observed))
    if total == 0:
        raise ConfigError("there is no text to make token shards of")
    count = min(MOST_SHARDS, -(-total // shard_tokens))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dealt-", dir=folder) as name:
        dealt = Path(name)
        _deal(observed, dealt, count, _dtype(tokenizer))
        shards = [_order(dealt, folder, number, _dtype(tokenizer)) for number in range(count)]
    tokenizer.save(folder / "tokenizer")
    sums = [shard.pop("contents") for shard in shards]
    index = {
        "format": FORMAT,
        "version": hashlib.sha256(json.dumps([tokenizer.vocabulary_hash, shards]).encode()).hexdigest(),
        "dtype": _dtype(tokenizer).str,
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "seed": seed,
        "tokenizer": {"hash": tokenizer.vocabulary_hash, "vocab_size": tokenizer.vocab_size},
        "data": {"manifest": manifest, "documents": f"{sum(sums) % (1 << 64):016x}"},
        "shards": shards,
    }
    with atomic_write(folder / INDEX) as file:
        file.write(json.dumps(index, indent=1).encode() + b"\n")
    return index


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _hash(text: str, seed: int) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with file.open("rb") as stream:
        return np.load(stream), np.load(stream)


def _deal(observed: Sequence[Path], dealt: Path, count: int, dtype: np.dtype[Any]) -> None:
    """Every document to the end of the shard that its rank lies in."""
    with ExitStack() as stack:
        heads = [stack.enter_context((dealt / f"{n}.idx").open("wb")) for n in range(count)]
        bodies = [stack.enter_context((dealt / f"{n}.bin").open("wb")) for n in range(count)]
        for file in observed:
            rows, tokens = _read(file)
            ends = np.cumsum(rows["length"], dtype=np.int64)
            # the high half of the rank times the number of shards: no overflow, and ranks stay in order over shards
            shards = ((rows["rank"] >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
            for row, end, shard in zip(rows, ends, shards, strict=True):
                heads[shard].write(row.tobytes())
                bodies[shard].write(tokens[end - int(row["length"]) : end].astype(dtype).tobytes())


def _order(dealt: Path, folder: Path, number: int, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Write one shard in order; what the index says of it."""
    rows = np.fromfile(dealt / f"{number}.idx", _DRAWN)
    tokens = np.fromfile(dealt / f"{number}.bin", dtype)
    ends = np.cumsum(rows["length"], dtype=np.int64)
    order = np.lexsort((np.arange(len(rows)), rows["content"], rows["rank"]))
    borders = np.zeros(len(rows), BORDER)
    for name in BORDER.names or ():
        borders[name] = rows[name][order]
    digest = hashlib.sha256()
    name = f"shard-{number:05}"
    with atomic_write(folder / f"{name}.bin") as file:
        for i in order:
            digest.update(_put(file, tokens[ends[i] - int(rows["length"][i]) : ends[i]]))
    with atomic_write(folder / f"{name}.idx") as file:
        digest.update(_put(file, borders))
    contents = int(rows["content"].sum(dtype=np.uint64)) if len(rows) else 0
    return {
        "name": name,
        "tokens": len(tokens),
        "documents": len(rows),
        "sha256": digest.hexdigest(),
        "contents": contents,
    }


def _put(file: IO[bytes], values: np.ndarray) -> bytes:
    data = values.tobytes()
    file.write(data)
    return data


def shards_of_texts(
    documents: Iterable[tuple[str, str]],
    folder: Path,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    shard_tokens: int = SHARD_TOKENS,
    manifest: str | None = None,
    chunk_chars: int = 16 << 20,
) -> dict[str, Any]:
    """``(id, text)`` pairs to a finished folder in one process. Shards that `folder` holds already are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove(folder)
    shardable = Shardable(tokenizer, seed=seed)
    with tempfile.TemporaryDirectory(prefix=".observed-", dir=folder) as name:
        files: list[Path] = []
        for chunk in _chunks(documents, chunk_chars):
            files.append(Path(name) / f"{len(files)}")
            files[-1].write_bytes(shardable.observe(chunk))
        return write_shards(files, folder, tokenizer, seed=seed, shard_tokens=shard_tokens, manifest=manifest)


def _remove(folder: Path) -> None:
    """Take away shards that were here before, the index first."""
    (folder / INDEX).unlink(missing_ok=True)
    for file in [*folder.glob("shard-[0-9]*.bin"), *folder.glob("shard-[0-9]*.idx")]:
        file.unlink()
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)


def _chunks(documents: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    chunk: list[tuple[str, str]] = []
    held = 0
    for document in documents:
        chunk.append(document)
        held += len(document[1])
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
