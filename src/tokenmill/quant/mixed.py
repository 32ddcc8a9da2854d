"""Bits by sensitivity: which layers need many and which do with few, under a budget of bits a weight.

Where inputs are rounded too (W8A8) the choice is between 8 bits and none: the layers that lose most stay as they are.

What a rounded layer does to the model's distributions is, to the second order, half the Fisher information's quadratic
form of its error: with D the error of the weights, x a layer's input and g the gradient of the log probability of a
token that the model itself would say, KL is about the mean of (g D x)^2 / 2 (D x: what rounding does to the outputs,
that of inputs included). One pass forwards and backwards over some calibration tokens gives it for every layer and
every number of bits. Layers that programs fuse (queries, keys and values; gate and up) get the same.

Axes: T tokens · C hidden size · I inputs · O outputs · V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.core.errors import UsageError
from tokenmill.core.paths import atomic_write
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Block, Decoder
from tokenmill.nn.linear import Linear
from tokenmill.ops.rounding import ROUNDINGS
from tokenmill.quant.grid import Grid, round_to_nearest
from tokenmill.quant.layers import layers_of
from tokenmill.quant.rescale import Source, smooth_factors, sources, weight_of
from tokenmill.quant.settings import KEPT, Settings
from tokenmill.quant.statistics import InputStatistics

FUSED = ({"q", "k", "v"}, {"gate", "up"})
TOKENS = 2048
"""Calibration tokens that are looked at, in batches of half as many: gradients of a layer need no more."""
LOGIT_ROWS = 128


@dataclass(frozen=True)
class Unit:
    """Layers that get the same number of bits, and what each number would cost and lose."""

    layers: tuple[str, ...]
    """``layers.3.attn.q``."""
    cost: dict[int, float]
    """All bits of these layers, scales and zeros included, by bits of a weight that can be chosen."""
    loss: dict[int, float]
    """Nats a token, by bits of a weight; an estimate."""


def measure(
    decoder: Decoder, documents: Sequence[Tensor], settings: Settings, dtype: torch.dtype = torch.float16
) -> list[Unit]:
    """What every unit of a model would cost and lose with each number of bits that it may have, its weights rounded
    plainly. ``dtype``: of scales, and of layers that stay as they are."""
    found = [_unit(f"layers.{index}", block, settings, dtype) for index, block in enumerate(_blocks(decoder))]
    units = [unit for of_block in found for unit in of_block]
    by_layer = {name: unit for unit in units for name in unit.layers}
    generator, tokens = torch.Generator().manual_seed(0), 0
    for batch in _batches(documents):
        _hear(decoder, batch, _Trials(decoder, settings, dtype), by_layer, generator)
        tokens += sum(len(document) for document in batch)
    for unit in units:
        unit.loss.update({bits: loss / tokens for bits, loss in unit.loss.items()})
    return units


def _blocks(decoder: Decoder) -> list[Block]:
    return [block for block in decoder.layers if isinstance(block, Block)]


def _unit(prefix: str, block: Block, settings: Settings, dtype: torch.dtype) -> list[Unit]:
    """The units of a block; nothing is known of their losses yet."""
    grouped: dict[object, list[str]] = {}
    layers, grid = layers_of(block), settings.grid(dtype)
    for name in layers:
        owner, _, leaf = name.rpartition(".")
        fused = next((number for number, names in enumerate(FUSED) if leaf in names), leaf)
        grouped.setdefault((owner, fused), []).append(name)
    return [
        Unit(
            tuple(f"{prefix}.{name}" for name in names),
            {bits: sum(_cost(layers[name].weight, bits, grid, dtype) for name in names) for bits in settings.choices},
            dict.fromkeys(settings.choices, 0.0),
        )
        for names in grouped.values()
    ]


def _cost(weight: Tensor, bits: int, grid: Grid, dtype: torch.dtype) -> float:
    """Bits of a matrix, or of all experts' matrices."""
    if bits == KEPT:
        return weight.numel() * torch.finfo(dtype).bits
    columns = weight.shape[-1]
    scale = torch.finfo(grid.scale_dtype).bits + (0 if grid.symmetric else bits)
    return weight.numel() * bits + weight.numel() // columns * grid.fitted(columns).groups(columns) * scale


def _batches(documents: Sequence[Tensor]) -> list[list[Tensor]]:
    """Documents from all over the calibration, up to ``TOKENS`` in all."""
    batches: list[list[Tensor]] = [[]]
    wanted = max(1, TOKENS * len(documents) // max(1, sum(map(len, documents))))
    for document in documents[:: max(1, len(documents) // wanted)][:wanted]:
        if sum(map(len, batches[-1])) >= TOKENS // 2:
            batches.append([])
        batches[-1].append(document)
    return batches


def _hear(
    decoder: Decoder, batch: list[Tensor], trials: _Trials, by_layer: Mapping[str, Unit], generator: torch.Generator
) -> None:
    """Add a batch's losses to those of the units: forwards, then backwards with gradients told layer by layer."""
    handles = [
        decoder.get_submodule(name).register_forward_hook(_listener(name, unit, trials))
        for name, unit in by_layer.items()
    ]
    try:
        with torch.enable_grad():
            tokens_T = torch.cat(batch).to(decoder.device)
            x_TC = decoder.embed(tokens_T).detach().requires_grad_()
            hidden_TC = decoder.run(x_TC, Packed([len(document) for document in batch], decoder.device))
            hidden_TC.backward(_gradient(decoder, hidden_TC, generator))
    finally:
        for handle in handles:
            handle.remove()


def _gradient(decoder: Decoder, hidden_TC: Tensor, generator: torch.Generator) -> Tensor:
    """Of the log probabilities of tokens drawn from what the model says, by the last hidden states."""
    leaf_TC = hidden_TC.detach().requires_grad_()
    for rows_TC in leaf_TC.split(LOGIT_ROWS):
        logits_TV = decoder.logits(rows_TC).float()
        drawn_T1 = torch.multinomial(logits_TV.detach().softmax(-1).cpu(), 1, generator=generator)
        F.cross_entropy(logits_TV, drawn_T1[:, 0].to(logits_TV.device), reduction="sum").backward()
    assert leaf_TC.grad is not None
    return leaf_TC.grad


class _Trials:
    """Layers rounded for a trial, on one batch's inputs."""

    def __init__(self, decoder: Decoder, settings: Settings, dtype: torch.dtype) -> None:
        self._settings, self._grid = settings, settings.grid(dtype)
        self._sources: dict[str, tuple[Block, Source]] = {}
        self._factors: dict[tuple[int, Source], Tensor] = {}
        """Of sources that were met; layers with the same inputs share one."""
        for index, block in enumerate(_blocks(decoder) if settings.smoothed else ()):
            self._sources |= {f"layers.{index}.{name}": (block, one) for one in sources(block) for name in one.fed}

    def factor(self, name: str, x_TI: Tensor) -> Tensor | None:
        """What a layer's columns are to be multiplied by and its inputs divided by, where outliers are moved."""
        if name not in self._sources:
            return None
        block, source = self._sources[name]
        if (id(block), source) not in self._factors:
            heard = InputStatistics.empty(x_TI.shape[-1], x_TI.device)
            heard.add(x_TI)
            weights = [weight_of(block, fed).float() for fed in source.fed]
            self._factors[id(block), source] = smooth_factors(source, weights, heard, self._settings.smooth)[0]
        return self._factors[id(block), source]

    def off(self, x_TI: Tensor, weight_OI: Tensor, bits: int, factor_I: Tensor | None) -> Tensor:
        """What rounding changes of a layer's outputs, [T, O]."""
        grid = replace(self._grid, bits=bits).fitted(x_TI.shape[1])
        if self._settings.inputs is None:
            return x_TI @ (round_to_nearest(weight_OI, grid).dense() - weight_OI).t()
        rounded_TI, scaled_OI = (x_TI, weight_OI) if factor_I is None else (x_TI / factor_I, weight_OI * factor_I)
        rounded_TI = ROUNDINGS[self._settings.inputs](rounded_TI)
        return rounded_TI @ round_to_nearest(scaled_OI, grid).dense().t() - x_TI @ weight_OI.t()


def _listener(name: str, unit: Unit, trials: _Trials) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
    """A hook that waits for the gradient of a layer's outputs and adds to the losses of its unit."""

    def listen(layer: nn.Module, given: tuple[object, ...], out: Tensor) -> None:
        x = given[0]
        assert isinstance(x, Tensor)
        weight_OI = layer.weight if isinstance(layer, Linear) else layer.weight[given[1]]  # type: ignore[index]
        assert isinstance(weight_OI, Tensor)
        x_TI = x.detach().reshape(-1, x.shape[-1])
        factor_I = trials.factor(name, x_TI)

        @torch.no_grad()
        def tell(gradient: Tensor) -> None:
            gradient_TO = gradient.reshape(-1, gradient.shape[-1])
            for bits in unit.cost:
                if bits != KEPT:
                    off_TO = trials.off(x_TI, weight_OI, bits, factor_I)
                    unit.loss[bits] += float((off_TO * gradient_TO).sum(-1).square().sum()) / 2

        out.register_hook(tell)

    return listen


def choose(units: Sequence[Unit], weights: int, budget: float, least: int) -> dict[str, int]:
    """Bits of every layer, so that the losses' sum is small and the costs' at most ``budget`` bits a weight.

    From the least on, the step that saves most nats for its bits is taken as long as one fits: steps along each unit's
    lower hull, so that none hides a better one behind it. UsageError for a budget that even the least overruns.
    """
    left = budget * weights - sum(unit.cost[least] for unit in units)
    if left < 0:
        raise UsageError(
            f"a budget of {budget:g} bits a weight is too small: {least} bits everywhere take "
            f"{budget - left / weights:.3f} with their scales"
        )
    chosen = [least] * len(units)
    while True:
        best, number, bits = 0.0, -1, 0
        for n, unit in enumerate(units):
            for more in (b for b in unit.cost if b > chosen[n]):
                step = unit.cost[more] - unit.cost[chosen[n]]
                gain = (unit.loss[chosen[n]] - unit.loss[more]) / step
                if step <= left and gain > best:
                    best, number, bits = gain, n, more
        if number < 0:
            break
        left -= units[number].cost[bits] - units[number].cost[chosen[number]]
        chosen[number] = bits
    return {name: bits for unit, bits in zip(units, chosen, strict=True) for name in unit.layers}


def chosen_bits(
    decoder: Decoder, documents: Sequence[Tensor], settings: Settings, dtype: torch.dtype, path: Path
) -> tuple[dict[str, int], dict[str, float]]:
    """Bits of every layer (``KEPT``: as it is), and what each layer's unit is thought to lose by them in nats a token.

    Kept in ``path``, where a run that goes on finds them.
    """
    if not path.is_file():
        assert settings.budget is not None
        units = measure(decoder, documents, settings, dtype)
        weights = sum(layer.weight.numel() for block in _blocks(decoder) for layer in layers_of(block).values())
        chosen = choose(units, weights, settings.budget, settings.bits)
        losses = {name: unit.loss[chosen[name]] for unit in units for name in unit.layers}
        with atomic_write(path) as file:
            file.write(json.dumps({"bits": chosen, "losses": losses}, indent=1).encode())
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["bits"], found["losses"]
