"""One block of a model quantised: which of its layers, with what the calibration says of their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.formats import nf4
from tokenmill.formats.bitsandbytes import nf4_codes
from tokenmill.formats.codes import Codes
from tokenmill.models.packing import replace
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.nn.moe import StackedLinear
from tokenmill.nn.quantised import QuantisedLinear, QuantisedStacked
from tokenmill.quant.codebook import codebook, plain_codebook
from tokenmill.quant.gptq import Rounded, gptq
from tokenmill.quant.grid import Grid, encode, fit_scales, round_to_nearest
from tokenmill.quant.rescale import awq_factors, best_clips, rescale, smooth_factors, sources, weight_of
from tokenmill.quant.settings import KEPT, Settings
from tokenmill.quant.statistics import InputStatistics, LayerStatistics

Stored = Codes | nf4.NF4
LEFT_ALONE = ("router",)
"""Layers of a block that no method touches: a router decides, and it is small."""
UNCLIPPED = ("attn.q", "attn.k")
"""AWQ leaves these their largest numbers: attention's scores are made of them."""
LEAST_TOKENS = 32
"""An expert that fewer calibration tokens were sent to is rounded plainly: so few say nothing of its inputs."""


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one linear layer."""

    name: str
    """Within the model: ``layers.3.attn.q``; an expert's number behind it."""
    bits: float
    """A weight, scales and zeros included."""
    group_size: int
    error: float
    """Squared error of the outputs over their squares, on the calibration inputs; without these, of the weights."""
    heard: int = 0
    """How often the calibration's hook fired."""
    tokens: int = 0
    """Calibration tokens that reached it."""
    damping: float | None = None
    note: str = ""
    kept: bool = False
    """Whether it stays as it is, because a budget is spent on it."""

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class QuantisedBlock:
    """A block's codes by the names of its layers (a list for experts), its other tensors that changed, and records."""

    codes: dict[str, Stored | list[Stored]] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    records: list[LayerRecord] = field(default_factory=list)


def layers_of(block: Block) -> dict[str, Linear | StackedLinear]:
    """The layers of a block that are quantised, by name."""
    found = {name: m for name, m in block.named_modules() if type(m) in (Linear, StackedLinear)}
    return {n: m for n, m in found.items() if n.rpartition(".")[2] not in LEFT_ALONE}


def matrices(name: str, layer: Linear | StackedLinear) -> dict[str, Tensor]:
    """The matrices of a layer: one, or that of each expert with its number behind the name."""
    if isinstance(layer, Linear):
        return {name: layer.weight}
    return {f"{name}.{number}": weight_OI for number, weight_OI in enumerate(layer.weight)}


@torch.no_grad()
def quantise_block(
    block: Block,
    index: int,
    settings: Settings,
    dtype: torch.dtype,
    heard: LayerStatistics,
    bits: Mapping[str, int] | None = None,
) -> QuantisedBlock:
    """Quantise a block's layers; the block itself is rescaled (AWQ, SmoothQuant) but keeps its plain layers.

    ``bits``: of each layer by its name in the model, where they are not all alike; layers with ``KEPT`` stay plain.
    """
    result, layers = QuantisedBlock(), layers_of(block)
    plain, inputs = settings.grid(dtype), dict(heard.by_name)
    given = {name: plain.bits if bits is None else bits[f"layers.{index}.{name}"] for name in layers}
    grids = {name: replaced(plain, bits=of_layer) for name, of_layer in given.items() if of_layer != KEPT}
    before = dict(block.named_parameters())
    notes = _rescale(block, settings, grids, inputs)
    rounded = {id(layers[name]) for name in grids}
    for name, parameter in block.named_parameters():
        owner = block.get_submodule(name.rpartition(".")[0])
        if parameter is not before[name] and not (id(owner) in rounded and name.endswith(".weight")):
            result.changed[name] = parameter.detach()
    for name, layer in layers.items():
        if name not in grids:
            result.records += _kept(f"layers.{index}.", name, layer, dtype, heard)
            continue
        stored: list[Stored] = []
        for key, weight_OI in matrices(name, layer).items():
            codes, damping, note = _quantise(weight_OI.float(), name, settings, grids[name], inputs.get(key))
            stored.append(codes)
            note = note or notes.get(name, "")
            result.records.append(_record(f"layers.{index}.{key}", key, weight_OI, codes, heard, inputs, damping, note))
        result.codes[name] = stored[0] if isinstance(layer, Linear) else stored
    return result


def _rescale(
    block: Block, settings: Settings, grids: Mapping[str, Grid], inputs: dict[str, InputStatistics]
) -> dict[str, str]:
    """Rescale a block for AWQ or SmoothQuant, its statistics too; returns what to note of each layer."""
    notes: dict[str, str] = {}
    if settings.method != "awq" and not settings.smoothed:
        return notes
    for source in sources(block):
        if source.fed[0] not in grids:
            continue
        weights = [weight_of(block, name).float() for name in source.fed]
        heard = inputs[source.fed[0]]
        if settings.smoothed:
            factor_I, exponent = smooth_factors(source, weights, heard, settings.smooth)
        else:
            factor_I, exponent = awq_factors(source, weights, grids[source.fed[0]].fitted(weights[0].shape[1]), heard)
        notes |= {name: f"scaled by inputs ^ {exponent:.2f}" for name in source.fed if exponent >= 0}
        rescale(block, source, factor_I)
        scaled = heard.scaled(1 / factor_I)
        inputs |= dict.fromkeys(source.fed, scaled)
    return notes


def _quantise(
    weight_OI: Tensor, name: str, settings: Settings, grid: Grid, inputs: InputStatistics | None
) -> tuple[Stored, float | None, str]:
    """A matrix quantised, the damping that it took, and what is to be noted."""
    if settings.method == "nf4":
        return nf4.quantize(weight_OI.to(grid.scale_dtype)), None, ""
    grid = grid.fitted(weight_OI.shape[1])
    if (settings.in_turn or settings.method == "awq") and (inputs is None or inputs.tokens < LEAST_TOKENS):
        tokens = 0 if inputs is None else inputs.tokens
        return _plainly(weight_OI, settings, grid), None, f"rounded plainly: {tokens} calibration tokens reached it"
    if settings.in_turn and inputs is not None:
        rounded = _in_turn(weight_OI, settings, grid, inputs.hessian())
        note = f"rounded plainly: {rounded.problem}" if rounded.problem else ""
        if not note and rounded.damping > settings.damping:
            note = f"damping raised to {rounded.damping:g}"
        return rounded.codes, None if rounded.problem else rounded.damping, note
    clip_OG = None
    if settings.method == "awq" and settings.clip and inputs is not None and name not in UNCLIPPED:
        clip_OG = best_clips(weight_OI, grid, inputs.hessian())
    if settings.method == "llm-int8":
        return _row_maxima(weight_OI, grid), None, ""
    return encode(weight_OI, fit_scales(weight_OI, grid, clip_OG), grid), None, ""


def _plainly(weight_OI: Tensor, settings: Settings, grid: Grid) -> Codes:
    if settings.method == "codebook":
        return plain_codebook(weight_OI, grid.bits, grid.scale_dtype)
    return round_to_nearest(weight_OI, grid)


def _in_turn(weight_OI: Tensor, settings: Settings, grid: Grid, hessian_II: Tensor) -> Rounded:
    """Column after column, each one's error made up for by the next ones."""
    how: dict[str, Any] = {"damping": settings.damping, "act_order": settings.act_order}
    if settings.method == "codebook":
        return codebook(weight_OI, hessian_II, grid.bits, grid.scale_dtype, **how)
    return gptq(weight_OI, hessian_II, grid, **how)


def _kept(
    prefix: str, name: str, layer: Linear | StackedLinear, dtype: torch.dtype, heard: LayerStatistics
) -> list[LayerRecord]:
    """Records of a layer that stays as it is."""
    bits, found = torch.finfo(dtype).bits, []
    for key in matrices(name, layer):
        tokens = heard.by_name[key].tokens if key in heard.by_name else 0
        note = f"kept in {bits} bits"
        found.append(LayerRecord(prefix + key, bits, -1, 0.0, heard.heard.get(key, 0), tokens, None, note, kept=True))
    return found


def _row_maxima(weight_OI: Tensor, grid: Grid) -> Codes:
    """bitsandbytes' rounding to int8: a row's largest magnitude is 127."""
    scales_OG = weight_OI.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    codes_OI = (weight_OI / scales_OG).round() + 128
    return Codes(codes_OI.to(torch.uint8), scales_OG.to(grid.scale_dtype), None, 8)


def _record(
    name: str,
    key: str,
    weight_OI: Tensor,
    stored: Stored,
    heard: LayerStatistics,
    inputs: Mapping[str, InputStatistics],
    damping: float | None,
    note: str,
) -> LayerRecord:
    codes = as_codes(stored)
    off_OI, weight_OI = codes.dense() - weight_OI.float(), weight_OI.float()
    seen = inputs.get(key)
    error = None if seen is None else seen.error(weight_OI, off_OI)
    if error is None:
        error = float(off_OI.square().sum() / weight_OI.square().sum().clamp(min=1e-30))
    bits = codes.weight_bits if isinstance(stored, Codes) else _nf4_bits(stored)
    size = -1 if codes.scales_OG.shape[1] == 1 else codes.group_size
    tokens = 0 if seen is None else seen.tokens
    return LayerRecord(
        name, bits, size, error if math.isfinite(error) else -1.0, heard.heard.get(key, 0), tokens, damping, note
    )


def _nf4_bits(packed: nf4.NF4) -> float:
    parts = [packed.packed, packed.scales, *([packed.nested] if packed.nested is not None else [])]
    return sum(part.nbytes for part in parts) * 8 / packed.shape.numel()


def as_codes(stored: Stored) -> Codes:
    """What is stored, as codes."""
    return stored if isinstance(stored, Codes) else nf4_codes(stored)


def install(block: Block, result: QuantisedBlock, inputs: str | None) -> None:
    """Put the quantised layers into a block, and what else has changed."""
    for name, tensor in result.changed.items():
        owner, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    for name, codes in result.codes.items():
        old = block.get_submodule(name)
        if isinstance(codes, list):
            replace(block, name, QuantisedStacked([as_codes(one) for one in codes], inputs))
        else:
            assert isinstance(old, Linear)
            replace(block, name, QuantisedLinear(as_codes(codes), old.bias, inputs))
