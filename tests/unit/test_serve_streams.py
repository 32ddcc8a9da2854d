"""Streams through proxies: pings while a long prompt is computed, headers against buffering, work that ends early."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from fakes.tiny_llm import serving, tiny_app
from tokenmill.engine import engine as engine_module
from tokenmill.serve.replies import EventStream, json_text

ASK: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tiny_app(tmp_path_factory.mktemp("streams"), ping_s=0.02)) as url:
        httpx.post(f"{url}/api/generate", json={"model": "tiny"}, timeout=60)
        yield url


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of the model takes a tenth of a second: five pings."""
    run = engine_module.run

    def slowly(*given: Any, **more: Any) -> Any:
        time.sleep(0.1)
        return run(*given, **more)

    monkeypatch.setattr(engine_module, "run", slowly)


async def counting(closed: list[bool], pause: float) -> AsyncGenerator[str]:
    try:
        for number in range(3):
            await asyncio.sleep(pause)
            yield str(number)
    finally:
        closed.append(True)


async def sent(stream: EventStream) -> list[str]:
    """What a stream sends between its head and its end."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await stream.stream_response(send)
    assert messages[0]["type"] == "http.response.start"
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    return [message["body"].decode() for message in messages[1:-1]]


def test_pings_come_only_in_silence_and_change_nothing() -> None:
    assert asyncio.run(sent(EventStream(counting([], 0), 0.02, "ping"))) == ["0", "1", "2"]
    slow = asyncio.run(sent(EventStream(counting([], 0.1), 0.02, "ping")))
    assert [text for text in slow if text != "ping"] == ["0", "1", "2"]
    assert slow.count("ping") >= 3


@pytest.mark.parametrize("pause", [0, 10])
def test_whoever_leaves_ends_the_work(pause: float) -> None:
    """Both when the next event is awaited and when one is being sent. No watch is left behind."""
    closed: list[bool] = []

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body" and not pause:
            await asyncio.sleep(10)

    async def leave() -> None:
        task = asyncio.create_task(EventStream(counting(closed, pause), 0.01, "ping").stream_response(stuck))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(leave())
    assert closed == [True]


def test_an_error_in_the_stream_is_passed_on() -> None:
    async def broken() -> AsyncGenerator[str]:
        yield "a"
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        asyncio.run(sent(EventStream(broken(), 1, "ping")))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("path", "body", "ping"),
    [
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": 3}, ": ping\n\n"),
        ("/v1/completions", {"prompt": "the cat", "max_tokens": 3}, ": ping\n\n"),
        ("/v1/responses", {"input": "the cat", "max_output_tokens": 3}, ": ping\n\n"),
        ("/v1/messages", {"messages": ASK, "max_tokens": 3}, 'event: ping\ndata: {"type":"ping"}\n\n'),
        ("/api/chat", {"messages": ASK, "options": {"num_predict": 3}}, None),
        ("/api/generate", {"prompt": "the cat", "options": {"num_predict": 3}}, None),
    ],
)
def test_a_silent_stream_says_that_it_is_alive(url: str, path: str, body: dict[str, Any], ping: str | None) -> None:
    reply = httpx.post(url + path, json={"model": "tiny", "stream": True, **body}, timeout=60)
    assert reply.headers["x-accel-buffering"] == "no"
    assert "no-cache" in reply.headers["cache-control"]
    if ping is None:
        assert [json.loads(line)["done"] for line in reply.text.splitlines()][-1] is True
    else:
        assert reply.text.count(ping) >= 2
        assert reply.text.replace(ping, "").count("data: ") >= 2


@pytest.mark.usefixtures("slow")
def test_official_clients_do_not_mind_pings(url: str) -> None:
    chunks = openai.OpenAI(base_url=f"{url}/v1", api_key="unused").chat.completions.create(
        model="tiny", messages=ASK, max_tokens=3, stream=True
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    client = anthropic.Anthropic(base_url=url, api_key="unused")
    with client.messages.stream(model="tiny", messages=ASK, max_tokens=3) as stream:
        assert stream.get_final_message().usage.output_tokens == 3


def test_any_text_fits_into_json() -> None:
    assert json.loads(json_text({"a": "ü\ud800"})) == {"a": "ü\ud800"}
    assert json_text({"a": "ü"}) == '{"a":"ü"}'
    json_text({"a": "\ud800"}).encode()
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"))
