"""A model into a GGUF file: what it is made of, which type each tensor gets, and the file written.

A source is a model that was loaded from anything tokenmill reads, or a GGUF file, whose metadata and tensors are taken
over as they stand. Tensors are asked for, encoded and written one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.formats.gguf import GGUFFile, Planned, Typed, write_planned
from tokenmill.formats.gguf.imatrix import ImportanceMatrix, check_fits
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.models.gguf_keys import architecture_keys
from tokenmill.models.load import Model
from tokenmill.models.weights import check_plain, file_shapes, file_tensor, slots
from tokenmill.ops.blocks import encode_blocks
from tokenmill.quant.ggml_codes import FolderCodes
from tokenmill.quant.ggml_mix import (
    MIXES,
    NEAREST,
    Traits,
    fallbacks,
    needs_importance,
    quantisable,
    tensor_types,
)
from tokenmill.text.gguf_keys import gguf_from_tokenizer
from tokenmill.text.tokenizer import Tokenizer

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION: the layouts of blocks that this is written with."""
WITHOUT_WINDOWS = ("llama", "phi3", "starcoder2")
"""Architectures whose sliding windows llama.cpp does not compute: there all tokens attend to all before them."""
_NOT_TAKEN_OVER = (
    "split.no",
    "split.count",
    "split.tensors.count",
    "general.file_type",
    "general.quantization_version",
)


@dataclass(frozen=True)
class Source:
    """A model about to be written."""

    metadata: Mapping[str, Any]
    """All keys but those that the types decide."""
    shapes: Mapping[str, tuple[int, ...]]
    """GGUF names, in the order of the file."""
    load: Callable[[str], Tensor]
    """A tensor as numbers."""
    blocks: Callable[[str, str], Tensor | None] = lambda name, type: None
    """A tensor's bytes where the source has it in that very type."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Types of those tensors that the source keeps otherwise than as F32."""
    requantised: str | None = None
    """The type that most of the source is quantised in already."""
    nearest: Callable[[], Mapping[str, str]] | None = None
    """Of a source with codes: the types that hold them best, and those of the other tensors."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: list[Path]
    mix: str
    types: dict[str, int]
    """Type -> number of tensors."""
    bits: float
    """Bits a weight, of all tensors."""
    parameters: int
    size: int
    """Bytes of all files."""
    fallbacks: list[str]
    """Matrices with another type than the mix's, for their rows do not divide into its blocks."""
    unimportant: list[str]
    """Matrices that the importance matrix given says nothing of."""
    window: int | None = None
    """Of a model with a sliding window that llama.cpp passes over: up to so many tokens both compute the same."""


def source_from_gguf(file: GGUFFile) -> Source:
    """All that a GGUF file says, taken over."""
    types = {name: info.type for name, info in file.infos().items()}
    metadata = {
        key: Typed(value, file.metadata_types[key]) if file.metadata_types[key] != "array" else value
        for key, value in file.metadata.items()
        if key not in _NOT_TAKEN_OVER
    }
    quantised = [type for name, type in types.items() if quantisable(name, file.infos()[name].shape)]
    most = max(set(quantised), key=quantised.count, default="F32")
    return Source(
        metadata,
        {name: tuple(info.shape) for name, info in file.infos().items()},
        lambda name: file.load(name, torch.float32),
        lambda name, type: file.raw(name) if types[name] == type else None,
        {name: type for name, type in types.items() if type != "F32"},
        None if most in ("F32", "F16", "BF16", "F64") else most,
    )


def source_from_model(
    model: Model,
    tokenizer: Tokenizer,
    origin: Path,
    general: Mapping[str, Any] | None = None,
    quantised: QuantisedFolder | None = None,
) -> Source:
    """A loaded model. ``general``: further ``general.*`` keys. ``quantised``: the folder with its weights' codes."""
    check_plain(model.network)
    network, table = model.decoder, model.family.gguf_weights
    keys, tables = architecture_keys(model, origin)
    rows = network.config.vocab_size
    metadata = {"general.type": "model", **keys, **(general or {}), **gguf_from_tokenizer(tokenizer, rows, origin)}
    by_name = {slot.theirs: slot for slot in slots(network, table)}
    parameters = dict(network.named_parameters())

    def load(name: str) -> Tensor:
        if name in tables:
            return tables[name]
        slot = by_name[name]
        return file_tensor(network, slot, [parameters[ours].detach() for ours in slot.ours])

    shapes = {name: tuple(table.shape) for name, table in tables.items()} | file_shapes(network, table)
    if quantised is None:
        return Source(metadata, shapes, load)
    codes, plain = FolderCodes(model, quantised), _float_type(quantised)

    def nearest() -> Mapping[str, str]:
        known = {name: codes.type(slot) for name, slot in by_name.items()}
        return {n: known.get(n) or (plain if quantisable(n, shape) else "F32") for n, shape in shapes.items()}

    def blocks(name: str, type: str) -> Tensor | None:
        return codes.blocks(by_name[name], type) if name in by_name else None

    return Source(metadata, shapes, load, blocks, requantised=quantised.layout.name, nearest=nearest)


def _float_type(file: QuantisedFolder) -> str:
    """What most of a folder's numbers that are not quantised are kept in."""
    sizes = dict.fromkeys(("F16", "BF16", "F32"), 0)
    for info in file.infos().values():
        if info.type in sizes:
            sizes[info.type] += info.nbytes
    return max(sizes, key=lambda kind: sizes[kind])


def write_source(
    source: Source,
    out: Path,
    mix: str,
    *,
    importance: ImportanceMatrix | None = None,
    part_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a model in one of `MIXES`, or `NEAREST`. UsageError for a mix that needs importances and has none, and for
    `NEAREST` of a source without codes."""
    if importance is not None:
        check_fits(importance, source.shapes)
    if mix != NEAREST:
        types = tensor_types(mix, source.shapes, traits(source, importance is not None), source.stored)
    elif source.nearest is not None:
        types = dict(source.nearest())
    else:
        raise UsageError("--type nearest is for quantised folders: there are no codes to keep here")
    if importance is None and needs_importance(mix, types.values()):
        raise UsageError(f"{mix} is no good without an importance matrix: give --imatrix or --calibrate")
    tensors, unimportant = [], []
    for name, shape in source.shapes.items():
        counted = None
        if importance is not None and quantisable(name, shape) and types[name] not in ("F32", "F16", "BF16"):
            counted = importance.of(name, shape[0] if len(shape) == 3 else None)
            if counted is None and name.startswith("blk."):
                unimportant.append(name)
        data = partial(_encoded, source, name, types[name], counted)
        tensors.append(Planned(name, shape, types[name], data))
    short = [] if mix == NEAREST else fallbacks(mix, source.shapes)
    mix = _most(types) if mix == NEAREST else mix
    metadata = {**source.metadata, **_type_keys(mix, importance)}
    files = write_planned(out, metadata, tensors, part_bytes=part_bytes, progress=progress)
    count = sum(math.prod(shape) for shape in source.shapes.values())
    used = list(types.values())
    return Written(
        files,
        mix,
        {type: used.count(type) for type in sorted(set(used))},
        8 * sum(tensor.nbytes for tensor in tensors) / max(1, count),
        count,
        sum(file.stat().st_size for file in files),
        short,
        unimportant,
        _unseen_window(source.metadata),
    )


def _unseen_window(metadata: Mapping[str, Any]) -> int | None:
    architecture = _plain(metadata.get("general.architecture"))
    window = _plain(metadata.get(f"{architecture}.attention.sliding_window"))
    return window if architecture in WITHOUT_WINDOWS and isinstance(window, int) and window > 0 else None


def _most(types: Mapping[str, str]) -> str:
    """The type that names a file: that of most matrices."""
    used = [type for type in types.values() if type != "F32"]
    return max(set(used), key=used.count, default="F32")


def traits(source: Source, has_importance: bool) -> Traits:
    """What the mixes look at, from the metadata."""
    architecture = _plain(source.metadata.get("general.architecture"))

    def number(key: str, default: int) -> int:
        found = _plain(source.metadata.get(f"{architecture}.{key}", default))
        return found if isinstance(found, int) else default

    layers, heads = number("block_count", 1), number("attention.head_count", 1)
    shared = heads // max(1, number("attention.head_count_kv", heads))
    return Traits(
        num_layers=layers,
        queries_per_head=shared,
        num_experts=number("expert_count", 0),
        tied="output.weight" not in source.shapes,
        has_importance=has_importance,
        is_70b=architecture == "llama" and layers == 80 and shared > 1,
    )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Typed) else value


def _type_keys(mix: str, importance: ImportanceMatrix | None) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "general.quantization_version": Typed(QUANTIZATION_VERSION, "uint32"),
        "general.file_type": Typed(MIXES[mix][0], "uint32"),
    }
    if importance is not None:
        keys["quantize.imatrix.file"] = importance.path.name if importance.path else "collected"
        keys["quantize.imatrix.entries_count"] = Typed(len(importance.sums), "uint32")
        keys["quantize.imatrix.chunks_count"] = Typed(importance.chunks, "uint32")
        if importance.datasets:
            keys["quantize.imatrix.dataset"] = importance.datasets[0]
    return keys


def _encoded(source: Source, name: str, type: str, importance: Tensor | None) -> Tensor:
    blocks = source.blocks(name, type)
    return encode_blocks(source.load(name), type, importance) if blocks is None else blocks
