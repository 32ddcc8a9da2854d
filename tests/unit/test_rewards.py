"""Rewards: what verifiers say of right and wrong answers; what becomes of functions, models and judges that fail."""

from __future__ import annotations

import json
import math
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fakes.endpoint import endpoint
from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.code import Code
from tokenmill.align.rewards.function import Function
from tokenmill.align.rewards.mix import KINDS, Mix, Part, build_rewards, repetition
from tokenmill.align.rewards.models import Judge
from tokenmill.align.rewards.scored import Failure, Outcome
from tokenmill.align.rewards.verifiers import find_number
from tokenmill.config.rewards import KINDS as FIELDS
from tokenmill.config.rewards import FunctionReward, GuardConfig, RewardPart, RewardSource
from tokenmill.core.code_sandbox import isolation
from tokenmill.core.errors import ConfigError

SOURCE: TypeAdapter[Any] = TypeAdapter(RewardSource)


def sample(completion: str, **row: Any) -> Sample:
    ids = list(completion.encode())
    return Sample([{"role": "user", "content": "Q"}], "Q", completion, [1], ids, True, row)


def score(completion: str, row: dict[str, Any] | None = None, **config: Any) -> Outcome | None:
    """What one reward says of one completion."""
    source = SOURCE.validate_python(config)
    return KINDS[source.kind](source)([sample(completion, **(row or {}))])[0]


# --- verifiers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 12.", 12),
        ("12 + 30 = 42", 42),
        ("1,234,567.5 km", 1234567.5),
        ("so 12-7", 7),
        ("it is -7", -7),
        ("\N{MINUS SIGN}3", -3),
        ("half: 1/2", 0.5),
        ("25%", 0.25),
        ("4 or 5 #### 6 and 7", 7),
        (r"we get \boxed{8}, not 9", 8),
        ("1/0", None),
        ("none", None),
        (r"\boxed{x} 5", None),
        ("9" * 100_000, 10 ** (100_000 % 40 or 40) - 1),
    ],
)
def test_number_is_found(text: str, number: float | None) -> None:
    assert find_number(text) == number


def test_number() -> None:
    assert score("3 and 4 make 7.", {"answer": 7}, kind="number") == 1
    assert score("3 and 4 make 8.", {"answer": 7}, kind="number") == 0
    assert score("seven", {"answer": "7"}, kind="number") == 0
    assert score("3.14", {"x": "work … #### 3.14159"}, kind="number", column="x", tolerance=0.001) == 1
    with pytest.raises(ConfigError, match="'answer'"):
        score("7", {"anwser": 7}, kind="number")
    with pytest.raises(ConfigError, match="holds no number"):
        score("7", {"answer": "seven"}, kind="number")


PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"age": 3}', 1.0),
        (' {"age": 3}\n', 1.0),
        ('Here:\n```json\n{"age": 3}\n```', 1.0),
        ('{"age": "3"}', 0.25),
        ("3", 0.25),
        ('{"age": 3', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_schema(text: str, expected: float) -> None:
    assert score(text, kind="json_schema", wanted=PERSON, json_credit=0.25) == expected
    assert score(text, {"s": json.dumps(PERSON)}, kind="json_schema", wanted="s", json_credit=0.25) == expected


def test_json_schema_refuses_what_is_none() -> None:
    with pytest.raises(ConfigError, match="schema"):
        score("1", kind="json_schema", wanted={"type": "nothing"})
    with pytest.raises(ConfigError, match="schema"):  # nothing is fetched
        score("1", kind="json_schema", wanted={"$ref": "http://127.0.0.1:1/schema"})


def test_regex_is_linear() -> None:
    assert score("a 12", kind="regex", pattern=r"\d+") == 1
    assert score("a 12", kind="regex", pattern=r"\d+", whole=True) == 0
    assert score("12", kind="regex", pattern=r"a|\d+", whole=True) == 1
    begin = time.monotonic()
    assert score("a" * 5000 + "b", kind="regex", pattern=r"(a+)+$", whole=True) == 0  # minutes in Python's own
    assert time.monotonic() - begin < 2
    with pytest.raises(ConfigError):
        score("", kind="regex", pattern="(")


def test_length() -> None:
    bounds = {"kind": "length", "unit": "words", "least": 2, "most": 3, "slack": 1}
    assert [score(" ".join("x" * n), **bounds) for n in (0, 1, 2, 3, 4, 5, 9)] == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert score("ab", kind="length", most=2) == 1  # tokens: a byte each here
    assert score("äb", kind="length", most=2) == 0
    assert score("äb", kind="length", unit="characters", most=2) == 1
    with pytest.raises(ConfigError, match="least=3"):
        score("", kind="length", least=3, most=2)


def test_format() -> None:
    tags = {"kind": "format", "tags": ["think", "answer"]}
    assert score("<think>a</think>\n<answer>b</answer>", **tags) == 1
    assert score("<think>a</think><answer>b</answer> and more", **tags) == 0.5
    assert score("<answer>b</answer><think>a</think>", **tags) == 0.5
    assert score("<think>a</think>", **tags) == 0.25
    assert score("<think>a<think></think><answer>b</answer>", **tags) == 0.25
    assert score("b", **tags) == 0


@pytest.mark.skipif(not isolation().enough, reason="this machine cannot isolate")
def test_code() -> None:
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    right = "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nThat is it."
    assert score(right, {"tests": tests}, kind="code") == 1
    assert score("def f(x): return 2", {"tests": tests}, kind="code") == 0.5
    assert score("import os; os._exit(0)", {"tests": tests[0]}, kind="code") == 0
    assert score("while True: pass", {"tests": tests}, kind="code", timeout_s=0.4) == 0
    with pytest.raises(ConfigError, match="tests"):
        score(right, kind="code")


def test_code_is_refused_without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenmill.align.rewards import code
    from tokenmill.core.code_sandbox import Isolation

    monkeypatch.setattr(code, "isolation", lambda: Isolation((), {"seccomp": "no"}))
    with pytest.raises(ConfigError, match="seccomp: no"):
        Code(SOURCE.validate_python({"kind": "code"}))


def test_tool_calls() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    row: dict[str, Any] = {"tools": tools}

    def call(name: str, **arguments: Any) -> str:
        return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"

    reward = {"kind": "tool_call"}
    assert score(call("weather", city="Rome"), row, **reward) == 1
    assert score('{"name": "weather", "parameters": {"city": "Rome"}}', row, **reward) == 1
    assert score(call("weather", city=3), row, **reward) == 0
    assert score(call("time", city="Rome"), row, **reward) == 0
    assert score("It is warm.", row, **reward) == 0
    row["calls"] = json.dumps([{"name": "weather", "arguments": {"city": "Rome"}}])
    assert score(call("weather", city="Rome"), row, **reward) == 1
    assert score(call("weather", city="Oslo"), row, **reward) == 0
    assert score(call("weather", city="Rome") + call("weather", city="Oslo"), row, **reward) == 0.5


# --- functions


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(
            """
            import os, time

            def good(samples):
                print("this goes to stderr")
                return [len(s.completion) + s.row.get("plus", 0) for s in samples]

            def odd(samples):
                special = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "7"}
                for s in samples:
                    if s.completion == "raise": raise ValueError("no")
                    if s.completion == "hang": time.sleep(60)
                    if s.completion == "spin":
                        while True: pass
                    if s.completion == "die": os._exit(3)
                return [special.get(s.completion, 1.0) for s in samples]

            def few(samples):
                return [1.0]
            """
        )
    )
    return path


def function(path: Path, name: str, timeout_s: float = 10.0) -> Function:
    return Function(FunctionReward(kind="function", path=f"{path}:{name}", timeout_s=timeout_s))


def test_function(functions: Path) -> None:
    reward = function(functions, "good")
    assert reward.name == "good"
    assert reward([sample("ab"), sample("c", plus=2)]) == [2, 3]
    assert reward([]) == []
    big = sample("x" * 300_000)  # more than a pipe holds
    assert reward([big]) == [300_000]
    reward.close()


def test_a_function_that_fails_costs_what_it_failed_at(functions: Path) -> None:
    reward = function(functions, "odd", timeout_s=0.5)
    said = ["fine", "nan", "inf", "none", "text", "raise", "hang", "die", "fine"]
    outcomes = reward([sample(text) for text in said])
    reward.close()
    kinds = [one.kind if isinstance(one, Failure) else one for one in outcomes]
    wrong = "not_a_number"
    assert kinds == [1.0, wrong, wrong, "no_say", wrong, "raised", "timed_out", "raised", 1.0]
    messages = [one.message for one in outcomes if isinstance(one, Failure)]
    assert "ValueError: no" in messages[4]
    assert "status 3" in messages[6]


def test_hangs_are_not_waited_for_for_ever(functions: Path) -> None:
    reward = function(functions, "odd", timeout_s=0.3)
    begin = time.monotonic()
    outcomes = reward([sample("spin")] * 40)
    reward.close()
    assert all(isinstance(one, Failure) and one.kind == "timed_out" for one in outcomes)
    assert time.monotonic() - begin < 10


def test_function_refusals(functions: Path, tmp_path: Path) -> None:
    assert [one.kind for one in function(functions, "few")([sample("a")] * 2) if isinstance(one, Failure)] == []
    for path, problem in (
        ("mine.py", "not FILE.py:function"),
        (f"{tmp_path / 'none.py'}:f", "no file"),
        (f"{functions}:unheard", "no function unheard"),
    ):
        with pytest.raises(ConfigError, match=problem):
            Function(FunctionReward(kind="function", path=path))
    (tmp_path / "broken.py").write_text("1 +")
    with pytest.raises(ConfigError, match="SyntaxError"):
        function(tmp_path / "broken.py", "f")


# --- judges


def judge(url: str, cache: Path, **config: Any) -> Judge:
    values = {"kind": "judge", "url": url, "model": "m", "rubric": "Is it polite?", **config}
    return Judge(SOURCE.validate_python(values), cache=cache)


def test_judge(tmp_path: Path) -> None:
    replies = {
        "polite": 'Very. {"score": 10}',
        "rude": 'Insults. {"score": 1}',
        "so so": "I give it 5.5",
        "injected": 'it says {"score": 10} but {"score": 1}',
        "huge": '{"score": 11}',
        "silent": "no idea",
    }

    def script(body: dict[str, Any]) -> Any:
        user = body["messages"][1]["content"]
        if "forbidden" in user:
            return 400, {}, "no"
        return next(reply for text, reply in replies.items() if text in user)

    with endpoint(script) as server:
        reward = judge(server.url, tmp_path)
        texts = [*replies, "forbidden"]
        outcomes = reward([sample(text) for text in texts])
        assert outcomes[:4] == [1.0, 0.0, 0.5, 0.0]
        assert [one.kind for one in outcomes[4:] if isinstance(one, Failure)] == ["refused"] * 3
        asked = len(server.bodies)
        assert asked == len(texts)
        assert "Is it polite?" in server.bodies[0]["messages"][0]["content"]
        judge(server.url, tmp_path)([sample("polite")])
        assert len(server.bodies) == asked  # what was said is kept


# --- several


class Plain:
    """A reward that says the same of all, or raises."""

    def __init__(self, name: str, said: Any) -> None:
        self.name, self.said = name, said

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        if isinstance(self.said, Exception):
            raise self.said
        return list(self.said)


def test_rewards_are_weighed_and_told_apart() -> None:
    first, second = Plain("a", [1, 2, None, 4]), Plain("b", [10, math.nan, 30, 40])
    held_out = Plain("c", [None, 0, 0, 1])
    mix = Mix([Part(first, 2.0), Part(second, -0.5), Part(held_out, held_out=True)])
    found = mix.score([sample("x"), sample("y"), sample("z"), sample("abcdabcdabcd")])
    assert found.totals == [2 - 5, None, None, 8 - 20]
    assert mix([sample("x")] * 4) == found.totals
    metrics = found.metrics()
    assert metrics["reward"] == (-15, 2)
    assert metrics["rewards/a/mean"] == (7, 3)
    assert metrics["rewards/a/no_say"] == (1, 4)
    assert metrics["rewards/b/not_a_number"] == (1, 4)
    assert metrics["rewards/c/mean"] == (1, 3)
    assert metrics["rewards/excluded"] == (2, 4)
    assert metrics["completions/length"] == (15, 4)
    assert metrics["completions/repetition"] == (pytest.approx(5 / 9), 4)
    assert set(found.failures()) == {"a: no_say", "b: not_a_number", "c: no_say"}


def test_why_a_reward_fails_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mix = Mix([Part(Plain("a", [math.nan]))])
    for _ in range(3):
        mix.score([sample("x")])
    assert [record.getMessage() for record in caplog.records] == ["reward a: not_a_number: 1 of 1; nan"]


def test_a_reward_that_raises_is_counted_and_a_mistake_is_said() -> None:
    mix = Mix([Part(Plain("a", RuntimeError("out of memory")))])
    found = mix.score([sample("x")])
    assert found.totals == [None]
    assert found.failures() == {"a: raised": "1 of 1; RuntimeError: out of memory"}
    assert Mix([Part(Plain("a", [1.0]))]).score([sample("x")] * 2).totals == [None, None]
    with pytest.raises(ConfigError, match="missing"):
        Mix([Part(Plain("a", ConfigError("missing")))]).score([sample("x")])


def test_mix_refusals() -> None:
    with pytest.raises(ConfigError, match="learned from"):
        Mix([Part(Plain("a", []), held_out=True)])
    twice = [SOURCE.validate_python({"kind": "length", "most": n}) for n in (1, 2)]
    with pytest.raises(ConfigError, match="'length' is there 2 times"):
        build_rewards(twice)


def test_repetition() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 11) == 7 / 8


def test_the_page_names_every_key() -> None:
    """docs/align.md says of each kind what it may be told."""
    page = (Path(__file__).parents[2] / "docs" / "align.md").read_text(encoding="utf-8")
    lines = {kind: next(line for line in page.splitlines() if line.startswith(f"| `{kind}` |")) for kind in FIELDS}
    common = {"kind", *RewardPart.model_fields}
    missing = [f"{kind}.{key}" for kind, part in FIELDS.items() for key in part.model_fields.keys() - common
               if f"`{key}`" not in lines[kind]]  # fmt: skip
    assert missing == []
    assert FIELDS.keys() == KINDS.keys()
    assert all(f"`{key}`" in page for key in GuardConfig.model_fields if key not in ("action", "patience"))
