"""PPO against a reference written from its papers: advantages, loss and gradients on a fixed batch, float32.

The reference is padded, quadratic and naive: sums over what follows instead of a recursion, a document a pass, a mask
for what does not count.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes.tiny_llm import tiny_folder
from tokenmill.align.gae import KlControl, gae, token_rewards, whiten
from tokenmill.config.policy import PolicyConfig
from tokenmill.config.ppo import PpoConfig
from tokenmill.data.batch import NO_LABEL
from tokenmill.data.rollout_batch import RolloutBatch
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.models.scorer import add_score_head
from tokenmill.nn.context import Packed
from tokenmill.nn.critic import Critic
from tokenmill.nn.scorer import Scorer
from tokenmill.train.objectives.ppo import Ppo, evaluate

PROMPTS = ([5, 1, 17], [60, 2, 33, 9], [7, 8])
ANSWERS = ([88, 41, 3, 70, 12], [11], [90, 4, 4, 31])
COUNTS = [len(answer) for answer in ANSWERS]
SCORES = torch.tensor([1.5, -0.5, 0.25])
TEMPERATURE, GAMMA, LAMBDA, WEIGHT = 0.7, 0.98, 0.9, 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("ppo"))


def model_with_critic(folder: Path, own: bool) -> Model:
    model = load_model(folder, dtype="float32", device="cpu")
    size = model.network.config.hidden_size
    trunk = None
    if own:
        scorer = add_score_head(load_model(folder, dtype="float32", device="cpu"), seed=1, pad_token_id=0).network
        assert isinstance(scorer, Scorer)
        trunk = scorer
    critic = Critic(size, trunk)
    if critic.weight is not None:
        critic.weight.data = torch.randn(size, generator=torch.Generator().manual_seed(1)) / size**0.5
    critic.bias.data.fill_(0.2)
    model.network.add_module("critic", critic)
    model.network.requires_grad_(True)
    return model


def noise(seed: int, scale: float) -> Tensor:
    return scale * torch.randn(sum(COUNTS), generator=torch.Generator().manual_seed(seed))


def packed(values_N: Tensor) -> Tensor:
    """Values of answers' tokens where their labels stand."""
    parts, begin = [], 0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        parts += [torch.zeros(len(prompt) - 1), values_N[begin : begin + len(answer)]]
        begin += len(answer)
    return torch.cat(parts)


def batch_of(**values: Tensor) -> RolloutBatch:
    documents = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    labels = [[NO_LABEL] * (len(prompt) - 1) + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    return RolloutBatch(
        tokens_T=torch.tensor([token for document in documents for token in document[:-1]]),
        labels_T=torch.tensor([label for one in labels for label in one]),
        lengths=[len(document) - 1 for document in documents],
        indices=[0, 1, 2],
        sampler_T=torch.zeros(sum(len(document) - 1 for document in documents)),
        per_token=True,
        **{name: packed(value) for name, value in values.items()},
    )


# --- the reference: [S, L] with a mask


def padded(values_N: Tensor) -> tuple[Tensor, Tensor]:
    longest = max(COUNTS)
    values_SL, mask_SL = torch.zeros(len(COUNTS), longest), torch.zeros(len(COUNTS), longest, dtype=torch.bool)
    begin = 0
    for row, count in enumerate(COUNTS):
        values_SL[row, :count] = values_N[begin : begin + count]
        mask_SL[row, :count] = True
        begin += count
    return values_SL, mask_SL


def reference_advantages(rewards_SL: Tensor, values_SL: Tensor, mask_SL: Tensor) -> Tensor:
    """Equation 16 of the GAE paper: the exponentially weighted sum of all later residuals."""
    advantages_SL = torch.zeros_like(values_SL)
    for row in range(len(values_SL)):
        count = int(mask_SL[row].sum())
        values = torch.cat((values_SL[row, :count], torch.zeros(1)))
        residuals = rewards_SL[row, :count] + GAMMA * values[1:] - values[:-1]
        for at in range(count):
            weights = (GAMMA * LAMBDA) ** torch.arange(count - at)
            advantages_SL[row, at] = (weights * residuals[at:]).sum()
    return advantages_SL


def reference_forward(model: Model) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values of answers' tokens, [N], a document a pass, by the softmax over all words."""
    logps, values = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        tokens = torch.tensor([*prompt, *answer])
        context = Packed([len(tokens)], tokens.device)
        hidden_TC = model.network.hidden(tokens, context)
        spread_TV = (model.network.logits(hidden_TC).float() / TEMPERATURE).log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(tokens) - 1)
        logps.append(spread_TV[at, tokens[at + 1]])
        critic: Critic = model.network.critic
        if critic.trunk is None:
            assert critic.weight is not None
            values.append(hidden_TC[at] @ critic.weight + critic.bias)
        else:
            values.append(critic.trunk.score(critic.trunk.hidden(tokens, context))[at, 0] + critic.bias)
    return torch.cat(logps), torch.cat(values)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_loss_and_gradients(folder: Path, own: bool, clip: float) -> None:
    ours, theirs = model_with_critic(folder, own), model_with_critic(folder, own)
    logps_N, values_N = (value.detach() for value in reference_forward(theirs))
    old_N, before_N = logps_N + noise(1, 0.4), values_N + noise(2, 0.5)  # far enough for every clip to work
    advantages_N, returns_N = noise(3, 1.0), values_N + noise(4, 0.5)

    policy = PolicyConfig(clip_low=0.2, clip_high=0.3, temperature=TEMPERATURE, correction="off")
    objective = Ppo(policy, PpoConfig(value_clip=clip, value_weight=0.5))
    given = {"advantages_T": advantages_N, "old_T": old_N, "values_T": before_N, "returns_T": returns_N}
    loss = objective(ours.network, batch_of(**given))
    assert loss.count == sum(COUNTS)
    (loss.sum / loss.count).backward()

    logps_N, values_N = reference_forward(theirs)
    ratio_N = (logps_N - old_N).exp()
    unclipped_N, clipped_N = ratio_N * advantages_N, ratio_N.clip(0.8, 1.3) * advantages_N
    surrogate = torch.stack((unclipped_N, clipped_N)).amin(0).mean()
    errors_N = (values_N - returns_N) ** 2
    if clip:
        bounded_N = torch.minimum(torch.maximum(values_N, before_N - clip), before_N + clip)
        errors_N = torch.maximum(errors_N, (bounded_N - returns_N) ** 2)
    expected = -surrogate + 0.5 * 0.5 * errors_N.mean()
    expected.backward()

    assert loss.sum.item() / loss.count == pytest.approx(expected.item(), abs=1e-5)
    wanted = {name: p.grad for name, p in theirs.network.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.network.named_parameters() if p.grad is not None}
    assert wanted.keys() == found.keys()
    assert any("critic" in name for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    metrics = {name: value[0] / value[1] for name, value in loss.metrics.items() if isinstance(value, tuple)}
    below_N, above_N = (ratio_N < 0.8) & (advantages_N < 0), (ratio_N > 1.3) & (advantages_N > 0)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(float((below_N | above_N).float().mean()))
    assert metrics["clip_ratio/region_mean"] > 0
    assert metrics["value/loss"] == pytest.approx(float(errors_N.detach().mean() / 2), abs=1e-5)
    assert metrics["policy_loss"] == pytest.approx(-surrogate.item(), abs=1e-5)


def test_what_the_objective_computes_is_what_the_rollout_did(folder: Path) -> None:
    model = model_with_critic(folder, own=False)
    zeros = torch.zeros(sum(COUNTS))
    logps_T, values_T = evaluate(model.network, batch_of(advantages_T=zeros), TEMPERATURE)
    logps_N, values_N = reference_forward(model)
    at = batch_of(advantages_T=zeros).labels_T != NO_LABEL
    torch.testing.assert_close(logps_T[at], logps_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values_T[at], values_N, atol=1e-5, rtol=1e-5)


def test_advantages() -> None:
    kl_N, values_N = noise(5, 0.5), noise(6, 1.0)
    rewards_N = token_rewards(SCORES, kl_N, COUNTS, WEIGHT)
    advantages_N = gae(rewards_N, values_N, COUNTS, gamma=GAMMA, lam=LAMBDA)

    (kl_SL, mask_SL), (values_SL, _) = padded(kl_N), padded(values_N)
    rewards_SL = -WEIGHT * kl_SL
    for row, count in enumerate(COUNTS):
        rewards_SL[row, count - 1] += SCORES[row]
    expected_SL = reference_advantages(rewards_SL, values_SL, mask_SL)
    torch.testing.assert_close(advantages_N, expected_SL[mask_SL], atol=1e-5, rtol=1e-5)

    expected_N = expected_SL[mask_SL]
    white_N = (expected_N - expected_N.mean()) / (expected_N.var() + 1e-8).sqrt()
    torch.testing.assert_close(whiten(advantages_N), white_N, atol=1e-5, rtol=1e-5)
    unshifted_N = expected_N / (expected_N.var() + 1e-8).sqrt()
    shifted_N = whiten(advantages_N, shift=False)
    torch.testing.assert_close(shifted_N - shifted_N.mean(), unshifted_N - unshifted_N.mean(), atol=1e-5, rtol=1e-5)
    assert float(shifted_N.mean()) == pytest.approx(float(expected_N.mean()), abs=1e-6)


def test_lambda_1_is_what_is_left_to_be_had_and_0_one_step() -> None:
    rewards_N, values_N = noise(7, 1.0), noise(8, 1.0)
    whole_N = gae(rewards_N, values_N, COUNTS, gamma=1.0, lam=1.0)
    ends = np.cumsum(COUNTS)
    left = [float(rewards_N[at : ends[np.searchsorted(ends, at, side="right")]].sum()) for at in range(sum(COUNTS))]
    torch.testing.assert_close(whole_N + values_N, torch.tensor(left), atol=1e-5, rtol=1e-5)
    one_N = gae(rewards_N, values_N, [sum(COUNTS)], gamma=GAMMA, lam=0.0)
    next_N = torch.cat((values_N[1:], torch.zeros(1)))
    torch.testing.assert_close(one_N, rewards_N + GAMMA * next_N - values_N)


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (12.0, 1.002), (6.3, 1.0005), (0.0, 0.998), (5.7, 0.9995)])
def test_the_price_of_distance_follows_its_target(kl: float, factor: float) -> None:
    control = KlControl(PpoConfig(kl="adaptive", kl_target=6.0, kl_horizon=1000), 0.5)
    control.update(kl, 10)
    assert control.weight == pytest.approx(0.5 * factor)
    fixed = KlControl(PpoConfig(kl="fixed"), 0.5)
    fixed.update(kl, 10)
    assert fixed.weight == 0.5
