"""``echo`` with ``logprobs``: prompts scored over HTTP in OpenAI's shape, read the way lm-eval reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fakes.tiny_llm import serving, tiny_app, tiny_store
from tokenmill import LLM

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, LLM]]:
    root = tmp_path_factory.mktemp("store")
    store = tiny_store(root)
    with serving(tiny_app(root, store=store)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none"), LLM("tiny", store=store, dtype="float32")


def ask(client: openai.OpenAI, prompt: Any = PROMPT, **more: Any) -> Any:
    return client.completions.create(
        **{"model": "tiny", "prompt": prompt, "temperature": 0, "echo": True, "logprobs": 2, "max_tokens": 0, **more}
    )


def test_the_prompt_is_scored_in_openais_shape(served: tuple[openai.OpenAI, LLM]) -> None:
    client, llm = served
    [score] = llm.score([PROMPT], top_logprobs=2)
    answer = ask(client)
    [choice] = answer.choices
    found = choice.logprobs
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == (PROMPT, "length", 0)
    assert "".join(found.tokens) == PROMPT
    assert found.text_offset == [len("".join(found.tokens[:place])) for place in range(len(found.tokens))]
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    wanted = [one.logprob for one in score.logprobs[1:] if one]
    assert found.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    for top, one in zip(found.top_logprobs[1:], score.logprobs[1:], strict=True):
        assert max(top.values()) == pytest.approx(one.top[0][1] if one else None, abs=1e-4)


@pytest.mark.parametrize("more", [{"max_tokens": 3}, {"max_tokens": 3, "n": 2, "temperature": 1.5, "seed": 1}], ids=str)
def test_prompt_and_answer_are_scored_together_and_streamed_alike(
    served: tuple[openai.OpenAI, LLM], more: dict[str, Any]
) -> None:
    client, llm = served
    whole = ask(client, [PROMPT, "hello"], **more)
    assert len(whole.choices) == 2 * more.get("n", 1)
    heard: dict[int, dict[str, Any]] = {}
    for chunk in ask(client, [PROMPT, "hello"], **more, stream=True):
        [piece] = chunk.choices
        mine = heard.setdefault(piece.index, {"text": "", "tokens": [], "token_logprobs": [], "text_offset": []})
        mine["text"] += piece.text
        if piece.logprobs:
            for name in ("tokens", "token_logprobs", "text_offset"):
                mine[name] += getattr(piece.logprobs, name)
    for choice in whole.choices:
        mine, scores = heard[choice.index], choice.logprobs
        assert mine["text"] == choice.text
        assert (mine["tokens"], mine["text_offset"]) == (scores.tokens, scores.text_offset)
        assert mine["token_logprobs"][0] is None
        assert mine["token_logprobs"][1:] == pytest.approx(scores.token_logprobs[1:], abs=1e-4)
        prompt = PROMPT if choice.index < more.get("n", 1) else "hello"
        assert len(scores.tokens) == len(llm.tokenizer.encode(prompt)) + 3
        assert scores.text_offset[-1] < len(choice.text) + 3


def test_lm_eval_finds_the_likelihood_of_a_continuation(served: tuple[openai.OpenAI, LLM]) -> None:
    """As its local-completions model does: token ids, one new token, the scores between the context and that token."""
    client, llm = served
    context, ending = "the cat sat", " on the mat"
    ids = llm.tokenizer.encode(context + ending)
    start = len(llm.tokenizer.encode(context))
    for max_tokens, end in ((1, -1), (0, None)):
        found = ask(client, [ids], max_tokens=max_tokens, logprobs=1).choices[0].logprobs
        total = sum(found.token_logprobs[start:end])
        chosen = zip(found.tokens[start:end], found.top_logprobs[start:end], strict=True)
        greedy = all(token == max(top, key=top.get) for token, top in chosen)
        [wanted] = llm.score([context], [ending])
        assert (total, greedy) == (pytest.approx(wanted.total, abs=1e-4), wanted.greedy)
