"""Optimisers by the names of ``Recipe.optimizer``, and which parameters are decayed, scaled or given to Muon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.nn.embedding import Embedding
from tokenmill.train.optim.adafactor import Adafactor
from tokenmill.train.optim.adamw import AdamW
from tokenmill.train.optim.base import Group, Optimizer
from tokenmill.train.optim.moments import paged
from tokenmill.train.optim.muon import Muon

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe

__all__ = ["OPTIMIZERS", "Adafactor", "AdamW", "Group", "Muon", "Optimizer", "build_optimizer", "groups_of"]


def _adamw(recipe: Recipe, **how: Any) -> Callable[..., Optimizer]:
    return partial(AdamW, betas=(recipe.betas[0], recipe.betas[1]), eps=recipe.eps, **how)


OPTIMIZERS: Mapping[str, Callable[[Recipe, Path], Callable[..., Optimizer]]] = {
    "adamw": lambda recipe, folder: _adamw(recipe),
    "adamw_8bit": lambda recipe, folder: _adamw(recipe, moments="8bit"),
    "paged_adamw": lambda recipe, folder: _adamw(recipe, allocate=partial(paged, folder=folder)),
    "paged_adamw_8bit": lambda recipe, folder: _adamw(recipe, moments="8bit", allocate=partial(paged, folder=folder)),
    "muon": lambda recipe, folder: partial(
        Muon, betas=(recipe.betas[0], recipe.betas[1]), eps=recipe.eps, momentum=recipe.momentum
    ),
    "adafactor": lambda recipe, folder: Adafactor,
}


def build_optimizer(
    network: nn.Module, recipe: Recipe, folder: Path, lr_scales: Mapping[str, float] | None = None
) -> Optimizer:
    """The recipe's optimiser over the trainable parameters; ``folder`` is where paged state may lie.

    ``lr_scales``: parameters that learn so many times as fast (LoRA+; ``adapt.learning_rates`` knows them).
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError("nothing to train: no parameter of the model is trainable")
    if recipe.optimizer not in OPTIMIZERS:
        known = f"{did_you_mean(recipe.optimizer, OPTIMIZERS)}; known: {', '.join(OPTIMIZERS)}"
        raise ConfigError(f"unknown optimiser {recipe.optimizer!r}{known}")
    groups = groups_of(network, weight_decay=recipe.weight_decay, lr_scales=lr_scales or {})
    return OPTIMIZERS[recipe.optimizer](recipe, folder)(parameters, groups)


def groups_of(network: nn.Module, *, weight_decay: float, lr_scales: Mapping[str, float]) -> dict[str, Group]:
    """No decay on embeddings, biases and norms (OLMo); Muon for matrices that are neither embedding nor head."""
    tables = {id(p) for m in network.modules() if isinstance(m, Embedding) for p in m.parameters()}
    head = getattr(network, "head", None)
    outputs = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    groups = {}
    for name, parameter in network.named_parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        groups[name] = Group(
            lr_scale=lr_scales.get(name, 1.0),
            weight_decay=weight_decay if matrix else 0.0,
            matrix=matrix and id(parameter) not in outputs,
        )
    return groups
