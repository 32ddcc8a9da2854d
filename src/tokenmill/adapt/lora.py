"""LoRA adapters (Hu et al. 2021), PEFT folders and llama.cpp's GGUF files, folded into a model's weights.

``W + scale * B A``, with ``scale = alpha / r`` (or ``alpha / sqrt(r)``, rank-stabilised, Kalajdzievski 2023). An
adapter names modules as the hub names them; the family's weight table says which of ours that is, fused ones included.
What an adapter holds and this file does not do (DoRA, trained biases, whole modules saved beside) is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.formats import GGUFFile, TensorFile, open_tensors
from tokenmill.models import Model
from tokenmill.models.weights import Product, add_to_weights

PREFIX = "base_model.model."
# Keys of adapter_config.json that decide what is computed, and the values with which nothing special is
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None, []),
    "fan_in_fan_out": (False, True, None),  # PEFT's note that the base is GPT-2; our table knows it already
    # The others (pissa, olora, corda, loftq …) change the base's weights too, and this is what is left of them
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
NEUTRAL = frozenset(
    """
    peft_type r lora_alpha use_rslora rank_pattern alpha_pattern auto_mapping base_model_name_or_path corda_config
    ensure_weight_tying eva_config exclude_modules inference_mode layers_pattern layers_to_transform loftq_config
    lora_dropout megatron_config megatron_core peft_version qalora_group_size revision runtime_config target_modules
    task_type
    """.split()  # noqa: SIM905
)
"""Keys that are read elsewhere, or concern training and which modules have an adapter (their tensors say it)."""


@dataclass(frozen=True)
class LoraConfig:
    """The part of ``adapter_config.json`` that folding needs."""

    rank: int
    alpha: float
    rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return int(_pattern(self.rank_pattern, module, self.rank))

    def scale(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = _pattern(self.alpha_pattern, module, self.alpha)
        return float(alpha / rank**0.5 if self.rank_stabilised else alpha / rank)


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the module's name or ends it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_lora_config(folder: Path) -> LoraConfig:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(path, "", f"not an adapter's configuration: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ConfigError(f"{path}: peft_type {kind!r} is not supported; only LORA is")
    off: tuple[Any, ...] = (None, False, [], {})  # what a later PEFT writes for an option of its own that is not used
    unusual = {key: value for key, value in config.items() if key not in NEUTRAL and value not in PLAIN.get(key, off)}
    odd = [f"{key} = {str(value)[:80]}" for key, value in unusual.items()]
    if odd:
        raise ConfigError(f"{path}: not supported: {', '.join(odd)}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ConfigError(
            f"{path}: r must be a whole number from 1 on and lora_alpha a number, not {rank!r}, {alpha!r}"
        )
    return LoraConfig(
        rank,
        float(alpha),
        bool(config.get("use_rslora")),
        config.get("rank_pattern") or {},
        config.get("alpha_pattern") or {},
    )


def fold_lora(model: Model, adapter: Path) -> int:
    """Add a LoRA adapter to the model's weights for good; returns how many modules it changed.

    ``adapter``: a PEFT folder, or a GGUF file as llama.cpp makes it. Everything is checked before a weight is touched.
    """
    if adapter.is_dir():
        pairs, table = _peft_pairs(adapter), model.family.weights
    else:
        pairs, table = _gguf_pairs(adapter), model.family.gguf_weights
    for module, pair in pairs.items():
        if pair.a.shape[0] != pair.b.shape[1]:
            shapes = f"A {list(pair.a.shape)} and B {list(pair.b.shape)}"
            raise FormatError(adapter, module, f"{shapes} do not multiply")
    add_to_weights(model.decoder, table, pairs, adapter)
    return len(pairs)


def _peft_pairs(folder: Path) -> dict[str, Product]:
    config, file = read_lora_config(folder), open_tensors(folder / "adapter_model.safetensors")
    named = rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight"
    found = _sides(file, named, "lora_A and lora_B")
    for module, (a, _) in found.items():
        if a.shape[0] != config.rank_of(module):
            raise FormatError(folder, module, f"has rank {a.shape[0]}, its configuration says {config.rank_of(module)}")
    return {module: Product(a, b, config.scale(module)) for module, (a, b) in found.items()}


def _gguf_pairs(path: Path) -> dict[str, Product]:
    file = open_tensors(path)
    if not isinstance(file, GGUFFile) or file.metadata.get("adapter.type") != "lora":
        raise FormatError(path, "", "is not a LoRA adapter: give a PEFT folder or a GGUF file made for adapters")
    alpha = float(file.metadata.get("adapter.lora.alpha", 0.0))
    found = _sides(file, r"(?P<module>.+)\.weight\.lora_(?P<side>[ab])", "lora_a and lora_b")
    # An alpha of zero means no scaling (llama.cpp, llama_adapter_lora_weight::get_scale)
    return {module: Product(a, b, alpha / a.shape[0] if alpha else 1.0) for module, (a, b) in found.items()}


def _sides(file: TensorFile, pattern: str, names: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Both matrices of every module, float32; a tensor that is neither is refused."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, info in file.infos().items():
        if (found := re.fullmatch(pattern, name)) is None:
            raise FormatError(file.path, name, "is not part of a LoRA adapter")
        if len(info.shape) != 2 or 0 in info.shape:
            raise FormatError(file.path, name, f"has shape {list(info.shape)}, and should be a matrix")
        sides.setdefault(found["module"], {})[found["side"].upper()] = file.load(name, torch.float32)
    if odd := [module for module, both in sides.items() if len(both) != 2]:
        raise FormatError(file.path, odd[0], f"has only one of {names}")
    if not sides:
        raise FormatError(file.path, "", "has no tensors")
    return {module: (both["A"], both["B"]) for module, both in sides.items()}
