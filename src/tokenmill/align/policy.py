"""Policy gradients: the engine writes, rewards judge, the training loop learns. ``train`` has the loop and the loss,
``engine`` the rollouts; this joins them, and is what ``tokenmill train grpo`` calls.

A rollout is ``policy.prompts`` prompts with ``policy.group`` completions each. All processes write and score their
share, then every one holds all of it and learns from its share: so a checkpoint in the middle of a rollout has what is
left, and a run goes on exactly, with any number of processes. What differs between objectives is
:meth:`RolloutSource.judged`, from rewards to advantages; one with a value head overrides it, with advantages of every
token.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenmill.align.advantages import group_advantages, leave_one_out, nanstd, overlong, without_difference
from tokenmill.align.conversations import talk_metrics, told_of, with_tools
from tokenmill.align.experience import Completion, Rollout, batch_of, with_advantages
from tokenmill.align.guards import Guards
from tokenmill.align.on_policy import distillation_feed
from tokenmill.align.reference import PolicyReference
from tokenmill.align.rewards.base import Sample as Answer
from tokenmill.align.rewards.mix import Mix, Scored, build_rewards
from tokenmill.align.rewards.scored import Failure
from tokenmill.align.rollouts import Ask, Writer, Writes, Written, evaluating, seed_of
from tokenmill.config.check_policy import micro_batches
from tokenmill.config.policy import preset_of
from tokenmill.core.errors import ConfigError
from tokenmill.data.loader import random_of
from tokenmill.data.prompts import Prompt, Prompts
from tokenmill.data.rollout_batch import RolloutBatch
from tokenmill.models.load import Model
from tokenmill.store import Store
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.train.distributed import World
from tokenmill.train.evaluate import Evaluation
from tokenmill.train.feed import Feed
from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs
from tokenmill.train.plan import Plan
from tokenmill.train.plan_policy import longest_rollout
from tokenmill.train.watch_protocol import Sample

HELD_OUT = 1
"""The stream of seeds that held-out completions are drawn with: the same in every evaluation."""


class RolloutSource:
    """Micro-batches for ever; a :class:`tokenmill.train.loop.Source`. It writes a new rollout when the last one is
    used up, by the weights of that moment."""

    def __init__(
        self, plan: Plan, model: Model, world: World, writer: Writes, mix: Mix, reference: PolicyReference | None
    ) -> None:
        assert isinstance(plan.splits.train, Prompts)
        self.recipe, self.prompts, self.tokenizer = plan.recipe, plan.splits.train, plan.tokenizer
        self.model, self.world, self.writer, self.mix, self.reference = model, world, writer, mix, reference
        self.preset = preset_of(self.recipe.objective, self.recipe.policy)
        self.accumulate = micro_batches(self.recipe, world.size)
        self._next = 0  # prompts that were asked so far, over all epochs
        self._done = 0  # steps made on the rollout
        self._rollout: Rollout | None = None
        self._last: Rollout | None = None

    # --- the loop's side

    def __iter__(self) -> Iterator[RolloutBatch]:
        policy = self.recipe.policy
        while True:
            if self._rollout is None:
                self._rollout = self._last = self._written()
            batches = self._batches(self._rollout, self._done)
            self._done += 1  # the loop saves between steps, when all of these were asked for
            if self._done == policy.minibatches * policy.iterations:
                self._rollout, self._done = None, 0
            yield from batches

    def state(self) -> dict[str, Any]:
        """Where the run is; JSON. It fits any number of processes."""
        rollout = None if self._rollout is None else self._rollout.state()
        return {"next": self._next, "done": self._done, "rollout": rollout, **self._identity}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. ConfigError: it belongs to other prompts."""
        ours = self._identity
        wrong = [f"{name} was {state.get(name)!r}, is {ours[name]!r}" for name in ours if state.get(name) != ours[name]]
        if wrong:
            raise ConfigError(f"the run cannot go on with these prompts in the same order: {'; '.join(wrong)}")
        self._next, self._done = state["next"], state["done"]
        self._rollout = None if state["rollout"] is None else Rollout.of_state(state["rollout"])

    @property
    def _identity(self) -> dict[str, Any]:
        return {"dataset": self.prompts.fingerprint, "seed": self.recipe.seed}

    def _batches(self, rollout: Rollout, step: int) -> list[RolloutBatch]:
        """This process's micro-batches of a step. Every pass deals the completions anew, those of a prompt apart."""
        policy, size = self.recipe.policy, len(rollout.completions)
        which, part = divmod(step, policy.minibatches)
        order = np.arange(size)
        if policy.minibatches > 1:
            order = random_of(self.recipe.seed, self._next, which).permutation(size)
        each = size // policy.minibatches
        mine = order[part * each : (part + 1) * each][self.world.rank :: self.world.size]
        chosen = [rollout.completions[i] for i in mine]
        parts = np.array_split(np.arange(len(chosen)), self.accumulate)
        return [
            batch_of(
                [chosen[i] for i in part],
                [self.prompts.prompts[chosen[i].prompt].ids.tolist() for i in part],
                per_token=self.preset.mean == "tokens",
                measured=rollout.measured if number == 0 else None,
            )
            for number, part in enumerate(parts)
        ]

    # --- a rollout

    def _written(self) -> Rollout:
        """The next rollout: written, scored, compared; with dynamic sampling, groups without a difference replaced."""
        policy = self.recipe.policy
        groups, measured = self._groups(policy.prompts)
        for _ in range(policy.dynamic_rounds):
            useful = [group for group in groups if not bool(without_difference(_rewards([group]))[0])]
            missing = policy.prompts - len(useful)
            if not missing:
                break
            more, _ = self._groups(missing)
            poor = [group for group in groups if group not in useful]
            fresh = [group for group in more if not bool(without_difference(_rewards([group]))[0])]
            groups = (useful + fresh + poor)[: policy.prompts]
        rewards_GK = _rewards(groups)
        measured = measured | _measured(rewards_GK)
        return Rollout(self.judged(groups, rewards_GK), measured)

    def judged(self, groups: Sequence[Sequence[Completion]], rewards_GK: torch.Tensor) -> list[Completion]:
        """The completions with their advantages, from rewards [G, K], NaN where there is none."""
        scale = self.recipe.policy.scale or "none"
        compare = leave_one_out if self.recipe.objective == "rloo" else group_advantages
        advantages = compare(rewards_GK, scale).flatten().tolist()
        return with_advantages([one for group in groups for one in group], advantages)

    def _groups(self, count: int) -> tuple[list[list[Completion]], dict[str, tuple[float, float]]]:
        """Completions of the next ``count`` prompts, by all processes, and what the rewards measured."""
        first, group = self._next, self.recipe.policy.group
        self._next += count
        mine = [(n, self._prompt(n)) for n in range(first + self.world.rank, first + count, self.world.size)]
        asked = [(n, index, k) for n, index in mine for k in range(group)]
        ids = [self.prompts.prompts[index].ids.tolist() for _, index, _ in asked]
        prompts = [self.prompts.prompts[index] for _, index, _ in asked]
        seeds = [seed_of(self.recipe.seed, n, k) for n, _, k in asked]
        written = self.writer.write([ask_of(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
        scored = self.mix.score(answers(prompts, written, self.tokenizer, [index for _, index, _ in asked]))
        found = [self._completion(index, one) for (_, index, _), one in zip(asked, written, strict=True)]
        found = self._known(found, ids)
        found = [replace(one, reward=self._reward(one, total)) for one, total in zip(found, scored.totals, strict=True)]
        shares = self.world.gather((found, metrics_of(scored) | talk_metrics(written)))
        groups: list[list[Completion]] = [[] for _ in range(count)]
        for rank, (theirs, _) in enumerate(shares):
            for number in range(len(theirs) // group):
                groups[rank + number * self.world.size] = theirs[number * group : (number + 1) * group]
        return groups, _together([measured for _, measured in shares])

    def _prompt(self, ordinal: int) -> int:
        """Which prompt is the ``ordinal``-th of the run: every epoch is a permutation of its own."""
        epoch, place = divmod(ordinal, len(self.prompts))
        return int(random_of(self.recipe.seed, epoch, 0).permutation(len(self.prompts))[place])

    def _completion(self, index: int, written: Written) -> Completion:
        learned = written.finished or not self.recipe.policy.mask_truncated
        given = [list(stretch) for stretch in written.given]  # as a checkpoint gives it back
        return Completion(index, written.ids, written.logprobs, written.finished, learned=learned, given=given)

    def _known(self, found: list[Completion], prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """With log-probabilities by trainer and reference, where the loss or the reward asks for them."""
        policy = self.recipe.policy
        several = policy.minibatches * policy.iterations > 1
        if several or (self.recipe.objective == "rloo" and policy.beta):
            old = self._logprobs(self.model, found, prompts)
            found = [replace(one, old=values) for one, values in zip(found, old, strict=True)]
        if self.reference is not None:
            with self.reference as model:
                reference = self._logprobs(model, found, prompts)
            found = [replace(one, reference=values) for one, values in zip(found, reference, strict=True)]
        return found

    @torch.no_grad()
    def _logprobs(
        self, model: Model, found: Sequence[Completion], prompts: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        network, values = model.decoder, list[list[float]]()
        with evaluating(network):
            for start in range(0, len(found), self.recipe.micro_batch):
                here = slice(start, start + self.recipe.micro_batch)
                learned = [replace(one, learned=True) for one in found[here]]
                batch = batch_of(learned, prompts[here], per_token=False).to(network.device)
                logps_T = batch_logprobs(network, batch, temperature=self.recipe.policy.temperature)
                kept = logps_T[batch.labels_T != NO_LABEL].float().cpu()
                values += [part.tolist() for part in kept.split([one.count for one in learned])]
        return values

    def _reward(self, one: Completion, total: float | None) -> float | None:
        """What all rewards gave, less what length and, for rloo, distance from the reference cost."""
        policy = self.recipe.policy
        if total is None:
            return None
        total += overlong(len(one.ids), policy.completion_tokens, policy.overlong_tokens)
        if self.recipe.objective == "rloo" and policy.beta and one.old is not None and one.reference is not None:
            total -= policy.beta * sum(a - b for a, b in zip(one.old, one.reference, strict=True))
        return total

    # --- what people see

    def samples(self, step: int) -> Iterator[Sample]:
        """Some completions of the last rollout with their rewards: of its first prompt the best, the worst, another."""
        if self._last is None:  # a run that has just gone on
            return
        group = self._last.completions[: self.recipe.policy.group]
        order = sorted(range(len(group)), key=lambda i: -(group[i].reward or 0.0))
        for i in dict.fromkeys((order[0], order[-1], order[len(order) // 2])):
            one = group[i]
            said = "no reward" if one.reward is None else f"reward {one.reward:.3g}"
            yield Sample(step, self.prompts.prompts[one.prompt].text, f"[{said}] {self.tokenizer.decode(one.ids)}")


def answers(
    prompts: Sequence[Prompt], written: Sequence[Written], tokenizer: Tokenizer, indices: Sequence[int]
) -> list[Answer]:
    """Completions as rewards see them."""
    return [
        Answer(
            messages=prompt.messages,
            prompt=prompt.text,
            completion=tokenizer.decode(one.ids[one.talk.last :] if one.talk else one.ids),
            prompt_ids=prompt.ids.tolist(),
            completion_ids=one.drawn,
            finished=one.finished,
            row=prompt.row,
            index=index,
            **told_of(one.talk),
        )
        for prompt, one, index in zip(prompts, written, indices, strict=True)
    ]


def ask_of(prompt: Prompt, seed: int) -> Ask:
    """A completion of a prompt, to be written."""
    return Ask(prompt.ids.tolist(), seed, tools=prompt.tools)


def metrics_of(scored: Scored) -> dict[str, tuple[float, float]]:
    """What the rewards measure, with the spread of each."""
    found = dict(scored.metrics())
    for name, outcomes in scored.parts.items():
        numbers = torch.tensor([[one for one in outcomes if not isinstance(one, Failure)]], dtype=torch.float64)
        if numbers.numel() > 1:
            found[f"rewards/{name}/std"] = (float(nanstd(numbers)), 1.0)
    return found


def feed(plan: Plan, model: Model, world: World, store: Store | None = None) -> Feed:
    """The rollouts of a plan, as ``train.run`` takes them."""
    recipe, policy = plan.recipe, plan.recipe.policy
    if recipe.objective == "distill":
        return distillation_feed(plan, model, world)
    longest = longest_rollout(recipe, plan.splits)
    assert longest is not None
    batch = -(-policy.prompts // world.size) * policy.group
    engine = Writer(model.decoder, policy, plan.tokenizer.eos_token_ids, longest=longest, batch=batch)
    writer = with_tools(plan, engine) if recipe.tools.use else engine
    mix = build_rewards(recipe.rewards)
    reference = PolicyReference(plan, model, store) if policy.beta else None
    source = _source(recipe.objective)(plan, model, world, writer, mix, reference)
    held_out = plan.splits.eval
    evaluation = None
    if isinstance(held_out, Prompts):
        evaluation = HeldOut(held_out, plan, world, writer, mix)
    held_out_rewards = [part.scorer.name for part in mix.parts if part.held_out]
    samples = source.samples if recipe.sample_tokens else None
    return Feed(source, evaluation, samples, lambda tell: Guards(recipe.guards, held_out_rewards, tell))


def _source(objective: str) -> type[RolloutSource]:
    if objective != "ppo":
        return RolloutSource
    from tokenmill.align.ppo import PpoSource  # it is one of ours, with a critic

    return PpoSource


class HeldOut:
    """The reward of held-out prompts, one completion each, drawn with the same seeds every time."""

    def __init__(self, prompts: Prompts, plan: Plan, world: World, writer: Writes, mix: Mix) -> None:
        most = plan.recipe.eval_batches * plan.recipe.micro_batch
        self.prompts = prompts.prompts[:most]
        self.world, self.writer, self.mix, self.tokenizer, self.seed = (
            world,
            writer,
            mix,
            plan.tokenizer,
            plan.recipe.seed,
        )

    def __call__(self) -> Evaluation:
        """Its loss is the negative reward, so that the best is the lowest."""
        began = time.perf_counter()
        mine = range(self.world.rank, len(self.prompts), self.world.size)
        prompts = [self.prompts[i] for i in mine]
        asked = [ask_of(p, seed_of(self.seed, i, 0, HELD_OUT)) for i, p in zip(mine, prompts, strict=True)]
        written = self.writer.write(asked)
        measured = metrics_of(self.mix.score(answers(prompts, written, self.tokenizer, list(mine))))
        found = _together(self.world.gather(measured | talk_metrics(written)))
        metrics = {name: total / max(count, 1.0) for name, (total, count) in found.items()}
        loss, seconds = -metrics.get("reward", float("nan")), time.perf_counter() - began
        return Evaluation(loss, None, None, len(self.prompts), seconds, metrics)


def train(recipe: Any = None, overrides: Sequence[str] = (), *, resume: Path | str | None = None, **how: Any) -> Any:
    """:func:`tokenmill.train.run.train` for every objective, those that write rollouts included."""
    from tokenmill.train.run import train as run

    return run(recipe, overrides, resume=resume, feeds=feed, **how)


def _rewards(groups: Sequence[Sequence[Completion]]) -> torch.Tensor:
    return torch.tensor(
        [[float("nan") if one.reward is None else one.reward for one in group] for group in groups], dtype=torch.float32
    )


def _measured(rewards_GK: torch.Tensor) -> dict[str, tuple[float, float]]:
    flat = rewards_GK.reshape(1, -1)
    spread = float(nanstd(flat)) if int((~flat.isnan()).sum()) > 1 else 0.0
    same = without_difference(rewards_GK)
    return {"reward_std": (spread, 1.0), "frac_reward_zero_std": (float(same.sum()), float(len(same)))}


def _together(measured: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Sums and counts of all processes."""
    found: dict[str, tuple[float, float]] = {}
    for one in measured:
        for name, (total, count) in one.items():
            before = found.get(name, (0.0, 0.0))
            found[name] = (before[0] + total, before[1] + count)
    return found
