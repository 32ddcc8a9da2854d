"""Whole layers taken out: which of them matter least, and the model without them.

- influence: 1 - the mean cosine between what enters a layer and what leaves it (ShortGPT, Men 2024); the lowest go.
- angular: the run of neighbours whose first input and last output point most nearly the same way (Gromov 2024).
- even: kept layers are spread evenly, the first and the last among them; needs no data.

Sources: 2403.03853, 2403.17887. Axes: T tokens · C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError, UsageError, did_you_mean
from tokenmill.models.load import Model, build, read_config
from tokenmill.models.walk import walk

Rule = Literal["influence", "angular", "even"]
RULES: tuple[str, ...] = get_args(Rule)
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def check_rule(rule: str) -> None:
    """UsageError for a rule that is none of these."""
    if rule not in RULES:
        raise UsageError(f"no rule is named {rule!r}{did_you_mean(rule, RULES)}; known: {', '.join(RULES)}")


@torch.no_grad()
def layers_to_keep(
    model: Model,
    count: int,
    rule: Rule,
    documents: Sequence[Tensor] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[int], list[float]]:
    """The numbers of the layers that stay, in order, and every layer's score (empty for ``even``).

    A score is that of the rule: of a layer alone, or (angular) of the run that begins there. ConfigError and UsageError
    as :func:`tokenmill.models.walk.walk`, and for a count that leaves nothing or takes nothing.
    """
    total = model.decoder.config.num_layers
    if not 0 < count < total:
        raise UsageError(f"{count} layers cannot be kept of {total}: give a number from 1 to {total - 1}")
    if rule == "even":
        return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)}), []
    states = _states(model, documents, progress)
    if rule == "influence":
        scores = [1 - _cosine(states[i], states[i + 1]) for i in range(total)]
        gone = set(sorted(range(total), key=lambda i: scores[i])[: total - count])
    else:
        run = total - count
        scores = [_angle(states[i], states[i + run]) for i in range(total - run + 1)]
        first = min(range(len(scores)), key=lambda i: scores[i])
        gone = set(range(first, first + run))
    return [i for i in range(total) if i not in gone], scores


def _states(model: Model, documents: Sequence[Tensor], progress: Callable[[int, int], None] | None) -> list[Tensor]:
    """Directions [T, C] of what enters each layer and of what leaves the last, of at most some thousand tokens."""
    total = model.decoder.config.num_layers
    states: list[Tensor] = []
    for step in walk(model.decoder, documents):
        states.append(_directions(step.inputs))
        if progress is not None:
            progress(step.index + 1, total)
    return [*states, _directions(list(step.outputs()))]


def _directions(states: Sequence[Tensor]) -> Tensor:
    return nn.functional.normalize(torch.cat([x_TC[-512:] for x_TC in states]).float(), dim=-1).half()


def _cosine(one_TC: Tensor, other_TC: Tensor) -> float:
    return float((one_TC.float() * other_TC.float()).sum(-1).mean())


def _angle(one_TC: Tensor, other_TC: Tensor) -> float:
    cosines_T = (one_TC.float() * other_TC.float()).sum(-1).clamp(-1, 1)
    return float(cosines_T.acos().mean() / torch.pi)


def keep_layers(model: Model, kept: Sequence[int]) -> Model:
    """The model with these layers only, in this order; tensors are shared with the old one.

    ConfigError where the family's layers differ by their number in a way that its configuration cannot say for some
    of them.
    """
    config: dict[str, Any] = dict(model.config)
    total = model.decoder.config.num_layers
    config |= {name: len(kept) for name in _COUNTS if name in config}
    for name, value in config.items():
        if isinstance(value, list) and len(value) == total and name == "layer_types":
            config[name] = [value[i] for i in kept]
    family, ours = read_config(config, "the pruned model")
    wanted = [model.decoder.config.layers[i] for i in kept]
    if list(ours.layers) != wanted:
        raise ConfigError(f"layers of {family.name} differ by their number (sliding windows, experts): without some of "
                          "them its configuration would mean others")  # fmt: skip
    network = build(ours)
    old = dict(model.decoder.named_parameters())
    for name, _ in list(network.named_parameters()):
        head, _, rest = name.partition("layers.")
        number, _, leaf = rest.partition(".")
        theirs = f"layers.{kept[int(number)]}.{leaf}" if not head and rest else name
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, nn.Parameter(old[theirs].detach(), requires_grad=False))
    return Model(network, family, config, dict(model.generation_config))
