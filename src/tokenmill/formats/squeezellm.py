"""The layout of SqueezeLLM checkpoints, as its authors write it: levels of each row's own, and codes that number them.

A layer is ``qweight`` int32 [I bits / 32, O], packed as GPTQ packs it, and ``lookup_table`` float16 [O, 2^bits].
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
class SqueezeLLM:
    """One setting for all layers of a folder."""

    bits: int

    name = "squeezellm"
    suffixes = (".qweight", ".lookup_table")
    inputs = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> SqueezeLLM:
        """From ``quantization_config``; ConfigError for what is not understood."""
        bits = config.get("wbits")
        if bits not in (2, 3, 4):
            raise ConfigError(f"{source}: SqueezeLLM with {bits!r} bits is not known: 2, 3 and 4 are")
        return cls(bits)

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        return {"quant_method": "squeezellm", "wbits": self.bits}

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """(O, I) of a layer, from the shapes of its parts by suffix."""
        words, rows = shapes[".qweight"]
        return rows, words * 32 // self.bits

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        rows, columns = self.shape(module, {".qweight": tuple(parts[".qweight"].shape)})
        levels_OK = parts[".lookup_table"]
        if levels_OK.shape != (rows, 2**self.bits):
            raise ValueError(f"levels of {tuple(levels_OK.shape)} for {rows} rows of {self.bits} bits")
        codes_OI = unpack_words(parts[".qweight"].t(), self.bits, columns).contiguous()
        return Codes(codes_OI, torch.ones(rows, 1), None, self.bits, None, levels_OK)

    def write(self, module: str, codes: Codes) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file. Rows must be multiples of 32 / bits long."""
        columns = codes.shape[1]
        if columns * self.bits % 32 or codes.levels_OK is None:
            raise ConfigError(f"{module}: SqueezeLLM files hold rows of levels, in multiples of {32 // self.bits}")
        return {
            f"{module}.qweight": pack_words(codes.codes_OI, self.bits).t().contiguous(),
            f"{module}.lookup_table": codes.levels_OK.to(torch.float16).contiguous(),
        }
