"""Domains in chosen proportions: how often each document of each source is taken.

A source is taken a number of times, its *epochs*: 0.3 is a fixed choice of its documents, 2.5 all of them twice and a
half of them a third time. Shares come from weights, or from the sources' own sizes raised to 1/temperature (1 keeps
them, larger ones lift what is small: Arivazhagan et al. 2019; BERT's exponent of 0.7 for its hundred languages is a
temperature of 1.43). A budget says how much there is in all; without one the mix is as large as it can be with no
source beyond its cap. A source that its cap stops leaves its part to the others, in their proportions. Which documents
are chosen follows from the seed and their ids alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tokenmill.config.parts import Part, Positive
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.data.curate.copies import hash64
from tokenmill.data.curate.shingles import mixed, word_hashes
from tokenmill.data.curate.step import Context, Document, Tally

_STREAM = 0x6D6978
RECORD = np.dtype([("source", "<i4"), ("size", "<i8"), ("drawn", "<u8")])
"""What is known of a document: its source, its size in tokens, its lot."""
_BINS = 1 << 12
"""Lots are counted in so many classes first; only one class of a source is sorted."""


class MixOptions(Part):
    """Domains in chosen proportions."""

    by: str | None = None
    """The column that names a document's source; None: the name that the recipe's input gives it (``input: {path: {web:
    raw/, books: b.jsonl}}``), else the uppermost folder, or the file, that it comes from."""
    weights: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    """Of each source, any positive numbers: shares of tokens in the mix. Every source has to be named; 0 leaves it out.
    Without weights the sources' own sizes count, under ``temperature``."""
    temperature: Positive | None = None
    """Sizes are raised to 1/temperature; None is 1."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """How much in all. Never exceeded; missed by less than a document a source."""
    max_epochs: Positive | dict[str, Positive] = 1.0
    """How often a source may be taken at most; by source, or one number for all. Four passes are nearly as good as new
    data (Muennighoff et al. 2023, arXiv 2305.16264)."""
    count: Literal["words", "bytes"] | str = "words"
    """What a token is: a word, a byte, or the path of a ``tokenizer.json``."""


def build(options: MixOptions, context: Context) -> Mix:
    """The step ``mix``."""
    return Mix(options, context.seed)


def epochs_of(sizes: Mapping[str, int], options: MixOptions) -> dict[str, float]:
    """How often each source is taken.

    Args:
        sizes: tokens of each source.
    Raises:
        ConfigError: weights or caps that name a source that there is not, or leave one out; nothing to mix.
    """
    check_sources(sizes, options)
    if options.weights is not None:
        shares = {name: float(options.weights[name]) for name in sizes}
    else:
        shares = {name: float(size) ** (1 / (options.temperature or 1.0)) for name, size in sizes.items()}
    caps = {name: float(size * _cap(name, options)) for name, size in sizes.items()}
    left = {name for name in sizes if shares[name] > 0 and sizes[name] > 0}
    if not left:
        raise ConfigError("mix: no source has both a weight and a document")
    if options.tokens is None:
        scale = min(caps[name] / shares[name] for name in left)
        return {name: scale * shares[name] / size if name in left else 0.0 for name, size in sizes.items()}
    taken = dict.fromkeys(sizes, 0.0)
    budget = float(options.tokens)
    while left:
        scale = budget / sum(shares[name] for name in left)
        full = {name for name in left if scale * shares[name] >= caps[name]}
        for name in full or left:
            taken[name] = caps[name] if full else scale * shares[name]
            budget -= caps[name] if full else 0.0
        left = left - full if full else set()
    return {name: taken[name] / size if size else 0.0 for name, size in sizes.items()}


def _cap(name: str, options: MixOptions) -> float:
    return options.max_epochs.get(name, 1.0) if isinstance(options.max_epochs, dict) else options.max_epochs


def check_sources(sizes: Collection[str], options: MixOptions) -> None:
    """ConfigError if weights or caps name other sources than there are."""
    problems = []
    if options.weights is not None and options.temperature is not None:
        problems.append("weights and temperature both say the shares; give one")
    named = {"weights": options.weights, "max_epochs": options.max_epochs}
    for key, given in named.items():
        if isinstance(given, dict):
            wrong = [name for name in given if name not in sizes]
            problems += [f"{key}: there is no source {name!r}{did_you_mean(name, sizes)}" for name in wrong]
    if options.weights is not None:
        missing = [name for name in sizes if name not in options.weights]
        problems += [f"weights: source {name!r} has none (0 leaves it out)" for name in missing]
    if problems:
        found = ", ".join(sorted(sizes)) or "none"
        raise ConfigError("mix: " + "; ".join(problems) + f". Sources found: {found}")


class Mix:
    """See the module."""

    def __init__(self, options: MixOptions, seed: int) -> None:
        self.options = options
        self.stream = int(mixed(np.array([seed ^ _STREAM], np.uint64))[0])

    def observe(self, documents: list[Document]) -> bytes:
        """Names of the sources as JSON on a line, then a RECORD a document."""
        sources = [self._source(document) for document in documents]
        names = sorted(set(sources))
        number = {name: place for place, name in enumerate(names)}
        records = np.zeros(len(documents), RECORD)
        records["source"] = [number[name] for name in sources]
        records["size"] = sizes_of([document.text for document in documents], self.options.count)
        records["drawn"] = self._lots(documents)
        return json.dumps(names).encode() + b"\n" + records.tobytes()

    def _source(self, document: Document) -> str:
        if self.options.by is None:
            place = document.id.rpartition("#")[0]
            folder, inside, _ = place.partition("/")
            return folder if inside else folder.partition(".")[0]
        value = document.meta.get(self.options.by)
        if not isinstance(value, str | int):
            raise ConfigError(
                f"mix: document {document.id} has no column {self.options.by!r} that names its source "
                f"(mix.by); its columns: {', '.join(document.meta) or 'none'}"
            )
        return str(value)

    def _lots(self, documents: Sequence[Document]) -> np.ndarray:
        """A number for each document that decides whether a part of its source includes it; uint64."""
        return mixed(np.array([hash64(document.id) for document in documents], np.uint64) ^ np.uint64(self.stream))

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """``mix.json``: of each source how many whole times it is taken, and below which lot once more."""
        counts: dict[str, np.ndarray] = {}  # tokens by class of lot
        for path in observed:
            names, records = _read(path)
            for place, name in enumerate(names):
                mine = records[records["source"] == place]
                classes = (mine["drawn"] // np.uint64((1 << 64) // _BINS)).astype(np.int64)
                counts.setdefault(name, np.zeros(_BINS, np.int64))
                np.add.at(counts[name], classes, mine["size"])
        sizes = {name: int(found.sum()) for name, found in sorted(counts.items())}
        verdict = {}
        for name, epochs in epochs_of(sizes, self.options).items() if sizes else ():
            whole = math.floor(epochs + 1e-9)
            part = max(epochs - whole, 0.0) * sizes[name]
            below = self._below(name, part, counts[name], observed) if part > 1e-6 else 0
            verdict[name] = {"times": whole, "below": below, "epochs": epochs, "tokens": sizes[name]}
        (folder / "mix.json").write_text(json.dumps(verdict), encoding="utf-8")

    def _below(self, name: str, tokens: float, classes: np.ndarray, observed: Sequence[Path]) -> int:
        """The lot below which a source's documents have at most so many tokens, and as many as possible."""
        ends = np.cumsum(classes)
        last = int(np.searchsorted(ends, tokens, side="right"))
        if last == _BINS:
            return 1 << 64
        width = (1 << 64) // _BINS
        room = tokens - float(ends[last] - classes[last])
        inside = []
        for path in observed:
            names, records = _read(path)
            if name in names:
                mine = records[records["source"] == names.index(name)]
                inside.append(mine[mine["drawn"] // np.uint64(width) == last])
        found = np.concatenate(inside)
        found = found[np.argsort(found["drawn"], kind="stable")]
        fits = int(np.searchsorted(np.cumsum(found["size"]), room, side="right"))
        return int(found["drawn"][fits]) if fits < len(found) else (last + 1) * width

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Take every document as often as its source and its lot say; repeats get ``~2``, ``~3`` behind their id."""
        verdict = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
        kept: list[Document] = []
        for document, lot in zip(documents, self._lots(documents).tolist(), strict=True):
            name = self._source(document)
            source = verdict[name]
            if self.options.by is None:
                document.meta.setdefault("source", name)
            times = source["times"] + (lot < source["below"])
            if not times:
                tally.drop(document, "not_drawn" if source["epochs"] else "left_out")
                continue
            tally.keep(times)
            kept.append(document)
            for again in range(2, times + 1):
                copy = Document(f"{document.id}~{again}", document.text, dict(document.meta), document.derived)
                tally.change(copy, "repeated", document.text)
                kept.append(copy)
        return kept


def sizes_of(texts: Sequence[str], count: str) -> np.ndarray:
    """Tokens of each text, int64: words, bytes or a tokenizer's."""
    if count == "words":
        return word_hashes(texts)[1]
    if count == "bytes":
        return np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
    encoded = _tokenizer(count).encode_batch_fast(list(texts), add_special_tokens=False)
    return np.array([len(one.ids) for one in encoded], np.int64)


def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise ConfigError(f"mix.count: {path!r} is not words, bytes or the path of a tokenizer.json")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more telling
        raise ConfigError(f"mix.count: {path}: not a tokenizer.json: {error}") from error


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open("rb") as file:
        names = json.loads(file.readline())
        return names, np.fromfile(file, RECORD)
