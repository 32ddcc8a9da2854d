"""Reward modelling: the score of the chosen answer beats that of the rejected one (Bradley & Terry 1952).

With the margin of rows that have one (Touvron et al. 2023, Llama 2), and with a weight on the squared sum of a pair's
scores, which keeps them around zero (Eisenstein et al. 2023, arXiv 2312.09244). Equal to TRL 1.16's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import logsigmoid

from tokenmill.config.parts import RewardConfig
from tokenmill.train.objectives.base import Loss

if TYPE_CHECKING:
    from tokenmill.data.batch import ComparedBatch


class BradleyTerry:
    """Negative log-likelihood of the preferences under the difference of the scores."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def __call__(self, model: Any, batch: ComparedBatch) -> Loss:
        rewards_P2 = model.scores(batch.tokens_T, batch.lengths).view(-1, 2)
        chosen_P, rejected_P = rewards_P2.unbind(1)
        losses_P = -logsigmoid(chosen_P - rejected_P - batch.margins_P)
        if self.config.center:
            losses_P = losses_P + self.config.center * (chosen_P + rejected_P).square()
        rewards_P2 = rewards_P2.detach()
        metrics = {
            "rewards/chosen": float(rewards_P2[:, 0].sum()),
            "rewards/rejected": float(rewards_P2[:, 1].sum()),
            "rewards/accuracies": float((rewards_P2[:, 0] > rewards_P2[:, 1]).sum()),
            "rewards/margins": float((rewards_P2[:, 0] - rewards_P2[:, 1]).sum()),
        }
        return Loss(losses_P.sum(), batch.num_labels, metrics)
