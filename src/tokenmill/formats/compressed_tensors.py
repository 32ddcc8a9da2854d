"""The layout of compressed-tensors checkpoints, as llm-compressor writes it and vLLM and transformers read it.

Three formats of it: ``pack-quantized`` (``weight_packed`` int32 [O, I bits / 32], ``weight_scale`` [O, G],
``weight_shape``, and ``weight_zero_point`` int32 [O bits / 32, G] where there are zeros), ``int-quantized`` (``weight``
int8, ``weight_scale`` [O, 1]) and ``float-quantized`` (``weight`` float8_e4m3fn, ``weight_scale`` [O, 1] or [1]).
Signed codes are stored packed with half of their range added. A configuration may give groups of layers settings of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.formats.cache_scales import Kind, kind_of, scheme
from tokenmill.formats.codes import Codes, pack_words, unpack_words

Format = Literal["pack-quantized", "int-quantized", "float-quantized"]
Inputs = Literal["int8", "fp8"]
FORMATS = ("pack-quantized", "int-quantized", "float-quantized")


@dataclass(frozen=True)
class Weights:
    """How the weights of a group of layers are stored."""

    bits: int
    group_size: int
    """-1: a row is one group; 0: the whole matrix is."""
    symmetric: bool
    targets: tuple[str, ...] = ("Linear",)
    """Names of layers, ``re:`` and a pattern, or ``Linear`` for all."""


@dataclass(frozen=True)
class CompressedTensors:
    """The settings of a folder."""

    format: Format
    groups: tuple[Weights, ...]
    ignore: tuple[str, ...] = ("lm_head",)
    inputs: Inputs | None = None
    """What activations are rounded to, token by token, before they are multiplied."""
    act_order: str | None = None
    kv_cache: Kind | None = None
    """What keys and values are kept as; their scales lie beside the projections."""

    name = "compressed-tensors"
    suffixes = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> CompressedTensors:
        """From ``quantization_config``; ConfigError for what is not understood."""
        form, groups = config.get("format"), config.get("config_groups")
        if form == "naive-quantized":
            form = "int-quantized"
        if form not in FORMATS or not isinstance(groups, Mapping) or not groups:
            raise ConfigError(
                f"{source}: compressed-tensors in the format {form!r} is not supported: {', '.join(FORMATS)} are"
            )
        found = [_weights(group, source) for group in groups.values()]
        inputs = {_inputs(group.get("input_activations"), source) for group in groups.values()}
        if len(inputs) > 1:
            raise ConfigError(f"{source}: layers whose inputs are quantised in different ways are not supported")
        cache = kind_of(config.get("kv_cache_scheme"), source)
        return cls(form, tuple(found), tuple(config.get("ignore") or ()), inputs.pop(), kv_cache=cache)

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        groups = {f"group_{n}": self._group(weights) for n, weights in enumerate(self.groups)}
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None if self.kv_cache is None else scheme(self.kv_cache),
            "ignore": list(self.ignore),
            "config_groups": groups,
        }

    def _group(self, weights: Weights) -> dict[str, Any]:
        kind = "float" if self.format == "float-quantized" else "int"
        strategy = {-1: "channel", 0: "tensor"}.get(weights.group_size, "group")
        arguments = {
            "num_bits": weights.bits,
            "type": kind,
            "symmetric": weights.symmetric,
            "strategy": strategy,
            "group_size": weights.group_size if strategy == "group" else None,
            "block_structure": None,
            "dynamic": False,
            "actorder": self.act_order,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        inputs = None
        if self.inputs is not None:
            inputs = {
                **arguments,
                "num_bits": 8,
                "symmetric": True,
                "strategy": "token",
                "group_size": None,
                "dynamic": True,
                "actorder": None,
                "observer": None,
            }
        return {
            "targets": list(weights.targets),
            "weights": arguments,
            "input_activations": inputs,
            "output_activations": None,
        }

    def of(self, module: str) -> Weights:
        """The settings of a layer by its name in the file; ConfigError where none is meant for it."""
        for weights in self.groups:
            if any(_matches(target, module) for target in weights.targets):
                return weights
        raise ConfigError(f"{module} is quantised, but no group of quantization_config names it")

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        """(O, I) of a layer, from the shapes of its parts by suffix; None where the last word of a row may hold
        less than it could, and only ``weight_shape`` tells."""
        if ".weight" in shapes:
            return shapes[".weight"]
        size = self.of(module).group_size
        return (shapes[".weight_packed"][0], shapes[".weight_scale"][-1] * size) if size > 0 else None

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        weights, scales_OG = self.of(module), parts[".weight_scale"]
        scales_OG = scales_OG.reshape(scales_OG.shape[0] if scales_OG.ndim else 1, -1)
        if ".weight" in parts:
            stored_OI = parts[".weight"]
            if stored_OI.dtype == torch.int8:
                stored_OI = (stored_OI.to(torch.int16) + 128).to(torch.uint8)
            return Codes(stored_OI, scales_OG, None, 8)
        rows, columns = parts[".weight_shape"].tolist()
        codes_OI = unpack_words(parts[".weight_packed"], weights.bits, columns)
        zeros_OG = None
        if ".weight_zero_point" in parts:
            zeros_OG = unpack_words(parts[".weight_zero_point"].t(), weights.bits, rows).t().contiguous()
        codes = Codes(codes_OI, scales_OG, zeros_OG, weights.bits)
        groups_I = parts.get(".weight_g_idx")
        if groups_I is None or torch.equal(groups_I.long(), codes.column_groups()):
            return codes
        return Codes(codes_OI, scales_OG, zeros_OG, weights.bits, groups_I)

    def write(self, module: str, codes: Codes) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file."""
        scales_OG = codes.scales_OG.contiguous()
        if codes.is_float:
            return {f"{module}.weight": codes.codes_OI, f"{module}.weight_scale": _one(scales_OG)}
        if self.format == "int-quantized":
            signed_OI = (codes.codes_OI.to(torch.int16) - 128).to(torch.int8)
            return {f"{module}.weight": signed_OI, f"{module}.weight_scale": _one(scales_OG)}
        written = {
            f"{module}.weight_packed": pack_words(codes.codes_OI, codes.bits),
            f"{module}.weight_scale": scales_OG,
            f"{module}.weight_shape": torch.tensor(codes.shape),
        }
        if codes.zeros_OG is not None:
            written[f"{module}.weight_zero_point"] = pack_words(codes.zeros_OG.t(), codes.bits).t().contiguous()
        return written


def _one(scales_OG: Tensor) -> Tensor:
    """One scale for a whole matrix is stored as [1]."""
    return scales_OG.reshape(1) if scales_OG.numel() == 1 else scales_OG


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target == "Linear" or target == module or module.endswith(f".{target}")


def _weights(group: Mapping[str, Any], source: str) -> Weights:
    given = group.get("weights") or {}
    size = {"group": given.get("group_size"), "channel": -1, "tensor": 0}.get(str(given.get("strategy")))
    bits = given.get("num_bits")
    if not isinstance(size, int) or not isinstance(bits, int) or not 2 <= bits <= 8 or group.get("output_activations"):
        raise ConfigError(f"{source}: compressed-tensors weights {given!r:.200} are not supported")
    return Weights(bits, size, given.get("symmetric", True), tuple(group.get("targets") or ()))


def _inputs(given: Mapping[str, Any] | None, source: str) -> Inputs | None:
    if given is None:
        return None
    if given.get("num_bits") != 8 or not given.get("dynamic") or given.get("strategy") != "token":
        raise ConfigError(f"{source}: inputs quantised as {given!r:.200} are not supported: 8 bits a token are")
    return "fp8" if given.get("type") == "float" else "int8"
