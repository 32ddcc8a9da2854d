"""Token shards: a corpus as packed tokens on disk, tokenised once, in an order drawn once, read by any training run.

A folder holds ``shard-00000.bin`` … (tokens of whole documents one after the other, uint16 or uint32),
``shard-00000.idx`` (a `BORDER` a document), a copy of the ``tokenizer``, and ``index.json``, written last, with hashes
of all of it. The order of documents over all shards is a permutation that follows from the seed and the documents' ids:
a run that reads from the front reads a fair sample. Only plain texts: every token is learned. `sharding` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.config.parts import DataConfig
from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.data.tokens import RECORD, TokenFiles
from tokenmill.text.load import tokenizer_from_folder
from tokenmill.text.tokenizer import Tokenizer

FORMAT = "tokenmill-shards-1"
INDEX = "index.json"
BORDER = np.dtype([("length", "<u4"), ("content", "<u8"), ("ends", "?")])
"""Of a document: its tokens, the hash of its text, whether its last token is an end token."""
SETTLED = ("format", "text_field", "prompts", "chat_template", "add_eos")
"""Settings of ``data`` that were decided when the shards were made."""


@dataclass(frozen=True)
class JoinedTokens:
    """Tokens of several files as one long array that is read in slices; no slice reaches across two files."""

    parts: list[np.ndarray]
    starts: np.ndarray
    """Of every part, ascending."""

    def __getitem__(self, where: slice) -> np.ndarray:
        part = int(np.searchsorted(self.starts, where.start, side="right")) - 1
        start = where.start - int(self.starts[part])
        return self.parts[part][start : start + where.stop - where.start]


def is_shards(path: str) -> bool:
    """Whether a path is a folder of token shards."""
    return (Path(path) / INDEX).is_file()


def shard_folders(paths: Sequence[str]) -> list[Path]:
    """The folders of shards among `paths`: all of them or none. ConfigError where they are mixed with other data."""
    found = [Path(path) for path in paths if is_shards(path)]
    if found and len(found) < len(paths):
        raise ConfigError(
            f"{found[0]} holds token shards, which cannot be mixed with other data: make shards of that too "
            "(tokenmill tokenizer encode)"
        )
    return found


def refuse_settled(config: DataConfig, kind: str) -> None:
    """ConfigError for settings that would do nothing to tokens that are there already, and for objectives whose rows
    are more than texts (`kind`, see `tokenise`)."""
    if kind != "documents":
        raise ConfigError("token shards hold plain texts; this objective compares answers and wants rows of them")
    plain = DataConfig()
    given = [name for name in SETTLED if getattr(config, name) != getattr(plain, name)]
    if config.train_on not in ("auto", "all"):
        given.append("train_on")
    if given:
        names = ", ".join(f"data.{name}" for name in given)
        raise ConfigError(f"{names}: token shards hold plain texts, tokenised whole; this would do nothing to them")


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that the shards were made with."""
    _index(folder)
    return tokenizer_from_folder(folder / "tokenizer")


def open_shards(folders: Sequence[Path], tokenizer: Tokenizer) -> TokenFiles:
    """Map folders of shards, as one data set; folder n is source n. About 150 bytes of memory a document.

    Raises:
        ConfigError: they were made with another tokenizer. FormatError: files are missing or not of their length.
    """
    indices = [_index(folder) for folder in folders]
    for folder, index in zip(folders, indices, strict=True):
        if index["tokenizer"]["hash"] != tokenizer.vocabulary_hash:
            raise ConfigError(
                f"{folder} was made with another tokenizer ({index['tokenizer']['vocab_size']:,} tokens) than this "
                f"run's ({tokenizer.vocab_size:,}): give tokenizer={folder}/tokenizer, or make the shards anew"
            )
    parts: list[np.ndarray] = []
    tables: list[np.ndarray] = []
    names: list[str] = []
    total = 0
    for source, (folder, index) in enumerate(zip(folders, indices, strict=True)):
        for shard in index["shards"]:
            tokens, borders = _mapped(folder, shard, np.dtype(index["dtype"]))
            tables.append(_records(borders, total, len(names), source))
            parts.append(tokens)
            total += len(tokens)
            names.append(str(folder / f"{shard['name']}.bin"))
    documents = np.concatenate(tables)
    documents["row"] = np.arange(len(documents))
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    meta = {
        "key": "+".join(index["version"] for index in indices),
        "files": names,
        "texts": [],
        "all_text": True,
        "rows": len(documents),
        "empty": 0,
        "broken": 0,
        "broken_rows": [],
    }
    tokens_: Any = JoinedTokens(parts, starts)
    return TokenFiles(folders[0], tokens_, np.broadcast_to(np.True_, total), documents, meta)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(file, "", f"is not an index of token shards: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise FormatError(file, "format", f"is not {FORMAT}")
    return index


def _mapped(folder: Path, shard: dict[str, Any], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for suffix, kind, count in ((".bin", dtype, shard["tokens"]), (".idx", BORDER, shard["documents"])):
        file = folder / f"{shard['name']}{suffix}"
        size = file.stat().st_size if file.is_file() else -1
        if size != count * kind.itemsize:
            there = "is missing" if size < 0 else f"has {size} bytes"
            raise FormatError(file, "", f"{there}; the index says {count * kind.itemsize}")
        arrays.append(np.memmap(file, dtype=kind, mode="r") if size else np.zeros(0, kind))
    return arrays[0], arrays[1]


def _records(borders: np.ndarray, start: int, file: int, source: int) -> np.ndarray:
    """Records of a shard's documents, for `Dataset`."""
    records = np.zeros(len(borders), RECORD)
    records["length"] = records["learned"] = borders["length"]
    records["start"] = start + np.cumsum(borders["length"], dtype=np.int64) - borders["length"]
    records["content"], records["ends"] = borders["content"], borders["ends"]
    records["line"], records["file"], records["source"] = np.arange(1, len(borders) + 1), file, source
    return records
