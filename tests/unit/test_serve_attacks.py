"""What servers of this kind were broken with, tried over HTTP: each must fail, and the server must go on answering.

The classes are those of CVEs of Ollama, vLLM and llama-cpp-python; paths, digests, keys and private addresses have
their attacks beside the routes that they concern.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import gguf_bytes as gb
from fakes.server import Server
from fakes.tiny_llm import serving, tiny_app
from tokenmill.serve.log_format import JsonFormatter

ASK: Any = [{"role": "user", "content": "the cat"}]
ENOUGH_S = 20.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tiny_app(tmp_path_factory.mktemp("attacks"))) as url:
        yield url


@pytest.fixture(autouse=True)
def goes_on(url: str) -> Iterator[None]:
    """After every attack the next person gets an answer, and soon."""
    yield
    began = time.perf_counter()
    body = {"model": "tiny", "messages": ASK, "max_tokens": 3}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert httpx.get(f"{url}/health").json()["ready"] is True
    assert time.perf_counter() - began < ENOUGH_S


def refused(reply: httpx.Response, *statuses: int) -> str:
    assert reply.status_code in (statuses or (400,)), reply.text
    return reply.text


def made_of(url: str, data: bytes) -> tuple[httpx.Response, httpx.Response | None]:
    """What is said to a model of this file, when it is made and, if that was possible, when it is asked."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    httpx.post(f"{url}/api/blobs/{digest}", content=data).raise_for_status()
    body = {"model": "evil", "files": {"evil.gguf": digest}, "stream": False}
    made = httpx.post(f"{url}/api/create", json=body, timeout=60)
    if made.status_code != 200:
        return made, None
    return made, httpx.post(f"{url}/api/chat", json={"model": "evil", "messages": ASK}, timeout=60)


ARCHITECTURE = gb.key("general.architecture", gb.STRING, gb.text("llama"))
LIES = {
    "an offset behind the end": gb.gguf([ARCHITECTURE], [gb.info("token_embd.weight", [32, 32], 0, 2**40)]),
    "an offset that overflows": gb.gguf([ARCHITECTURE], [gb.info("token_embd.weight", [32, 32], 0, 2**64 - 32)]),
    "a size behind the end": gb.gguf([ARCHITECTURE], [gb.info("token_embd.weight", [2**20, 2**20], 0, 0)]),
    "a size that overflows": gb.gguf([ARCHITECTURE], [gb.info("token_embd.weight", [2**63, 2, 2**62], 0, 0)]),
    "a text of 2^60 bytes": gb.gguf([gb.key("general.name", gb.STRING, (2**60).to_bytes(8, "little"))]),
    "a list of 2^60 texts": gb.gguf([gb.key("tokenizer.ggml.tokens", gb.ARRAY, gb.array(gb.STRING, 2**60, b""))]),
    "2^60 keys": gb.gguf([ARCHITECTURE], num_keys=2**60),
    "2^60 tensors": gb.gguf([ARCHITECTURE], num_infos=2**60),
    "no model at all": b"GGUF",
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_model_file_that_lies_reads_nothing_of_ours(url: str, lie: str) -> None:
    """Ollama's CVE-2026-7482: a tensor behind the end of its file brought the server's memory to the caller."""
    made, asked = made_of(url, LIES[lie])
    said = made if asked is None else asked
    assert said.status_code in (400, 500), said.text
    assert set(said.json()) == {"error"}
    assert "Traceback" not in said.text
    assert "/models" not in said.text, "where its files lie is nobody's matter"


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% for a in range(10**9) %}x{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10 ** 10000000000 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include '/etc/passwd' %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_no_code_and_ends(url: str, template: str) -> None:
    """llama-cpp-python's CVE-2024-34359, and templates that never end, or end too big."""
    began = time.perf_counter()
    body = {"model": "tiny", "prompt": "x", "template": template, "stream": False, "options": {"num_predict": 1}}
    text = refused(httpx.post(f"{url}/api/generate", json=body, timeout=60), 400)
    assert time.perf_counter() - began < ENOUGH_S
    assert "uid=" not in text
    assert "root:" not in text


SCHEMAS: list[Any] = [
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(" * 5000 + ")" * 5000},
    {"type": "string", "pattern": "a{1,100000}{1,100000}"},
    {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:1/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"anyOf": [{"enum": [str(number) for number in range(20_000)]}] * 5},
    {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(3000)}},
    {"type": "object", "patternProperties": {".*" * 500: {}}},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_no_schema_stops_the_server(url: str, number: int) -> None:
    began = time.perf_counter()
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[number]}}
    body = {"model": "tiny", "messages": ASK, "max_tokens": 4, "response_format": held}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code in (200, 400), reply.text
    assert "root:" not in reply.text
    assert time.perf_counter() - began < ENOUGH_S


def test_a_schema_as_deep_as_a_well_is_refused(url: str) -> None:
    deep = '{"items":' * 3000 + "{}" + "}" * 3000
    text = f'{{"model":"tiny","messages":{json.dumps(ASK)},"format":{deep}}}'
    reply = httpx.post(f"{url}/api/chat", content=text, headers={"content-type": "application/json"}, timeout=60)
    refused(reply)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": ASK, "n": 10**9}),
        (
            "/v1/chat/completions",
            {"messages": ASK, "n": 128, "max_tokens": 10**12, "logprobs": True, "top_logprobs": 99},
        ),
        ("/v1/completions", {"prompt": ["x"] * 3000}),
        ("/v1/completions", {"prompt": "x", "logprobs": 10**6}),
        ("/v1/completions", {"prompt": "x", "n": 2, "best_of": 10**6}),
        ("/v1/chat/completions", {"messages": ASK, "logit_bias": {str(number): 1 for number in range(5000)}}),
        ("/v1/chat/completions", {"messages": ASK, "stop": [str(number) for number in range(100)]}),
        ("/v1/chat/completions", {"messages": ASK * 5000}),
        ("/v1/embeddings", {"input": ["x"] * 3000}),
        ("/api/generate", {"prompt": "x", "options": {"num_ctx": 10**18}}),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": 10**18}}),
        ("/api/generate", {"prompt": "x", "options": {"stop": ["x"] * 10_000}}),
        ("/api/generate", {"prompt": "x", "context": [1] * 2000}),
        ("/api/embed", {"input": ["x"] * 3000}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 5, "stop_sequences": ["x"] * 10_000}),
    ],
)
def test_numbers_have_limits(url: str, path: str, body: dict[str, Any]) -> None:
    refused(httpx.post(url + path, json={"model": "tiny", **body}, timeout=60))


def test_nothing_is_fetched_for_a_message(url: str) -> None:
    """vLLM's CVE-2026-22773: pictures that the server fetches from wherever a caller says."""
    with Server() as own:
        picture = f"{own.url}/picture.png"
        part: Any = {"type": "image_url", "image_url": {"url": picture}}
        source: Any = {"type": "image", "source": {"type": "url", "url": picture}}
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
            (
                "/v1/responses",
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": picture}]}]},
            ),
            ("/v1/messages", {"max_tokens": 3, "messages": [{"role": "user", "content": [source]}]}),
            ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [picture]}]}),
        ):
            refused(httpx.post(url + path, json={"model": "tiny", **body}, timeout=60))
        assert own.seen == []


def test_nobody_writes_lines_into_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither text nor JSON; and keys and prompts are not there at all."""
    secret = "a-secret-nobody-logs"
    with caplog.at_level(logging.INFO, "tokenmill.serve"):
        httpx.get(f"{url}/x%0Arequest_id=forged%0d%1b[2J?key={secret}", headers={"x-request-id": "mine-7"})
        body = {"model": "tiny", "prompt": secret, "stream": False, "options": {"num_predict": 1}}
        httpx.post(f"{url}/api/generate", json=body, headers={"x-api-key": secret}, timeout=60)
        for _ in range(100):  # a line is written behind its answer
            lines = [record for record in caplog.records if record.name.endswith("guard")]
            if len(lines) == 2:
                break
            time.sleep(0.05)
    assert len(lines) == 2
    for record in lines:
        text, told = record.getMessage(), json.loads(JsonFormatter().format(record))
        assert text.isprintable()
        assert secret not in text + json.dumps(told)
    told = json.loads(JsonFormatter().format(lines[0]))
    assert (told["request_id"], told["status"], told["level"]) == ("mine-7", 404, "info")
    assert told["path"].startswith("/x\nrequest_id=forged")
