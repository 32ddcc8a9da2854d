"""The paged engine against the plain loop, token for token: batches, chunks, shared prefixes, preemption, faults."""

from __future__ import annotations

import pytest
import torch

import tiny
from tokenmill.core.errors import OutOfContextError
from tokenmill.engine import engine as engine_module
from tokenmill.engine.engine import Engine
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.engine.scheduler import QueueFullError
from tokenmill.models import load_model
from tokenmill.nn.decoder import Decoder


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tiny.write(tiny.FAMILIES[request.param], tmp_path_factory.mktemp("model"))
    return load_model(folder, dtype="float32").decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


def requests() -> list[Request]:
    """Mixed lengths, greedy and seeded, some with a shared beginning."""
    shared = [7, 8, 9, 10, 11, 12, 13, 14, 15]
    prompts = [[5, 1, 17], [9], [*shared, 3], list(range(20, 31)), [*shared, 4, 4], [5, 1, 17]]
    return [
        Request(prompt, SamplingParams(temperature=0.0 if n % 2 else 0.9, max_tokens=6 + n), seed=n)
        for n, prompt in enumerate(prompts)
    ]


def plain(model: Decoder) -> list[list[int]]:
    asked = requests()
    list(generate(model, asked))
    return [r.output for r in asked]


SETTINGS = {
    "roomy": {"num_blocks": 64, "block_size": 4},
    "chunked": {"num_blocks": 64, "block_size": 4, "max_tokens_per_step": 5},
    "few blocks, so that requests are preempted": {"num_blocks": 7, "block_size": 4},
    "one at a time": {"num_blocks": 64, "block_size": 4, "max_running": 1},
    "no prefix cache": {"num_blocks": 64, "block_size": 4, "prefix_caching": False},
    "tiny blocks": {"num_blocks": 40, "block_size": 1, "max_tokens_per_step": 3},
}


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_engine_equals_the_plain_loop(any_model: Decoder, setting: str) -> None:
    engine, asked = Engine(any_model, **SETTINGS[setting]), requests()
    list(engine.run(asked))
    assert [r.output for r in asked] == plain(any_model)
    assert [r.finish_reason for r in asked] == ["length"] * len(asked)
    if setting.startswith("few"):
        assert engine.scheduler.preemptions > 0
    engine.check_idle()


def test_a_second_round_finds_its_prefixes(model: Decoder) -> None:
    engine = Engine(model, num_blocks=64, block_size=4)
    expected = plain(model)
    for _ in range(2):
        asked = requests()
        list(engine.run(asked))
        assert [r.output for r in asked] == expected
    assert [r.cached_tokens for r in asked] == [0, 0, 8, 8, 8, 0]  # full blocks only, never the last position
    engine.pool.clear_cache()
    asked = requests()
    list(engine.run(asked))
    assert asked[3].cached_tokens == 0


def test_a_salt_keeps_prefixes_apart(model: Decoder) -> None:
    engine = Engine(model, num_blocks=64, block_size=4)
    mine, yours, again = (Request(list(range(20, 31)), SamplingParams(max_tokens=1), cache_salt=s) for s in "aba")
    for request in (mine, yours, again):
        list(engine.run([request]))
    assert [r.cached_tokens for r in (mine, yours, again)] == [0, 0, 8]


def test_decoding_does_not_wait_for_a_long_prompt(model: Decoder) -> None:
    """While a long prompt is read in chunks, a running answer gets a token at every step."""
    engine = Engine(model, num_blocks=64, block_size=4, max_tokens_per_step=6)
    talking = Request([5, 1], SamplingParams(temperature=0.0, max_tokens=20))
    engine.add(talking)
    engine.step()
    engine.add(Request(list(range(3, 60)), SamplingParams(temperature=0.0, max_tokens=1)))
    for step in range(8):
        before = len(talking.output)
        engine.step()
        assert len(talking.output) == before + 1, step


def test_priority_and_fair_share_decide_who_is_next(model: Decoder) -> None:
    engine = Engine(model, num_blocks=64, block_size=4, max_running=2)
    params = SamplingParams(max_tokens=3)
    greedy_client = [Request([5, n], params, client="many") for n in range(4)]
    other, urgent = Request([6, 1], params, client="one"), Request([6, 2], params, client="many", priority=-1)
    for request in (*greedy_client, other, urgent):
        engine.add(request)
    engine.step()
    running = [s.request for s in engine.scheduler.running]
    assert running == [urgent, other]


def test_cancelling_gives_blocks_back_and_leaves_the_others(model: Decoder) -> None:
    engine, asked = Engine(model, num_blocks=64, block_size=4), requests()
    for step in engine.run(asked):
        if step.request is asked[3] and len(asked[3].output) == 2:
            asked[3].finish("abort")
    expected = plain(model)
    assert asked[3].output == expected[3][:2]
    assert [r.output for n, r in enumerate(asked) if n != 3] == [o for n, o in enumerate(expected) if n != 3]
    engine.check_idle()


def test_leaving_the_iterator_ends_the_work(model: Decoder) -> None:
    engine, asked = Engine(model, num_blocks=64, block_size=4), requests()
    steps = engine.run(asked)
    next(steps)
    steps.close()
    engine.step()
    engine.check_idle()


def test_two_runs_at_once_each_get_their_own_tokens(model: Decoder) -> None:
    engine, asked, expected = Engine(model, num_blocks=64, block_size=4), requests(), plain(model)
    first, second = engine.run(asked[:3]), engine.run(asked[3:])
    for step in first:
        assert step.request in asked[:3]
        next(second, None)
    assert all(step.request in asked[3:] for step in second)
    assert [r.output for r in asked] == expected
    engine.check_idle()


def test_a_request_that_breaks_the_model_breaks_alone(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine_module.run

    def faulty(model: Decoder, cache: object, work: list) -> torch.Tensor:
        if any(13 in piece.sequence.tokens(piece.start, piece.start + piece.count) for piece in work):
            raise RuntimeError("planted")
        return real(model, cache, work)

    monkeypatch.setattr(engine_module, "run", faulty)
    good = Request([5, 1, 17], SamplingParams(max_tokens=6, logit_bias={13: -100.0}), seed=0)
    bad = Request([5, 13], SamplingParams(max_tokens=6))
    engine = Engine(model, num_blocks=64, block_size=4)
    steps = list(engine.run([good, bad]))
    assert (bad.finish_reason, bad.output) == ("error", [])
    assert "planted" in str(bad.error)
    assert [s.finish_reason for s in steps if s.request is bad] == ["error"]
    assert (good.finish_reason, len(good.output)) == ("length", 6)


def test_a_deadline_ends_a_request_with_an_error(model: Decoder) -> None:
    engine = Engine(model, num_blocks=64, block_size=4)
    late, calm = Request([5], SamplingParams(max_tokens=3), deadline=0.0), Request([5], SamplingParams(max_tokens=3))
    steps = list(engine.run([late, calm]))
    assert "deadline" in str(late.error)
    assert [s.finish_reason for s in steps if s.request is late] == ["error"]
    assert len(calm.output) == 3


def test_what_cannot_be_served_is_refused_at_the_door(model: Decoder) -> None:
    engine = Engine(model, num_blocks=2, block_size=4, max_waiting=1)
    with pytest.raises(OutOfContextError):
        engine.add(Request(list(range(8)), SamplingParams()))
    engine.add(Request([5], SamplingParams(max_tokens=2)))
    with pytest.raises(QueueFullError, match="try again later"):
        engine.add(Request([5], SamplingParams(max_tokens=2)))
    while not engine.idle:
        engine.step()
    engine.check_idle()


def test_an_answer_ends_where_the_cache_does(model: Decoder) -> None:
    engine = Engine(model, num_blocks=3, block_size=4)
    request = Request([5, 1, 17], SamplingParams(temperature=0.0))
    list(engine.run([request]))
    assert (len(request.prompt) + len(request.output), request.finish_reason) == (12, "length")
