"""The plain loop on a tiny model: greedy is argmax of the whole pass, seeds repeat, every option does what it says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import tiny
from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.engine import generate as loop
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Request, Step
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.models import load_model
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


def run(model: Decoder, *requests: Request, **options: int) -> list[list[Step]]:
    steps: dict[int, list[Step]] = {id(r): [] for r in requests}
    for step in generate(model, requests, **options):
        steps[id(step.request)].append(step)
    return [steps[id(r)] for r in requests]


def request(prompt: list[int], seed: int | None = None, eos: frozenset[int] = frozenset(), **params: object) -> Request:
    return Request(prompt, SamplingParams(**{"max_tokens": 12, **params}), seed=seed, eos_token_ids=eos)


def whole_pass_logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor(ids), Packed([len(ids)]))[-1]


def test_greedy_is_the_argmax_without_a_cache(model: Decoder) -> None:
    r = request([5, 1, 17], temperature=0.0)
    run(model, r)
    ids = [5, 1, 17]
    for token in r.output:
        assert token == int(whole_pass_logits(model, ids).argmax())
        ids.append(token)
    assert r.finish_reason == "length"
    assert len(r.output) == 12


def test_the_same_seed_gives_the_same_tokens_in_any_company(model: Decoder) -> None:
    alone = request([5, 1, 17], seed=3)
    run(model, alone)
    together = [request([9] * n, seed=n) for n in (1, 7)] + [request([5, 1, 17], seed=3), request([5, 1, 17], seed=4)]
    run(model, *together)
    assert together[2].output == alone.output
    assert together[3].output != alone.output


def test_a_long_prompt_is_read_in_chunks_with_the_same_result(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = (request(list(range(3, 60)), temperature=0.0) for _ in range(2))
    run(model, whole)
    monkeypatch.setattr(loop, "PREFILL_CHUNK", 7)
    run(model, chunked)
    assert chunked.output == whole.output


def test_end_tokens_stop_and_can_be_ignored(model: Decoder) -> None:
    free = request([5, 1, 17], temperature=0.0)
    run(model, free)
    third = free.output[2]
    cut = free.output.index(third) + 1
    stopped = request([5, 1, 17], temperature=0.0, eos=frozenset({third}))
    run(model, stopped)
    assert (stopped.output, stopped.finish_reason) == (free.output[:cut], "stop")
    ignoring = request([5, 1, 17], temperature=0.0, eos=frozenset({third}), ignore_eos=True)
    run(model, ignoring)
    assert ignoring.output == free.output
    by_id = request([5, 1, 17], temperature=0.0, stop_token_ids=(third,))
    run(model, by_id)
    assert by_id.output == free.output[:cut]


def test_min_tokens_holds_the_end_back(model: Decoder) -> None:
    everything = frozenset(range(97)) - {50}
    r = request([5], temperature=0.0, eos=everything, min_tokens=4)
    run(model, r)
    assert r.output[:4] == [50] * 4
    assert len(r.output) == 5


def test_logit_bias_forces_and_forbids(model: Decoder) -> None:
    forced = request([5], temperature=0.0, logit_bias={33: 1000.0})
    run(model, forced)
    assert set(forced.output) == {33}
    free = request([5], temperature=0.0)
    run(model, free)
    without = request([5], temperature=0.0, logit_bias={free.output[0]: -1000.0})
    run(model, without)
    assert without.output[0] != free.output[0]


def test_logprobs_are_the_models_own(model: Decoder) -> None:
    r = request([5, 1], temperature=0.0, logprobs=3, logit_bias={7: 1000.0})
    first = run(model, r)[0][0]
    expected = torch.log_softmax(whole_pass_logits(model, [5, 1]), dim=-1)
    assert first.logprobs is not None
    assert first.logprobs.token_id == 7
    assert first.logprobs.logprob == pytest.approx(float(expected[7]), abs=1e-4)
    assert [i for i, _ in first.logprobs.top] == expected.topk(3).indices.tolist()


def test_drawn_tokens_follow_the_models_distribution(model: Decoder) -> None:
    p = torch.softmax(whole_pass_logits(model, [5, 1]), dim=-1)
    requests = [request([5, 1], seed=n, max_tokens=1) for n in range(600)]
    run(model, *requests)
    seen = Counter(r.output[0] for r in requests)
    best = int(p.argmax())
    assert seen[best] / 600 == pytest.approx(float(p[best]), abs=0.08)  # four standard deviations at most


def test_finishing_one_request_leaves_the_others(model: Decoder) -> None:
    a, b = request([5, 1, 17], temperature=0.0), request([5, 1, 17], temperature=0.0)
    for step in generate(model, [a, b]):
        if step.request is a and len(a.output) == 3:
            a.finish("abort")
    assert (len(a.output), a.finish_reason) == (3, "abort")
    assert len(b.output) == 12


def test_the_context_is_a_limit_and_a_check(model: Decoder) -> None:
    r = request([5, 1, 17], max_tokens=None, temperature=0.0)
    run(model, r, max_length=10)
    assert len(r.prompt) + len(r.output) == 10
    with pytest.raises(OutOfContextError, match="3 tokens and the context 3"):
        generate(model, [request([5, 1, 17])], max_length=3)
    with pytest.raises(UsageError, match="outside the vocabulary of 97"):
        generate(model, [request([5, 97])])
    with pytest.raises(UsageError, match="no tokens"):
        generate(model, [request([])])
    with pytest.raises(UsageError, match="logit_bias"):
        generate(model, [request([5], logit_bias={97: 1.0})])


def test_zero_tokens_is_an_answer(model: Decoder) -> None:
    r = request([5], max_tokens=0)
    assert run(model, r) == [[]]
    assert r.finish_reason == "length"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", v) for v in (-0.1, float("nan"), float("inf"), "hot", True)],
        *[("top_p", v) for v in (0, 1.1)],
        *[("n", v) for v in (0, 10**9, 1.5)],
        *[("logprobs", v) for v in (-1, 10**6)],
        *[("stop", v) for v in (("",), ("x",) * 1000)],
        *[("logit_bias", v) for v in ({-1: 1.0}, {1: float("nan")}, [1])],
        *[("max_tokens", v) for v in (-1, 0.5)],
        *[("repetition_penalty", v) for v in (0, -1)],
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


def test_all_problems_come_at_once_and_names_are_suggested() -> None:
    with pytest.raises(UsageError, match=r"temperature.*top_k"):
        SamplingParams(temperature=-1, top_k=-1)
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        SamplingParams.from_mapping({"temprature": 1})


class Broken:
    """A guide that allows everything, and fails at the third token: the way a grammar runs into its limits."""

    stopped = False

    def __init__(self, allowed: np.ndarray | None = None, fails_at: int = 3) -> None:
        self.allowed = np.ones(97, dtype=bool) if allowed is None else allowed
        self.seen, self.fails_at = 0, fails_at

    def mask(self) -> np.ndarray:
        return self.allowed

    def accept(self, token_id: int) -> None:
        self.seen += 1
        if self.seen == self.fails_at:
            raise UsageError("the grammar cannot be followed any further")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("guide", "given"), [(Broken(), 2), (Broken(np.zeros(97, dtype=bool)), 0)], ids=["fails", "allows nothing"]
)
def test_a_fault_in_one_request_hurts_no_other(model: Decoder, guide: Broken, given: int, temperature: float) -> None:
    alone = request([5, 1, 17], seed=3, temperature=temperature)
    run(model, alone)
    guide.seen = 0
    bad = request([5, 1, 17], seed=3, temperature=temperature)
    bad.guide = guide
    good = request([5, 1, 17], seed=3, temperature=temperature)
    steps = run(model, bad, good)
    assert (len(bad.output), bad.finish_reason) == (given, "error")
    assert isinstance(bad.error, UsageError)
    assert (steps[0][-1].token_id, steps[0][-1].finish_reason) == (None, "error")
    assert (good.output, good.finish_reason, good.error) == (alone.output, "length", None)


def test_scores_that_are_no_numbers_end_their_request_only(model: Decoder) -> None:
    broken, fine = request([5], seed=1), request([5], seed=1)
    spoilt = torch.full((97,), float("nan"))
    assert loop.next_step(broken, loop.Sampler(broken, torch.device("cpu")), spoilt, 128).finish_reason == "error"
    assert "not finite" in str(broken.error)
    run(model, fine)
    assert len(fine.output) == 12


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
def test_a_temperature_too_small_to_divide_by_is_greedy(model: Decoder, temperature: float) -> None:
    greedy, cold = request([5, 1, 17], temperature=0.0), request([5, 1, 17], temperature=temperature, seed=5)
    run(model, greedy, cold)
    assert cold.output == greedy.output


def test_a_request_that_its_reader_ends_gets_no_further_token(model: Decoder) -> None:
    a, b = request([5, 1, 17]), request([5, 1, 17])
    for step in generate(model, [a, b]):
        if step.request is a and len(a.output) == 2:
            b.finish("abort")
    assert (len(a.output), len(b.output), b.finish_reason) == (12, 1, "abort")


def test_a_context_beyond_the_models_is_refused(model: Decoder) -> None:
    for length in (0, 129):
        with pytest.raises(UsageError, match="1 to 128"):
            generate(model, [request([5])], max_length=length)


def test_penalties_reach_prompt_and_answer(model: Decoder) -> None:
    """Forced towards one token, the answer must leave it as soon as a penalty has something to count."""
    forced = {33: 50.0}
    free = request([5, 33], temperature=0.0, logit_bias=forced)
    presence, frequency = (
        request([5, 33], temperature=0.0, logit_bias=forced, **{name: 100.0})
        for name in ("presence_penalty", "frequency_penalty")
    )
    repetition = request([5, 33], temperature=0.0, logit_bias=forced, repetition_penalty=100.0)
    far = request([33, 5, 5], temperature=0.0, logit_bias=forced, repetition_penalty=100.0, repeat_last_n=2)
    run(model, free, presence, frequency, repetition, far)
    assert set(free.output) == {33}
    for penalised in (presence, frequency, far):  # the prompt's 33 does not count, or is too far back
        assert penalised.output[0] == 33
        assert penalised.output[1] != 33
    assert 33 not in repetition.output
