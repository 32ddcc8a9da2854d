"""Scheduler and block pool in random histories: no block leaks or is used twice, nobody starves."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tokenmill.engine.block_pool import BlockPool, block_hash
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.engine.scheduler import Scheduler, Work

histories = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(3, 12),
        "block_size": st.sampled_from([1, 2, 4]),
        "budget": st.integers(1, 12),
        "max_running": st.integers(1, 5),
        "caching": st.booleans(),
        "requests": st.lists(
            st.tuples(
                st.lists(st.integers(0, 2), min_size=1, max_size=10),  # few tokens, so that prefixes meet
                st.integers(1, 8),
                st.integers(-1, 1),
                st.sampled_from("ab"),
                st.integers(0, 6),
            ),
            min_size=1,
            max_size=8,
        ),
        "cancel": st.sets(st.integers(0, 40), max_size=4),
    }
)


def check(scheduler: Scheduler, work: list[Work]) -> None:
    """What must hold at any moment."""
    pool = scheduler.pool
    pool.check()
    in_tables = [block for s in scheduler.running for block in s.blocks]
    assert set(in_tables) == set(pool._uses)
    for block in set(in_tables):
        assert in_tables.count(block) == pool._uses[block]
    assert all(not s.blocks for s in scheduler.waiting)
    assert sum(piece.count for piece in work) <= scheduler.max_tokens_per_step
    written = [block for p in work for block in p.sequence.blocks[p.start // pool.block_size :]]
    assert len(written) == len(set(written)), "two sequences write into one block"
    for piece in work:
        assert piece.sequence.computed == piece.start
        assert len(piece.sequence.blocks) * pool.block_size >= piece.start + piece.count


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_random_histories(history: dict) -> None:
    pool = BlockPool(history["num_blocks"], history["block_size"])
    scheduler = Scheduler(
        pool,
        max_tokens_per_step=history["budget"],
        max_running=history["max_running"],
        prefix_caching=history["caching"],
    )
    todo = [
        (Request(prompt, SamplingParams(max_tokens=most), priority=priority, client=client), arrives)
        for prompt, most, priority, client, arrives in history["requests"]
        if len(prompt) + most <= scheduler.capacity
    ]
    everyone = [request for request, _ in todo]
    for step in range(3000):
        for entry in [e for e in todo if e[1] <= step]:
            scheduler.add(entry[0])
            todo.remove(entry)
        if step in history["cancel"] and scheduler.running:
            scheduler.running[0].request.finish("abort")
        work = scheduler.schedule(now=0.0)
        check(scheduler, work)
        assert work or not (scheduler.running or scheduler.waiting), "work is left and nothing is done"
        scheduler.computed(work)
        for piece in work:
            request = piece.sequence.request
            if piece.last:
                request.output.append(len(request.output) % 3)
                if len(request.output) == request.params.max_tokens:
                    request.finish("length")
        if not todo and all(r.finish_reason for r in everyone):
            break
    assert all(r.finish_reason for r in everyone), "somebody starved"
    scheduler.schedule(now=0.0)
    assert (pool.used, pool.available) == (0, pool.num_blocks)


def test_equal_hashes_mean_equal_prefixes() -> None:
    first = block_hash(b"", [1, 2])
    assert block_hash(first, [3, 4]) != block_hash(b"", [3, 4])
    assert block_hash(b"salt", [1, 2]) != first
    assert block_hash(b"", [1, 2]) == first


def test_the_oldest_cached_block_is_given_away_first() -> None:
    pool = BlockPool(3, 2)
    a, b, c = (pool.take(1) or [])[0], (pool.take(1) or [])[0], (pool.take(1) or [])[0]
    for block, digest in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.name(block, digest)
    pool.release([a])
    pool.release([b])
    assert pool.take(2) is not None
    assert pool.find([b"a"]) == [] == pool.find([b"b"])
    assert pool.find([b"c"]) == [c]
    assert pool.take(1) is None


def test_a_pool_that_is_wrong_is_noticed() -> None:
    pool = BlockPool(3, 2)
    pool.take(1)
    pool._free.append(pool._free[0])
    with pytest.raises(AssertionError, match="twice"):
        pool.check()


@pytest.mark.parametrize("caching", [True, False])
def test_a_shared_beginning_is_computed_once(caching: bool) -> None:
    """200 requests that share 1,000 tokens: how many positions go through the model until each has its first token."""
    scheduler = Scheduler(BlockPool(20_000, 16), max_running=256, prefix_caching=caching)
    shared = list(range(1000))
    for number in range(200):
        scheduler.add(Request([*shared, *[2000 + number] * 20], SamplingParams(max_tokens=1)))
    positions = 0
    while work := scheduler.schedule(now=0.0):
        positions += sum(piece.count for piece in work)
        scheduler.computed(work)
        for piece in work:
            if piece.last:
                piece.sequence.request.finish("length")
    assert scheduler.pool.used == 0
    if caching:
        assert positions <= 200 * 1020 / 5
    else:
        assert positions == 200 * 1020
