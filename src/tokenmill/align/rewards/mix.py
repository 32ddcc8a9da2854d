"""Several rewards as one: each asked, weighed, and told apart in the log.

mix = build_rewards(recipe.rewards)
found = mix.score(samples)
found.totals        # a number each, None where a weighed reward had none
found.metrics()     # rewards/json_schema/mean, rewards/json_schema/timed_out, completions/repetition …
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.code import Code, ToolCalls
from tokenmill.align.rewards.function import Function
from tokenmill.align.rewards.models import Judge, Models
from tokenmill.align.rewards.scored import Failure, Outcome, Scorer, outcome
from tokenmill.align.rewards.verifiers import Format, JsonSchema, Length, Number, Regex
from tokenmill.config.rewards import RewardSource
from tokenmill.core.errors import ConfigError, TokenmillError
from tokenmill.core.log import get_logger

KINDS: dict[str, Callable[[Any], Scorer]] = {
    "function": Function,
    "number": Number,
    "json_schema": JsonSchema,
    "regex": Regex,
    "length": Length,
    "format": Format,
    "code": Code,
    "tool_call": ToolCalls,
    "model": Models,
    "judge": Judge,
}
NGRAM = 4
_log = get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """One reward in the sum."""

    scorer: Scorer
    weight: float = 1.0
    held_out: bool = False


@dataclass(frozen=True)
class Scored:
    """What all rewards said of some samples."""

    totals: list[float | None]
    """The weighed sum; None where one of its members has no number: such a completion is left out."""
    parts: Mapping[str, Sequence[Outcome]]
    """What each said, before weights."""
    shape: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of the completions themselves, (sum, count): length, repetition, share that was cut off."""

    def metrics(self) -> dict[str, tuple[float, float]]:
        """(sum, count) by name: ``reward``, ``rewards/NAME/mean``, ``rewards/NAME/timed_out`` and its kin,
        ``rewards/excluded``, ``completions/…``."""
        totals = [total for total in self.totals if total is not None]
        found: dict[str, tuple[float, float]] = {"reward": (sum(totals), len(totals))} if totals else {}
        found["rewards/excluded"] = (len(self.totals) - len(totals), len(self.totals))
        for name, outcomes in self.parts.items():
            numbers = [one for one in outcomes if not isinstance(one, Failure)]
            if numbers:
                found[f"rewards/{name}/mean"] = (sum(numbers), len(numbers))
            for kind, count in Counter(one.kind for one in outcomes if isinstance(one, Failure)).items():
                found[f"rewards/{name}/{kind}"] = (count, len(outcomes))
        return found | dict(self.shape)

    def failures(self) -> dict[str, str]:
        """Reward -> the first failure of each kind, in words; for the log."""
        found: dict[str, str] = {}
        for name, outcomes in self.parts.items():
            for kind, count in Counter(one.kind for one in outcomes if isinstance(one, Failure)).items():
                first = next(one for one in outcomes if isinstance(one, Failure) and one.kind == kind)
                found[f"{name}: {kind}"] = f"{count} of {len(outcomes)}; {first.message}".rstrip("; ")
        return found


class Mix:
    """The sum of several rewards; one of them is a mix, too. It is itself a `base.Reward`."""

    name = "mix"

    def __init__(self, parts: Sequence[Part]) -> None:
        if not any(not part.held_out and part.weight for part in parts):
            raise ConfigError("rewards: none of them is learned from; one at least needs a weight and no held_out")
        names = [part.scorer.name for part in parts]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(
                f"rewards: {twice[0]!r} is there {names.count(twice[0])} times; give them names (name: …)"
            )
        self.parts = list(parts)
        self._warned: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return self.score(samples).totals

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Ask every reward. What one of them raises counts as no number; what is a mistake in recipe or data, or a
        server that is gone, is an error of the run."""
        outcomes = {part.scorer.name: _ask(part.scorer, samples) for part in self.parts}
        learned = [
            (part.weight, outcomes[part.scorer.name]) for part in self.parts if not part.held_out and part.weight
        ]
        totals: list[float | None] = []
        for index in range(len(samples)):
            said = [(weight, found[index]) for weight, found in learned]
            numbers = [weight * one for weight, one in said if not isinstance(one, Failure)]
            totals.append(sum(numbers) if len(numbers) == len(said) else None)
        scored = Scored(totals, outcomes, shape(samples))
        for what, words in scored.failures().items():
            if what not in self._warned:  # how often it happens stands in the metrics; why, here, once
                self._warned.add(what)
                _log.warning("reward %s: %s", what, words)
        return scored


def build_rewards(sources: Sequence[RewardSource]) -> Mix:
    """The rewards of a recipe, ready: files imported, models loaded. ConfigError where one cannot be."""
    return Mix([Part(KINDS[source.kind](source), source.weight, source.held_out) for source in sources])


def _ask(scorer: Scorer, samples: Sequence[Sample]) -> list[Outcome]:
    try:
        said = list(scorer(samples))
    except TokenmillError:
        raise
    except Exception as error:
        return [Failure("raised", f"{type(error).__name__}: {error}"[:400])] * len(samples)
    if len(said) != len(samples):
        return [Failure("raised", f"{len(said)} scores for {len(samples)} samples")] * len(samples)
    return [outcome(one) for one in said]


def shape(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Mean length, repetition, share cut off; each as (sum, count)."""
    if not samples:
        return {}
    count = len(samples)
    return {
        "completions/length": (sum(len(sample.completion_ids) for sample in samples), count),
        "completions/repetition": (sum(repetition(sample.completion_ids) for sample in samples), count),
        "completions/cut_off": (sum(not sample.finished for sample in samples), count),
    }


def repetition(ids: Sequence[int]) -> float:
    """The share of 4-grams that were there before; 0 for what is too short to repeat itself."""
    grams = [tuple(ids[at : at + NGRAM]) for at in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
