"""llama.cpp's LoRA adapters in GGUF files: read as if PEFT had written them, and written from PEFT's folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.adapt.peft_config import TENSORS, StoredConfig, read_config
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import FormatError, did_you_mean
from tokenmill.formats import GGUFFile, Typed, open_tensors
from tokenmill.models import Model
from tokenmill.models.gguf_keys import ARCHITECTURE
from tokenmill.models.weights import modules_by_name, rows_from_file, rows_to_file

PEFT_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
NAME = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<side>[ab])")


def gguf_products(model: Model, path: Path) -> tuple[StoredConfig, dict[str, Tensor]]:
    """A GGUF adapter's matrices under the names that PEFT would give them for this model, rows in the hub's order.

    FormatError for a file that is no adapter, or one of another model.
    """
    file = open_tensors(path)
    if not isinstance(file, GGUFFile) or file.metadata.get("adapter.type") != "lora":
        raise FormatError(path, "", "is not a LoRA adapter: give a PEFT folder or a GGUF file made for adapters")
    gguf_names = {n.theirs: n for n in modules_by_name(model.network, model.family.gguf_weights)}
    hub_names = {n.ours: n.theirs for n in modules_by_name(model.network, model.family.weights)}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, info in file.infos().items():
        if (found := NAME.fullmatch(name)) is None:
            raise FormatError(path, name, "is not part of a LoRA adapter")
        if len(info.shape) != 2 or 0 in info.shape:
            raise FormatError(path, name, f"has shape {list(info.shape)}, and should be a matrix")
        named = gguf_names.get(found["module"])
        if named is None or named.ours not in hub_names:
            near = did_you_mean(found["module"], gguf_names)
            raise FormatError(path, name, f"this model has no such matrix{near}")
        tensor = file.load(name, torch.float32).to(model.network.device)
        module, side = hub_names[named.ours], found["side"].upper()
        if side == "B":
            tensor = rows_from_file(tensor, named.row, model.network)
        else:
            ranks[module] = tensor.shape[0]
        tensors[f"base_model.model.{module}.lora_{side}.weight"] = tensor
    alpha = float(file.metadata.get("adapter.lora.alpha", 0.0))
    rank = max(ranks.values(), default=1)
    # An alpha of zero means no scaling (llama.cpp, llama_adapter_lora_weight::get_scale)
    alphas = {re.escape(module): alpha or float(own) for module, own in ranks.items()}
    config = AdapterConfig(kind="lora", rank=rank, alpha=alpha or float(rank))
    return StoredConfig(config, "LORA", {re.escape(m): r for m, r in ranks.items()}, alphas), tensors


def gguf_of_adapter(model: Model, folder: Path) -> tuple[dict[str, Any], list[tuple[str, Tensor, str]]]:
    """A PEFT LoRA folder as metadata and tensors of a GGUF adapter for this model: the way back.

    A GGUF adapter has one alpha, and each product is scaled by alpha / rank; where the folder's own scales differ
    (rank patterns, rsLoRA), the B of a module takes up the difference. FormatError for what llama.cpp cannot apply:
    other kinds, DoRA's magnitudes, whole matrices kept beside the products, matrices of which GGUF has none.
    """
    stored = read_config(folder)
    if stored.config.kind != "lora":
        raise FormatError(folder, "adapter_config.json", f"is a {stored.config.kind} adapter; GGUF holds LoRA only")
    file = open_tensors(folder / TENSORS)
    hub = {n.theirs: n for n in modules_by_name(model.network, model.family.weights)}
    ours = {n.ours: n for n in modules_by_name(model.network, model.family.gguf_weights)}
    alpha = float(stored.config.alpha)
    tensors: list[tuple[str, Tensor, str]] = []
    for name in file.infos():
        found = PEFT_NAME.fullmatch(name)
        named = hub.get(found["module"]) if found else None
        if found is None or named is None or named.ours not in ours:
            raise FormatError(folder, name, "has no place in a GGUF adapter of this model")
        gguf, tensor = ours[named.ours], file.load(name, torch.float32)
        if found["side"] == "B":
            module = found["module"]
            tensor = rows_to_file(tensor, gguf.row, model.network) * (stored.scale(module) * tensor.shape[1] / alpha)
        tensors.append((f"{gguf.theirs}.weight.lora_{found['side'].lower()}", tensor, "F32"))
    if not tensors:
        raise FormatError(folder, TENSORS, "has no tensors")
    metadata = {
        "general.type": "adapter",
        "general.architecture": ARCHITECTURE[model.family.name],
        "general.name": folder.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": Typed(alpha, "float32"),
    }
    return metadata, sorted(tensors, key=lambda tensor: tensor[0])
