"""Several models of one shape made into one, tensor by tensor: what is in memory is one tensor of each.

With weights w_i, a base b where there is one, and differences d_i = t_i - b:

- linear: the mean of t_i by weight (model soups, Wortsman 2022).
- slerp: two models, along the arc between them (Shoemake 1985); the second's share is its part of both weights.
- task-arithmetic: b + λ Σ w_i d_i (Ilharco 2023).
- ties: of each d_i the ``density`` largest are kept; of every weight the sign that has more behind it is elected, and
  those of this sign are averaged by weight (Yadav 2023): b + λ mean.
- dare: of each d_i every value stays with the chance ``density`` and is divided by it: b + λ Σ w_i d_i (Yu 2024).
- dare-ties: the same drawing, then signs elected as in ties.

Refused: models whose tensors, configuration or tokenizers differ, each named.
Sources: 2203.05482, 2212.04089, 2306.01708, 2311.03099; mergekit's defaults (ties is normalised, the others are not).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError, UsageError, did_you_mean
from tokenmill.formats import open_tensors
from tokenmill.formats.gguf import GGUFFile
from tokenmill.formats.hf_folder import HFFolder
from tokenmill.models.load import build, config_of, names_of, read_any_config, stored_dtype, tokenizer_from_file
from tokenmill.models.weights import Slot, file_shapes, file_tensor, slot_parameters, slots
from tokenmill.text.same import differences

Method = Literal["linear", "slerp", "ties", "dare", "dare-ties", "task-arithmetic"]
METHODS: tuple[str, ...] = get_args(Method)
BASED = METHODS[2:]
"""Methods that add differences to a base."""
PARALLEL = 0.9995
"""Cosine above which an arc is a line (mergekit)."""


@dataclass(frozen=True)
class Recipe:
    """How tensors are made into one."""

    method: Method = "linear"
    weights: tuple[float, ...] = ()
    """One a model; empty: all alike."""
    density: float = 0.5
    """ties, dare: the share of every difference that stays."""
    scale: float = 1.0
    """λ: of what is added to the base."""
    seed: int = 0
    """dare: of the drawing."""

    def check(self, models: int, base: bool) -> None:
        """UsageError for what contradicts itself."""
        if self.method not in METHODS:
            known = f"{did_you_mean(self.method, METHODS)}; known: {', '.join(METHODS)}"
            raise UsageError(f"no way to merge is named {self.method!r}{known}")
        if self.weights and len(self.weights) != models:
            raise UsageError(f"{len(self.weights)} weights for {models} models: give one for each")
        if self.method == "slerp" and models != 2:
            raise UsageError(f"slerp goes from one model to another; {models} were given")
        if (self.method in BASED) != base:
            need = "adds differences to a base: give --base" if self.method in BASED else "has no base"
            raise UsageError(f"--method {self.method} {need}")
        if not 0 < self.density <= 1:
            raise UsageError(f"density {self.density} is not a share above 0, up to 1")
        if self.method in ("linear", "slerp") and self.weights and sum(self.weights) == 0:
            raise UsageError("weights that sum to 0 are no mean")


def check_flags(method: str, given: Mapping[str, object]) -> None:
    """UsageError for a setting that the method does not read; None is not given."""
    reads = {"density": ("ties", "dare", "dare-ties"), "scale": BASED, "seed": ("dare", "dare-ties")}
    for name, methods in reads.items():
        if given.get(name) is not None and method in METHODS and method not in methods:
            raise UsageError(f"--{name} means nothing to --method {method}")


class Member:
    """A model that is merged: its tensors under the hub's names, in float32, read when they are asked for."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.file = name, open_tensors(path)
        self.config, self.generation_config = config_of(self.file)
        self.family, ours = read_any_config(self.config, name)
        self.network = build(ours)
        if not isinstance(self.file, GGUFFile | HFFolder):
            raise ConfigError(f"{name}: quantised folders cannot be merged; merge the originals and quantise again")
        self._of: dict[str, Slot] = {}
        for slot in slots(self.network, names_of(self.file, self.family)[0]):
            self._of |= {f"{ours}#{slot.expert}": slot for ours in slot.ours}

    @property
    def dtype(self) -> torch.dtype:
        """What its file keeps most of its numbers in; float32 for one of quantised blocks."""
        return stored_dtype(self.file) or torch.float32

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor under its name on the hub."""
        return file_shapes(self.network, self.family.weights)

    def load(self, slot: Slot) -> Tensor:
        """The tensor of a slot of the hub's table."""
        parts = []
        for ours in slot.ours:
            one, stacked = self._of.get(f"{ours}#{slot.expert}"), self._of.get(f"{ours}#None")
            source = one or stacked
            assert source is not None, ours
            part = slot_parameters(self.network, self.file, source)[source.ours.index(ours)]
            parts.append(part if one is not None else part[slot.expert])
        return file_tensor(self.network, slot, parts)


def check_alike(members: Sequence[Member]) -> None:
    """ConfigError naming the first tensor, or what of the tokenizers, that differs from the first model's."""
    first, *others = members
    tokenizer = tokenizer_from_file(first.file)
    for other in others:
        if other.family.name != first.family.name:
            raise ConfigError(f"{first.name} is a {first.family.name} and {other.name} a {other.family.name}: their "
                              "tensors do not mean the same")  # fmt: skip
        mine, theirs = first.shapes(), other.shapes()
        for name in [*mine, *theirs]:
            if mine.get(name) != theirs.get(name):
                shown = [list(shapes[name]) if name in shapes else "none" for shapes in (mine, theirs)]
                raise ConfigError(f"{first.name} and {other.name} differ in shape: {name} is {shown[0]} and {shown[1]}")
        if odd := differences(tokenizer, tokenizer_from_file(other.file)):
            raise ConfigError(f"{first.name} and {other.name} have different tokenizers: {'; '.join(odd)}")
        if other.network.config != first.network.config:
            raise ConfigError(f"{first.name} and {other.name} compute in different ways (rotary base, norms, scales): "
                              "their configurations differ")  # fmt: skip


def blended(
    members: Sequence[Member],
    recipe: Recipe,
    base: Member | None = None,
    *,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The merged tensors under the hub's names. ``dtype``: None is the first model's, float32 for quantised files."""
    recipe.check(len(members), base is not None)
    check_alike([*members, *([] if base is None else [base])])
    first = members[0]
    dtype = dtype or first.dtype
    every = list(slots(first.network, first.family.weights))
    for number, slot in enumerate(every):
        tensors = [member.load(slot) for member in members]
        origin = None if base is None else base.load(slot)
        yield slot.theirs, blend(slot.theirs, tensors, recipe, origin).to(dtype)
        if progress is not None:
            progress(number + 1, len(every))


def blend(name: str, tensors: Sequence[Tensor], recipe: Recipe, base: Tensor | None = None) -> Tensor:
    """One tensor of all models. ``name`` gives each tensor draws of its own."""
    weights = list(recipe.weights) or [1.0] * len(tensors)
    if recipe.method == "linear":
        mixed = sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
        return mixed / sum(weights)
    if recipe.method == "slerp":
        return slerp(tensors[0], tensors[1], weights[1] / sum(weights))
    assert base is not None, "checked by Recipe.check"
    changes = [tensor - base for tensor in tensors]
    if recipe.method == "ties":
        changes = [_largest(change, recipe.density) for change in changes]
    elif recipe.method.startswith("dare"):
        changes = [_drawn(f"{recipe.seed} {i} {name}", d, recipe.density) for i, d in enumerate(changes)]
    if recipe.method.endswith("ties"):
        return base + recipe.scale * _elected(changes, weights)
    return base + recipe.scale * sum((w * d for w, d in zip(weights, changes, strict=True)), torch.zeros_like(base))


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """The point at this share of the arc from one tensor to another, taken as vectors; of the line, where they point
    the same way or one of them is zero."""
    norms = one.norm() * other.norm()
    cosine = float((one * other).sum() / norms) if norms > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(one, other, share)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    before, after = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    return float(before) * one + float(after) * other


def _largest(change: Tensor, density: float) -> Tensor:
    """The largest values of a difference, the others zero."""
    count = max(1, round(density * change.numel()))
    kept = change.abs().flatten().topk(count).indices
    return torch.zeros_like(change).flatten().index_copy_(0, kept, change.flatten()[kept]).view_as(change)


def _drawn(key: str, change: Tensor, density: float) -> Tensor:
    """Values that stay by chance, divided by it."""
    draw = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return change * (torch.rand(change.shape, generator=draw) < density) / density


def _elected(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean, by weight, of the values whose sign the sum has."""
    weighted = torch.stack([w * d for w, d in zip(weights, changes, strict=True)])
    sign = weighted.sum(0).sign()
    agrees = (weighted.sign() == sign) & (weighted != 0)
    counted = torch.stack([agrees[i] * weights[i] for i in range(len(weights))]).sum(0)
    return (weighted * agrees).sum(0) / counted.where(counted.abs() > 1e-8, 1.0)
