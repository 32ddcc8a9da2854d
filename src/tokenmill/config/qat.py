"""The part of a recipe that says how weights are rounded while they are trained: as ``tokenmill quantize`` will.

The words are those of ``quantize``; what goes together is checked there (``quant/settings.py``).
"""

from __future__ import annotations

from typing import Literal

from tokenmill.config.parts import Part


class QatConfig(Part):
    """Quantisation-aware training. What is None is what ``tokenmill quantize`` takes for the method."""

    method: Literal["rtn", "w8a8", "fp8"] = "rtn"
    """Weights alone to the nearest number, 8-bit weights and inputs, E4M3 weights and inputs."""
    bits: int | None = None
    """Of a weight (rtn): 2, 3, 4 or 8."""
    group_size: int | None = None
    """Weights that share a scale: 32, 64, 128, … or -1 for a row."""
    symmetric: bool | None = None
    """Zero is the middle code (true), or each group has a zero of its own (false)."""
    scales: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """How scales are stored. ``auto``: as ``quantize`` stores them beside weights of the run's ``dtype``, bfloat16 for
    bfloat16 and float16 otherwise; float32 goes with ``quantize --dtype float32``."""
