"""The official clients, unmodified, against `tokenmill serve` as it is installed, on the default model.

Each asks the same with and without a stream, at temperature 0, and must be told the same. What they do on a model of a
few thousand weights, in all its corners, is in ``tests/unit/test_serve_*``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from shell import environment
from tokenmill.store import Store

MODEL = "smollm2:135m"
ASK: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def url(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("clients")
    Store(home / "models").create(MODEL, f"FROM {default_gguf}", home)
    command = [sys.executable, "-m", "tokenmill", "serve", MODEL, "--port", "0", "--json", "--ctx-size", "1024"]
    env = environment(home) | {"TOKENMILL_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def theirs(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_openai_chat(theirs: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 12}
    whole = theirs.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content or ""
    assert "Paris" in text
    assert whole.choices[0].logprobs is not None
    assert "".join(score.token for score in whole.choices[0].logprobs.content or []) == text
    chunks = list(theirs.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with theirs.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == text


def test_openai_completions_and_embeddings(theirs: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 5}
    whole = theirs.completions.create(**asked).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in theirs.completions.create(**asked, stream=True)) == whole
    near, far, paris = (
        row.embedding
        for row in theirs.embeddings.create(
            model=MODEL, input=["Paris is in France.", "x = y + 1", "Where is Paris?"]
        ).data
    )
    dot = [sum(a * b for a, b in zip(paris, other, strict=True)) for other in (near, far)]
    assert dot[0] > dot[1]


def test_openai_responses(theirs: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": ASK[0]["content"], "temperature": 0, "max_output_tokens": 12}
    whole = theirs.responses.create(**asked)
    assert "Paris" in whole.output_text
    events = list(theirs.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == whole.output_text


def test_openai_models_and_errors(theirs: openai.OpenAI, url: str) -> None:
    assert [model.id for model in theirs.models.list()] == [MODEL]
    assert theirs.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        theirs.chat.completions.create(model="nobody", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="1024"):
        theirs.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 2000}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="not-the-key", max_retries=0).models.list()


def test_ollama(url: str) -> None:
    client = ollama.Client(url, headers={"authorization": f"Bearer {KEY}"})
    options = {"temperature": 0, "num_predict": 12}
    whole = client.chat(MODEL, ASK, options=options)
    assert "Paris" in (whole.message.content or "")
    parts = list(client.chat(MODEL, ASK, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count
    text = client.generate(MODEL, ASK[0]["content"], options=options)
    assert text.response == whole.message.content
    told = client.generate(MODEL, ASK[0]["content"], options=options, stream=True)
    assert "".join(part.response for part in told) == text.response
    assert len(client.embed(MODEL, ["a", "b"]).embeddings) == 2
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.model for model in client.ps().models] == [MODEL]
    assert client.show(MODEL).details is not None


def test_ollama_makes_models(url: str) -> None:
    client = ollama.Client(url, headers={"authorization": f"Bearer {KEY}"})
    name, copied = "made", "copied"
    assert client.create(name, from_=MODEL, system="Answer in French.", stream=False).status == "success"
    client.copy(name, copied)
    assert {f"{name}:latest", f"{copied}:latest"} <= {model.model for model in client.list().models}
    asked = client.generate(copied, "Hello", options={"temperature": 0, "num_predict": 4})
    assert (
        asked.prompt_eval_count
        == client.chat(
            MODEL,
            [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Hello"}],
            options={"num_predict": 1},
        ).prompt_eval_count
    )
    for model in (name, copied):
        client.delete(model)
    assert [model.model for model in client.list().models] == [MODEL]


def test_anthropic(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    # the client has given up temperature; the protocol has it still
    asked: Any = {"model": MODEL, "messages": ASK, "max_tokens": 12, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    text = whole.content[0].text
    assert "Paris" in text
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert counted == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**asked, "model": "nobody"})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="not-the-key", max_retries=0).messages.create(**asked)


def test_all_protocols_say_the_same(url: str, theirs: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASK, "max_tokens": 12, "extra_body": {"temperature": 0}}
    ours = theirs.chat.completions.create(**asked).choices[0].message.content
    client = anthropic.Anthropic(base_url=url, api_key=KEY)
    assert client.messages.create(**asked).content[0].text == ours
    body = {"model": MODEL, "messages": ASK, "stream": False, "options": {"temperature": 0, "num_predict": 12}}
    reply = httpx.post(f"{url}/api/chat", json=body, headers={"x-api-key": KEY}, timeout=60)
    assert reply.json()["message"]["content"] == ours
