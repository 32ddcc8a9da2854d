"""The tensor types of GGUF: one table, equal to the gguf package's (a test compares them).

A type stores a row as blocks of `block` values in `nbytes` bytes each. Types with a `dtype` are stored as torch stores
them and can be viewed in place; the others are quantised and go through `decode`. The table is written out because
opening a file must not import the gguf package, which costs every start of the program more than reading the file does.
Source: ggml.h `enum ggml_type`, ggml-common.h `block_*`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenmill.core.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class GGMLType:
    """One tensor type: its name and number in files, values a block, bytes a block, torch's dtype if it has one."""

    name: str
    id: int
    block: int
    nbytes: int
    dtype: torch.dtype | None = None

    def row_bytes(self, length: int) -> int:
        """Bytes of one row of `length` values; `length` must be a multiple of the block."""
        return length // self.block * self.nbytes


_TABLE = (
    GGMLType("F32", 0, 1, 4, torch.float32),
    GGMLType("F16", 1, 1, 2, torch.float16),
    GGMLType("Q4_0", 2, 32, 18),
    GGMLType("Q4_1", 3, 32, 20),
    GGMLType("Q5_0", 6, 32, 22),
    GGMLType("Q5_1", 7, 32, 24),
    GGMLType("Q8_0", 8, 32, 34),
    GGMLType("Q2_K", 10, 256, 84),
    GGMLType("Q3_K", 11, 256, 110),
    GGMLType("Q4_K", 12, 256, 144),
    GGMLType("Q5_K", 13, 256, 176),
    GGMLType("Q6_K", 14, 256, 210),
    GGMLType("Q8_K", 15, 256, 292),
    GGMLType("IQ2_XXS", 16, 256, 66),
    GGMLType("IQ2_XS", 17, 256, 74),
    GGMLType("IQ3_XXS", 18, 256, 98),
    GGMLType("IQ1_S", 19, 256, 50),
    GGMLType("IQ4_NL", 20, 32, 18),
    GGMLType("IQ3_S", 21, 256, 110),
    GGMLType("IQ2_S", 22, 256, 82),
    GGMLType("IQ4_XS", 23, 256, 136),
    GGMLType("I8", 24, 1, 1, torch.int8),
    GGMLType("I16", 25, 1, 2, torch.int16),
    GGMLType("I32", 26, 1, 4, torch.int32),
    GGMLType("I64", 27, 1, 8, torch.int64),
    GGMLType("F64", 28, 1, 8, torch.float64),
    GGMLType("IQ1_M", 29, 256, 56),
    GGMLType("BF16", 30, 1, 2, torch.bfloat16),
    GGMLType("TQ1_0", 34, 256, 54),
    GGMLType("TQ2_0", 35, 256, 66),
    GGMLType("MXFP4", 39, 32, 17),
    GGMLType("NVFP4", 40, 64, 36),
    GGMLType("Q1_0", 41, 128, 18),
)
TYPES = {entry.name: entry for entry in _TABLE}
BY_ID = {entry.id: entry for entry in _TABLE}

_REPACKED = "was a layout for one kind of CPU and is gone from ggml; quantise the model again as Q4_0 or IQ4_NL"
REFUSED = {
    4: ("Q4_2", "was removed from ggml in 2023; convert the model again from its original weights"),
    5: ("Q4_3", "was removed from ggml in 2023; convert the model again from its original weights"),
    # never a weight format: ggml quantises activations into it while multiplying
    9: ("Q8_1", "has no agreed layout in files: ggml's block is 36 bytes, the gguf package's 40; use Q8_0"),
    **{n: (name, _REPACKED) for n, name in ((31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8"))},
    **{n: (name, _REPACKED) for n, name in ((36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8"))},
}


def type_named(name: str) -> GGMLType:
    """The type called `name` ("Q4_K"). UsageError, with the reason, if there is none or it is refused."""
    found = TYPES.get(name)
    if found is None:
        for refused, why in REFUSED.values():
            if name == refused:
                raise UsageError(f"tensor type {name} {why}")
        raise UsageError(f"{name!r} is not a GGUF tensor type{did_you_mean(name, TYPES)}; known: {', '.join(TYPES)}")
    return found
