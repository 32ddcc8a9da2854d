"""Synthetic data from a fake server and from our own: what is asked, what counts, and that failures cost time only."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.endpoint import endpoint
from fakes.tiny_llm import serving, tiny_app
from tokenmill.core import endpoint as endpoint_module
from tokenmill.core.errors import ConfigError, NetworkError
from tokenmill.data.curate.pipeline import curate
from tokenmill.data.curate.recipe import read_recipe
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.synthesize import Synthesize, SynthesizeOptions, build
from tokenmill.data.files import find_files, read_rows


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "WAIT_S", 0.01)


def step(url: str, cache: Path, seed: int = 0, **options: Any) -> Synthesize:
    given = {"model": "m", "prompt": "Ask about {{ text }}", "url": url, "cache": str(cache), **options}
    return build(SynthesizeOptions.model_validate(given), Context(seed))


def topics(count: int) -> list[Document]:
    return [Document(f"t#{n}", f"topic {n}", {"level": "easy"}) for n in range(count)]


def dropped(tally: Tally) -> dict[str, int]:
    return {reason: count.documents for reason, count in tally.dropped.items()}


def test_what_is_asked_and_what_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with endpoint(lambda body: f"  About {body['messages'][-1]['content']} under {body['seed']}\n") as server:
        options: dict[str, Any] = {
            "samples": 2,
            "system": "Be {{ level }}.",
            "key_variable": "SOME_KEY",
            "keep_source": True,
        }
        tally = Tally()
        made = step(server.url, tmp_path, **options)(topics(3), tally)
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == 6
        first = next(body for body in server.bodies if body["messages"][1]["content"] == "Ask about topic 1")
        assert first["path"] == "/v1/chat/completions"
        assert first["messages"][0] == {"role": "system", "content": "Be easy."}
        assert (first["model"], first["temperature"], first["top_p"], first["max_tokens"]) == ("m", 0.8, 1.0, 512)
        assert server.headers[0]["Authorization"] == "Bearer secret"
        assert [document.id for document in made[:4]] == ["t#0", "t#0/1", "t#0/2", "t#1"]
        assert made[1].text.startswith("About Ask about topic 0 under")
        assert made[1].meta == {"synthetic": {"model": "m", "source": "t#0"}}
        assert tally.kept == len(made) == 9
        other = step(server.url, tmp_path / "other", seed=1, samples=1)(topics(3), Tally())
        assert not seeds & {body["seed"] for body in server.bodies[6:]}, "the recipe's seed is part of every question's"
        assert len(other) == 3
        for into, row in (
            ("completion", {"prompt": "Ask about topic 0"}),
            ("messages", {"messages": [{"role": "user", "content": "Ask about topic 0"}]}),
        ):
            (found,) = step(server.url, tmp_path, into=into)(topics(1), Tally())
            assert found.derived
            assert "About Ask" in found.text
            value = found.meta[next(iter(row))]
            assert value[:1] == row["messages"] if into == "messages" else value == row["prompt"]
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_answers_that_do_not_count(tmp_path: Path) -> None:
    source = "one two three four five six seven eight nine ten"
    script: dict[str, Any] = {
        "a": "A good answer of some words.",
        "b": "a GOOD answer, of some words",
        "c": source.upper(),
        "d": ("A cut answer of some", "length"),
        "e": "short",
        "f": "As an AI, I cannot do such things.",
        "g": "no full stop at the end",
        "h": (400, {}, "the prompt is too long"),
        "i": "Another good answer.",
    }
    with endpoint(lambda body: script[body["messages"][0]["content"]]) as server:
        options: dict[str, Any] = {
            "prompt": "{{ name }}",
            "min_chars": 6,
            "refuse": "^As an AI",
            "match": r"(\.|words|TEN)$",
        }
        tally = Tally()
        documents = [Document(f"d#{name}", source, {"name": name}) for name in script]
        kept = step(server.url, tmp_path, **options)(documents, tally)
    assert [document.text for document in kept] == ["A good answer of some words.", "Another good answer."]
    assert dropped(tally) == {
        "repeated": 1,
        "copied_source": 1,
        "cut_off": 1,
        "too_short": 1,
        "refused_pattern": 1,
        "no_match": 1,
        "refused_by_server": 1,
    }


def test_rows_out_of_json(tmp_path: Path) -> None:
    script: dict[str, Any] = {
        "list": 'Here:\n```json\n[{"prompt": "p", "completion": "c"}, {"prompt": "p2", "completion": "c2"}]\n```',
        "text": '{"text": "a story", "age": 3} and so on',
        "broken": '{"prompt": "p", ',
        "empty": '{"prompt": "", "completion": "c"}',
        "wrong": '{"messages": [{"role": "robot", "content": "x"}], "prompt": 1, "completion": 1}',
        "words": "no JSON at all",
        "numbers": "[1, 2]",
    }
    with endpoint(lambda body: script[body["messages"][0]["content"]]) as server:
        options: dict[str, Any] = {"prompt": "{{ text }}", "parse": "json"}
        names = ["list", "broken", "empty", "wrong", "words", "numbers"]
        tally = Tally()
        made = step(server.url, tmp_path, fields=["prompt", "completion"], **options)(
            [Document(name, name) for name in names], tally
        )
        assert [(one.id, one.meta["prompt"], one.derived) for one in made] == [
            ("list/1", "p", True),
            ("list/1.2", "p2", True),
        ]
        assert dropped(tally) == {"not_json": 3, "field_missing": 1, "broken_row": 1}
        (story,) = step(server.url, tmp_path, **options)([Document("text", "text")], Tally())
        assert (story.text, story.derived, story.meta["age"]) == ("a story", False, 3)


def test_failures_that_pass_cost_time_only(tmp_path: Path) -> None:
    """Every question fails once or more, each in another way; all are answered in the end."""
    failures = [(429, {"Retry-After": "0.05"}, "slow down"), (503, {}, "busy"), (500, {}, "oops"), (200, {}, "<html>")]
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def script(body: dict[str, Any]) -> Any:
        asked = body["messages"][0]["content"]
        with lock:
            seen[asked] = seen.get(asked, 0) + 1
            number = seen[asked]
        time.sleep(0.01)  # so that others come meanwhile
        place = int(asked.split()[-1])
        return failures[(place + number) % 4] if number <= 1 + place % 3 else f"Answer {place}"

    with endpoint(script) as server:
        made = step(server.url, tmp_path, concurrency=4)(topics(12), Tally())
    assert [document.text for document in made] == [f"Answer {n}" for n in range(12)]
    assert {asked: 2 + int(asked.split()[-1]) % 3 for asked in seen} == seen
    assert 2 <= server.busiest <= 4


def test_a_server_that_stays_away_stops_the_run_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    answered: set[str] = set()
    lock = threading.Lock()

    def script(body: dict[str, Any]) -> Any:
        asked = body["messages"][0]["content"]
        with lock:
            if len(answered) >= 5 and not well:
                return 503, {}, "overloaded"
            answered.add(asked)
        return f"On {asked}"

    well = False
    with endpoint(script) as server:
        with pytest.raises(NetworkError, match=r"no answer after 2 tries.*503"):
            step(server.url, tmp_path, retries=1)(topics(20), Tally())
        asked_before, well = set(answered), True
        count = len(server.bodies)
        made = step(server.url, tmp_path, retries=1)(topics(20), Tally())
        assert len(made) == 20
        again = [body["messages"][0]["content"] for body in server.bodies[count:]]
        assert sorted(again) == sorted({f"Ask about topic {n}" for n in range(20)} - asked_before)
        victim = next(tmp_path.rglob("*.json"))
        victim.write_text(victim.read_text()[:5])  # a disk that was full
        count = len(server.bodies)
        assert [one.text for one in step(server.url, tmp_path)(topics(20), Tally())] == [one.text for one in made]
        assert len(server.bodies) == count + 1
    with pytest.raises(NetworkError, match="ConnectError"):
        step(server.url, tmp_path / "new", retries=0)(topics(1), Tally())


def test_a_server_that_does_not_know_us_is_not_asked_again(tmp_path: Path) -> None:
    with (
        endpoint(lambda body: (404, {}, "no model 'm'")) as server,
        pytest.raises(ConfigError, match=r"404: .*no model"),
    ):
        step(server.url, tmp_path, concurrency=1)(topics(5), Tally())
    assert len(server.bodies) == 1


def test_the_pace_is_kept(tmp_path: Path) -> None:
    with endpoint(lambda body: str(body["seed"])) as server:
        step(server.url, tmp_path, per_minute=1200)(topics(6), Tally())
    gaps = [later - earlier for earlier, later in zip(sorted(server.times), sorted(server.times)[1:], strict=False)]
    assert sum(gaps) >= 5 * 0.05 * 0.9


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prompt": "{{ txt }}"}, "t#0: 'txt' is undefined; its columns: text, level"),
        ({"prompt": "{{ text"}, "synthesize.prompt: line 1"),
        ({"url": "localhost:8000"}, "not the address of a server"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"fields": ["a"]}, "parse: json"),
        ({"prompt": "{{ ''.__class__.__mro__ }}"}, "unsafe"),
    ],
)
def test_wrong_options_say_why(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        step(**{"url": "http://127.0.0.1:1/v1", "cache": tmp_path, **options})(topics(1), Tally())
    with pytest.raises(ValueError, match="not a regular expression"):
        SynthesizeOptions.model_validate({"model": "m", "prompt": "p", "match": "("})


def test_our_own_server_answers(tmp_path: Path) -> None:
    """The same answers from `tokenmill serve` and, when asked again, from the folder."""
    with serving(tiny_app(tmp_path)) as url:
        options: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "concurrency": 2}
        tally = Tally()
        step(f"{url}/v1", tmp_path / "cache", **options)(topics(3), tally)
        answers = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]
        assert len(answers) == 3
        assert all(answer["finish_reason"] in ("stop", "length") for answer in answers)
        assert sum(dropped(tally).values()) + tally.kept == 3
        with pytest.raises(ConfigError, match="404"):
            step(f"{url}/v1", tmp_path / "cache", model="other")(topics(1), Tally())


def test_a_recipe_that_was_stopped_goes_on_with_what_was_answered(tmp_path: Path) -> None:
    """The whole pipeline: the server dies on the way, the same command later finishes without asking again."""
    source = tmp_path / "topics.jsonl"
    source.write_text("".join(json.dumps({"text": f"topic {n}"}) + "\n" for n in range(10)))
    asked: list[str] = []
    well = False

    def script(body: dict[str, Any]) -> Any:
        if not well and len(asked) >= 4:
            return 503, {}, "gone"
        asked.append(body["messages"][0]["content"])
        return "The same thought on all. " if body["messages"][0]["content"].endswith(("3", "4")) else asked[-1][::-1]

    with endpoint(script) as server:
        given = {"model": "m", "prompt": "On {{ text }}", "url": server.url, "cache": str(tmp_path / "cache")}
        steps = [{"synthesize": {**given, "retries": 0, "concurrency": 1}}, {"exact": {"normalise": True}}]
        tree = {"input": str(source), "output": str(tmp_path / "out"), "steps": steps, "workers": 1}
        with pytest.raises(NetworkError, match="goes on there"):
            curate(read_recipe(tree))
        well = True
        done = curate(read_recipe(tree))
    assert sorted(asked) == sorted(f"On topic {n}" for n in range(10))
    first, second = done.manifest["steps"]
    assert first["dropped"] == {"repeated": 1}
    assert (first["went"], second["went"]) == (9, 9)
    rows = [row.value for file in find_files(str(tmp_path / "out" / "data-*")) for row in read_rows(file)]
    assert {row["synthetic"]["source"] for row in rows} == {f"topics.jsonl#{n}" for n in range(1, 11)} - {
        "topics.jsonl#5"
    }
