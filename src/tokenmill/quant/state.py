"""A quantised block as a safetensors file: what a killed run goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from tokenmill.core.paths import atomic_write
from tokenmill.formats import nf4
from tokenmill.formats.codes import Codes
from tokenmill.quant.layers import LayerRecord, QuantisedBlock, Stored

FIELDS = {"codes": "codes_OI", "scales": "scales_OG", "zeros": "zeros_OG", "groups": "groups_I", "levels": "levels_OK"}
NF4_FIELDS = ("packed", "scales", "nested", "offset")


def save_block(path: Path, block: QuantisedBlock) -> None:
    """Write a block; a crash leaves no half of it."""
    tensors = {f"changed/{name}": tensor.contiguous() for name, tensor in block.changed.items()}
    kinds: dict[str, list[dict[str, object]]] = {}
    for name, codes in block.codes.items():
        kinds[name] = []
        for number, one in enumerate(codes if isinstance(codes, list) else [codes]):
            held, about = _parts(one)
            kinds[name].append(about)
            tensors |= {f"codes/{name}/{number}/{part}": t.contiguous() for part, t in held.items() if t is not None}
    meta = {
        "records": json.dumps([record.asdict() for record in block.records]),
        "kinds": json.dumps(kinds),
        "lists": json.dumps([name for name, codes in block.codes.items() if isinstance(codes, list)]),
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata=meta))


def load_block(path: Path) -> QuantisedBlock:
    """The way back."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    block = QuantisedBlock(records=[LayerRecord(**record) for record in json.loads(meta["records"])])
    lists = json.loads(meta["lists"])
    for name, kinds in json.loads(meta["kinds"]).items():
        found = [_stored(tensors, f"codes/{name}/{number}/", about) for number, about in enumerate(kinds)]
        block.codes[name] = found if name in lists else found[0]
    block.changed = {n.removeprefix("changed/"): t for n, t in tensors.items() if n.startswith("changed/")}
    return block


def _parts(one: Stored) -> tuple[dict[str, Tensor | None], dict[str, object]]:
    if isinstance(one, Codes):
        return {part: getattr(one, field) for part, field in FIELDS.items()}, {"bits": one.bits}
    about: dict[str, object] = {"shape": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")}
    return {part: getattr(one, part) for part in NF4_FIELDS}, about


def _stored(tensors: dict[str, Tensor], prefix: str, about: dict[str, Any]) -> Stored:
    held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if "bits" in about:
        return Codes(bits=about["bits"], **{field: held[part] for part, field in FIELDS.items() if part in held})
    packed, scales, nested, offset = held["packed"], held["scales"], held.get("nested"), held.get("offset")
    return nf4.NF4(packed, scales, nested, offset, torch.Size(about["shape"]), getattr(torch, about["dtype"]))
