"""bench serve: a real server on a tiny model and one that misbehaves. What fails is counted by its reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.server import Exchange, Seen, Server
from fakes.tiny_llm import serving, tiny_app
from tokenmill.cli.app import main
from tokenmill.core.errors import UsageError
from tokenmill.evals.load import LoadResult, Target, parse_slo, run_load
from tokenmill.evals.workload import Workload

TINY = {"vocab_size": 300, "input_len": 12, "output_len": 5}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tiny_app(tmp_path_factory.mktemp("store"))) as address:
        yield address


def load(target: Target, *, rate: float = float("inf"), concurrency: int | None = None, **more: Any) -> LoadResult:
    asks = Workload(**{**TINY, **more}).asks(rate)
    return asyncio.run(run_load(target, asks, max_concurrency=concurrency))


def test_lengths_are_exact(url: str) -> None:
    figures = load(Target(url, "tiny"), num_prompts=6).document()
    assert (figures["completed"], figures["failed"], figures["errors"]) == (6, 0, {})
    assert figures["total_input_tokens"] == 6 * 12
    assert figures["total_output_tokens"] == 6 * 5
    assert figures["output_throughput"] == pytest.approx(30 / figures["duration"])
    assert figures["total_token_throughput"] == pytest.approx(102 / figures["duration"])
    assert figures["request_throughput"] == pytest.approx(6 / figures["duration"])
    assert figures["request_goodput"] is None
    assert 0 < figures["p50_ttft_ms"] <= figures["p99_ttft_ms"] <= figures["p99_e2el_ms"]
    assert figures["mean_tpot_ms"] > 0


def test_no_more_are_open_than_asked_for(url: str) -> None:
    assert load(Target(url, "tiny"), num_prompts=6, concurrency=2).peak == 2
    assert load(Target(url, "tiny"), num_prompts=6).peak == 6


def test_requests_are_sent_at_their_times(url: str) -> None:
    asks = Workload(**TINY, num_prompts=5).asks(20.0)
    done = asyncio.run(run_load(Target(url, "tiny"), asks))
    for ask, answer in zip(asks, done.answers, strict=True):
        assert ask.at <= answer.start < ask.at + 2.0


def test_chat_sends_words(url: str) -> None:
    figures = load(Target(url, "tiny", endpoint="chat"), num_prompts=2).document()
    assert figures["completed"] == 2
    assert figures["total_output_tokens"] == 10
    assert figures["mean_ttft_ms"] > 0


def test_a_shared_beginning_is_found_in_the_cache(url: str) -> None:
    more = {"dataset": "prefix", "input_len": 60, "prefix_len": 48, "seed": 9}
    figures = load(Target(url, "tiny"), num_prompts=4, concurrency=1, **more).document()
    assert figures["total_cached_tokens"] == 3 * 48


def test_what_the_server_refuses_is_counted_with_its_reason(url: str) -> None:
    figures = load(Target(url, "tiny"), num_prompts=3, input_len=600).document()
    assert figures["failed"] == 3
    (reason,) = figures["errors"]
    assert "HTTP 400" in reason
    assert "600" in reason
    assert figures["p99_ttft_ms"] is None
    assert figures["output_throughput"] == 0


class Faulty(Server):
    """Answers each request by the next of `replies`: a status and a body."""

    replies: list[tuple[int, bytes]]

    def answer(self, exchange: Exchange, seen: Seen) -> None:
        status, body = self.replies.pop(0)
        exchange.reply(status, body, Content_Type="text/event-stream")


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\r\n\r\n"


@contextmanager
def faulty(*replies: tuple[int, bytes]) -> Iterator[Faulty]:
    with Faulty() as server:
        server.replies = list(replies)
        yield server


def test_every_way_to_fail_has_its_name() -> None:
    said = event({"choices": [{"text": "a"}]})
    replies = [
        (200, said + said + b"data: [DONE]\n\n"),  # good, though it tells no counts
        (503, b'{"error": {"message": "the queue\\nis full"}}'),
        (500, b"<html>oops</html>"),
        (200, said),  # cut off
        (200, said + event({"error": {"message": "out of memory"}})),
        (200, said + b"data: nonsense\n\n"),
    ]
    with faulty(*replies) as server:
        done = load(Target(server.url, "m"), num_prompts=6, concurrency=1)
    figures = done.document()
    assert figures["completed"] == 1
    assert figures["total_output_tokens"] == 2
    assert figures["errors"] == {
        "HTTP 503: the queue is full": 1,
        "HTTP 500: <html>oops</html>": 1,
        "the stream ended before [DONE]": 1,
        "in the stream: out of memory": 1,
        "an event of the stream is no JSON object": 1,
    }


def test_nobody_there() -> None:
    with Server() as server:
        gone = server.url
    figures = load(Target(gone, "m", timeout_s=5), num_prompts=2).document()
    assert figures["errors"] == {"ConnectError": 2}


def test_what_is_asked(url: str) -> None:
    with faulty((200, b"data: [DONE]\n\n")) as server:
        load(Target(server.url, "m", api_key="secret-key", ignore_eos=False), num_prompts=1)
        seen = server.seen[0]
    assert seen.headers["authorization"] == "Bearer secret-key"
    body = json.loads(seen.body)
    assert (body["model"], body["max_tokens"], body["stream"], len(body["prompt"])) == ("m", 5, True, 12)
    assert "ignore_eos" not in body


def test_goodput_counts_what_is_within_the_limits(url: str) -> None:
    asks = Workload(**TINY, num_prompts=4).asks(float("inf"))
    for limits, share in ((["ttft:60000", "tpot:60000"], 1.0), (["ttft:60000", "e2el:0.001"], 0.0)):
        figures = asyncio.run(run_load(Target(url, "tiny"), asks, slo=parse_slo(limits))).document()
        assert figures["request_goodput"] == pytest.approx(share * figures["request_throughput"])


@pytest.mark.parametrize("wrong", ["ttft", "ttft:fast", "itl:5", "ttft:-1", "ttft:nan"])
def test_other_limits_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        parse_slo([wrong])


def test_the_command(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--input-len", "12", "--output-len", "5", "--vocab-size", "300", "--num-prompts", "3"]
    words = ["bench", "serve", "--model", "tiny", "--url", f"{url}/v1", *lengths]
    assert main([*words, "--request-rate", "50,inf", "--goodput", "ttft:60000", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["request_rate"] for row in document["results"]] == [50.0, "inf"]
    assert all(row["completed"] == 3 for row in document["results"])
    assert document["goodput"] == {"ttft": 60000.0}
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "time to first token" in table
    assert "REASON" not in table
    assert main([*words[:3], "nobody", *words[4:]]) == 1  # nothing was answered
    shown = capsys.readouterr()
    assert "HTTP 404" in shown.out
    assert "no request was answered" in shown.err


def test_an_address_has_a_scheme() -> None:
    with pytest.raises(UsageError, match="http://"):
        Target("localhost:80", "m")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--request-rate", "fast"],
        ["--request-rate", "0"],
        ["--dataset", "sonnet"],
        ["--endpoint", "embeddings"],
        ["--url", "http://localhost:80", "--max-queue", "4"],
        ["--goodput", "speed"],
        ["--ctx-size", "100"],
    ],
)
def test_wrong_usage_starts_nothing(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a server was started"))
    assert main(["bench", "serve", "--model", "tiny", *wrong]) == 2


def test_a_server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is guarded by the keys that are stored here, and opened by one that is made for it."""
    from fakes.tiny_llm import tiny_folder

    folder = tiny_folder(tmp_path / "model")
    home = tmp_path / "home"
    home.mkdir()
    (home / "api-keys").write_text("0" * 64 + "\n", encoding="utf-8")
    monkeypatch.setenv("TOKENMILL_HOME", str(home))
    lengths = ["--input-len", "8", "--output-len", "3", "--vocab-size", "300", "--num-prompts", "2"]
    assert main(["bench", "serve", "--model", str(folder), *lengths, "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]
    assert (row["completed"], row["total_output_tokens"]) == (2, 6)
