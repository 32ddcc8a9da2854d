"""Scheduler and block pool in random histories: no block leaks or is used twice, nobody starves."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tokenmill.engine.block_pool import BlockPool, block_hash
from tokenmill.engine.pace import LEAST, PLAIN_EVERY, YOUNG, Pace
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.engine.scheduler import Scheduler, Work

HISTORIES = int(os.environ.get("TOKENMILL_HISTORIES", "600"))  # 10,000 take some minutes
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
        "seconds": st.lists(st.floats(0, 10), max_size=10),  # what steps take; empty: nobody keeps the pace
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


@settings(
    max_examples=int(os.environ.get("TOKENMILL_HISTORIES", "600")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
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
    seconds = history["seconds"]
    scheduler.pace = Pace() if seconds else None
    for step in range(3000):
        for entry in [e for e in todo if e[1] <= step]:
            scheduler.add(entry[0])
            todo.remove(entry)
        if step in history["cancel"] and scheduler.running:
            scheduler.running[0].request.finish("abort")
        work = scheduler.schedule(now=0.0)
        check(scheduler, work)
        decoding = sum(piece.sequence.decoding for piece in work)
        if scheduler.pace is not None:
            prefill = sum(piece.count for piece in work) - decoding
            readers = sum(p.sequence.decoding and len(p.sequence.request.output) >= YOUNG for p in work)
            assert prefill <= scheduler.pace.allowance(readers, len(history["requests"]))
            scheduler.pace.took(seconds[step % len(seconds)], decoding, prefill)
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


@pytest.mark.parametrize("caching", [True, False])
def test_answers_to_one_prompt_share_its_reading(caching: bool) -> None:
    """Eight answers to a prompt of 100 tokens: six full blocks are read once, the rest and the last token by each."""
    scheduler = Scheduler(BlockPool(1000, 16), prefix_caching=caching)
    for _ in range(8):
        scheduler.add(Request(list(range(100)), SamplingParams(max_tokens=1, n=8)))
    positions, steps = 0, 0
    while work := scheduler.schedule(now=0.0):
        positions += sum(piece.count for piece in work)
        steps += 1
        scheduler.computed(work)
        for piece in work:
            if piece.last:
                piece.sequence.request.finish("length")
    assert (positions, steps) == ((100 + 7 * 4, 2) if caching else (800, 1))


def test_nobody_urgent_waits_for_somebody_who_is_not() -> None:
    scheduler = Scheduler(BlockPool(1000, 16), max_tokens_per_step=32)
    scheduler.add(Request(list(range(320)), SamplingParams(max_tokens=1), priority=5))
    scheduler.computed(scheduler.schedule(now=0.0))
    urgent = Request(list(range(320)), SamplingParams(max_tokens=1), priority=0)
    later = Request(list(range(320)), SamplingParams(max_tokens=1), priority=9)
    scheduler.add(urgent)
    scheduler.add(later)
    scheduler.max_tokens_per_step = 1000
    admitted = [piece.sequence.request for piece in scheduler.schedule(now=0.0)]
    assert urgent in admitted
    assert later not in admitted


def plain_step(pace: Pace, seconds: float) -> None:
    pace.took(seconds, decoding=8, prefill=0)


@pytest.mark.parametrize("token_s", [1e-5, 1e-3, 1e-2])
def test_the_pace_finds_the_chunk_that_doubles_a_step(token_s: float) -> None:
    """With steps of 0.1 s and prompts of so many seconds a token; what a token costs then doubles."""
    pace = Pace()
    assert pace.allowance(8, 1) == 0, "nothing is known of this machine yet"
    plain_step(pace, 0.1)
    for cost in (token_s, 2 * token_s):
        for _ in range(40):
            if chunk := pace.allowance(8, 1):
                pace.took(0.1 + cost * chunk, decoding=8, prefill=chunk)
            else:
                plain_step(pace, 0.1)
        assert pace.chunk == pytest.approx(max(LEAST, 0.1 / cost), rel=0.05)


def test_one_slow_step_is_forgotten_and_a_plain_one_comes_now_and_then() -> None:
    pace = Pace()
    plain_step(pace, 0.1)
    pace.took(30.0, decoding=8, prefill=100)
    assert pace.chunk == LEAST
    for _ in range(PLAIN_EVERY - 1):
        pace.took(0.1 + 1e-3 * pace.allowance(8, 1), decoding=8, prefill=pace.allowance(8, 1))
    assert pace.chunk == pytest.approx(100, rel=0.1)
    assert pace.allowance(8, 1) == 0
    plain_step(pace, 0.2)
    assert pace.allowance(8, 1) > 0
    assert pace.allowance(8, 24) == pytest.approx(3 * pace.allowance(8, 1), abs=3)  # three times as many wait
    pace.took(5.0, decoding=0, prefill=2048)  # nobody waits, so this says nothing
    assert pace.chunk == pytest.approx(100, rel=0.1)


def test_prompts_are_read_at_once_when_nobody_decodes() -> None:
    scheduler = Scheduler(BlockPool(1000, 16))
    scheduler.pace = Pace()
    talking = Request([1, 2], SamplingParams(max_tokens=50))
    scheduler.add(talking)
    for token in range(YOUNG):
        scheduler.computed(scheduler.schedule(now=0.0))
        talking.output.append(token)
    scheduler.add(Request(list(range(1500)), SamplingParams(max_tokens=5)))
    assert [piece.count for piece in scheduler.schedule(now=0.0)] == [1]  # the first step with it measures
    scheduler.pace.took(0.1, decoding=1, prefill=0)
    work = scheduler.schedule(now=0.0)
    assert [piece.count for piece in work] == [1, LEAST]
    scheduler.computed(work)
    talking.finish("abort")
    assert [piece.count for piece in scheduler.schedule(now=0.0)] == [1500 - LEAST]


@pytest.mark.parametrize("together", [True, False])
def test_requests_that_come_together_begin_together(together: bool) -> None:
    """Sixteen prompts of 128 tokens in steps of 512: as many steps as without a pace, though some write before others;
    an answer that is read along already is not held up."""
    scheduler = Scheduler(BlockPool(1000, 16), max_tokens_per_step=512)
    scheduler.pace = Pace(plain_s=0.1)
    reader = Request([1, 2], SamplingParams(max_tokens=200))
    if not together:
        scheduler.add(reader)
        for token in range(YOUNG):
            scheduler.computed(scheduler.schedule(now=0.0))
            reader.output.append(token)
    requests = [Request([n] * 128, SamplingParams(max_tokens=64)) for n in range(16)]
    for request in requests:
        scheduler.add(request)
    counts = []
    while any(not request.output for request in requests):
        work = scheduler.schedule(now=0.0)
        counts.append(sum(piece.count for piece in work))
        scheduler.computed(work)
        for piece in work:
            if piece.last:
                piece.sequence.request.output.append(3)
    if together:
        assert len(counts) == 5  # four full ones, and what the words of the first answers left over
    else:
        assert len(counts) > 8
        assert max(counts) < 512
