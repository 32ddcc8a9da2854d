"""A model's adapter written as a folder in PEFT's layout, which PEFT and transformers load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.adapt.layers import IA3, Adapter, Bottleneck, Rows, Whole
from tokenmill.adapt.lora import Dora, Lora
from tokenmill.adapt.note import TRAINED_OVER, BaseNote, write_note
from tokenmill.adapt.peft_config import TENSORS, write_config
from tokenmill.adapt.places import adapted, linear_places, shortest_targets, switch_of
from tokenmill.adapt.virtual import PrefixTokens, PromptTokens, VirtualTokens
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.formats import save_tensors
from tokenmill.models import Model
from tokenmill.models.weights import Named, modules_by_name
from tokenmill.nn.linear import LinearLayer

PREFIX = "base_model.model."


def save_adapter(model: Model, folder: Path | str, name: str = "default", *, base: str | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, float32, and a note on the base (``note.py``).

    ``base``: what PEFT is to load it onto.

    UsageError where the model has no such adapter; ConfigError where PEFT's layout cannot say what it holds.
    """
    switch = switch_of(model)
    if name not in switch.configs:
        raise UsageError(f"this model has no adapter {name!r}; it has: {', '.join(switch.configs) or 'none'}")
    tensors, fields = adapter_state(model, name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_tensors(stored, folder / TENSORS, metadata={"format": "pt"})
    write_config(folder, switch.configs[name].kind, model.family.task, base, fields)
    formats = {m.quantization for m in model.network.modules() if isinstance(m, LinearLayer)}
    packed = [known for known in TRAINED_OVER if known in formats]
    write_note(folder, BaseNote(packed[0] if packed else None, model.network.config.vocab_size))


def adapter_state(model: Model, name: str = "default") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter's tensors by PEFT's names, and the fields of its configuration."""
    config = switch_of(model).configs[name]
    if config.kind in ("prompt", "prefix"):
        return _virtual_state(model, name)
    by_ours = dict(adapted(model.network, name))
    tensors: dict[str, Tensor] = {}
    targets: dict[str, list[Adapter]] = {}
    rows: dict[str, list[int]] = {}
    whole: list[str] = []
    transposed = False
    for named in modules_by_name(model.network, model.family.weights):
        adapters = [by_ours[ours] for ours in named.ours if ours in by_ours]
        if not adapters:
            continue
        if isinstance(adapters[0], Rows):
            rows[_leaf(named)] = adapters[0].indices.tolist()
            tensors[f"{PREFIX}{named.theirs}.token_adapter.trainable_tokens_delta"] = adapters[0].values
        elif isinstance(adapters[0], Whole):
            whole.append(_leaf(named))
            tensors |= {
                f"{PREFIX}{named.theirs}.{leaf}": t for leaf, t in _joined(adapters, ("weight", "bias")).items()
            }
        else:
            targets[named.theirs] = adapters
            transposed |= named.row.transposed
            tensors |= {f"{PREFIX}{named.theirs}.{part}": t for part, t in _parts(named, adapters).items()}
    fields: dict[str, Any] = {"target_modules": shortest_targets(targets, [p.name for p in linear_places(model)])}
    fields |= {"modules_to_save": sorted(set(whole)) or None}
    fields |= _fields(config, targets, model)
    if config.kind in ("lora", "dora", "ia3"):
        fields["fan_in_fan_out"] = transposed
    if rows:
        fields["trainable_token_indices"] = rows
    return tensors, fields


def _leaf(named: Named) -> str:
    return named.theirs.rpartition(".")[2]


def _joined(adapters: list[Adapter], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Parameters of the layers that one module of the file is made of, one after the other."""
    found = {name: [getattr(adapter, name) for adapter in adapters] for name in names}
    return {name: torch.cat(tensors) for name, tensors in found.items() if tensors[0] is not None}


def _parts(named: Named, adapters: list[Adapter]) -> dict[str, Tensor]:
    first = adapters[0]
    if isinstance(first, Lora):
        if any(not torch.equal(a.a, first.a) for a in adapters if isinstance(a, Lora)):
            raise ConfigError(f"{named.theirs}: its parts have different A, and a folder has one for them")
        parts = {"lora_A.weight": first.a, "lora_B.weight": _joined(adapters, ("b",))["b"]}
        if isinstance(first, Dora):
            parts["lora_magnitude_vector"] = _joined(adapters, ("magnitude",))["magnitude"]
        return parts
    if isinstance(first, IA3):
        factor = first.factor if first.on_input else _joined(adapters, ("factor",))["factor"]
        return {"ia3_l": factor[None] if first.on_input else factor[:, None]}
    assert isinstance(first, Bottleneck)
    return {
        "bottleneck_down.weight": first.down,
        "bottleneck_down.bias": first.down_bias,
        "bottleneck_up.weight": first.up,
        "bottleneck_up.bias": first.up_bias,
    }


def _fields(config: AdapterConfig, targets: dict[str, list[Adapter]], model: Model) -> dict[str, Any]:
    firsts = {name: adapters[0] for name, adapters in targets.items()}
    if config.kind == "ia3":
        inner = [name for name, adapter in firsts.items() if isinstance(adapter, IA3) and adapter.on_input]
        return {"feedforward_modules": shortest_targets(inner, [p.name for p in linear_places(model)])}
    if config.kind == "bottleneck":
        return {"bottleneck_size": config.bottleneck_size, "dropout": config.dropout}
    loras = {name: adapter for name, adapter in firsts.items() if isinstance(adapter, Lora)}
    ranks = {name: lora.a.shape[0] for name, lora in loras.items()}
    alphas = {n: lora.scale * (ranks[n] ** 0.5 if config.rslora else ranks[n]) for n, lora in loras.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else config.rank
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else config.alpha
    return {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.kind == "dora",
        "bias": "none",
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    }


def _virtual_state(model: Model, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    decoder = model.decoder
    assert isinstance(decoder.prompt, VirtualTokens)
    part = decoder.prompt.adapters[name]
    attention = decoder.config.layers[0].attention
    fields: dict[str, Any] = {"num_layers": decoder.config.num_layers, "num_transformer_submodules": 1}
    if isinstance(part, PrefixTokens):
        fields |= {
            "num_virtual_tokens": part.count,
            "token_dim": attention.num_kv_heads * attention.head_dim,
            "num_attention_heads": attention.num_kv_heads,
            "encoder_hidden_size": attention.num_kv_heads * attention.head_dim,
            "prefix_projection": False,
        }
        return {"prompt_embeddings": part.keys_values.flatten(1)}, fields
    assert isinstance(part, PromptTokens)
    fields |= {
        "num_virtual_tokens": part.count,
        "token_dim": decoder.config.hidden_size,
        "num_attention_heads": attention.num_heads,
        "prompt_tuning_init": "RANDOM",
    }
    return {"prompt_embeddings": part.embeddings}, fields
