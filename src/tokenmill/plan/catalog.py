"""Facts that plans start from, in YAML: models, GPUs, number formats. Each figure names its source, each source its
date.

A file has ``sources`` (id: title, url, date) and ``entries`` (name: fields). ``source`` of an entry stands for all of
its figures, ``sources`` for single ones that come from elsewhere. A file of the same name under ``TOKENMILL_HOME/plan``
adds entries or replaces fields of an entry. Refused: unknown fields, a figure without a source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmill.core.errors import ConfigError, UnknownNameError, did_you_mean
from tokenmill.core.paths import home

GIB = 1 << 30
STALE_DAYS = {
    "price_usd": 183,
    "month_usd": 183,
    "rent_usd_hour": 92,
    "input_usd": 92,
    "output_usd": 92,
    "cached_usd": 92,
}
"""After how many days a figure may have changed; what a data sheet says stays true."""


class Source(BaseModel):
    """Where a figure was read, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    url: str
    date: date


class Entry(BaseModel):
    """What every entry of a catalog says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    """The key in the file."""
    aliases: tuple[str, ...] = ()
    source: str
    sources: dict[str, str] = Field(default_factory=dict)
    """Field: source id, for figures that are not from ``source``."""


E_co = TypeVar("E_co", bound=Entry, covariant=True)


class Gpu(Entry):
    """An accelerator, or a chip whose processor and graphics share one memory."""

    vendor: Literal["nvidia", "amd", "apple", "intel"]
    memory_gib: float = Field(gt=0)
    """Of one device, as its driver reports it where that is known; 1 GiB = 2^30 bytes."""
    unified: bool = False
    """The memory is the whole machine's: the system needs some of it."""
    bandwidth_gb_s: float = Field(gt=0)
    """Of that memory, 10^9 bytes a second."""
    tflops: dict[Literal["fp32", "bf16", "fp8", "int8", "fp4"], float]
    """Dense, 10^12 operations a second, by number format; without sparsity."""
    link: Literal["pcie", "nvlink", "fabric", "none"]
    link_gb_s: float = Field(ge=0)
    """To another device, each direction, 10^9 bytes a second."""
    power_w: float = Field(gt=0)
    price_usd: tuple[float, float] | None = None
    """Least and most paid for one."""
    rent_usd_hour: float | None = None
    year: int
    devices_per_node: int = Field(gt=0)
    """Most that one machine usually has."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * GIB


class Model(Entry):
    """A language model: its dimensions in the words of ``config.json``, and what one chooses it by."""

    family: str
    developer: str
    license: str
    context: int = Field(gt=0)
    """Longest, with the scaling of positions that its makers document."""
    parameters: float = Field(gt=0)
    """As its makers count them."""
    active_parameters: float | None = None
    """That one token meets, where that is fewer."""
    tasks: tuple[Literal["chat", "code", "agentic-code", "reasoning", "tools", "documents", "base"], ...] = ()
    languages: tuple[str, ...] = ("en",)
    """Codes of ISO 639-1 that its makers name."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Benchmark: percent."""
    year: int

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Of the dense feed-forward layers."""
    vocab_size: int
    tied_embeddings: bool = False
    gated: bool = True
    """The feed-forward layer has three matrices (SwiGLU, GeGLU), not two."""
    qkv_bias: bool = False
    window: int | None = None
    window_layers: int = 0
    """How many layers see no further than ``window``."""
    linear_layers: int = 0
    """How many have a state of fixed size instead of keys and values."""
    linear_state: int = 0
    """Numbers of that state, a layer."""
    linear_parameters: int = 0
    """Weights of such a layer's mixer, in place of attention's."""
    kv_rank: int = 0
    """Multi-latent attention: size of the compressed keys and values."""
    rope_dim: int = 0
    """Multi-latent attention: size of the part of a key that is kept beside them."""
    q_rank: int = 0
    value_dim: int = 0
    """Multi-latent attention: size of a head's value, where ``head_dim`` is the key's part without position."""
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    shared_size: int = 0
    """Of experts that every token meets."""
    moe_layers: int = 0
    """How many layers have experts; the others are dense."""


class Quantisation(Entry):
    """A number format of weights, or of the cache."""

    kind: Literal["weights", "cache"]
    bits: float = Field(gt=0)
    """Of one value of what is quantised, with scales and offsets; of all weights together where ``whole``."""
    whole: bool = False
    """``bits`` is the mean over a file, embeddings and all (GGUF's mixtures)."""
    embedding_bits: float = 16.0
    """Of the embedding table and an output layer of its own, which most methods leave alone."""
    method: str
    trains: bool = False
    """Adapters can be trained over it (QLoRA)."""
    quality: str = ""


@dataclass(frozen=True)
class Catalog(Generic[E_co]):
    """The entries of one file, with the person's own over them."""

    kind: str
    entries: Mapping[str, E_co]
    sources: Mapping[str, Source]

    def find(self, name: str) -> E_co:
        """By name or alias, whatever the case and the punctuation.

        Raises:
            UnknownNameError: nothing is called so; the message has the nearest name.
        """
        names = {_plain(key): key for key in self.entries}
        names |= {_plain(alias): key for key, entry in self.entries.items() for alias in entry.aliases}
        found = names.get(_plain(name))
        if found is None:
            near = did_you_mean(_plain(name), names)
            for plain, entry in names.items():  # as the catalog writes it
                near = near.replace(repr(plain), repr(entry))
            known = ", ".join(sorted(self.entries))
            raise UnknownNameError(f"no {self.kind} {name!r} in the catalog{near}; known: {known}")
        return self.entries[found]

    def source_of(self, entry: Entry, figure: str) -> Source:
        """Where a figure of an entry comes from."""
        return self.sources[entry.sources.get(figure, entry.source)]

    def stale(self, entry: Entry, figures: Iterable[str], today: date) -> list[str]:
        """A sentence for each of the figures that may have changed since it was read."""
        told = []
        for figure in figures:
            read = self.source_of(entry, figure).date
            age = (today - read).days
            if getattr(entry, figure, None) is not None and age > STALE_DAYS.get(figure, age):
                told.append(f"{figure} of {entry.name} was read on {read}, {age} days ago; give your own or check it")
        return told


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum() or c == ".")


E = TypeVar("E", bound=Entry)


def read_catalog(file: str, entry: type[E], *, kind: str) -> Catalog[E]:
    """A catalog that comes with tokenmill, and the person's own file of that name over it.

    Raises:
        ConfigError: the person's file is not as it must be; everything that is wrong in one message.
    """
    ours = _parse((resources.files("tokenmill.plan") / "catalogs" / file).read_text(encoding="utf-8"), file)
    path = home() / "plan" / file
    theirs = _parse(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
    entries: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in ours["entries"].items()}
    for name, fields in theirs.get("entries", {}).items():
        entries[name] = entries.get(name, {}) | dict(fields or {})
    return _check(path if theirs else Path(file), kind, entry, entries, ours["sources"] | theirs.get("sources", {}))


def _parse(text: str, path: str) -> dict[str, Any]:
    import yaml

    # libyaml is ten times as fast; the twin in Python is there for builds without it. Both are the safe kind
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = loader(text).get_single_data() or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict) or set(value) - {"sources", "entries"}:
        raise ConfigError(f"{path}: must have 'sources' and 'entries', and nothing else")
    return value


def _check(
    path: Path, kind: str, entry: type[E], plain: Mapping[str, dict[str, Any]], plain_sources: Mapping[str, Any]
) -> Catalog[E]:
    problems: list[str] = []
    sources: dict[str, Source] = {}
    for name, fields in plain_sources.items():
        try:
            sources[name] = Source.model_validate(fields)
        except ValidationError as error:
            problems += _told(f"source {name!r}", error, Source)
    entries: dict[str, E] = {}
    for name, fields in plain.items():
        try:
            entries[str(name)] = found = entry.model_validate(fields | {"name": str(name)})
        except ValidationError as error:
            problems += _told(f"{kind} {name!r}", error, entry)
            continue
        named = {"source": found.source, **{f"sources.{key}": value for key, value in found.sources.items()}}
        problems += [
            f"{kind} {name!r}: {key}: no source {value!r}{did_you_mean(value, sources)}"
            for key, value in named.items()
            if value not in plain_sources
        ]
        unknown = [figure for figure in found.sources if figure.split(".")[0] not in entry.model_fields]
        problems += [f"{kind} {name!r}: sources has {figure!r}, which is no field" for figure in unknown]
    if problems:
        raise ConfigError("\n  ".join([f"{path}: this catalog cannot be used:", *problems]))
    return Catalog(kind, entries, sources)


def _told(where: str, error: ValidationError, model: type[BaseModel]) -> list[str]:
    told = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        near = did_you_mean(place, model.model_fields) if problem["type"] == "extra_forbidden" else ""
        told.append(f"{where}: {place}: {problem['msg']}{near}")
    return told


def models() -> Catalog[Model]:
    """Language models by name."""
    return read_catalog("models.yaml", Model, kind="model")


def gpus() -> Catalog[Gpu]:
    """GPUs by name."""
    return read_catalog("gpus.yaml", Gpu, kind="GPU")


def quantisations() -> Catalog[Quantisation]:
    """Number formats of weights and of caches by name."""
    return read_catalog("quantisations.yaml", Quantisation, kind="number format")
