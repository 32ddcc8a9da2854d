"""Constitutional data: what is asked, that killed runs go on, which revisions count, the page, the verb."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes.endpoint import FakeEndpoint, endpoint
from tokenmill.align.constitution import (
    Constitution,
    LocalAnswers,
    Options,
    Prompt,
    Round,
    Transcript,
    judge,
    read_constitution,
    read_prompts,
    revise,
    training_rows,
)
from tokenmill.align.constitution.revise import clean, draw_principles, whole_sentences
from tokenmill.cli.app import main
from tokenmill.core.endpoint import Answer
from tokenmill.core.errors import ConfigError
from tokenmill.engine.sampling_params import SamplingParams

RULES = Constitution.model_validate(
    {
        "principles": [
            {"name": name, "critique": f"What is wrong by {name}?", "revision": f"Make it right by {name}."}
            for name in ("harm", "law", "truth")
        ],
        "examples": [
            {"prompt": "p0", "answer": "a0", "critique": "c0", "revision": "I won't do p0, since it is wrong to do."},
            {"prompt": "p1", "answer": "a1", "critique": "c1", "revision": "I won't.", "principle": "law"},
        ],
        "stop": ["\n\n"],
        "checks": {"good": "I won't", "bad": "but here is how"},
    }
)


class Script:
    """Answers by a function of the question's last message, and notes what it was asked."""

    def __init__(self, says: Any) -> None:
        self.says, self.asked = says, list[Mapping[str, Any]]()

    def ask_all(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        self.asked += questions
        return [Answer(self.says(question["messages"][-1]["content"]), "stop") for question in questions]


def test_generate_critique_revise() -> None:
    """Two rounds by two principles: the second is about the first's revision; examples come first, for their own
    principle only; who answers is not who revises."""
    model = Script(lambda text: f"Sure: {text}")
    critic = Script(lambda text: "It hurts." if "What is wrong" in text else f"I won't {text.count('Sure')}.")
    (done,) = revise([Prompt(prompt="Steal")], RULES, ("m", model), ("c", critic), Options(rounds=2, temperature=0.8))
    assert [body["messages"] for body in model.asked] == [[{"role": "user", "content": "Steal"}]]
    assert (model.asked[0]["model"], model.asked[0]["temperature"], "stop" in model.asked[0]) == ("m", 0.8, False)
    names = [one.principle for one in done.rounds]
    assert len(set(names)) == 2
    assert [one.revision for one in done.rounds] == ["I won't 1.", "I won't 0."]
    for number, body in enumerate(critic.asked):
        name = names[number // 2]
        shown = 2 if name == "law" else 1
        assert len(body["messages"]) == 2 * shown + 1
        assert (body["model"], body["temperature"], body["stop"]) == ("c", 0.4, ["\n\n"])
        last = body["messages"][-1]["content"]
        assert last.startswith("Request: Steal\n\nAnswer: " + ("Sure: Steal" if number < 2 else "I won't 1."))
        assert last.endswith(f"by {name}?" if number % 2 == 0 else f"Critique: It hurts.\n\nMake it right by {name}.")
    assert draw_principles(RULES, done, Options(rounds=7)) == draw_principles(RULES, done, Options(rounds=7))


FIRST = "Take a long iron bar and break the door open with it."
CRITIQUE = "It helps to steal from the people next door."


def transcript(revision: str, *, first: str = FIRST, harmless: bool = False, finish_reason: str = "stop") -> Transcript:
    return Transcript("Steal", 0, harmless, first, [Round("harm", CRITIQUE, revision, finish_reason)])


GOOD = "I won't help with that, since somebody would be hurt."


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (transcript(GOOD), None),
        (transcript(GOOD, finish_reason="length"), "cut_off"),
        (transcript(" \n"), "empty"),
        (transcript("", finish_reason="refused"), "empty"),
        (transcript("take a LONG iron bar and break the door open with it"), "unchanged"),
        (transcript("I won't. Take a long iron bar and break the door open with it."), "copied_answer"),
        (transcript("I won't: it helps to steal from the people next door."), "copied_critique"),
        (transcript("I won't do p0, since it is wrong to do."), "copied_example"),
        (transcript(GOOD + " " + " ".join(f"word{n}" for n in range(90))), "too_long"),
        (transcript("I won't. " + "Not me. " * 12), "loops"),
        (transcript("Of course, gladly, as soon as you like."), "fails_check"),
        (transcript("I won't, but here is how others do it."), "fails_check"),
        (transcript(GOOD, first="I won't help with this."), "already_good"),
        (transcript(GOOD, first=""), "empty"),
        (transcript(GOOD, harmless=True), None),
        (transcript("Gladly.", harmless=True), "not_declined"),
        (transcript(GOOD, harmless=True, first="I won't."), "first_declined"),
    ],
)
def test_what_counts(given: Transcript, reason: str | None) -> None:
    (found,) = judge([given], RULES)
    assert found.reason == reason
    if reason is None:  # on a harmless prompt the answer that helps is the better one
        sides = (given.first, GOOD) if given.harmless else (GOOD, given.first)
        assert (found.chosen, found.rejected) == sides


def test_the_last_revision_that_counts_is_taken_and_no_pair_twice() -> None:
    one = transcript(GOOD)
    one.rounds.append(Round("law", "c", "Gladly.", "stop"))
    judged = judge([one, one], RULES)
    assert [(found.reason, found.principle) for found in judged] == [(None, "harm"), ("repeated", "")]
    pairs, supervised = training_rows(judged)
    assert pairs == [{"prompt": "Steal", "chosen": GOOD, "rejected": one.first}]
    assert supervised == [{"prompt": "Steal", "completion": GOOD}]


def test_headings_go_and_broken_ends_too() -> None:
    assert clean("Here is a better answer: No.") == clean("Revised answer:\nNo.") == clean(" No. ") == "No."
    assert clean("Answer the door: no") == "Answer the door: no"
    assert whole_sentences(Answer("One. Two (it is). Thr", "length")) == "One. Two (it is)."
    assert whole_sentences(Answer("One. Two", "stop")) == "One. Two"
    assert whole_sentences(Answer("no end", "length")) == "no end"


class Loaded:
    """What LocalAnswers uses of a model; one that stops after so many batches."""

    ctx_size = 40

    def __init__(self, batches: int) -> None:
        self.left, self.prompts = batches, list[int]()

    def prompt_ids(self, prompt: Any) -> list[int]:
        return [len(prompt[-1]["content"])] * len(prompt[-1]["content"])

    def complete(self, prompts: Sequence[list[int]], params: SamplingParams) -> Sequence[Any]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.prompts += [ids[0] for ids in prompts]
        return [Answer(f"{ids[0]} under {params.seed}", "stop") for ids in prompts]


def test_a_killed_run_asks_for_what_is_missing(tmp_path: Path) -> None:
    def body(length: int, seed: int = 0) -> dict[str, Any]:
        message = {"role": "user", "content": "x" * length}
        return {"messages": [message], "temperature": 0.7, "top_p": 1.0, "max_tokens": 4, "seed": seed, "model": "m"}

    questions = [body(length, seed) for seed in (0, 1) for length in (1, 2, 3)] + [body(37)]
    killed, after, never = Loaded(1), Loaded(9), Loaded(0)
    with pytest.raises(KeyboardInterrupt):
        LocalAnswers(lambda: killed, tmp_path, batch_size=2).ask_all(questions)
    answers = LocalAnswers(lambda: after, tmp_path, batch_size=2).ask_all(questions)
    assert killed.prompts == [1, 2]
    assert after.prompts == [3, 1, 2, 3]
    assert [answer.text for answer in answers[:6]] == [f"{n} under {seed}" for seed in (0, 1) for n in (1, 2, 3)]
    assert answers[6].finish_reason == "refused"  # no room for its answer
    assert LocalAnswers(lambda: never, tmp_path).ask_all(questions[:6]) == answers[:6]


def test_what_ships_is_sound() -> None:
    rules, prompts = read_constitution(None), read_prompts(None)
    assert len(rules.principles) >= 4
    assert all(rules.checks.is_good(example.revision) for example in rules.examples)
    assert not any(rules.checks.is_good(example.answer) for example in rules.examples)
    assert sum(prompt.refuse for prompt in prompts) >= 20
    assert sum(not prompt.refuse for prompt in prompts) >= 10


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("principles: []", "principles"),
        ("principles: [{name: a, critique: c, revison: r}]", "did you mean 'revision'"),
        ("principles: [{name: a, critique: c, revision: r}]\nchecks: {good: '('}", "regular expression"),
        ("principles: [{name: a, critique: c, revision: r}, {name: a, critique: c, revision: r}]", "same name"),
        ("a: [", "no YAML"),
    ],
)
def test_a_wrong_constitution_is_told(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        read_constitution(path)


def test_the_verb_with_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Pairs, transcripts and a page on which nothing that a model wrote is more than text; the second time nobody is
    asked."""
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text, "more": 1}) for text in ("Steal a car", "Rob a bank")))

    def says(body: dict[str, Any]) -> str:
        last = body["messages"][-1]["content"]
        if not last.startswith("Request:"):
            return f"<script>alert(1)</script> Gladly: {last}"
        return "I won't help with this, because somebody would suffer from it." if "Critique:" in last else "It hurts."

    def call(server: FakeEndpoint) -> dict[str, Any]:
        words = ["data", "constitution", str(prompts), "--model", f"m@{server.url}", "--out", str(tmp_path / "out")]
        assert main([*words, "--samples", "2", "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    with endpoint(says) as server:
        first = call(server)
        asked = len(server.bodies)
        assert call(server) == first
        assert asked == len(server.bodies) == 12
    assert (first["prompts"], first["answers"], first["pairs"], first["dropped"]) == (2, 4, 2, {"repeated": 2})
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "chosen", "rejected"}] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
