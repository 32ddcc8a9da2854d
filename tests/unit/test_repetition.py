"""Answers that go round in circles: what counts as a loop, both engines, and who gets it by default."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest

import tiny
from fakes.tiny_llm import serving, tiny_app, tiny_store
from tokenmill import LLM, RepetitionDetection, SamplingParams
from tokenmill.core.errors import UsageError
from tokenmill.engine.engine import Engine
from tokenmill.engine.generate import generate
from tokenmill.engine.repetition import repeats
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import as_ollama
from tokenmill.models import load_model
from tokenmill.nn.decoder import Decoder
from tokenmill.store import Store

DEFAULT = RepetitionDetection()
EXACT = RepetitionDetection(max_pattern_size=6, min_pattern_size=1, min_count=3)
ASKED: Any = [{"role": "user", "content": "hello"}]


def slow(ids: list[int], what: RepetitionDetection) -> bool:
    """The twin: every size, every copy."""
    return any(
        len(ids) >= size * what.min_count and ids[-size * what.min_count :] == ids[-size:] * what.min_count
        for size in range(what.min_pattern_size, what.max_pattern_size + 1)
    )


def test_every_loop_is_found_and_nothing_else() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        ids = [draw.randrange(2) for _ in range(draw.randrange(24))]
        ids += ids[len(ids) - draw.randrange(1, 7) :] * draw.randrange(4)
        assert repeats(ids, EXACT) == slow(ids, EXACT), ids


@pytest.mark.parametrize("size", [1, 3, 9, 31, 33, 100, 256])
def test_the_default_waits_for_256_tokens_and_eight_copies(size: int) -> None:
    pattern, ids = list(range(size)), [5000, 5001, 5002]
    while not repeats(ids, DEFAULT):
        ids.append(pattern[(len(ids) - 3) % size])
        assert len(ids) < 3000
    least = max(256, 8 * size)
    assert least <= len(ids) - 3 < 2 * least + 32  # a size below 32 counts as one of its multiples


def test_what_repeats_but_goes_on_is_no_loop() -> None:
    counted = [token for number in range(900) for token in (10, 11, 12 + number)]
    assert not any(repeats(counted[:end], DEFAULT) for end in range(len(counted)))
    assert not any(repeats([7] * count + [8], DEFAULT) for count in range(256))  # a row of dots, and on


@pytest.mark.parametrize("wrong", [{"min_pattern_size": 0}, {"max_pattern_size": 9}, {"min_count": 1}])
def test_numbers_that_do_not_go_together_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"repetition_detection needs .*min_"):
        RepetitionDetection(**wrong)
    with pytest.raises(UsageError, match="repetition_detection must be"):
        SamplingParams(repetition_detection=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


@pytest.mark.parametrize("paged", [False, True])
def test_an_answer_ends_where_it_loops(model: Decoder, paged: bool) -> None:
    stuck = {"temperature": 0.0, "logit_bias": {33: 50.0}, "max_tokens": 40}
    asked = [Request([5, 1], SamplingParams(**stuck, repetition_detection=rule)) for rule in (None, EXACT)]
    list(Engine(model, num_blocks=64, block_size=4).run(asked) if paged else generate(model, asked))
    assert [(len(r.output), r.finish_reason) for r in asked] == [(40, "length"), (3, "repetition")]


def test_loops_end_an_answer_only_where_nobody_set_a_limit() -> None:
    base = SamplingParams(top_k=3)
    assert base.repetition_detection is None
    assert as_ollama(base, {}, {"temperature": 0.5}).repetition_detection == DEFAULT
    for modelfile, options in (({}, {"num_predict": -1}), ({"num_predict": 900}, {})):
        assert as_ollama(base, modelfile, options).repetition_detection is None


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("loops")
    store: Store = tiny_store(root)
    with serving(tiny_app(root, store=store)) as address:
        yield address


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that can say one thing only."""
    plain = LLM.requests

    def requests(llm: LLM, prompts: Any, params: SamplingParams, *rest: Any, **more: Any) -> list[Request]:
        object.__setattr__(params, "logit_bias", {33: 100.0})
        return plain(llm, prompts, params, *rest, **more)

    monkeypatch.setattr(LLM, "requests", requests)


@pytest.mark.usefixtures("stuck")
def test_ollamas_clients_are_told(url: str) -> None:
    client = ollama.Client(url)
    answer = client.chat("tiny", ASKED)
    assert (answer.done, answer.done_reason) == (True, "repetition")
    assert len(answer.message.content or "") == answer.eval_count
    assert client.generate("tiny", "hello").done_reason == "repetition"
    assert client.chat("tiny", ASKED, options={"num_predict": 300}).eval_count == 300
    assert client.chat("tiny", ASKED, options={"num_predict": -1}).done_reason == "length"


@pytest.mark.usefixtures("stuck")
def test_openais_clients_ask_for_it_as_vllms_do(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

    def chat(**rule: int) -> tuple[str, int]:
        more = {"repetition_detection": rule} if rule else {}
        answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=300, extra_body=more)
        return answer.choices[0].finish_reason, answer.usage.completion_tokens

    assert chat() == ("length", 300)
    assert chat(max_pattern_size=0) == ("length", 300)
    assert chat(max_pattern_size=20, min_count=4) == ("repetition", 4)
    with pytest.raises(openai.BadRequestError, match="min_count >= 2"):
        chat(max_pattern_size=20)
