"""Models come and go over HTTP: pulls and pushes with progress, from registries on this machine and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from fakes.registry import Registry, digest_of
from fakes.server import Server, status
from fakes.tiny_llm import serving, tiny_app, tiny_store
from tokenmill.store import Store

ASK: Any = [{"role": "user", "content": "the cat"}]
COLD = {"temperature": 0, "num_predict": 6}


@pytest.fixture
def cdn() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def registry(cdn: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TOKENMILL_TRUSTED_HOSTS", f"127.0.0.1:{cdn.port}")
    with Registry(cdn) as running:
        monkeypatch.setenv("TOKENMILL_OLLAMA_REGISTRY", running.url)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store(tmp_path)


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with serving(tiny_app(Path(), store=store)) as url:
        yield url


def test_a_model_is_pushed_pulled_and_asked(registry: Registry, store: Store, url: str) -> None:
    client = ollama.Client(url)
    client.copy("tiny", "me/tiny")
    pushed = list(client.push("me/tiny", stream=True))
    assert pushed[-1].status == "success"
    assert "me/tiny:latest" in registry.manifests
    client.delete("me/tiny")
    for digest in list(registry.blobs):  # else there would be nothing to fetch
        store.library.blobs.path(digest).unlink(missing_ok=True)
    wanted = client.chat("tiny", ASK, options=COLD).message.content

    told = list(client.pull("me/tiny", stream=True))
    assert (told[0].status, told[-1].status) == ("pulling manifest", "success")
    assert [line.status for line in told].count("success") == 1
    weights = max(registry.blobs.values(), key=len)
    ours = [line for line in told if line.digest == digest_of(weights)]
    assert [line.completed for line in ours] == sorted(line.completed or 0 for line in ours)
    assert (ours[-1].total, ours[-1].completed) == (len(weights), len(weights))
    assert ours[0].status == f"pulling {digest_of(weights)[7:19]}"
    assert client.chat("me/tiny", ASK, options=COLD).message.content == wanted
    again = httpx.post(f"{url}/api/pull", json={"model": "me/tiny", "stream": False}, timeout=60)
    assert (again.status_code, again.json()) == (200, {"status": "success"})


def test_a_pull_that_fails_says_why_and_leaves_nothing_half(registry: Registry, cdn: Server, url: str) -> None:
    client = ollama.Client(url)
    client.copy("tiny", "me/tiny")
    client.push("me/tiny")
    client.delete("me/tiny")
    with pytest.raises(ollama.ResponseError, match="nobody"):
        client.pull("me/nobody")
    registry.faults["/v2/me/tiny/manifests/latest"].extend([status(503)] * 20)
    with pytest.raises(ollama.ResponseError):
        client.pull("me/tiny")
    assert "me/tiny:latest" not in [model.model for model in client.list().models]


@pytest.mark.parametrize(
    "name",
    [
        "https://10.0.0.1/x.gguf",
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1:1/x.gguf",
        "https://[::1]/x.gguf",
        "https://localhost/x.gguf",
        "file:///etc/passwd",
        "127.0.0.1:9/library/x",
    ],
)
def test_nothing_is_fetched_from_private_addresses(registry: Registry, url: str, name: str) -> None:
    """Whoever may ask the server to pull must not make it look into its own network."""
    with httpx.stream("POST", f"{url}/api/pull", json={"model": name}, timeout=60) as reply:
        told = [json.loads(line) for line in reply.iter_lines()]
    assert "error" in told[-1]
    assert not any(line.get("status") == "success" for line in told)
    assert registry.seen == []


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"quantize": "q4_K_M"}, "the server does not quantize"),
        ({"draft_quantize": "q8_0"}, "the server does not quantize"),
        ({"renderer": "x"}, "code built into Ollama"),
        ({"draft_files": {"a": "b"}}, "no draft model"),
        ({"info": {"a": 1}}, "own metadata"),
        ({"insecure": True}, "insecure"),
        ({"files": {"model.gguf": "sha256:" + "0" * 64}}, "one of from"),
        ({"parameters": {"temperature": "hot"}}, "temperature"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"template": "{% if %}"}, "template is broken"),
        ({"requires": "1/0"}, "not a version"),
    ],
)
def test_what_create_cannot_do_is_refused_with_the_reason(url: str, field: dict[str, Any], why: str) -> None:
    reply = httpx.post(f"{url}/api/create", json={"model": "new", "from": "tiny", "stream": False, **field}, timeout=60)
    assert reply.status_code == 400
    assert why in reply.json()["error"]
    assert "new:latest" not in [model["name"] for model in httpx.get(f"{url}/api/tags").json()["models"]]


def test_a_pull_over_unchecked_connections_is_refused(url: str) -> None:
    reply = httpx.post(f"{url}/api/pull", json={"model": "tiny", "insecure": True}, timeout=60)
    assert reply.status_code == 400
    assert "checked" in reply.json()["error"]


def test_the_small_questions_of_ollamas_clients(url: str) -> None:
    assert httpx.get(f"{url}/api/status").json() == {"cloud": {"disabled": True, "source": "none"}}
    assert set(httpx.get(f"{url}/api/version").json()) == {"version"}
    for path in ("/", "/api/tags", "/api/version"):
        head = httpx.head(url + path)
        assert (head.status_code, head.content) == (200, b"")
    shown = httpx.post(f"{url}/api/show", json={"name": "tiny", "verbose": True}).json()
    assert {tensor["name"] for tensor in shown["tensors"]} >= {"lm_head.weight", "model.norm.weight"}
    assert "tensors" not in httpx.post(f"{url}/api/show", json={"model": "tiny"}).json()
    for path in ("/api/me", "/api/signout", "/api/experimental/web_search"):  # ollama.com's
        assert httpx.post(url + path).status_code == 404


def test_every_line_of_a_stream_is_as_described(registry: Registry, url: str) -> None:
    from tokenmill.serve.ollama import shapes

    for path, shape, body in (
        ("/api/chat", shapes.Chatted, {"messages": ASK, "options": COLD, "logprobs": True, "top_logprobs": 2}),
        ("/api/generate", shapes.Generated, {"prompt": "a", "options": COLD, "format": "json", "logprobs": True}),
        ("/api/create", shapes.Progress, {"from": "tiny", "model": "new"}),
        ("/api/pull", shapes.Progress, {"model": "nobody"}),
    ):
        reply = httpx.post(url + path, json={"model": "tiny", **body}, timeout=60)
        assert reply.headers["content-type"] == "application/x-ndjson"
        for line in reply.text.splitlines():
            (shapes.Error if "error" in json.loads(line) else shape).model_validate_json(line)
