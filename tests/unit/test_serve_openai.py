"""OpenAI's protocol with OpenAI's own client, over real HTTP, on a tiny random model."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fakes.tiny_llm import CHATML, serving, tiny_app, tiny_store
from tokenmill.core.errors import TokenmillError
from tokenmill.engine import engine
from tokenmill.engine.request import Request, Step
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM
from tokenmill.serve.tools import ChoiceReader, tool_use

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall with <tool_call>{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
)
ASK: Any = [{"role": "user", "content": "the cat sat on"}]
IMAGE = "messages.0.content.0.image_url"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("openai")
    with serving(tiny_app(root, store=tiny_store(root, chat_template=TOOL_TEMPLATE))) as address:
        yield address


@pytest.fixture(scope="module")
def client(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    root = tmp_path_factory.mktemp("plain")
    return LLM("tiny", dtype="float32", store=tiny_store(root, chat_template=TOOL_TEMPLATE))


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0, **more}
    )


def refused(client: openai.OpenAI, call: str = "chat.completions", **more: Any) -> dict[str, Any]:
    """The error of a call that must give 400."""
    route: Any = client
    for name in call.split("."):
        route = getattr(route, name)
    fields = {"chat.completions": {"messages": ASK}, "completions": {"prompt": "the"}, "responses": {"input": "the"}}
    with pytest.raises(openai.BadRequestError) as caught:
        route.create(**{"model": "tiny", **fields.get(call, {}), **more})
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    return body


def test_chat_is_what_the_library_says(client: openai.OpenAI, llm: LLM) -> None:
    answer = chat(client)
    wanted = llm.chat(ASK, SamplingParams(temperature=0, max_tokens=12))
    assert answer.choices[0].message.content == wanted.text
    assert answer.choices[0].finish_reason == wanted.finish_reason
    assert answer.usage.prompt_tokens == wanted.prompt_tokens
    assert answer.usage.completion_tokens == len(wanted.token_ids)
    assert answer.usage.total_tokens == wanted.prompt_tokens + len(wanted.token_ids)
    assert (answer.object, answer.model) == ("chat.completion", "tiny")


def test_a_streamed_chat_is_the_same(client: openai.OpenAI) -> None:
    more: Any = {"n": 3, "temperature": 1.5, "seed": 7, "logprobs": True, "top_logprobs": 2}
    whole = chat(client, **more)
    chunks = list(chat(client, **more, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine if part.finish_reason] == [choice.finish_reason]
        scores = [score for part in mine if part.logprobs for score in part.logprobs.content]
        assert scores == choice.logprobs.content
    assert len({choice.message.content for choice in whole.choices}) == 3


def test_the_stream_ends_with_done_and_has_no_usage_unless_asked(base: str) -> None:
    body = {"model": "tiny", "messages": ASK, "max_tokens": 2, "stream": True}
    reply = httpx.post(f"{base}/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert not any("usage" in json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_logprobs_are_the_models(client: openai.OpenAI, llm: LLM) -> None:
    found = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    wanted = llm.chat(ASK, SamplingParams(temperature=0, max_tokens=12, logprobs=3)).logprobs
    assert wanted is not None
    assert len(found) == len(wanted)
    for score, right in zip(found, wanted, strict=True):
        assert bytes(score.bytes) == llm.tokenizer.token_bytes(right.token_id)
        assert score.logprob == pytest.approx(right.logprob, abs=1e-4)
        assert [top.logprob for top in score.top_logprobs] == pytest.approx([lp for _, lp in right.top], abs=1e-4)
        assert score.logprob == pytest.approx(score.top_logprobs[0].logprob)  # greedy


def test_parameters_reach_the_sampler(client: openai.OpenAI, llm: LLM) -> None:
    plain = chat(client).choices[0].message.content
    token = llm.tokenizer.encode("Z")[0]
    assert chat(client, logit_bias={str(token): 100}).choices[0].message.content == "Z" * 12
    stopped = chat(client, stop=[plain[3:5]]).choices[0]
    assert stopped.message.content == plain[: plain.index(plain[3:5])]
    assert stopped.finish_reason == "stop"
    assert chat(client, max_tokens=3).choices[0].finish_reason == "length"
    assert chat(client, max_tokens=openai.omit, max_completion_tokens=3).usage.completion_tokens == 3
    hot: Any = {"temperature": 2, "seed": 5}
    assert chat(client, **hot).choices == chat(client, **hot).choices
    assert chat(client, temperature=2, seed=6).choices != chat(client, **hot).choices
    assert chat(client, temperature=2, seed=6, extra_body={"top_k": 1}).choices[0].message.content == plain
    z_then_stop: Any = {"logit_bias": {str(token): 100}, "extra_body": {"stop_token_ids": [token]}}
    assert chat(client, **z_then_stop).choices[0].message.content == ""
    z_then_stop["extra_body"]["min_tokens"] = 4
    assert chat(client, **z_then_stop).usage.completion_tokens == 5  # four of others, then the stop


def test_penalties_and_end_tokens(client: openai.OpenAI, llm: LLM) -> None:
    end = llm.tokenizer.eos_token_id
    ended = chat(client, logit_bias={str(end): 100}, logprobs=True).choices[0]
    assert (ended.message.content, ended.finish_reason, ended.logprobs.content) == ("", "stop", [])
    on = chat(client, logit_bias={str(end): 100}, extra_body={"ignore_eos": True})
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", 12)
    token = llm.tokenizer.encode("Z")[0]
    bias = {str(token): 1.5}
    answers = {
        chat(client, logit_bias=bias, max_tokens=40, **more).choices[0].message.content
        for more in ({}, {"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 3}})
    }
    assert len(answers) > 2


def test_json_is_held_to_its_schema(client: openai.OpenAI) -> None:
    schema = TOOL["function"]["parameters"]
    held = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    for stream in (False, True):
        answer = chat(client, response_format=held, max_tokens=60, temperature=1, seed=1, stream=stream)
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            if stream
            else answer.choices[0].message.content
        )
        assert json.loads(text)["city"] in ("Bern", "Oslo")
    anything = chat(client, response_format={"type": "json_object"}, max_tokens=200, seed=3).choices[0]
    assert anything.message.content.startswith("{")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    assert "schema" in refused(client, response_format=bad)["message"]
    assert refused(client, response_format={"type": "json_schema"})["param"] == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    more: Any = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 80, "temperature": 1, "seed": 2}
    answer = chat(client, **more).choices[0]
    [call] = answer.message.tool_calls
    assert (answer.finish_reason, answer.message.content, call.function.name) == ("tool_calls", None, "weather")
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")
    chunks = [chunk.choices[0] for chunk in chat(client, **more, stream=True)]
    [streamed] = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments)
    assert chunks[-1].finish_reason == "tool_calls"


def test_tools_and_their_history_are_shown_to_the_model(client: openai.OpenAI) -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    history = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [called], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    without, shown = (chat(client, messages=history, **more) for more in ({}, {"tools": [TOOL]}))
    hidden = chat(client, messages=history, tools=[TOOL], tool_choice="none")
    assert shown.usage.prompt_tokens > without.usage.prompt_tokens == hidden.usage.prompt_tokens
    assert refused(client, tool_choice="required")["param"] == "tool_choice"
    other: Any = {"type": "function", "function": {"name": "wether"}}
    assert "did you mean 'weather'" in refused(client, tools=[TOOL], tool_choice=other)["message"]
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    assert refused(client, tools=[strict])["param"] == "tools"
    assert refused(client, tools=[TOOL], response_format={"type": "json_object"})["param"] == "response_format"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages.0.role"),
        ({"extra_body": {"top_kk": 3}}, "top_kk"),
        ({"messages": [{"role": "user", "content": "x", "metadata": {}}]}, "messages.0.metadata"),
        ({"extra_body": {"audio": {"voice": "x"}}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, IMAGE),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, more: Any, param: str) -> None:
    error = refused(client, **more)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_a_misspelt_field_gets_a_hint_and_habits_are_accepted(client: openai.OpenAI) -> None:
    assert "did you mean 'top_k'" in refused(client, extra_body={"top_kk": 3})["message"]
    assert chat(client, user="me", store=True, metadata={"a": "b"}, service_tier="auto").choices
    assert chat(client, extra_body={"audio": None, "functions": []}).choices


def test_errors_have_openais_shape(client: openai.OpenAI, base: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="nobody")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    long = refused(client, messages=[{"role": "user", "content": "the cat " * 600}])
    assert long["code"] == "context_length_exceeded"
    assert "512" in long["message"]
    for empty in (b"", b"[]", b'"text"'):
        answered = httpx.post(f"{base}/v1/completions", content=empty, headers={"content-type": "application/json"})
        assert answered.status_code == 400
        assert answered.json()["error"]["message"] == "the body has to be a JSON object"
    broken = httpx.post(f"{base}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert "JSON" in broken.json()["error"]["message"]
    assert httpx.get(f"{base}/v1/nothing").status_code == 404
    for path, near in (("/chat/completions", "/v1/chat/completions"), ("/v1/v1/messages", "/v1/messages")):
        reply = httpx.post(base + path, json={})
        assert reply.status_code == 404
        assert f"there is no POST {path} here (did you mean '{near}'?)" in reply.text
    reply = httpx.get(f"{base}/v1/chat/completions")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "it takes POST" in reply.text
    assert httpx.get(f"{base}/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_cached_tokens_are_reported(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hello there, what is the capital of France? " * 4}]
    first, second = chat(client, messages=messages), chat(client, messages=messages)
    assert first.usage.prompt_tokens_details.cached_tokens < 16
    assert second.usage.prompt_tokens_details.cached_tokens >= 16
    streamed = list(chat(client, messages=messages, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1].usage == second.usage
    salted = chat(client, messages=messages, extra_body={"cache_salt": "mine"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_completions_take_every_kind_of_prompt(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["the cat", "hello"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    params = SamplingParams(temperature=0, max_tokens=5)
    wanted = [one.text for one in llm.generate(texts, params)]
    for prompt, right in ((texts, wanted), (ids, wanted), (texts[0], wanted[:1]), (ids[0], wanted[:1])):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0)
        assert [choice.text for choice in answer.choices] == right
        stream = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0, stream=True)
        heard = [""] * len(right)
        for chunk in stream:
            heard[chunk.choices[0].index] += chunk.choices[0].text
        assert heard == right
    assert client.completions.create(model="tiny", prompt="the", temperature=0).usage.completion_tokens == 16


def test_completions_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=6, temperature=0, logprobs=2).choices[0]
    scores = answer.logprobs
    assert scores is not None
    assert "".join(scores.tokens) == answer.text
    assert scores.text_offset == [len("".join(scores.tokens[:place])) for place in range(6)]
    assert [max(top.values()) for top in scores.top_logprobs] == pytest.approx(scores.token_logprobs)
    echo: Any = {"model": "tiny", "prompt": "the cat", "echo": True, "temperature": 0}
    assert client.completions.create(**echo, max_tokens=0).choices[0].text == "the cat"
    said = client.completions.create(**echo, max_tokens=3).choices[0].text
    assert said.startswith("the cat")
    assert len(said) > len("the cat")
    assert "".join(c.choices[0].text for c in client.completions.create(**echo, max_tokens=3, stream=True)) == said
    assert refused(client, "completions", suffix="x")["param"] == "suffix"


def test_a_scored_prompt_keeps_its_last_token_where_the_answer_ends_at_once(client: openai.OpenAI, llm: LLM) -> None:
    """lm-eval leaves out the last score, as that of a token written behind the text: there has to be one."""
    ask: Any = {"model": "tiny", "prompt": "the cat", "echo": True, "temperature": 0, "max_tokens": 1, "logprobs": 1}
    goes_on = client.completions.create(**ask).choices[0]
    assert goes_on.logprobs is not None
    end = llm.generate("the cat", SamplingParams(temperature=0, max_tokens=1)).choices[0].token_ids
    ends = client.completions.create(**ask, extra_body={"stop_token_ids": end}).choices[0]
    assert ends.finish_reason == "stop"
    assert ends.text == "the cat"
    assert ends.logprobs is not None
    assert ends.logprobs.token_logprobs[1:] == pytest.approx(goes_on.logprobs.token_logprobs[1:])


def test_best_of_keeps_the_likeliest(client: openai.OpenAI) -> None:
    ask: Any = {"model": "tiny", "prompt": ["the", "a"], "max_tokens": 4, "temperature": 1.5, "seed": 3, "logprobs": 0}
    every = client.completions.create(**ask, n=6).choices
    best = client.completions.create(**ask, n=2, best_of=6)
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3]
    for prompt in range(2):
        mean = {choice.text: np.mean(choice.logprobs.token_logprobs) for choice in every[prompt * 6 : prompt * 6 + 6]}
        wanted = sorted(mean, key=lambda text: -mean[text])[:2]
        assert [choice.text for choice in best.choices[prompt * 2 : prompt * 2 + 2]] == wanted
    assert best.usage is not None
    assert best.usage.completion_tokens > 2 * 2 * 4
    assert refused(client, "completions", best_of=1, n=2)["param"] == "best_of"
    assert refused(client, "completions", best_of=3, stream=True)["param"] == "best_of"


def test_embeddings(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["the cat", "hello there"]
    wanted = llm.embed(texts).numpy()
    for given in (texts, [llm.tokenizer.encode(text) for text in texts]):
        for form in ("float", "base64", openai.omit):
            found = client.embeddings.create(model="tiny", input=given, encoding_format=form)
            rows = [row.embedding for row in found.data]
            if form == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            np.testing.assert_allclose(np.array(rows), wanted, atol=1e-5)
            assert found.usage.prompt_tokens == sum(len(llm.tokenizer.encode(text)) for text in texts)
    assert refused(client, "embeddings", input="x", dimensions=4)["param"] == "dimensions"
    assert refused(client, "embeddings", input=["the " * 900])["code"] == "context_length_exceeded"
    assert refused(client, "embeddings", input=[])["param"] == "input"
    assert refused(client, "embeddings", input=[[100000]])["param"] == "input"


def test_models_tell_their_context(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id.startswith("tiny")
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 512
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_tokenize_and_back(base: str, client: openai.OpenAI) -> None:
    found = httpx.post(
        f"{base}/tokenize", json={"model": "tiny", "prompt": "the cat", "return_token_strs": True}
    ).json()
    assert "".join(found["token_strs"]) == "the cat"
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 512)
    back = httpx.post(f"{base}/detokenize", json={"model": "tiny", "tokens": found["tokens"]})
    assert back.json() == {"prompt": "the cat"}
    chatted = httpx.post(f"{base}/tokenize", json={"model": "tiny", "messages": ASK, "tools": [TOOL]}).json()
    assert chatted["count"] == chat(client, tools=[TOOL]).usage.prompt_tokens
    assert httpx.post(f"{base}/tokenize", json={"model": "tiny"}).status_code == 400
    assert httpx.post(f"{base}/detokenize", json={"model": "tiny", "tokens": [9999]}).status_code == 400


def test_a_response_is_the_chats_answer(client: openai.OpenAI, llm: LLM) -> None:
    chatted = llm.chat([{"role": "system", "content": "be kind"}, *ASK], SamplingParams(temperature=0, max_tokens=12))
    ask: Any = {"model": "tiny", "instructions": "be kind", "temperature": 0, "max_output_tokens": 12}
    for given in (ASK[0]["content"], ASK, [{"type": "message", "role": "user", "content": [_part(ASK[0]["content"])]}]):
        answer = client.responses.create(**ask, input=given)
        assert answer.output_text == chatted.text
    assert (answer.status, answer.object, answer.store) == ("incomplete", "response", False)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    assert answer.usage.input_tokens == chatted.prompt_tokens
    assert answer.usage.input_tokens_details.cached_tokens > 0  # asked thrice


def _part(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def test_a_streamed_response_tells_every_step(client: openai.OpenAI) -> None:
    ask: Any = {"model": "tiny", "input": "the cat", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with client.responses.stream(**ask) as stream:  # the client's own accumulator follows the events
        assert stream.until_done() is not None


def test_a_response_that_calls_a_tool_and_goes_on(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **TOOL["function"]}
    ask: Any = {"model": "tiny", "tools": [tool], "tool_choice": "required", "max_output_tokens": 80}
    [call] = client.responses.create(**ask, input="the").output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    events = list(client.responses.create(**ask, input="the", stream=True))
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert json.loads(done.arguments)["city"] in ("Bern", "Oslo")
    assert events[-1].type == "response.completed"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history: Any = [{"role": "user", "content": "the"}, call.model_dump(exclude_none=True), result]
    again = client.responses.create(model="tiny", input=history, max_output_tokens=4)
    assert again.output[0].type == "message"


def test_a_response_held_to_a_schema(client: openai.OpenAI) -> None:
    held: Any = {"format": {"type": "json_schema", "name": "place", "schema": TOOL["function"]["parameters"]}}
    answer = client.responses.create(model="tiny", input="the", text=held, max_output_tokens=60)
    assert json.loads(answer.output_text)["city"] in ("Bern", "Oslo")
    assert answer.status == "completed"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "the cat " * 600}, None),
    ],
)
def test_responses_refuse_by_name(client: openai.OpenAI, more: Any, param: str | None) -> None:
    error = refused(client, "responses", **more)
    assert str(error["param"]).startswith(str(param)) if param else error["code"] == "context_length_exceeded"


def _metric(base: str, name: str) -> float:
    lines = httpx.get(f"{base}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_work(base: str, stream: bool) -> None:
    tokens, n = 400, 100
    body = {"model": "tiny", "messages": ASK, "max_tokens": tokens, "n": n, "ignore_eos": True, "stream": stream}
    before = _metric(base, "vllm:generation_tokens_total")
    with httpx.Client(timeout=60 if stream else 0.3) as http:
        if stream:
            with http.stream("POST", f"{base}/v1/chat/completions", json=body) as reply:
                next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{base}/v1/chat/completions", json=body)
    while _metric(base, "vllm:num_requests_running") + _metric(base, "vllm:num_requests_waiting"):
        time.sleep(0.02)
    assert _metric(base, "vllm:generation_tokens_total") - before < 0.9 * tokens * n
    assert httpx.post(f"{base}/v1/chat/completions", json={**body, "n": 1, "max_tokens": 1, "stream": False}).is_success


def test_a_fault_in_the_middle_is_told_and_hurts_nobody_else(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.next_step

    def faulty(request: Request, *more: Any) -> Step:
        if request.seed == 666 and len(request.output) == 3:
            request.error = TokenmillError("planted")
            request.finish("error")
            return Step(request, None, None, "error")
        return real(request, *more)

    monkeypatch.setattr(engine, "next_step", faulty)
    heard = []
    with pytest.raises(openai.APIError, match="planted"):
        heard.extend(chat(client, seed=666, stream=True))
    assert len(heard) >= 4
    with pytest.raises(openai.InternalServerError, match="planted") as whole:
        chat(client, seed=666)
    assert whole.value.type == "server_error"
    with pytest.raises(openai.InternalServerError, match="planted"):
        chat(client, seed=665, n=2)
    events = list(client.responses.create(model="tiny", input="the", stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert chat(client, seed=1).choices[0].finish_reason == "length"


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize("parallel", [None, False])
def test_a_free_models_calls_are_read_from_its_text(llm: LLM, cut: int, parallel: bool | None) -> None:
    one = '<tool_call>{"name": "weather", "arguments": {"city": "%s"}}</tool_call>'
    text = "Let me see.\n" + one % "Bern" + "\n" + one % "Oslo"
    use = tool_use(llm, [TOOL], "auto", parallel=parallel, format=None)
    reader = ChoiceReader(llm, [5, 6], use.params(llm, llm.default_params), use)
    pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
    parts = [part for piece in pieces for part in reader.push(piece, last=False)] + reader.push("", last=True)
    assert "".join(part.text for part in parts) == "Let me see."
    cities = [part.call.arguments["city"] for part in parts if part.call]
    assert cities == (["Bern"] if parallel is False else ["Bern", "Oslo"])
    assert (reader.reason("stop"), reader.reason("length")) == ("tool_calls", "length")


def test_tools_need_a_template_that_knows_them(tmp_path: Path) -> None:
    with serving(tiny_app(tmp_path)) as address:
        plain = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
        assert refused(plain, tools=[TOOL])["param"] == "tools"
        assert chat(plain, tools=[TOOL], tool_choice="none").choices


def test_a_full_queue_is_429(tmp_path: Path) -> None:
    """More sequences than the cache holds: some are put back into the queue, and it is full."""
    with serving(tiny_app(tmp_path, max_queue=1)) as address:
        url = f"{address}/v1/chat/completions"
        body = {"model": "tiny", "messages": ASK, "n": 128, "ignore_eos": True, "max_tokens": 450, "stream": True}
        with httpx.stream("POST", url, json=body, timeout=30) as reply:
            assert reply.status_code == 200
            status = 200
            while status == 200:
                with httpx.stream("POST", url, json={**body, "n": 1}, timeout=30) as full:
                    status = full.status_code
                    full.read() if status != 200 else None
        assert status == 429
        assert full.headers["retry-after"]
        assert full.json()["error"]["code"] == "queue_full"
        assert full.json()["error"]["type"] == "rate_limit_error"


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASK, "max_tokens": 1},
    "/v1/completions": {"prompt": "the", "max_tokens": 1},
    "/v1/responses": {"input": "the", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "the"},
    "/tokenize": {"prompt": "the"},
    "/detokenize": {"tokens": [5]},
}
ODD = ["null", "-1", "0", "1e308", "NaN", "1" + "0" * 40, '"x"', '"\\ud800"', "[]", "{}", "[[]]", "true", '{"type": 1}']


@pytest.mark.parametrize("route", ROUTES)
def test_no_odd_value_is_a_fault_of_the_server(base: str, route: str) -> None:
    schemas = httpx.get(f"{base}/openapi.json", timeout=60).json()
    body = schemas["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = schemas["components"]["schemas"][body.rsplit("/", 1)[1]]["properties"]
    assert len(fields) >= 2
    with httpx.Client(timeout=60) as http:
        known = [name for name, schema in fields.items() if "title" in schema]  # not those only named to be refused
        for field in [*known, "\\ud800"]:
            for odd in ODD:
                rest = {name: value for name, value in {"model": "tiny", **ROUTES[route]}.items() if name != field}
                text = f'{{"{field}": {odd}, {json.dumps(rest)[1:]}'
                reply = http.post(f"{base}{route}", content=text, headers={"content-type": "application/json"})
                assert reply.status_code in (200, 400, 404), (text, reply.text)
                if reply.status_code == 400:
                    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, text
