"""From a recipe's ``data`` to what is trained and evaluated on: read, render, tokenise, check, split.

    splits = load_splits(recipe.data, tokenizer, seq_len=512)
    loader = Loader(splits.train, seq_len=512, micro_batch=4, seed=0)

Tokens go to disk once (``TOKENMILL_HOME/cache/data``), under a name that follows from the files, the tokenizer and
every setting that they depend on; a second run over the same data maps them at once. Entries that were not used for
thirty days are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.config.parts import DataConfig, Source
from tokenmill.core.errors import ConfigError
from tokenmill.core.log import get_logger
from tokenmill.core.paths import home
from tokenmill.data.compared import JudgedAnswers, Pairs
from tokenmill.data.dataset import Dataset, Truncate
from tokenmill.data.files import find_files
from tokenmill.data.render import Renderer
from tokenmill.data.report import SHOWN, DataReport, Side
from tokenmill.data.shards import open_shards, refuse_settled, shard_folders
from tokenmill.data.tokenise import Kind, tokenise
from tokenmill.data.tokens import TokenFiles
from tokenmill.text.tokenizer import Tokenizer

log = get_logger(__name__)
_VERSION = 2  # of the cache's contents: raise it when the same settings give other tokens
KEEP_DAYS = 30
"""After which what no run has opened is removed from the caches."""

Progress = Callable[[str, int], None]
"""(what, rows so far)."""


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is evaluated on, and what the checks found."""

    train: Dataset
    eval: Dataset | None
    report: DataReport
    byte_lengths_V: np.ndarray
    """UTF-8 bytes that each token stands for, control tokens none: bits per byte = nats / ln 2 / their sum."""


def load_splits(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    causal: bool = True,
    kind: Kind = "documents",
    progress: Progress | None = None,
) -> Splits:
    """Read and check the data of a recipe.

    Args:
        causal: labels are the next tokens; False for objectives that read whole texts (mlm, span, reward).
        kind: what a row is; of compared answers, a sample is two documents.

    Raises:
        ConfigError: nothing to learn, too many broken rows, rows of the wrong kind, rows without any label.
        NotFoundError, FormatError: files that are not there or cannot be read.
    """
    report = DataReport(policies={"duplicates": config.duplicates, "leakage": config.leakage, "masked": config.masked})
    renderer = Renderer(
        tokenizer,
        train_on="all" if not causal else config.train_on,
        chat_template=config.chat_template,
        prompts=config.prompts,
        add_eos=config.add_eos,
    )
    sources = sources_of(config.path)
    files = _token_files(config, sources, renderer, kind, progress)
    _read_findings(report, files, config)
    train, held_out = _split(files, config)
    other = files
    if config.eval is not None:
        other = _token_files(config, sources_of(config.eval), renderer, kind, progress)
        _read_findings(report, other, config)
        held_out = np.arange(len(other.documents))
    truncate = _truncate(config, files, kind)
    report.policies["truncate"] = truncate
    train = _clean(train, files, held_out, other, config, report)
    how: dict[str, Any] = {"seq_len": seq_len, "truncate": truncate, "seed": config.seed, "causal": causal}
    trained = _dataset(files, train, kind, [source.weight for source in sources], **how)
    trained = _checked(trained, report.train, train, config, tokenizer)
    if len(trained) == 0:
        named = ", ".join(str(source.path) for source in sources)
        raise ConfigError(f"there is nothing to learn in {named}: {_why_empty(report)}")
    if kind == "judged" and len(np.unique(other.documents["row"][held_out])) == 1:
        held_out = held_out[:0]  # a judged answer is compared with one to another prompt
    evaluated = _dataset(other, held_out, kind, (), **how)
    evaluated = _checked(evaluated, report.eval, held_out, config.model_copy(update={"masked": "drop"}), tokenizer)
    return Splits(trained, evaluated if len(evaluated) else None, report, byte_lengths(tokenizer))


def _dataset(
    files: TokenFiles, documents: np.ndarray, kind: Kind, weights: Sequence[float], *, seed: int, **how: Any
) -> Dataset:
    """The samples of these documents."""
    if kind == "documents":
        return Dataset(files, documents, weights=weights, seed=seed, **how)
    compared = Pairs if kind == "pairs" else JudgedAnswers
    return compared(Dataset(files, documents, **how), weights=weights, seed=seed)


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of every token, int64 [V]; control tokens count none."""
    return np.array(
        [0 if n in tokenizer.special_ids else len(tokenizer.token_bytes(n)) for n in range(tokenizer.vocab_size)],
        dtype=np.int64,
    )


def sources_of(path: Any) -> list[Source]:
    """What ``data.path`` means: one source or several."""
    if path is None:
        raise ConfigError("no data: give data=FILE")
    given = path if isinstance(path, list) else [path]
    if not given:
        raise ConfigError("data.path is an empty list")
    return [one if isinstance(one, Source) else Source(path=one) for one in given]


def _truncate(config: DataConfig, files: TokenFiles, kind: Kind) -> Truncate:
    if config.truncate != "auto":
        return config.truncate
    if kind != "documents":
        return "drop"  # what makes one answer better than the other may be in the part that is cut off
    # plain text is learned whole, so splitting loses nothing; half a conversation without its beginning is none
    return "split" if files.meta["all_text"] else "end"


# --- splitting and checking


def _split(files: TokenFiles, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the documents to train on and of those held out."""
    held_out = files.documents["held_out"].copy()
    numbers = np.arange(len(held_out))
    if config.eval is not None or config.eval_share == 0:
        return numbers, numbers[:0]
    rows = ~held_out & ~_texts(files)
    if rows.any():
        draw = draw_of(files.documents["content"], config.seed)
        chosen = rows & (draw < config.eval_share)
        if not chosen.any() and len(np.unique(files.documents["content"][rows])) > 1:
            chosen = rows & (draw == draw[rows].min())  # so few rows that none was drawn: the nearest one
        held_out |= chosen
    return numbers[~held_out], numbers[held_out]


def _texts(files: TokenFiles) -> np.ndarray:
    """Documents that are plain text files, whose ends were held out when they were read."""
    plain = np.array([name in set(files.meta["texts"]) for name in files.meta["files"]], dtype=bool)
    return plain[files.documents["file"]] if len(plain) else np.zeros(0, bool)


def draw_of(content: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for every document that follows from its content and the seed (splitmix64's mixing)."""
    with np.errstate(over="ignore"):
        x = content + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _clean(
    train: np.ndarray,
    files: TokenFiles,
    held_out: np.ndarray,
    other: TokenFiles,
    config: DataConfig,
    report: DataReport,
) -> np.ndarray:
    """The training documents without duplicates and leaked ones, as the policies say; both are counted."""
    content, rows = files.documents["content"][train], files.documents["row"][train]
    _, first = np.unique(content, return_index=True)
    repeated = rows != rows[first][np.searchsorted(content[first], content)] if len(content) else content != content
    report.train.duplicates = int(repeated.sum())
    leaked = np.isin(content, other.documents["content"][held_out])
    report.leaked = int(leaked.sum())
    if report.leaked and config.leakage == "error":
        where = files.where(int(train[leaked][0]))
        raise ConfigError(f"{report.leaked} training documents are in the evaluation too, the first: {where}")
    drop = (leaked & (config.leakage == "drop")) | (repeated & (config.duplicates == "drop"))
    return train[~drop]


def _checked(dataset: Dataset, side: Side, documents: np.ndarray, config: DataConfig, tokenizer: Tokenizer) -> Dataset:
    """Fill in what is known of a side, and deal with rows that have nothing to learn."""
    records = dataset.files.documents[documents]
    side.documents = len(documents)
    side.longest = int(records["length"].max()) if len(records) else 0
    side.truncated, side.tokens_lost = len(dataset.truncated), dataset.tokens_lost
    side.endless = int((~records["ends"] & (records["learned"] > 0)).sum()) if dataset.causal else 0
    if len(dataset.truncated) and config.truncate == "error":
        where = dataset.files.where(int(dataset.truncated[0]))
        raise ConfigError(
            f"{len(dataset.truncated)} documents are longer than {dataset.seq_len} tokens, the first: {where}; "
            "raise seq_len or say what to do with them (data.truncate=end, start, split or drop)"
        )
    masked = dataset.labels == 0
    side.masked = int(masked.sum())
    if side.masked:
        if config.masked == "error":
            raise ConfigError(_shown(dataset, int(np.flatnonzero(masked)[0]), side.masked, tokenizer))
        dataset = dataset.without(masked)
    side.samples, side.tokens, side.labels = len(dataset), dataset.num_tokens, dataset.num_labels
    return dataset


def _shown(dataset: Dataset, index: int, count: int, tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(dataset[index].tokens.tolist(), skip_special_tokens=False)
    text = text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"
    cut = dataset.documents[index] in dataset.truncated
    why = (
        f"its learned part lies beyond the {dataset.seq_len} tokens of a row: raise seq_len"
        if cut
        else "nothing in it is the assistant's: look at it with `tokenmill data show`"
    )
    return (
        f"{count} rows have no label at all, so nothing can be learned from them. The first is {dataset.where(index)}; "
        f"{why}, or leave such rows out with data.masked=drop. It reads:\n{text}"
    )


def _read_findings(report: DataReport, files: TokenFiles, config: DataConfig) -> None:
    meta = files.meta
    report.rows += meta["rows"]
    report.empty += meta["empty"]
    report.broken += meta["broken"]
    report.broken_rows = [*report.broken_rows, *meta["broken_rows"]][:SHOWN]
    if meta["broken"] > config.max_broken * meta["rows"]:
        named = "\n  ".join(meta["broken_rows"][:5])
        raise ConfigError(
            f"{meta['broken']} of {meta['rows']} rows cannot be used, more than data.max_broken={config.max_broken} "
            f"allows:\n  {named}"
        )


def _why_empty(report: DataReport) -> str:
    reasons = {
        "no rows": report.rows == 0,
        f"{report.empty} empty rows": report.empty > 0,
        f"{report.broken} broken rows": report.broken > 0,
        f"{report.train.masked} rows without labels": report.train.masked > 0,
        f"{report.leaked} rows that are in the evaluation": report.leaked > 0,
        f"{report.train.truncated} too long ones": report.train.truncated > 0,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds) or "all of it is held out"


# --- the cache


def _token_files(
    config: DataConfig, sources: Sequence[Source], renderer: Renderer, kind: Kind, progress: Progress | None
) -> TokenFiles:
    if shards := shard_folders([source.path for source in sources]):
        refuse_settled(config, kind)
        return open_shards(shards, renderer.tokenizer)
    listed = [find_files(source.path) for source in sources]
    key = _key(config, listed, renderer, kind)
    share = config.eval_share if config.eval is None else 0.0
    if not config.cache:
        temporary = tempfile.TemporaryDirectory(prefix="tokenmill-data-")
        tokenise(config, listed, renderer, Path(temporary.name), key, share, progress, kind)
        files = TokenFiles.open(Path(temporary.name))
        weakref.finalize(files, temporary.cleanup)
        return files
    cache = home() / "cache" / "data"
    folder = cache / key
    if not (folder / "meta.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _prune(cache)
        building = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            tokenise(config, listed, renderer, building, key, share, progress, kind)
            try:
                building.rename(folder)
            except OSError:  # another process was quicker; what it made is the same
                if not (folder / "meta.json").is_file():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    (folder / "meta.json").touch()
    return TokenFiles.open(folder)


def _key(config: DataConfig, listed: Sequence[Sequence[Path]], renderer: Renderer, kind: Kind) -> str:
    """Names everything that the tokens follow from."""
    settings = config.model_dump(include={"format", "text_field", "prompts", "chat_template", "add_eos", "eval_share"})
    parts = {
        "version": _VERSION,
        "settings": {**settings, "eval": config.eval is not None, "train_on": renderer.train_on, "kind": kind},
        "tokenizer": renderer.tokenizer.fingerprint,
        "files": [[[str(file.resolve()), *_stamp(file)] for file in files] for files in listed],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _prune(cache: Path) -> None:
    """Remove what no run has opened for a month."""
    for folder in cache.iterdir():
        stamp = folder / "meta.json"
        age = time.time() - (stamp if stamp.exists() else folder).stat().st_mtime
        if age > KEEP_DAYS * 86400:
            log.info("removing tokens that were last used %d days ago: %s", age // 86400, folder)
            shutil.rmtree(folder, ignore_errors=True)
