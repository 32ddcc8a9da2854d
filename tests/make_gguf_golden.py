"""Write tests/data/golden/gguf_blocks.npz: blocks as ggml's own quantiser makes them, with and without importances.

Run it only to add a type, with llama.cpp's shared library: ``python tests/make_gguf_golden.py libggml-base.so``.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np

from tokenmill.formats.gguf.encode import BLOCKS
from tokenmill.formats.gguf.types import TYPES

GOLDEN = Path(__file__).parent / "data" / "golden" / "gguf_blocks.npz"
ROWS, COLUMNS = 5, 512


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Rows of several sizes; one without negatives, one with many zeros, one with an outlier."""
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((ROWS, COLUMNS)) * np.array([1, 0.02, 0.3, 5, 0.05])[:, None]).astype(np.float32)
    x[2], x[3, ::5], x[4, 100] = np.abs(x[2]), 0, 0.4
    return x, (rng.standard_normal(COLUMNS) ** 2 + 0.01).astype(np.float32)


def main(library: str) -> None:
    ggml = ctypes.CDLL(library)
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    x, importance = inputs()
    found = {"x": x, "importance": importance}
    for name in BLOCKS:
        for suffix, weights in (("", None), (".weighted", importance.ctypes.data)):
            blocks = np.zeros((ROWS, TYPES[name].row_bytes(COLUMNS)), np.uint8)
            ggml.ggml_quantize_chunk(TYPES[name].id, x.ctypes.data, blocks.ctypes.data, 0, ROWS, COLUMNS, weights)
            found[name + suffix] = blocks
    np.savez_compressed(GOLDEN, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
