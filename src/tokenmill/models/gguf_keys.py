"""A model's configuration as GGUF metadata, and the tables of rotary frequencies that go with it: `models/gguf.py`
backwards.

The keys are read again by the reader that serves them, and the configuration that comes out must compute what the model
computes: what GGUF (which is to say llama.cpp) has no word for is refused by name, never left out. Key names: ggml's
``docs/gguf.md``, llama.cpp's ``llama-arch.cpp`` and its conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.formats.gguf import Typed
from tokenmill.formats.tensors import TensorInfo
from tokenmill.models import gguf
from tokenmill.models.load import FAMILIES, Model, read_config
from tokenmill.models.weights import file_shapes
from tokenmill.nn.config import AttentionConfig, DecoderConfig, MoEConfig, RopeConfig, RopeScaling
from tokenmill.nn.rope import attention_factor, inverse_frequencies

ARCHITECTURE = {ours: theirs for theirs, ours in gguf.ARCHITECTURES.items()} | {"mistral": "llama", "mixtral": "llama"}
"""Our family -> GGUF's architecture."""


@dataclass(frozen=True)
class Draft:
    """A GGUF file that is not written yet, as far as `models/gguf.py` looks at one."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tables: Mapping[str, Tensor]

    def infos(self) -> Mapping[str, TensorInfo]:
        return self.tensors

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.tables[name].to(dtype or torch.float32)


def architecture_keys(model: Model, origin: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``general.architecture`` and the keys under it, and the tables that are tensors (``rope_freqs.weight`` …).

    ConfigError names what GGUF cannot say of this model.
    """
    if model.family.name not in ARCHITECTURE or not model.family.gguf_weights:
        known = ", ".join(sorted(ARCHITECTURE))
        raise ConfigError(f"{origin}: a {model.family.name} model cannot be written as GGUF; those that can: {known}")
    config = model.decoder.config
    if config.num_labels:
        raise ConfigError(f"{origin}: a model that scores texts has no place in GGUF")
    architecture = ARCHITECTURE[model.family.name]
    keys, tables = _common(model, config), _rope_tables(config)
    keys |= _attention(config, model.family.name) | _rope(config, origin)
    keys |= _special(config, model.family.name)
    named = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items()}
    _check(model, named, tables, origin)
    return named, tables


def _float(value: float) -> Typed:
    return Typed(float(value), "float32")


def _common(model: Model, config: DecoderConfig) -> dict[str, Any]:
    first = config.layers[0]
    sizes = [layer.mlp.size for layer in config.layers if not isinstance(layer.mlp, MoEConfig)]
    eps = "attention.layer_norm_epsilon" if config.norm.kind == "layer" else "attention.layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_position,
        "embedding_length": config.hidden_size,
        "vocab_size": config.vocab_size,
        eps: _float(config.norm.eps),
    }
    if isinstance(first.mlp, MoEConfig):
        keys |= {"expert_count": first.mlp.num_experts, "expert_used_count": first.mlp.experts_per_token}
        if model.family.name == "qwen3_moe":
            keys["expert_feed_forward_length"] = first.mlp.expert.size
        sizes = sizes or [int(model.config.get("intermediate_size", first.mlp.expert.size))]
    return keys | {"feed_forward_length": sizes[0]}


def _attention(config: DecoderConfig, family: str) -> dict[str, Any]:
    attention = config.layers[0].attention
    keys: dict[str, Any] = {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
    }
    windows = {layer.attention.window for layer in config.layers} - {None}
    if windows:
        keys["attention.sliding_window"] = windows.pop()
    if attention.softcap is not None:
        keys["attn_logit_softcapping"] = _float(attention.softcap)
    if config.logit_softcap is not None:
        keys["final_logit_softcapping"] = _float(config.logit_softcap)
    if family == "gpt2":  # it is so small that llama.cpp knows these by heart
        for implied in ("attention.key_length", "attention.value_length", "attention.head_count_kv"):
            keys.pop(implied)
    return keys


def _special(config: DecoderConfig, family: str) -> dict[str, Any]:
    """What only one family has."""
    if family == "granite":
        return {
            "attention.scale": _float(config.layers[0].attention.scale),
            "embedding_scale": _float(config.embedding_scale),
            "residual_scale": _float(config.residual_scale),
            "logit_scale": _float(1.0 / config.logit_scale),
        }
    if family == "gemma3_text":
        nearby = next((layer.attention.rope for layer in config.layers if layer.attention.window is not None), None)
        return {} if nearby is None else {"rope.freq_base_swa": _float(nearby.theta)}
    return {}


def _main_attention(config: DecoderConfig) -> AttentionConfig:
    """Of a layer that sees everything, whose rotary settings are the ones that a file names."""
    return next(
        (layer.attention for layer in config.layers if layer.attention.window is None), config.layers[0].attention
    )


def _rope(config: DecoderConfig, origin: Path) -> dict[str, Any]:
    rope = _main_attention(config).rope
    if rope is None:
        return {}
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": _float(rope.theta)}
    scaling = rope.scaling
    if scaling is None or scaling.kind == "llama3":
        return keys
    if scaling.kind == "dynamic":
        raise ConfigError(f"{origin}: rotary scaling by 'dynamic' has no place in GGUF; llama.cpp does not know it")
    if scaling.kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": _float(scaling.factor)}
    keys |= {"rope.scaling.original_context_length": scaling.original_max_position}
    if scaling.kind == "longrope":
        return keys | {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": _float(attention_factor(scaling))}
    return keys | _yarn(scaling)


def _yarn(scaling: RopeScaling) -> dict[str, Any]:
    # llama.cpp multiplies its own 0.1 ln(factor) + 1 with attn_factor
    own = attention_factor(RopeScaling("yarn", scaling.factor, scaling.original_max_position))
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": _float(scaling.factor)}
    keys["rope.scaling.attn_factor"] = _float(attention_factor(scaling) / own)
    for name in ("beta_fast", "beta_slow"):
        keys[f"rope.scaling.yarn_{name}"] = _float(getattr(scaling, name))
    return keys


def _rope_tables(config: DecoderConfig) -> dict[str, Tensor]:
    """Divisors of the plain frequencies, [dim / 2] each: Llama 3's bands, longrope's two."""
    rope = _main_attention(config).rope
    scaling = None if rope is None else rope.scaling
    if rope is None or scaling is None:
        return {}
    if scaling.kind == "llama3":
        plain = inverse_frequencies(RopeConfig(rope.dim, rope.theta))
        return {"rope_freqs.weight": plain / inverse_frequencies(rope)}
    if scaling.kind == "longrope":
        long, short = torch.tensor(scaling.long_factor), torch.tensor(scaling.short_factor)
        return {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    return {}


def _check(model: Model, keys: Mapping[str, Any], tables: Mapping[str, Tensor], origin: Path) -> None:
    """Read the keys as a file that has them is read; what comes out must be this model."""
    shapes = file_shapes(model.network, model.family.gguf_weights)
    tensors = {name: TensorInfo(name, "F32", shape, 0) for name, shape in shapes.items()}
    tensors |= {name: TensorInfo(name, "F32", tuple(table.shape), 0) for name, table in tables.items()}
    metadata = {key: value.value if isinstance(value, Typed) else value for key, value in keys.items()}
    draft = Draft(origin, metadata, tensors, tables)
    family = FAMILIES[gguf.family_name(draft)]
    reader = gguf.reader(draft)
    config = {"architectures": [family.architecture], "model_type": family.name} | gguf.config_from_gguf(draft, reader)
    family.gguf_config(reader, config)
    reader.finish()
    _, again = read_config(config, str(origin))
    if problems := list(_differences(model.decoder.config, again, "")):
        told = "\n  ".join(dict.fromkeys(problems))
        raise ConfigError(f"{origin}: GGUF has no way to say what this model does:\n  {told}")


def _differences(ours: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(ours, RopeConfig) and isinstance(theirs, RopeConfig):
        return [] if _turns_alike(ours, theirs) else [f"{where}: {ours} would be read as {theirs}"]
    if is_dataclass(ours) and type(ours) is type(theirs):
        parts = [(getattr(ours, f.name), getattr(theirs, f.name), f.name) for f in fields(ours)]
        return [text for a, b, name in parts for text in _differences(a, b, f"{where}.{name}".lstrip("."))]
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        return [text for a, b in zip(ours, theirs, strict=True) for text in _differences(a, b, where)]
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return [] if abs(ours - theirs) <= 1e-6 * abs(ours) else [f"{where}: {ours} would be read as {theirs}"]
    return [] if ours == theirs else [f"{where}: {ours} would be read as {theirs}"]


def _turns_alike(a: RopeConfig, b: RopeConfig) -> bool:
    """Whether two settings turn the same features by the same angles, in short contexts and in long ones."""
    if a.dim != b.dim or abs(attention_factor(a.scaling) - attention_factor(b.scaling)) > 1e-5:
        return False
    lengths = {1, *(r.scaling.original_max_position + 1 for r in (a, b) if r.scaling is not None)}
    return all(torch.allclose(inverse_frequencies(a, n), inverse_frequencies(b, n), rtol=1e-4, atol=0) for n in lengths)
