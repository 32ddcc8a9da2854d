"""What a quantisation is asked for: the method, its numbers, the layout it is written in; and what goes together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.formats.awq import AWQ
from tokenmill.formats.bitsandbytes import BitsAndBytes
from tokenmill.formats.cache_scales import Kind
from tokenmill.formats.compressed_tensors import CompressedTensors, Weights
from tokenmill.formats.gptq import GPTQ
from tokenmill.formats.quantised_folder import Layout
from tokenmill.formats.squeezellm import SqueezeLLM
from tokenmill.quant.grid import Grid

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """What a method can be and what it is by default."""

    about: str
    bits: tuple[int, ...]
    """The first is the default."""
    layouts: tuple[str, ...]
    """The first is the default."""
    group_size: int | None = 128
    """None: there is no choice."""
    symmetric: bool | None = True
    """None: there is no choice."""
    calibrated: bool = False
    inputs: str | None = None


METHODS: Mapping[str, Method] = {
    "rtn": Method("each weight to the nearest number", (4, 3, 2, 8), ("compressed-tensors", "gptq", "awq")),
    "gptq": Method(
        "later columns make up for the errors of earlier ones",
        (4, 3, 2, 8),
        ("compressed-tensors", "gptq"),
        calibrated=True,
    ),
    "awq": Method(
        "columns with large inputs are rounded finely, outliers clipped",
        (4, 3, 2, 8),
        ("compressed-tensors", "awq", "gptq"),
        symmetric=False,
        calibrated=True,
    ),
    "codebook": Method(
        "levels of each row's own where its numbers lie, columns rounded as by gptq",
        (4, 3, 2),
        ("squeezellm",),
        None,
        None,
        calibrated=True,
    ),
    "w8a8": Method("8-bit weights and inputs", (8,), ("compressed-tensors",), None, None, inputs="int8"),
    "llm-int8": Method(
        "8-bit weights and inputs, columns of outliers apart",
        (8,),
        ("bitsandbytes",),
        None,
        None,
        inputs="int8-outliers",
    ),
    "fp8": Method("E4M3 weights and inputs", (8,), ("compressed-tensors",), -1, None, inputs="fp8"),
    "nf4": Method("quantiles of a normal distribution, scales in 8 bits", (4,), ("bitsandbytes",), None, None),
}


CACHES: tuple[Kind, ...] = ("int8", "fp8")
SMOOTHED = ("w8a8", "llm-int8")
"""Methods that round inputs to even steps."""
KEPT = 16
"""Stands for the bits of a layer that is not quantised; the file's floats may have others."""
MIXED: Mapping[str, tuple[int, ...]] = dict.fromkeys(("rtn", "gptq", "awq"), (2, 3, 4, 8)) | {"w8a8": (8, KEPT)}
"""Methods that can give layers bits of their own, and which."""
W8A8_BUDGET = 9.5
"""Bits a weight in the mean that W8A8 may take by default."""


NO_TWO = 3.5
"""From this budget on no layer gets 2 bits unless it is asked for: such errors are too large to be foretold."""


@dataclass(frozen=True)
class Settings:
    """One quantisation. Made by :func:`settings`, which checks it."""

    method: str
    bits: int
    group_size: int
    """-1: a row; 0: the whole matrix."""
    symmetric: bool
    layout: str
    damping: float = 0.01
    """Where columns are rounded in turn: share of the mean of the Hessian's diagonal that is added to it."""
    act_order: bool = True
    """Where columns are rounded in turn: by importance."""
    clip: bool = True
    """AWQ: search how much of each group's largest numbers the scales should reach."""
    smooth: float | None = None
    """W8A8, LLM.int8(): SmoothQuant's strength; None: searched for; 0: none, and weights are rounded plainly."""
    budget: float | None = None
    """Bits a weight in the mean, scales included; each layer gets its own (``quant/mixed.py``), at least ``bits``.
    W8A8 keeps the layers that lose most as they are."""
    kv_cache: Kind | None = None
    """Also scales for a cache of keys and values in 8 bits (``quant/kv_cache.py``)."""

    @property
    def inputs(self) -> str | None:
        """What layers do to their inputs (``ops/rounding.py``)."""
        return METHODS[self.method].inputs

    @property
    def calibrated(self) -> bool:
        """Whether calibration data is needed."""
        return METHODS[self.method].calibrated or self.smoothed or self.budget is not None or self.kv_cache is not None

    @property
    def smoothed(self) -> bool:
        """Whether outliers of inputs are moved into the weights before them."""
        return self.method in SMOOTHED and self.smooth != 0

    @property
    def choices(self) -> tuple[int, ...]:
        """Bits that layers may have under a budget; ``KEPT``: those of the file's floats."""
        return MIXED[self.method]

    @property
    def in_turn(self) -> bool:
        """Whether columns are rounded in turn, each one's error made up for by the next ones (GPTQ)."""
        return self.method in ("gptq", "codebook") or self.smoothed

    def grid(self, dtype: torch.dtype) -> Grid:
        """How weights are rounded in a file whose other tensors have this dtype."""
        if self.method == "llm-int8":
            return Grid(8, -1, True, scale_dtype=torch.float32)
        kept = torch.float16 if self.layout in ("gptq", "awq", "squeezellm") else dtype
        return Grid(self.bits, self.group_size, self.symmetric, "fp8" if self.method == "fp8" else "int", kept)


def settings(
    method: str,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    layout: str | None = None,
    damping: float | None = None,
    act_order: bool | None = None,
    clip: bool | None = None,
    smooth: float | None = None,
    budget: float | None = None,
    kv_cache: Kind | None = None,
) -> Settings:
    """Settings of a method, its defaults where None is given. UsageError for what it cannot be, or has no use for."""
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known{did_you_mean(method, METHODS)}; {', '.join(METHODS)} are")
    about = METHODS[method]
    layout = _one_of("layout", layout, about.layouts, method)
    if budget is not None and (method not in MIXED or layout != "compressed-tensors"):
        raise UsageError(f"a budget of bits is for {', '.join(MIXED)} in the layout compressed-tensors")
    if kv_cache is not None and layout != "compressed-tensors":
        raise UsageError(f"scales of a cache are held by the layout compressed-tensors, not by {layout}")
    if method == "w8a8" and budget is None and bits is None and smooth != 0:
        budget = W8A8_BUDGET
    if budget is not None and bits is None and about.bits != (8,):
        bits = 3 if budget >= NO_TWO else 2
    bits = _one_of("bits", bits, about.bits, method)
    if about.group_size is None and group_size is not None:
        raise UsageError(f"{method} has no group size")
    if about.symmetric is None and symmetric is not None:
        raise UsageError(f"{method} has no choice of zeros")
    for name, given, belongs in (
        ("damping", damping, ("gptq", "codebook", *SMOOTHED)),
        ("act_order", act_order, ("gptq", "codebook", *SMOOTHED)),
        ("clip", clip, ("awq",)),
        ("smooth", smooth, SMOOTHED),
    ):
        if given is not None and method not in belongs:
            raise UsageError(f"{name} belongs to {', '.join(belongs)}, not to {method}")
    if smooth == 0 and (damping is not None or act_order is not None):
        raise UsageError(f"{method} with smooth 0 rounds plainly: damping and act_order mean nothing to it")
    size = (about.group_size if about.group_size is not None else -1) if group_size is None else group_size
    if size not in (-1, 0) and (size < 32 or size & (size - 1)):
        raise UsageError(f"group size {size} is not possible: 32, 64, 128, … or -1 for whole rows")
    if size == 0 and method != "fp8":
        raise UsageError("one scale for a whole matrix (group size 0) is for fp8 only")
    if size > 0 and method == "fp8":
        raise UsageError("fp8 has a scale for each row (group size -1) or for the whole matrix (0)")
    even = (about.symmetric if about.symmetric is not None else True) if symmetric is None else symmetric
    if layout == "awq" and (bits != 4 or even):
        raise UsageError("the layout awq holds 4 bits with zeros: --bits 4 --asymmetric")
    return Settings(
        method,
        bits,
        size,
        even,
        layout,
        damping=Settings.damping if damping is None else damping,
        act_order=Settings.act_order if act_order is None else act_order,
        clip=Settings.clip if clip is None else clip,
        smooth=smooth,
        budget=budget,
        kv_cache=None if kv_cache is None else _one_of("a cache of", kv_cache, CACHES, method),
    )


def _one_of(name: str, given: T | None, known: tuple[T, ...], method: str) -> T:
    if given is None:
        return known[0]
    if given not in known:
        raise UsageError(f"{method} with {name} {given} is not possible: {', '.join(map(str, known))}")
    return given


def layout_for(settings: Settings, grids: Mapping[str, Grid], plain: Iterable[str] = ()) -> Layout:
    """The layout of a folder whose layers, by their names in the file, have these grids.

    ``plain``: linear layers of its blocks that stay as they are, which programs would take for quantised ones if they
    were not told (vLLM); one pattern names them where a whole kind of layer does.

    UsageError where groups had to become smaller for some layers and the layout has one size for all.
    """
    sizes = {grid.group_size for grid in grids.values()}
    if settings.layout == "bitsandbytes":
        return BitsAndBytes(settings.bits)
    if settings.layout == "squeezellm":
        return SqueezeLLM(settings.bits)
    if settings.layout in ("gptq", "awq"):
        refuse_sizes(settings, sizes)
        size = sizes.pop()
        return AWQ(size) if settings.layout == "awq" else GPTQ(settings.bits, size, settings.symmetric)
    groups, kinds = _groups(grids), {_pattern(name) for name in grids}
    kind = {"fp8": "float-quantized", "w8a8": "int-quantized"}.get(settings.method, "pack-quantized")
    return CompressedTensors(
        kind,  # type: ignore[arg-type]
        groups,
        ignore=("lm_head", *dict.fromkeys(name if _pattern(name) in kinds else _pattern(name) for name in plain)),
        inputs=settings.inputs,  # type: ignore[arg-type]
        act_order="static" if settings.method == "gptq" and settings.act_order else None,
        kv_cache=settings.kv_cache,
    )


def refuse_sizes(settings: Settings, sizes: set[int]) -> None:
    """UsageError where layers have groups of several sizes and the layout has one for all."""
    if settings.layout in ("gptq", "awq") and len(sizes) > 1:
        raise UsageError(
            f"groups of {settings.group_size} do not divide the rows of every layer, and the layout {settings.layout} "
            f"has one size for all: take --group-size {min(sizes)}, or the layout compressed-tensors"
        )


def _groups(grids: Mapping[str, Grid]) -> tuple[Weights, ...]:
    """Layers by what they have in common; where a whole kind of layer is alike, one pattern names it."""
    by_grid: dict[Grid, list[str]] = {}
    by_kind: dict[str, set[Grid]] = {}
    for name, grid in grids.items():
        by_grid.setdefault(grid, []).append(name)
        by_kind.setdefault(_pattern(name), set()).add(grid)
    if len(by_grid) == 1:
        (grid,) = by_grid
        return (Weights(grid.bits, grid.group_size, grid.symmetric),)
    groups = []
    for grid, names in by_grid.items():
        targets = [_pattern(name) if len(by_kind[_pattern(name)]) == 1 else f"re:{name}$" for name in names]
        groups.append(Weights(grid.bits, grid.group_size, grid.symmetric, tuple(dict.fromkeys(targets))))
    return tuple(groups)


def _pattern(name: str) -> str:
    """What names a layer's kind: ``model.layers.3.mlp.down_proj`` -> ``re:.*mlp.down_proj$``, of experts all alike."""
    _, *kind = re.split(r"\.\d+\.", name)
    return "re:.*" + r".\d+.".join(kind or [name]) + "$"
