"""The server from outside: the guard's attacks, health, metrics, many streams over HTTP, draining, the verbs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fakes.tiny_llm import serving, tiny_app, tiny_folder, tiny_store
from tokenmill import LLM, SamplingParams
from tokenmill.cli.app import main
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.serve.settings import ServerSettings, key_hash, stored_key_hashes
from tokenmill.store import Store

KEY = "a-key-that-nobody-guesses"
PROTOCOLS = [
    ("/api/nothing", lambda body: body["error"]),
    ("/v1/nothing", lambda body: body["error"]["message"]),
    ("/v1/messages/nothing", lambda body: body["error"]["message"]),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def app(store: Store) -> FastAPI:
    return tiny_app(Path(), store=store, max_queue=32, max_body_bytes=100_000)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def keyed(store: Store) -> Iterator[str]:
    with serving(tiny_app(Path(), store=store, api_keys=frozenset({key_hash(KEY), key_hash("another-key")}))) as url:
        yield url


def generate(url: str, prompt: str, tokens: int = 8, **more: Any) -> Iterator[dict[str, Any]]:
    body = {"model": "tiny", "prompt": prompt, "raw": True, "options": {"temperature": 0, "num_predict": tokens}}
    with httpx.stream("POST", f"{url}/api/generate", json=body | more, timeout=60) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            yield json.loads(line)


def routes(url: str, **options: Any) -> list[tuple[str, str]]:
    paths = httpx.get(f"{url}/openapi.json", timeout=60, **options).json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*found, ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "/")]


def test_keys_guard_every_route_but_health(keyed: str) -> None:
    good = {"authorization": f"Bearer {KEY}"}
    listed = routes(keyed, headers=good)
    assert {"/metrics", "/api/chat", "/health"} <= {path for _, path in listed}
    for method, path in listed:
        if not path.startswith("/health"):
            reply = httpx.request(method, keyed + path, timeout=60)
            assert (path, reply.status_code) == (path, 401)
            assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/health/live"):
        assert httpx.get(keyed + path).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": "another-key"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {key_hash(KEY)}"}, 401),  # whoever reads the settings file has no key
        ({"authorization": "Bearer"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "ä\xff"}, 401),
    ],
)
def test_a_key_opens(keyed: str, headers: dict[str, str], status: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert httpx.get(f"{keyed}/metrics", headers=encoded).status_code == status


@pytest.mark.parametrize(
    "path", ["/health/../metrics", "//metrics", "/health/live/x", "/%68ealth/../api/tags", "/metrics/", "/HEALTH"]
)
def test_no_spelling_of_a_path_leads_around_the_guard(keyed: str, path: str) -> None:
    host, port = keyed.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert b" 401 " in raw.makefile("rb").readline()


@pytest.mark.parametrize(("path", "message"), PROTOCOLS)
def test_refusals_have_the_protocols_shape(url: str, keyed: str, path: str, message: Any) -> None:
    assert "API key" in message(httpx.post(keyed + path).json())
    missing = httpx.get(url + path)
    assert missing.status_code == 404
    assert f"there is no GET {path} here" in message(missing.json())


def test_a_web_page_of_another_site_gets_nothing(url: str, store: Store) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        assert httpx.get(f"{url}/api/tags", headers=headers).status_code == 403
    own = httpx.get(f"{url}/api/tags", headers={"origin": url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    # a page may send text without asking first; it must not be taken for JSON
    sent = httpx.post(f"{url}/api/generate", content='{"model":"tiny"}', headers={"content-type": "text/plain"})
    assert sent.status_code == 400
    friend = {"origin": "https://friend.example"}
    with serving(tiny_app(Path(), store=store, cors_origins=("https://friend.example",))) as open_url:
        asked = httpx.options(f"{open_url}/api/tags", headers=friend | {"access-control-request-method": "GET"})
        assert asked.headers["access-control-allow-origin"] == "https://friend.example"
        assert httpx.get(f"{open_url}/api/tags", headers=friend).status_code == 200
        assert httpx.get(f"{open_url}/api/tags", headers={"origin": "https://evil.example"}).status_code == 403


def test_a_body_over_the_limit_is_refused_however_it_comes(url: str) -> None:
    big = b'{"model": "' + b"x" * 200_000 + b'"}'

    def chunks() -> Iterator[bytes]:
        yield from (big[start : start + 10_000] for start in range(0, len(big), 10_000))

    for content in (big, chunks()):
        reply = httpx.post(f"{url}/api/chat", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 413
        assert "100000 bytes" in reply.json()["error"]


@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"a":' * 10_000, b"\xff\xfe", b"NaN", b"", b'"text"', b"[]"])
def test_broken_bodies_are_the_clients_fault(url: str, body: bytes) -> None:
    reply = httpx.post(f"{url}/api/chat", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]


def test_a_fault_of_ours_is_answered_without_its_text(app: FastAPI, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(app.state.manager, "resolve", broken)
    reply = httpx.post(f"{url}/api/generate", json={"model": "tiny", "prompt": "a"}, headers={"x-request-id": "mine-1"})
    assert reply.status_code == 500
    assert "mine-1" in reply.json()["error"]
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] == "mine-1"
    odd = httpx.get(f"{url}/api/tags", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert odd.isalnum()


def test_a_model_whose_files_broke_says_so_and_names_no_file(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    store.create("other", f"FROM {tiny_folder(tmp_path / 'other-model')}", tmp_path)
    weights = tmp_path / "tiny-model" / "model.safetensors"
    with serving(tiny_app(Path(), store=store)) as url:
        for attack in (lambda: weights.write_bytes(b"\xff" * 1000), weights.unlink):
            attack()
            reply = httpx.post(f"{url}/api/generate", json={"model": "tiny", "prompt": "a"})
            assert reply.status_code == 500
            assert "'tiny'" in reply.json()["error"]
            assert str(tmp_path) not in reply.text
            assert list(generate(url, "the cat", model="other"))[-1]["done"] is True


def test_health_tells_live_from_ready(app: FastAPI, url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"live": True, "ready": True, "faults": []}
    app.state.gate.draining = True
    try:
        for path, status in (("/health", 503), ("/health/live", 200), ("/api/tags", 503)):
            assert httpx.get(url + path).status_code == status
        assert httpx.get(f"{url}/api/tags").headers["retry-after"].isdecimal()
    finally:
        app.state.gate.draining = False


def test_64_streams_over_http_are_all_answered_or_refused(app: FastAPI, url: str, store: Store) -> None:
    llm = LLM("tiny", store=store, dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=8)
    prompts = [f"the dog number {number}" for number in range(64)]
    wanted = [llm.generate(prompt, params).text for prompt in prompts]

    async def one(client: httpx.AsyncClient, prompt: str) -> tuple[int, str]:
        options = {"temperature": 0, "num_predict": 8, "top_k": 0, "top_p": 1, "repeat_penalty": 1}
        body = {"model": "tiny", "prompt": prompt, "raw": True, "options": options}
        async with client.stream("POST", f"{url}/api/generate", json=body) as reply:
            lines = [json.loads(line) async for line in reply.aiter_lines()]
        if reply.status_code == 200:
            assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
            return 200, "".join(line["response"] for line in lines)
        assert reply.headers["retry-after"] == "1"
        return reply.status_code, lines[0]["error"]

    async def burst() -> list[tuple[int, str]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    results = asyncio.run(burst())
    assert {status for status, _ in results} <= {200, 429, 503}
    assert sum(status == 200 for status, _ in results) >= 32
    assert all(text == right for (status, text), right in zip(results, wanted, strict=True) if status == 200)


def test_a_client_that_goes_frees_its_blocks(app: FastAPI, url: str) -> None:
    stream = generate(url, "the cat", tokens=400, options={"num_predict": 400, "temperature": 1.5})
    next(stream)
    (model,) = app.state.manager.loaded()
    stream.close()  # type: ignore[attr-defined]
    for _ in range(500):
        if not model.worker.busy:
            break
        time.sleep(0.01)
    assert not model.worker.busy
    model.worker.llm.engine.check_idle()


def test_metrics_say_what_happened_and_repeat_nothing_that_clients_make_up(url: str) -> None:
    list(generate(url, "the cat sat on the mat and the dog sat on the log"))
    httpx.get(f"{url}/made-up-by-a-client")
    httpx.request("BREW", f"{url}/api/tags")
    text = httpx.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['vllm:generation_tokens_total{model_name="tiny:latest"}']) >= 8
    assert float(values['vllm:time_to_first_token_seconds_count{model_name="tiny:latest"}']) >= 1
    assert float(values['vllm:num_requests_running{model_name="tiny:latest"}']) == 0
    assert float(values['http_requests_total{handler="/api/generate",method="POST",status="200"}']) >= 1
    assert "made-up" not in text
    assert "BREW" not in text


def test_beyond_this_machine_a_key_is_demanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(UsageError, match="--insecure"):
            ServerSettings(host=host)
        ServerSettings(host=host, insecure=True)
        ServerSettings(host=host, api_keys=frozenset({key_hash(KEY)}))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServerSettings(host=host)
    with pytest.raises(UsageError, match="8 characters"):
        key_hash("short")
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path))
    assert stored_key_hashes() == frozenset()
    (tmp_path / "api-keys").write_text(f"# ours\n{key_hash(KEY).upper()}  # Ada\n\n")
    assert stored_key_hashes() == {key_hash(KEY)}
    (tmp_path / "api-keys").write_text(f"{KEY}\n")
    with pytest.raises(ConfigError, match="line 1"):
        stored_key_hashes()


def test_ps_and_stop(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    list(generate(url, "the cat"))
    monkeypatch.setenv("TOKENMILL_HOST", url.removeprefix("http://"))
    assert main(["ps"]) == 0
    table = capsys.readouterr().out
    assert table.split()[:6] == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert "tiny:latest" in table
    assert main(["stop", "tiny"]) == 0
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": []}
    assert main(["stop", "nobody"]) == 1
    assert "not on this machine" in capsys.readouterr().err
    monkeypatch.setenv("TOKENMILL_HOST", "127.0.0.1:1")
    assert main(["ps"]) == 1
    assert "tokenmill serve" in capsys.readouterr().err
    monkeypatch.setenv("TOKENMILL_HOST", "ftp://x")
    assert main(["ps"]) == 2


def test_ps_and_stop_show_their_key(keyed: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TOKENMILL_HOST", keyed)
    monkeypatch.setenv("TOKENMILL_API_KEY", f"{KEY} a-second-one")  # `serve` takes several there
    httpx.post(f"{keyed}/api/generate", json={"model": "tiny"}, headers={"x-api-key": KEY}, timeout=60)
    assert main(["ps"]) == 0
    assert "tiny:latest" in capsys.readouterr().out
    assert main(["stop", "tiny"]) == 0
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"models": []}
    for wrong in ("not-the-key", ""):
        monkeypatch.setenv("TOKENMILL_API_KEY", wrong)
        for words in (["ps"], ["stop", "tiny"]):
            assert main(words) == 1
            told = capsys.readouterr().err
            assert "API key" in told
            assert KEY not in told


def test_told_to_stop_it_finishes_what_it_began(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "small", context=4096)
    command = [sys.executable, "-m", "tokenmill", "serve", str(folder), "--port", "0", "--json", "--log-format", "json"]
    env = {**os.environ, "TOKENMILL_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        stream = generate(ready["url"], "the cat", model="small", options={"num_predict": 1500, "temperature": 2.0})
        next(stream)
        process.send_signal(signal.SIGTERM)
        refused = [httpx.get(f"{ready['url']}/api/tags").status_code]
        while refused[-1] == 200:  # the signal is on its way
            refused.append(httpx.get(f"{ready['url']}/api/tags").status_code)
        assert refused[-1] == 503
        assert list(stream)[-1]["done"] is True
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    told = [json.loads(line) for line in log.splitlines()]  # every line
    assert "serves on" in told[0]["message"] or "loaded" in told[0]["message"]
    assert {"/api/generate", "/api/tags"} <= {line.get("path") for line in told}
    assert not any("exception" in line for line in told)


def test_a_port_that_is_taken_is_said_before_models_are_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "another program listens there" in capsys.readouterr().err
    assert main(["serve", "--host", "192.0.2.1", "--insecure", "--port", "0"]) == 1  # an address of nobody's
    assert "no such address; --host takes another" in capsys.readouterr().err
