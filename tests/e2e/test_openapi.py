"""The server against its own OpenAPI description: whatever is sent, no 5xx and no reply outside the description.

schemathesis makes the requests, valid and broken ones, over real HTTP on a tiny model. A few examples a route here;
``TOKENMILL_API_EXAMPLES=500`` makes it a long run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fakes.registry import Registry
from fakes.server import Server
from fakes.tiny_llm import serving, tiny_app, tiny_store

EXAMPLES = int(os.environ.get("TOKENMILL_API_EXAMPLES", "0"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CREATED = "made-by-a-request"


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The description of a running server. Models can be pulled from a registry on this machine, which has none."""
    root = tmp_path_factory.mktemp("openapi")
    with pytest.MonkeyPatch.context() as patch, Server() as files, Registry(files) as registry:
        patch.setenv("TOKENMILL_OLLAMA_REGISTRY", registry.url)
        patch.setenv("HF_ENDPOINT", registry.url)
        store = tiny_store(root, context=128)
        store.copy("tiny", "other")
        with serving(tiny_app(root, store=store)) as url:
            yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Requests that a random name would end at once are about the model that is there, and answers are short."""
    if not isinstance(body, dict):
        return body
    path = context.operation.path
    changing = path in ("/api/delete", "/api/create", "/api/copy")
    for name in ("model", "name", "source"):
        if isinstance(body.get(name), str) and body[name]:
            body[name] = CREATED if changing and name != "source" else "tiny"
    if isinstance(body.get("destination"), str):
        body["destination"] = CREATED
    if isinstance(body.get("from"), str) and len(body["from"]) % 2:
        body["from"] = "tiny"
    for name in ("max_tokens", "max_output_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int) and body[name] > 4:
            body[name] %= 5
    return body


def test_every_reply_is_as_described(description: Any) -> None:
    for found in description.get_all_operations():
        operation = found.ok()
        check(operation, GenerationMode.POSITIVE)
        if any(body.media_type == "application/json" for body in operation.body):  # else nothing can be wrong
            check(operation, GenerationMode.NEGATIVE)


def check(operation: schemathesis.APIOperation, mode: GenerationMode) -> None:
    """Some requests to one route, `mode` tells whether right or wrong ones."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES or 2,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def each(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    each()


def test_the_description_is_whole(description: Any) -> None:
    """No two operations share an id, and each tells what it answers when all is well and when it is not."""
    raw = description.raw_schema
    operations = [
        (path, method, operation) for path, methods in raw["paths"].items() for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(set(ids)) == len(ids)
    for path, method, operation in operations:
        replies = operation["responses"]
        assert "422" not in replies
        told = [status for status in replies if status < "300"]
        assert told, (path, method)
        if path.startswith("/health"):
            continue
        assert {"400", "401", "403", "404", "413", "429", "500", "503"} <= replies.keys(), (path, method)
        for status, reply in replies.items():
            for kind, media in reply.get("content", {}).items():
                assert media["schema"], (path, method, status, kind)


def test_a_method_that_is_not_there_is_told_which_are(description: Any) -> None:
    reply = httpx.request("PATCH", description.location.replace("/openapi.json", "/api/chat"))
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
