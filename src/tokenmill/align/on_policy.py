"""On-policy distillation: the student writes, the teacher judges every token of it (Agarwal 2024, GKD, 2306.13649).

A share ``distill.lmbda`` of the data's micro-batches is rewritten before they are learned from: each document keeps its
prompt, and the student's own answer by the weights of that moment takes the place of the data's. Nothing flows through
the drawing. Which micro-batches, and with what seeds, follows from the run's seed and the place in the data alone, so a
run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tokenmill.align.rollouts import Ask, Writer, seed_of
from tokenmill.config.policy import PolicyConfig
from tokenmill.data.batch import NO_LABEL, Batch, Sample
from tokenmill.data.loader import random_of
from tokenmill.models.load import Model
from tokenmill.train.distributed import World
from tokenmill.train.feed import Feed
from tokenmill.train.loop import Source
from tokenmill.train.plan import Plan
from tokenmill.train.remote_teacher import RemoteTeacher

WRITTEN = 2
"""The stream of seeds that answers are drawn with, and that decides which micro-batches are rewritten."""


def distillation_feed(plan: Plan, model: Model, world: World) -> Feed:
    """The data's batches with a share rewritten, as ``train.run`` takes them."""
    recipe, distill = plan.recipe, plan.recipe.distill
    assert recipe.seq_len is not None
    how = PolicyConfig(temperature=distill.temperature, completion_tokens=distill.completion_tokens)
    longest = recipe.seq_len + distill.completion_tokens
    room = recipe.micro_batch * longest
    writer = Writer(model.decoder, how, plan.tokenizer.eos_token_ids, longest=longest, batch=room // longest)
    judged = None
    if distill.url is not None:
        remote = RemoteTeacher(distill, plan.tokenizer, keep=False)
        remote.check((plan.splits.train,))
        judged = remote.taught
    return Feed(over=lambda source: Rewritten(source, plan, world, writer, room, judged))


class Rewritten:
    """A source over another one, whose state is that of the one below.

    Args:
        room: tokens of a rewritten micro-batch at most, prompts with their longest answers; what would not fit is left
            out.
        judged: adds what a teacher elsewhere says; None where the objective asks one itself.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        world: World,
        writer: Writer,
        room: int,
        judged: Callable[[Batch], Batch] | None,
    ) -> None:
        self.source, self.recipe, self.world, self.writer = source, plan.recipe, world, writer
        self.room, self.judged = room, judged

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            place = int(self.source.state()["rows"])  # the same in every process
            drawn = random_of(self.recipe.seed, place, WRITTEN).random()
            written = self.rewritten(batch, place) if drawn < self.recipe.distill.lmbda else None
            yield batch if written is None else written

    def state(self) -> dict[str, Any]:
        """The data's."""
        return self.source.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.source.load(state)

    def rewritten(self, batch: Batch, place: int) -> Batch | None:
        """The batch with the student's own answers; None where no document asks for one."""
        ends, prompts, used = np.cumsum(batch.lengths), list[tuple[int, list[int]]](), 0
        for index, length, end in zip(batch.indices, batch.lengths, ends, strict=True):
            here = slice(int(end) - length, int(end))
            prompt = prompt_of(batch.tokens_T[here].numpy(), batch.labels_T[here].numpy())
            used += len(prompt) + self.recipe.distill.completion_tokens
            if prompt and (used <= self.room or not prompts):
                prompts.append((index, prompt))
        if not prompts:
            return None
        first = self.world.rank * len(batch.lengths)
        seeds = [seed_of(self.recipe.seed, place, first + number, WRITTEN) for number in range(len(prompts))]
        found = self.writer.write([Ask(prompt, seed) for (_, prompt), seed in zip(prompts, seeds, strict=True)])
        samples = [_sample(index, prompt, one.ids) for (index, prompt), one in zip(prompts, found, strict=True)]
        new = replace(Batch.of(samples), written=True)
        return new if self.judged is None else self.judged(new)


def prompt_of(tokens_T: np.ndarray, labels_T: np.ndarray) -> list[int]:
    """What comes before the last part of a document that has labels, which is an answer; half of a text that has them
    from its beginning. Empty where nothing has."""
    labelled = labels_T != NO_LABEL
    if not labelled.any():
        return []
    begins = np.flatnonzero(labelled & ~np.concatenate(([False], labelled[:-1])))
    end = int(begins[-1]) + 1 if begins[-1] else max(1, len(tokens_T) // 2)
    return [int(i) for i in tokens_T[:end]]


def _sample(index: int, prompt: list[int], answer: list[int]) -> Sample:
    tokens = np.array([*prompt, *answer[:-1]], np.int64)
    labels = np.array([NO_LABEL] * (len(prompt) - 1) + answer, np.int64)
    return Sample(index, tokens, labels)
