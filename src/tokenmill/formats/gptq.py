"""The layout of GPTQ checkpoints, as AutoGPTQ and GPTQModel write it and transformers, vLLM and SGLang read it.

A layer is ``qweight`` int32 [I bits / 32, O], ``qzeros`` int32 [G, O bits / 32], ``scales`` float16 [G, O] and
``g_idx`` int32 [I]. Version 1 (``gptq``) stores zeros minus one, and wraps below zero; version 2 (``gptq_v2``) as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.formats.codes import Codes, pack_words, unpack_words


@dataclass(frozen=True)
class GPTQ:
    """One setting for all layers of a folder."""

    bits: int
    group_size: int
    """-1: a row is one group."""
    symmetric: bool
    version: int = 1

    name = "gptq"
    suffixes = (".qweight", ".qzeros", ".scales", ".g_idx")
    inputs = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> GPTQ:
        """From ``quantization_config``; ConfigError for what is not understood."""
        bits = config.get("bits")
        if bits not in (2, 3, 4, 8):
            raise ConfigError(f"{source}: GPTQ with {bits!r} bits is not known: 2, 3, 4 and 8 are")
        form = config.get("checkpoint_format", "gptq")
        if form not in ("gptq", "gptq_v2"):
            raise ConfigError(f"{source}: GPTQ checkpoint_format {form!r} is not known: gptq and gptq_v2 are")
        if config.get("dynamic"):
            raise ConfigError(f"{source}: GPTQ with settings of their own for some layers (dynamic) is not supported")
        return cls(bits, config.get("group_size", -1), config.get("sym", True), 2 if form == "gptq_v2" else 1)

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": False,
            "static_groups": True,
            "lm_head": False,
            "checkpoint_format": "gptq_v2" if self.version == 2 else "gptq",
        }

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """(O, I) of a layer, from the shapes of its parts by suffix."""
        words, rows = shapes[".qweight"]
        return rows, words * 32 // self.bits

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        rows, columns = self.shape(module, {".qweight": tuple(parts[".qweight"].shape)})
        codes_OI = unpack_words(parts[".qweight"].t(), self.bits, columns).contiguous()
        zeros_GO = unpack_words(parts[".qzeros"], self.bits, rows)
        if self.version == 1:
            zeros_GO = (zeros_GO + 1) & (2**self.bits - 1) if self.bits < 8 else zeros_GO + 1
        groups_I = parts.get(".g_idx")
        scales_OG = parts[".scales"].t().contiguous()
        codes = Codes(codes_OI, scales_OG, zeros_GO.t().contiguous(), self.bits)
        if groups_I is None or torch.equal(groups_I.long(), codes.column_groups()):
            return codes
        return Codes(codes_OI, scales_OG, codes.zeros_OG, self.bits, groups_I)

    def write(self, module: str, codes: Codes) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file. Rows must be a multiple of 32 / bits."""
        rows, columns = codes.shape
        if rows * self.bits % 32 or columns * self.bits % 32:
            raise ConfigError(f"{module}: GPTQ files hold layers whose sides are multiples of {32 // self.bits} only")
        zeros_OG = codes.zeros_OG
        if zeros_OG is None:
            zeros_OG = torch.full(codes.scales_OG.shape, 2 ** (self.bits - 1), dtype=torch.uint8)
        stored = (zeros_OG.to(torch.int64) - int(self.version == 1)) & (2**self.bits - 1)
        return {
            f"{module}.qweight": pack_words(codes.codes_OI, self.bits).t().contiguous(),
            f"{module}.qzeros": pack_words(stored.t(), self.bits),
            f"{module}.scales": codes.scales_OG.t().to(torch.float16).contiguous(),
            f"{module}.g_idx": codes.column_groups().to(torch.int32),
        }
