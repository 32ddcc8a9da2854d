"""Which tokens of which requests go through the model next. No torch, no clock of its own.

Every step has a budget of tokens. Requests that are decoding come first, one token each; what is left of the budget
goes to prompts, in chunks (Agrawal et al. 2024), which ``pace`` may hold small while others decode. A prompt whose next
block another request is computing just now waits for it, so that what several have in common (the ``n`` answers to one
prompt, a system message) is computed once, however many arrive together. When blocks run
out, the least urgent running request is put back and computed again later (preemption by recomputation; its full
blocks stay cached, so most of the work is found again). Who is admitted first: lower ``priority`` number, then the
client with the fewest running requests (fair share), then who came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenmill.core.errors import OutOfContextError, TokenmillError
from tokenmill.engine.block_pool import BlockPool, block_hash
from tokenmill.engine.pace import YOUNG, Pace
from tokenmill.engine.request import Request


class QueueFullError(TokenmillError):
    """The queue has no place for another request; try again later."""


class DeadlineError(TokenmillError):
    """A request's deadline passed before it was done."""


@dataclass(eq=False)
class Sequence:
    """A request and its place in the cache. ``computed`` positions of ``tokens`` are in ``blocks``."""

    request: Request
    arrival: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    hashes: list[bytes] = field(default_factory=list)
    """Hashes of the full blocks of prompt and output, as far as they were needed."""

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.request.output)

    @property
    def decoding(self) -> bool:
        return self.length - self.computed == 1 and bool(self.request.output)

    def tokens(self, start: int, end: int) -> list[int]:
        prompt = self.request.prompt
        if end <= len(prompt):
            return prompt[start:end]
        return (prompt[start:] + self.request.output[max(0, start - len(prompt)) : end - len(prompt)])[: end - start]

    def urgency(self) -> tuple[int, int]:
        """Smaller is more urgent."""
        return self.request.priority, self.arrival


@dataclass(frozen=True)
class Work:
    """``count`` positions of a sequence, from ``start`` on, that the next pass computes."""

    sequence: Sequence
    start: int
    count: int

    @property
    def last(self) -> bool:
        """This pass reaches the sequence's end, so its logits choose a token."""
        return self.start + self.count == self.sequence.length


class Scheduler:
    """Queues, admits, preempts. The owner runs what :meth:`schedule` returns and reports with :meth:`computed`."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_tokens_per_step: int = 2048,
        max_running: int = 256,
        max_waiting: int = 1024,
        prefix_caching: bool = True,
    ) -> None:
        self.pool = pool
        self.max_tokens_per_step, self.max_running, self.max_waiting = max_tokens_per_step, max_running, max_waiting
        self.prefix_caching = prefix_caching
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.pace: Pace | None = None
        """Set where somebody reads along: bounds what prompts may take of a step in which others decode."""
        self.preemptions = 0
        self._arrivals = 0

    @property
    def capacity(self) -> int:
        """The longest sequence that fits the pool, in tokens."""
        return self.pool.num_blocks * self.pool.block_size

    def add(self, request: Request) -> None:
        """Queue a request; refused when the queue is full or the prompt can never fit."""
        if len(request.prompt) + (request.params.max_tokens != 0) > self.capacity:
            raise OutOfContextError(
                f"the prompt has {len(request.prompt)} tokens and the cache holds {self.capacity}; "
                "shorten it or give the cache more memory"
            )
        if len(self.waiting) >= self.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting already; try again later")
        self.waiting.append(Sequence(request, self._arrivals))
        self._arrivals += 1

    def schedule(self, now: float) -> list[Work]:
        """The next pass. Sequences that ended are dropped first; ``now`` is compared with deadlines."""
        self._drop_finished(now)
        budget, work, scheduled = self.max_tokens_per_step, list[Work](), set[int]()
        preemptions = self.preemptions
        for decoding in (True, False):
            if work and self.pace is not None:
                waiting = sum(not s.decoding for s in self.running) + len(self.waiting)
                readers = sum(len(piece.sequence.request.output) >= YOUNG for piece in work)
                budget = min(budget, self.pace.allowance(readers, waiting))
            for sequence in sorted((s for s in self.running if s.decoding == decoding), key=Sequence.urgency):
                preempted = self.preemptions > preemptions and sequence not in self.running
                if budget and not preempted and (piece := self._extend(sequence, budget, scheduled)) is not None:
                    work.append(piece)
                    scheduled.add(id(sequence))
                    budget -= piece.count
        # After a preemption nobody is admitted in the same step: it would only take the blocks that were just won
        if budget and self.waiting and preemptions == self.preemptions:
            work += self._admit_all(budget)
        return work

    def computed(self, work: Iterable[Work]) -> None:
        """The pass is over: its positions are in the cache, and blocks that are full now have a name."""
        for piece in work:
            sequence = piece.sequence
            sequence.computed = piece.start + piece.count
            if self.prefix_caching:
                full = sequence.computed // self.pool.block_size
                self._hash(sequence, full)
                for index in range(piece.start // self.pool.block_size, full):
                    self.pool.name(sequence.blocks[index], sequence.hashes[index])

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences now, whatever state they are in, and give their blocks back."""
        for sequence in sequences:
            (self.running if sequence in self.running else self.waiting).remove(sequence)
            self._release(sequence)

    def _drop_finished(self, now: float) -> None:
        for sequence in [*self.running, *self.waiting]:
            deadline = sequence.request.deadline
            if deadline is not None and now >= deadline and sequence.request.finish_reason is None:
                sequence.request.error = DeadlineError("the deadline passed before the answer was done")
                sequence.request.finish("error")
        self.forget([s for s in [*self.running, *self.waiting] if s.request.finish_reason is not None])

    def _extend(self, sequence: Sequence, budget: int, scheduled: set[int]) -> Work | None:
        """Room for the next positions of a running sequence, taken from less urgent ones if it must be."""
        count = min(sequence.length - sequence.computed, budget)
        while not self._grow(sequence, sequence.computed + count):
            others = [s for s in self.running if id(s) not in scheduled]
            victim = max(others, key=Sequence.urgency)
            self._preempt(victim)
            if victim is sequence:
                return None
        return Work(sequence, sequence.computed, count)

    def _admit_all(self, budget: int) -> list[Work]:
        """Fill what is left of the step with those who wait, most entitled first."""
        work, active = list[Work](), Counter(s.request.client for s in self.running)
        coming = dict[object, int]()
        for sequence in self.running:
            self._foresee(sequence, coming)
        candidates = [s for s in self.waiting if not self._awaits(s, coming)]
        while budget and candidates and len(self.running) < self.max_running:
            chosen = min(candidates, key=lambda s: (s.request.priority, active[s.request.client], s.arrival))
            candidates.remove(chosen)
            if self._awaits(chosen, coming):
                continue
            if (piece := self._admit(chosen, budget)) is None:
                break
            work.append(piece)
            budget -= piece.count
            active[chosen.request.client] += 1
            self._foresee(chosen, coming)
        return work

    def _foresee(self, sequence: Sequence, coming: dict[object, int]) -> None:
        """Note what a running sequence will have computed soon: full blocks, and scores of its prompt."""
        if not self.prefix_caching:
            return
        keys: list[object] = [*sequence.hashes[sequence.computed // self.pool.block_size :]]
        if sequence.request.unscored is not None:
            keys.append(id(sequence.request.prompt_logprobs))
        for key in keys:
            coming[key] = min(sequence.request.priority, coming.get(key, sequence.request.priority))

    def _awaits(self, sequence: Sequence, coming: dict[object, int]) -> bool:
        """Whether somebody at least as urgent is computing what this sequence would compute next."""
        if not coming:
            return False
        keys: list[object] = [*self._wanted(sequence)]
        if sequence.request.unscored is not None:
            keys.append(id(sequence.request.prompt_logprobs))
        if coming.keys().isdisjoint(keys):  # in C: this is asked of all who wait
            return False
        return any(coming[key] <= sequence.request.priority for key in keys if key in coming)

    def _wanted(self, sequence: Sequence) -> list[bytes]:
        """The blocks that need not be computed if they are known. Never all of them: the last position must be
        computed, for its logits, and those that score the prompt."""
        unscored, size = sequence.request.unscored, self.pool.block_size
        self._hash(sequence, (sequence.length - 1) // size)
        return sequence.hashes[: (sequence.length - 1 if unscored is None else unscored) // size]

    def _admit(self, chosen: Sequence, budget: int) -> Work | None:
        block_size = self.pool.block_size
        known = self.pool.find(self._wanted(chosen)) if self.prefix_caching else []
        self.pool.share(known)
        chosen.blocks, chosen.computed = list(known), len(known) * block_size
        count = min(chosen.length - chosen.computed, budget)
        if not self._grow(chosen, chosen.computed + count):
            self._release(chosen)
            return None
        if not chosen.request.output:
            chosen.request.cached_tokens = chosen.computed
        self.waiting.remove(chosen)
        self.running.append(chosen)
        return Work(chosen, chosen.computed, count)

    def _grow(self, sequence: Sequence, length: int) -> bool:
        missing = -(-length // self.pool.block_size) - len(sequence.blocks)
        if missing <= 0:
            return True
        taken = self.pool.take(missing)
        if taken is None:
            return False
        sequence.blocks += taken
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.running.remove(sequence)
        self.waiting.append(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0

    def _hash(self, sequence: Sequence, full: int) -> None:
        size = self.pool.block_size
        while len(sequence.hashes) < full:
            start = len(sequence.hashes) * size
            parent = sequence.hashes[-1] if sequence.hashes else sequence.request.cache_salt.encode()
            sequence.hashes.append(block_hash(parent, sequence.tokens(start, start + size)))
