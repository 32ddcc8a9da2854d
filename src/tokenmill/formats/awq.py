"""The layout of AWQ checkpoints (``gemm``), as AutoAWQ writes it and transformers, vLLM and SGLang read it.

A layer is ``qweight`` int32 [I, O / 8], ``qzeros`` int32 [G, O / 8] and ``scales`` float16 [G, O]; the eight numbers of
a word stand in an order that suited the first CUDA kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.formats.codes import Codes, pack_words, unpack_words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs is the first, second, … number of a word."""


@dataclass(frozen=True)
class AWQ:
    """One setting for all layers of a folder: 4 bits with zeros."""

    group_size: int
    """-1: a row is one group."""
    bits: int = 4

    name = "awq"
    suffixes = (".qweight", ".qzeros", ".scales")
    inputs = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> AWQ:
        """From ``quantization_config``; ConfigError for what is not understood."""
        version = str(config.get("version", "gemm")).lower()
        bits = config.get("bits", config.get("w_bit"))
        if version != "gemm" or bits != 4 or not config.get("zero_point", True):
            raise ConfigError(
                f"{source}: AWQ in the layout {version!r} with {bits} bits, zero_point={config.get('zero_point', True)}"
                " is not supported: 'gemm' with 4 bits and zero points is"
            )
        return cls(config.get("group_size", config.get("q_group_size", 128)))

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """(O, I) of a layer, from the shapes of its parts by suffix."""
        columns, words = shapes[".qweight"]
        return words * 8, columns

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        codes_IO, zeros_GO = _unpack(parts[".qweight"]), _unpack(parts[".qzeros"])
        scales_OG = parts[".scales"].t().contiguous()
        return Codes(codes_IO.t().contiguous(), scales_OG, zeros_GO.t().contiguous(), 4)

    def write(self, module: str, codes: Codes) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file. Outputs must be a multiple of 8."""
        if codes.shape[0] % 8:
            raise ConfigError(f"{module}: AWQ files hold layers whose outputs are a multiple of 8 only")
        zeros_OG = torch.full_like(codes.scales_OG, 8) if codes.zeros_OG is None else codes.zeros_OG
        return {
            f"{module}.qweight": _pack(codes.codes_OI.t()),
            f"{module}.qzeros": _pack(zeros_OG.t()),
            f"{module}.scales": codes.scales_OG.t().to(torch.float16).contiguous(),
        }


def _pack(values_RO: Tensor) -> Tensor:
    return pack_words(values_RO.reshape(len(values_RO), -1, 8)[:, :, list(ORDER)].flatten(1), 4)


def _unpack(words_RW: Tensor) -> Tensor:
    values = unpack_words(words_RW, 4, words_RW.shape[1] * 8).view(len(words_RW), -1, 8)
    places = [ORDER.index(n) for n in range(8)]
    return values[:, :, places].flatten(1)
