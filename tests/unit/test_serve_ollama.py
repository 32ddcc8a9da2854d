"""Ollama's HTTP API with Ollama's own client, over real HTTP, on the tiny model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any, cast

import httpx
import ollama
import pytest
from fastapi import FastAPI

from fakes.tiny_llm import CHATML, serving, tiny_app, tiny_store
from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Piece, Stats
from tokenmill.serve.errors import HTTPError
from tokenmill.serve.ollama import fields, options
from tokenmill.serve.ollama.access import check_may_change
from tokenmill.serve.ollama.answers import Answer
from tokenmill.serve.ollama.answers import lines as json_lines
from tokenmill.serve.reading import AnswerReader
from tokenmill.serve.worker import Ticket
from tokenmill.store import Store
from tokenmill.text.thinking import ThinkingSplitter

GREEDY = {"temperature": 0, "num_predict": 8}
ASKED = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
CHATML_PROMPT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 390}
FIM = "{{ if .Suffix }}<A>{{ .Prompt }}<B>{{ .Suffix }}{{ else }}{{ .Prompt }}{{ end }}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("ollama")
    store = tiny_store(root)
    store.create("kind", "FROM tiny\nSYSTEM be kind\nPARAMETER temperature 0\nPARAMETER stop xyz\nMESSAGE user a", root)
    store.create("fim", f'FROM tiny\nTEMPLATE """{FIM}"""', root)
    return store


@pytest.fixture(scope="module")
def app(store: Store) -> FastAPI:
    return tiny_app(store.root, store=store)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(url)


def post(url: str, route: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/api/{route}", json=body, timeout=60)


def test_it_says_that_it_is_there(url: str) -> None:
    assert httpx.get(url).text == "Ollama is running"
    assert httpx.head(url).status_code == 200
    assert set(httpx.get(f"{url}/api/version").json()) == {"version"}


def test_a_streamed_chat_is_the_whole_one(client: ollama.Client) -> None:
    whole = client.chat("tiny", ASKED, options=GREEDY, logprobs=True, top_logprobs=2)
    chunks = list(client.chat("tiny", ASKED, options=GREEDY, logprobs=True, top_logprobs=2, stream=True))
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    told = [one for chunk in chunks for one in chunk.logprobs or []]
    assert [one.token for one in told] == [one.token for one in whole.logprobs or []]
    assert len(told) == 8
    assert all(len(one.top_logprobs or []) == 2 and one.top_logprobs[0].logprob >= one.logprob for one in told)
    last = chunks[-1]
    assert (last.done_reason, last.eval_count, whole.eval_count) == ("length", 8, 8)
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert all(isinstance(one.total_duration, int) and one.total_duration >= one.eval_duration for one in (last, whole))


def test_a_streamed_text_is_the_whole_one(client: ollama.Client) -> None:
    whole = client.generate("tiny", "hello", options=GREEDY)
    chunks = list(client.generate("tiny", "hello", options=GREEDY, stream=True))
    assert "".join(chunk.response for chunk in chunks) == whole.response
    assert chunks[-1].context == whole.context
    assert len(whole.context or []) == (whole.prompt_eval_count or 0) + 8


def test_generate_and_chat_are_one_question(client: ollama.Client) -> None:
    chat = client.chat("tiny", ASKED, options=GREEDY)
    assert client.generate("tiny", "hello", options=GREEDY).response == chat.message.content
    again = client.generate("tiny", CHATML_PROMPT, raw=True, options=GREEDY)
    assert (again.response, again.context) == (chat.message.content, None)


def test_a_context_goes_before_the_prompt(client: ollama.Client) -> None:
    first = client.generate("tiny", "hello", options=GREEDY)
    second = client.generate("tiny", "hello", options=GREEDY, context=first.context)
    assert (second.context or [])[: len(first.context or [])] == first.context
    assert second.prompt_eval_count == len(first.context or []) + (first.prompt_eval_count or 0)


def test_a_models_own_settings_are_there(url: str, client: ollama.Client) -> None:
    body = {"model": "kind", "messages": ASKED, "_debug_render_only": True}
    rendered = post(url, "chat", body).json()["_debug_info"]["rendered_template"]
    assert rendered.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na<|im_end|>\n")
    system = post(url, "generate", {"model": "kind", "prompt": "x", "system": "other", "_debug_render_only": True})
    assert "other" in system.text
    assert "be kind" not in system.text
    assert "PARAMETER temperature 0" in (client.show("kind").modelfile or "")


def test_a_gap_is_filled_where_the_template_can(url: str, client: ollama.Client) -> None:
    asked = {"model": "fim", "prompt": "one", "suffix": "three", "_debug_render_only": True}
    assert post(url, "generate", asked).json()["_debug_info"]["rendered_template"] == "<A>one<B>three"
    assert "insert" in (client.show("fim").capabilities or [])
    with pytest.raises(ollama.ResponseError, match="does not support insert"):
        client.generate("tiny", "one", suffix="three")


def test_formats_hold_the_answer(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.chat("tiny", ASKED, format=schema, options={"temperature": 0, "num_predict": 60})
    assert json.loads(answer.message.content or "")["a"] in (1, 2)
    assert answer.done_reason == "stop"
    with pytest.raises(ollama.ResponseError, match="schema"):
        client.chat("tiny", ASKED, format={"type": "nonsense"}, options=GREEDY)


def test_loading_and_unloading(client: ollama.Client) -> None:
    assert client.generate("tiny").done_reason == "load"
    loaded = client.ps().models[0]
    assert (loaded.model, loaded.context_length, loaded.size_vram) == ("tiny:latest", 512, 0)
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert "tiny:latest" not in [model.model for model in client.ps().models]
    assert client.chat("tiny", [], keep_alive="10m").done_reason == "load"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_work(url: str, client: ollama.Client, app: FastAPI, stream: bool) -> None:
    client.generate("tiny")
    [worker] = [one.worker for one in app.state.manager.loaded() if one.name == "tiny:latest"]
    before = num_aborted(url)
    body = {"model": "tiny", "prompt": "x", "stream": stream, "options": {"num_predict": 400}, "format": LONG}
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/api/generate", json.dumps(body), {"content-type": "application/json"})
    wait_until(lambda: worker.busy)
    connection.close()
    wait_until(lambda: not worker.busy)
    assert num_aborted(url) == before + 1
    assert worker.llm.engine.pool.used == 0
    assert client.generate("tiny", "x", options=GREEDY).eval_count == 8


def num_aborted(url: str) -> float:
    told = httpx.get(f"{url}/metrics").text.splitlines()
    lines = [line for line in told if line.startswith("vllm:request_success_total{") and '"abort"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come true within ten seconds")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("-1m", -1), (-1, -1), (0, 0), ("0", 0), (7, 7), ("300ms", 0.3)],
)
def test_durations_are_gos(given: Any, seconds: float) -> None:
    assert fields.keep_alive_seconds(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "5", "5 m", "m", "1d", "5mm", True, [], float("nan"), "1" * 99 + "s"])
def test_other_durations_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|not a duration"):
        fields.keep_alive_seconds(given)


def test_vectors(client: ollama.Client) -> None:
    two = client.embed("tiny", ["one", "the cat sat"])
    assert len(two.embeddings) == 2
    assert two.embeddings[1] == pytest.approx(client.embeddings("tiny", "the cat sat").embedding, abs=1e-6)
    short = client.embed("tiny", "the cat sat", dimensions=4).embeddings[0]
    assert sum(number**2 for number in short) == pytest.approx(1)
    ratio = short[0] / two.embeddings[1][0]
    assert short == pytest.approx([ratio * number for number in two.embeddings[1][:4]], abs=1e-6)
    long = "cat " * 2000
    assert client.embed("tiny", long).prompt_eval_count == 512
    with pytest.raises(ollama.ResponseError, match="512"):
        client.embed("tiny", long, truncate=False)


def test_models_are_listed_shown_copied_and_removed(client: ollama.Client, store: Store) -> None:
    client.copy("tiny", "other")
    listed = {model.model: model for model in client.list().models}
    assert listed["other:latest"].digest == listed["tiny:latest"].digest == store.resolve("tiny").digest
    shown = client.show("other")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.template == CHATML
    assert str(store.root.parent) not in shown.model_dump_json()
    client.delete("other")
    assert "other:latest" not in [model.model for model in client.list().models]
    with pytest.raises(ollama.ResponseError) as caught:
        client.delete("other")
    assert caught.value.status_code == 404


def test_a_model_is_made_from_another(client: ollama.Client, store: Store) -> None:
    lines = list(client.create("made", from_="tiny", system="sys", parameters={"temperature": 0.5}, stream=True))
    assert lines[-1].status == "success"
    assert [line.status for line in lines].count("success") == 1
    made = store.resolve("made")
    assert (made.system, made.parameters) == ("sys", {"temperature": 0.5})
    client.delete("made")


def test_a_model_is_made_from_blobs(url: str, client: ollama.Client, store: Store) -> None:
    folder = store.root.parent / "tiny-model"
    files = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        files[path.name] = digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        httpx.post(f"{url}/api/blobs/{digest}", content=data).raise_for_status()
        assert httpx.head(f"{url}/api/blobs/{digest}").status_code == 200
    assert post(url, "create", {"model": "sent", "files": files, "stream": False}).json() == {"status": "success"}
    options = {**GREEDY, "seed": 1}
    assert client.chat("sent", ASKED, options=options).message == client.chat("tiny", ASKED, options=options).message
    client.delete("sent")


def test_a_blob_is_what_its_digest_says_or_nothing(url: str, store: Store) -> None:
    digest = f"sha256:{'0' * 64}"
    before = sorted(store.library.blobs.folder.iterdir())
    assert httpx.post(f"{url}/api/blobs/{digest}", content=b"else").status_code == 400
    assert httpx.head(f"{url}/api/blobs/{digest}").status_code == 404
    assert sorted(store.library.blobs.folder.iterdir()) == before
    for bad in ("sha256:..", "md5:00", "sha256:%2e%2e%2f%2e%2e"):
        assert httpx.post(f"{url}/api/blobs/{bad}", content=b"x").status_code in (400, 404)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("create", {"model": "x", "from": "/etc"}),
        ("create", {"model": "x", "from": "./tiny-model"}),
        ("create", {"model": "/tmp/x", "from": "tiny"}),
        ("create", {"model": "x", "from": "tiny", "adapters": {"../../a": f"sha256:{'0' * 64}"}}),
        ("pull", {"model": "/etc/passwd"}),
        ("push", {"model": "../x"}),
        ("show", {"model": "/etc"}),
        ("copy", {"source": "/etc", "destination": "x"}),
        ("chat", {"model": "/etc", "messages": ASKED}),
    ],
)
def test_paths_of_this_machine_are_never_taken(url: str, route: str, body: dict[str, Any]) -> None:
    answer = post(url, route, body)
    assert answer.status_code in (400, 404)
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        ({"model": "nope"}, 404, "nope"),
        ({"model": "tiny", "bogus": 1}, 400, "bogus"),
        ({}, 400, "model"),
        ({"model": "tiny", "options": {"temprature": 1}}, 400, "did you mean 'temperature'"),
        ({"model": "tiny", "options": {"mirostat": 1}}, 400, "mirostat"),
        ({"model": "tiny", "options": {"temperature": "hot"}}, 400, "temperature"),
        ({"model": "tiny", "options": {"num_ctx": 2}}, 400, "num_ctx is 2"),
        ({"model": "tiny", "images": ["aGk="]}, 400, "images"),
        ({"model": "tiny", "think": True}, 400, "does not support thinking"),
        ({"model": "tiny", "truncate": True}, 400, "never dropped"),
        ({"model": "tiny", "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"model": "tiny", "context": [99999]}, 400, "99999"),
        ({"model": "tiny", "raw": True, "system": "x"}, 400, "raw"),
        ({"model": "tiny", "template": "{{ .Nonsense }}"}, 400, "Nonsense"),
        ({"model": "tiny", "suffix": "x"}, 400, "insert"),
        ({"model": "tiny", "shift": True}, 400, "never dropped"),
    ],
)
def test_mistakes_have_a_status_and_a_reason(url: str, body: dict[str, Any], status: int, what: str) -> None:
    answer = post(url, "generate", {"prompt": "hello", **body})
    assert answer.status_code == status
    assert what in answer.json()["error"]


def test_a_prompt_that_does_not_fit_is_refused_with_its_length(url: str) -> None:
    answer = post(url, "chat", {"model": "tiny", "messages": [{"role": "user", "content": "cat " * 2000}]})
    assert answer.status_code == 400
    assert "512" in answer.json()["error"]


def test_num_ctx_bounds_prompt_and_answer() -> None:
    params = SamplingParams(max_tokens=50)
    assert options.within(params, 10, 30).max_tokens == 20
    assert options.within(params, 10, 300).max_tokens == 50
    assert options.within(params, 10, None) is params
    with pytest.raises(OutOfContextError, match="40 tokens"):
        options.within(params, 40, 40)


def test_options_are_typed_and_placement_is_accepted() -> None:
    assert options.checked({"num_thread": 4, "num_gpu": 1, "top_k": 5, "stop": "x", "seed": None}) == {
        "top_k": 5,
        "stop": ["x"],
    }
    with pytest.raises(UsageError, match=r"unknown option 'topk'.*; top_k"):
        options.checked({"topk": 1, "top_k": 1.5})


def test_strangers_change_no_models() -> None:
    def request(host: str, *keys: str) -> Any:
        state = SimpleNamespace(settings=SimpleNamespace(api_keys=frozenset(keys)))
        return SimpleNamespace(client=SimpleNamespace(host=host), app=SimpleNamespace(state=state))

    check_may_change(request("127.0.0.1"))
    check_may_change(request("10.0.0.1", "hash"))
    with pytest.raises(HTTPError, match="key") as caught:
        check_may_change(request("10.0.0.1"))
    assert caught.value.status == 403


class Script:
    """A ticket whose pieces are known before."""

    def __init__(self, *pieces: Piece | Exception) -> None:
        self.pieces, self.cancelled = list(pieces), False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def scripted(llm: LLM, template: str | None, *pieces: Piece | Exception) -> tuple[Answer, Script]:
    script = Script(*pieces)
    reader = AnswerReader(llm, [1], SamplingParams(), template=template, tools=[TOOL])
    body = fields.Chat(model="m")
    return Answer(body, llm, reader, cast(Ticket, script), 0.0, 0.0), script


@pytest.fixture(scope="module")
def llm(store: Store) -> LLM:
    return LLM("tiny", store=store)


def lines(answer: Answer) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        return [json.loads(line) async for line in json_lines(answer.chunks())]

    return asyncio.run(read())


def test_calls_and_thinking_come_apart_however_the_text_is_cut(llm: LLM) -> None:
    call = '{"name": "f", "arguments": {"b": [1], "a": "x"}}'
    text = f"<think>\nhm </th\n</think>\n\nSo: <tool_call>\n{call}\n</tool_call>"
    for size in (1, 2, 3, 7, len(text)):
        cut = [text[at : at + size] for at in range(0, len(text), size)]
        last = Piece("", finish_reason="stop", stats=Stats(3, 0, 5))
        answer, script = scripted(llm, "tools <tool_call> </think>", *map(Piece, cut), last)
        whole = asyncio.run(answer.whole())
        assert whole["message"]["thinking"] == "hm </th"
        assert whole["message"]["content"] == "So:"
        [found] = whole["message"]["tool_calls"]
        assert found["function"] == {"index": 0, "name": "f", "arguments": {"b": [1], "a": "x"}}
        assert script.cancelled


def test_a_failure_in_the_middle_is_a_line(llm: LLM) -> None:
    answer, script = scripted(llm, None, Piece("ab"), UsageError("too deep"))
    first, last = lines(answer)
    assert first["message"]["content"] == "ab"
    assert last == {"error": "too deep"}
    assert script.cancelled
    answer, _ = scripted(llm, None, RuntimeError("/secret/path"))
    assert lines(answer) == [{"error": "an error was encountered while running the model"}]


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>a b</think> c", False, ("a b", "c")),
        ("a</think>c", True, ("a", "c")),
        ("a <think>b</think>", False, ("", "a <think>b</think>")),
        ("<think>never ends </thi", False, ("never ends </thi", "")),
        ("<thin", False, ("", "<thin")),
        ("  <think></think>\n\nc ", False, ("", "c ")),
        ("", True, ("", "")),
    ],
)
def test_thinking_is_split_the_same_at_every_cut(text: str, inside: bool, expected: tuple[str, str]) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            splitter = ThinkingSplitter(inside=inside)
            parts = [*map(splitter.push, (text[:first], text[first:second], text[second:])), splitter.flush()]
            assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == expected


def test_a_message_keeps_what_templates_can_show() -> None:
    call = {"id": "1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}}}
    message = fields.Message.model_validate({"role": "Assistant", "content": "", "thinking": "t", "tool_calls": [call]})
    told = message.for_template()
    assert told["reasoning_content"] == "t"
    assert list(told["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    result = fields.Message(role="tool", content="3", tool_name="f").for_template()
    assert result == {"role": "tool", "content": "3", "name": "f"}
