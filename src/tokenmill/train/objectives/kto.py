"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): answers that were judged one by one, against a running baseline.

The baseline is the divergence of policy and reference, measured on answers to other prompts. It is one number for the
whole optimiser step, over all micro-batches and processes, so the gradient does not depend on how a step is split; TRL
measures it for every micro-batch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenmill.config.parts import PreferenceConfig
from tokenmill.train.distributed import World
from tokenmill.train.objectives.base import Loss
from tokenmill.train.objectives.logprobs import answer_logprobs

if TYPE_CHECKING:
    from tokenmill.data.batch import ComparedBatch


class Kto:
    """``kl``: the baseline of the step; None measures it on the batch alone (evaluation)."""

    def __init__(self, config: PreferenceConfig, kl: float | None = None) -> None:
        self.config, self.kl = config, kl

    def of_step(self, model: Any, batches: Sequence[ComparedBatch], world: World) -> Kto:
        """The same with the baseline of these batches."""
        sums = [_divergence(model, batch.to(model.device)) for batch in batches]
        total, count = world.sum([sum(sums), float(sum(batch.num_labels for batch in batches))])
        return Kto(self.config, max(0.0, total / max(count, 1.0)))

    def __call__(self, model: Any, batch: ComparedBatch) -> Loss:
        config = self.config
        kl = self.kl
        if kl is None:
            kl = max(0.0, _divergence(model, batch) / batch.num_labels)
        logps_P = answer_logprobs(model, batch.side(0))
        ratios_P = logps_P - batch.reference_P2[:, 0]
        good_P = batch.good_P
        gains_P = (ratios_P - kl).where(good_P, kl - ratios_P)
        losses_P = 1 - torch.sigmoid(config.beta * gains_P)
        weights_P = torch.where(good_P, config.desirable_weight, config.undesirable_weight)
        metrics = {**_metrics(config.beta * ratios_P.detach(), logps_P.detach(), good_P), "kl": kl * batch.num_labels}
        return Loss((weights_P * losses_P).sum(), batch.num_labels, metrics)


@torch.no_grad()
def _divergence(model: Any, batch: ComparedBatch) -> float:
    """Summed log-ratio on the mismatched answers."""
    return float((answer_logprobs(model, batch.side(1)) - batch.reference_P2[:, 1]).sum())


def _metrics(rewards_P: Tensor, logps_P: Tensor, good_P: Tensor) -> dict[str, float | tuple[float, float]]:
    """Means over the good and over the bad answers, by TRL's names; an accuracy is a reward on the right side of 0."""
    counts = {"chosen": (good_P, float(good_P.sum())), "rejected": (~good_P, float((~good_P).sum()))}
    found: dict[str, float | tuple[float, float]] = {"rewards/accuracies": float(((rewards_P > 0) == good_P).sum())}
    for name, (kept_P, count) in counts.items():
        found[f"rewards/{name}"] = (float(rewards_P[kept_P].sum()), count)
        found[f"logps/{name}"] = (float(logps_P[kept_P].sum()), count)
    return found
