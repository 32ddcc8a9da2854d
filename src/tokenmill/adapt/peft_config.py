"""``adapter_config.json`` as PEFT has it: read so that nothing that changes the arithmetic is skipped, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, FormatError

FILE, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Keys that decide what is computed, and the values with which nothing special is
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, True, None),  # PEFT's note that the base is GPT-2; our table knows it already
    # The others (pissa, olora, corda, loftq …) change the base's weights too, and this is what is left of them
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "num_transformer_submodules": (1, None),
    "prefix_projection": (False, None),  # training may have had it; a saved prefix is the projection's result
}
NEUTRAL = frozenset(
    """
    peft_type auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules
    inference_mode layers_pattern layers_to_transform loftq_config megatron_config megatron_core peft_version
    qalora_group_size revision runtime_config task_type init_ia3_weights init_weights encoder_hidden_size num_layers
    num_attention_heads token_dim prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
    """.split()  # noqa: SIM905
)
"""Keys that concern how it was trained, or what the tensors say themselves."""
READ: Mapping[str, tuple[str, ...]] = {
    "LORA": (
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "modules_to_save", "trainable_token_indices"),
    ),
    "IA3": ("target_modules", "feedforward_modules", "modules_to_save"),
    "PROMPT_TUNING": ("num_virtual_tokens",),
    "PREFIX_TUNING": ("num_virtual_tokens",),
    "BOTTLENECK": ("bottleneck_size", "dropout", "target_modules"),
}
KINDS = {"lora": "LORA", "dora": "LORA", "ia3": "IA3", "prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
KINDS |= {"bottleneck": "BOTTLENECK"}


@dataclass(frozen=True)
class StoredConfig:
    """An adapter folder's configuration: our words for it, and what goes beyond them."""

    config: AdapterConfig
    peft_type: str
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    feedforward: tuple[str, ...] | str = ()
    token_indices: Any = None

    def rank_of(self, module: str) -> int:
        """The rank of a module's A and B."""
        return int(_pattern(self.rank_pattern, module, self.config.rank))

    def scale(self, module: str) -> float:
        """What a module's product B A is multiplied with."""
        rank = self.rank_of(module)
        alpha = _pattern(self.alpha_pattern, module, self.config.alpha)
        return float(alpha / rank**0.5 if self.config.rslora else alpha / rank)

    def on_input(self, module: str) -> bool:
        """Whether an IA3 factor works on a module's input."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return any(module == name or module.endswith("." + name) for name in self.feedforward)


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the module's name or ends it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_config(folder: Path) -> StoredConfig:
    """Read a folder's configuration; ConfigError names every key that we do not honour, FormatError a broken file."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(path, "", f"not an adapter's configuration: {error}") from error
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in READ:
        raise ConfigError(f"{path}: peft_type {kind!r} is not supported; only {', '.join(READ)} are")
    off: tuple[Any, ...] = (None, False, [], {})  # what a later PEFT writes for an option of its own that is not used
    known = NEUTRAL | set(READ[kind])
    odd = [f"{key} = {str(v)[:80]}" for key, v in raw.items() if key not in known and v not in PLAIN.get(key, off)]
    if odd:
        raise ConfigError(f"{path}: not supported: {', '.join(odd)}")
    try:
        return _stored(kind, raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error


def _stored(kind: str, raw: Mapping[str, Any]) -> StoredConfig:
    also = list(raw.get("modules_to_save") or [])
    if kind == "LORA":
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise ValueError(f"r must be a whole number from 1 on and lora_alpha a number, not {rank!r}, {alpha!r}")
        config = AdapterConfig(
            kind="dora" if raw.get("use_dora") else "lora",
            rank=rank,
            alpha=float(alpha),
            dropout=float(raw.get("lora_dropout") or 0.0),
            rslora=bool(raw.get("use_rslora")),
            targets=raw.get("target_modules") or [],
            train_also=also,
        )
        patterns = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
        return StoredConfig(config, kind, *patterns, token_indices=raw.get("trainable_token_indices"))
    if kind == "IA3":
        config = AdapterConfig(kind="ia3", targets=raw.get("target_modules") or [], train_also=also)
        feedforward = raw.get("feedforward_modules") or []
        return StoredConfig(config, kind, feedforward=feedforward if isinstance(feedforward, str) else (*feedforward,))
    if kind == "BOTTLENECK":
        size: Any = raw.get("bottleneck_size")
        dropout: Any = raw.get("dropout", 0.0)
        config = AdapterConfig(
            kind="bottleneck", bottleneck_size=size, dropout=dropout, targets=raw.get("target_modules") or []
        )
        return StoredConfig(config, kind)
    tokens: Any = raw.get("num_virtual_tokens")
    return StoredConfig(
        AdapterConfig(kind="prompt" if kind == "PROMPT_TUNING" else "prefix", virtual_tokens=tokens), kind
    )


def _first_line(error: Exception) -> str:
    """Of a pydantic error: its place and its message."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def write_config(folder: Path, kind: str, task_type: str, base: str | None, fields: Mapping[str, Any]) -> None:
    """Write ``adapter_config.json``; ``fields`` are those of this kind."""
    common = {
        "peft_type": KINDS[kind],
        "task_type": task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    text = json.dumps({**common, **fields}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")
