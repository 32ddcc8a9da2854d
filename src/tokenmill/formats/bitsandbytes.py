"""The layout of bitsandbytes checkpoints, as transformers writes and reads it: NF4 and LLM.int8().

NF4: ``weight`` uint8 [n / 2, 1] with ``absmax``, ``quant_map``, the nested ones of double quantisation and
``quant_state.bitsandbytes__nf4``, a JSON as bytes. LLM.int8(): ``weight`` int8 [O, I], ``SCB`` float32 [O] (the largest
magnitude of each row) and ``weight_format``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.formats import nf4
from tokenmill.formats.codes import Codes

STATE = ".weight.quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class BitsAndBytes:
    """``bits`` 4: NF4; 8: LLM.int8()."""

    bits: int
    double: bool = True
    threshold: float = 6.0
    """LLM.int8(): columns in which an input reaches it are multiplied in half precision."""

    name = "bitsandbytes"
    suffixes = (
        STATE,
        ".weight.absmax",
        ".weight.quant_map",
        ".weight.nested_absmax",
        ".weight.nested_quant_map",
        ".weight_format",
        ".SCB",
        ".weight",
    )

    @property
    def inputs(self) -> str | None:
        """LLM.int8() rounds inputs, NF4 does not."""
        return "int8-outliers" if self.bits == 8 else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> BitsAndBytes:
        """From ``quantization_config``; ConfigError for what is not understood."""
        if config.get("load_in_8bit"):
            if config.get("llm_int8_threshold", 6.0) != 6.0:
                raise ConfigError(f"{source}: llm_int8_threshold other than 6.0 is not supported")
            return cls(8)
        if config.get("load_in_4bit") and config.get("bnb_4bit_quant_type") == "nf4":
            return cls(4, bool(config.get("bnb_4bit_use_double_quant")))
        raise ConfigError(f"{source}: of bitsandbytes, nf4 and 8 bits are supported")

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": self.bits == 4,
            "load_in_8bit": self.bits == 8,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_threshold": self.threshold,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_skip_modules": None,
        }

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        """(O, I) of a layer, from the shapes of its parts by suffix; None where only its state says it."""
        return shapes[".weight"] if self.bits == 8 else None

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        if self.bits == 8:
            codes_OI = (parts[".weight"].to(torch.int16) + 128).to(torch.uint8)
            return Codes(codes_OI, parts[".SCB"].float()[:, None] / 127, None, 8)
        state = json.loads(bytes(parts[STATE].tolist()))
        rows, columns = state["shape"]
        if state["blocksize"] != nf4.BLOCK:
            raise ValueError(f"NF4 blocks of {state['blocksize']} are not supported")
        nested, offset = parts.get(".weight.nested_absmax"), None
        if nested is not None:
            offset = torch.tensor(state["nested_offset"])
        packed = parts[".weight"].reshape(-1)
        values = nf4.NF4(packed, parts[".weight.absmax"], nested, offset, torch.Size((rows, columns)), torch.float32)
        return nf4_codes(values)

    def write(self, module: str, codes: Codes | nf4.NF4) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file."""
        if isinstance(codes, nf4.NF4):
            return _write_nf4(module, codes)
        return {
            f"{module}.weight": (codes.codes_OI.to(torch.int16) - 128).to(torch.int8),
            f"{module}.SCB": codes.scales_OG[:, 0].float() * 127,
            f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }


def nf4_codes(packed: nf4.NF4) -> Codes:
    """An NF4 matrix as codes. Blocks are counted through the matrix, so where they do not end with its rows they are
    cut into groups that do."""
    rows, columns = packed.shape
    group = math.gcd(columns, nf4.BLOCK)
    codes = torch.stack((packed.packed >> 4, packed.packed & 15), dim=1).view(-1)[: rows * columns]
    scales = nf4.scales_of(packed).repeat_interleave(nf4.BLOCK // group)[: rows * columns // group]
    codes_OI, scales_OG = codes.view(rows, columns), scales.view(rows, -1)
    return Codes(codes_OI, scales_OG, None, 4, None, nf4.levels(codes_OI.device)[None])


def _write_nf4(module: str, packed: nf4.NF4) -> dict[str, Tensor]:
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": str(packed.dtype).removeprefix("torch."),
        "shape": list(packed.shape),
    }
    device = packed.packed.device
    parts = {
        f"{module}.weight": packed.packed[:, None],
        f"{module}.weight.absmax": packed.scales,
        f"{module}.weight.quant_map": nf4.levels(device).clone(),
    }
    if packed.nested is not None and packed.offset is not None:
        state |= {
            "nested_blocksize": nf4.NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": packed.offset.item(),
        }
        parts[f"{module}.weight.nested_absmax"] = packed.nested
        parts[f"{module}.weight.nested_quant_map"] = nf4.dynamic_map(device).clone()
    parts[f"{module}{STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return parts
