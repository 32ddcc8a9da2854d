"""Scores of a prompt's own tokens equal log_softmax of the plain decoder, however the engine got to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from fakes.tiny_llm import tiny_store
from tokenmill import LLM, SamplingParams
from tokenmill.core.errors import UsageError
from tokenmill.engine import engine as engine_module
from tokenmill.engine.engine import Engine
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Logprobs, Request
from tokenmill.models import load_model
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder

SHARED = list(range(30, 70))
PROMPTS = [[*SHARED, 5, 6], [9], [*SHARED, 7], list(range(20, 90)), [*SHARED, 5, 6]]
SCORED = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=3)
SETTINGS = {
    "roomy": {},
    "chunked": {"max_tokens_per_step": 5},
    "preempted": {"num_blocks": 22, "max_tokens_per_step": 16},
    "no prefix cache": {"prefix_caching": False},
}


@pytest.fixture(scope="module", params=["llama", "gemma2", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tiny.write(tiny.FAMILIES[request.param], tmp_path_factory.mktemp("model"))
    return load_model(folder, dtype="float32").decoder


@torch.inference_mode()
def check(model: Decoder, request: Request) -> None:
    """Every score against log_softmax of one plain pass over the prompt."""
    ids = request.prompt
    log_p_TV = model(torch.tensor(ids), Packed([len(ids)])).float().log_softmax(-1)
    assert request.prompt_logprobs[0] is None
    assert len(request.prompt_logprobs) == len(ids)
    for place, score in enumerate(request.prompt_logprobs[1:], 1):
        assert score is not None
        row_V = log_p_TV[place - 1]
        assert score.token_id == ids[place]
        assert score.logprob == pytest.approx(float(row_V[ids[place]]), abs=2e-5)
        assert [value for _, value in score.top] == pytest.approx(row_V.topk(3).values.tolist(), abs=2e-5)
        assert score.top[0][1] == max(value for _, value in score.top)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_scores_equal_the_plain_decoders(model: Decoder, setting: str) -> None:
    engine = Engine(model, **{"num_blocks": 128, "block_size": 4, **SETTINGS[setting]})
    for max_tokens in (0, 12, 0):  # the second and third round could find every prompt in the prefix cache
        params = SamplingParams(temperature=0, max_tokens=max_tokens, prompt_logprobs=3)
        asked = [Request(prompt, params) for prompt in PROMPTS]
        list(engine.run(asked))
        for request in asked:
            check(model, request)
            assert (len(request.output), request.finish_reason) == (max_tokens, "length")
    if setting == "preempted":
        assert engine.scheduler.preemptions > 0
    engine.check_idle()


def test_the_plain_loop_scores_too(model: Decoder) -> None:
    asked = [Request(prompt, SCORED) for prompt in PROMPTS]
    assert list(generate(model, asked)) == []
    for request in asked:
        check(model, request)


def test_a_prompt_as_long_as_the_context_can_be_scored(model: Decoder) -> None:
    engine = Engine(model, num_blocks=8, block_size=4)
    request = Request(list(range(32)), SCORED)
    list(engine.run([request]))
    check(model, request)


def test_scores_from_a_place_on_leave_the_cached_part_alone(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the end is scored, as for continuations, the beginning is found in the cache."""
    computed = []
    real = engine_module.run

    def counting(model: Decoder, cache: object, work: list) -> torch.Tensor:
        computed.append(sum(piece.count for piece in work))
        return real(model, cache, work)

    monkeypatch.setattr(engine_module, "run", counting)
    engine = Engine(model, num_blocks=64, block_size=4)
    for _ in range(2):
        computed.clear()
        request = Request([*SHARED, 5, 6], SCORED, prompt_logprobs=[None] * len(SHARED))
        list(engine.run([request]))
    assert sum(computed) == 6  # positions 36 to 41: position 39 scores the first token asked for
    whole = Request([*SHARED, 5, 6], SCORED)
    list(engine.run([whole]))
    for got, wanted in zip(request.prompt_logprobs[40:], whole.prompt_logprobs[40:], strict=True):
        assert got is not None
        assert wanted is not None
        assert got.logprob == pytest.approx(wanted.logprob, abs=2e-5)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM("tiny", store=tiny_store(tmp_path_factory.mktemp("store")), dtype="float32")


def test_answers_to_one_prompt_carry_its_scores_once(llm: LLM) -> None:
    params = SamplingParams(n=3, max_tokens=2, ignore_eos=True, prompt_logprobs=2, seed=1)
    done = llm.generate(["the cat sat on the mat", "the dog"], params)
    for one, text in zip(done, ("the cat sat on the mat", "the dog"), strict=True):
        assert one.prompt_logprobs is not None
        assert [s.token_id for s in one.prompt_logprobs[1:] if s] == llm.tokenizer.encode(text)[1:]
        assert len(one.choices) == 3
    assert llm.generate("the dog", SamplingParams(max_tokens=1)).prompt_logprobs is None
    only = llm.generate("the dog", SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert (only.text, only.finish_reason) == ("", "length")
    assert only.prompt_logprobs is not None


def plain_scores(llm: LLM, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        log_p_TV = llm.model(torch.tensor(ids), Packed([len(ids)])).float().log_softmax(-1)
    return [float(log_p_TV[place, token]) for place, token in enumerate(ids[1:])]


def test_score_of_texts_and_of_continuations(llm: LLM) -> None:
    texts = ["the cat sat on the mat", "hello there"]
    for text, score in zip(texts, llm.score(texts), strict=True):
        ids = llm.tokenizer.encode(text)
        assert (score.token_ids, score.logprobs[0]) == (ids, None)
        assert score.total == pytest.approx(sum(plain_scores(llm, ids)), abs=1e-4)
    prompt = "the cat sat "  # lm-eval's way: the blank goes with what follows
    for ending, score in zip((" on", "mat"), llm.score([prompt] * 2, [" on", "mat"]), strict=True):
        ids = llm.tokenizer.encode(prompt + ending)
        start = len(llm.tokenizer.encode("the cat sat"))
        assert score.token_ids == ids[start:]
        assert score.total == pytest.approx(sum(plain_scores(llm, ids)[start - 1 :]), abs=1e-4)
        assert all(isinstance(one, Logprobs) for one in score.logprobs)


def test_greedy_says_whether_the_model_would_have_said_it(llm: LLM) -> None:
    prompt = "the cat sat"
    said = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    ids = llm.tokenizer.encode(prompt)
    request = llm.requests([ids + said.token_ids], params)[0]
    list(llm.engine.run([request]))
    scores = request.prompt_logprobs[len(ids) :]
    assert all(score is not None and score.top[0][0] == score.token_id for score in scores)
    wrong = llm.score([prompt, prompt], [" on the mat", " hello"])
    assert [one.greedy for one in wrong] == [False, False]


def test_score_refuses_what_does_not_match(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one for each"):
        llm.score(["a", "b"], ["c"])
    with pytest.raises(UsageError, match="lists"):
        llm.score("a")  # type: ignore[arg-type]
    assert llm.score([]) == []
