"""llama.cpp's LoRA adapters in GGUF files, read as if PEFT had written them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.adapt.peft_config import StoredConfig
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import FormatError, did_you_mean
from tokenmill.formats import GGUFFile, open_tensors
from tokenmill.models import Model
from tokenmill.models.weights import modules_by_name, rows_from_file

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
