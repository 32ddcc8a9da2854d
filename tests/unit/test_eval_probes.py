"""Probes on models whose behaviour is planted: what they find is what was put there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes.endpoint import endpoint
from tokenmill.cli.app import main
from tokenmill.core.errors import FormatError, OutOfContextError, UsageError
from tokenmill.evals.calibration import reliability
from tokenmill.evals.probes import KINDS, Options, run_probes
from tokenmill.evals.probes.certainty import short_answer
from tokenmill.evals.probes.finding import read_set, shipped
from tokenmill.evals.probes.needle import asks_of, hay
from tokenmill.evals.subject import Ask, Identity, Likelihood, Progress, Reply, Writing


class Planted:
    """A subject that answers by a function of the message and the number of the sample."""

    identity = Identity("planted", "")

    def __init__(
        self,
        script: Callable[[str, int], str] = lambda text, _: "",
        likelihood: Callable[[str, str], float] = lambda context, end: 0.0,
        *,
        room: int = 10**9,
        chat: bool = True,
    ) -> None:
        self.script, self.likelihood, self.room, self.has_chat = script, likelihood, room, chat

    def write(self, asks: Sequence[Ask], how: Writing, progress: Progress | None = None) -> list[list[Reply]]:
        texts = [str(ask.messages[-1]["content"]) for ask in asks]
        if max(map(len, texts)) > self.room:
            raise OutOfContextError("too long")
        return [
            [Reply(said, "stop", (), len(text.split()), len(said.split())) for said in self.said(text, how)]
            for text in texts
        ]

    def said(self, text: str, how: Writing) -> list[str]:
        return [self.script(text, sample) for sample in range(how.samples)]

    def likelihoods(self, pairs: Sequence[tuple[Ask, str]], progress: Progress | None = None) -> list[Likelihood]:
        return [Likelihood(self.likelihood(ask.text, end), 1, False) for ask, end in pairs]


def probe(kind: str, subject: Planted, **options: Any) -> Any:
    return run_probes(subject, [kind], Options(**options))[0]


def code_in(text: str) -> str:
    return "".join(word for word in text.split() if word.strip(".").isdigit()).strip(".")


def test_needles_are_found_by_one_that_reads_and_missed_by_one_that_skips_the_middle() -> None:
    assert probe("needle", Planted(lambda text, _: code_in(text))).value == 1.0

    def skips(text: str, _: int) -> str:
        return code_in(text[: len(text) // 5] + text[-len(text) // 5 :])

    found = probe("needle", Planted(skips), lengths=(300,))
    assert found.value == pytest.approx(2 / 5)
    assert found.tables[0][2] == [["300", "found", "missed", "missed", "missed", "found"]]


def test_lengths_that_do_not_fit_are_told() -> None:
    found = probe("needle", Planted(lambda text, _: code_in(text), room=3000), lengths=(100, 5000))
    assert [case.details["words"] for case in found.cases] == [100] * 5
    assert "5000 words" in found.notes[0]
    with pytest.raises(UsageError, match="fits"):
        probe("needle", Planted(room=10), lengths=(100,))


def test_needles_are_the_same_for_the_same_seed() -> None:
    assert asks_of(50, Options(seed=1)) == asks_of(50, Options(seed=1)) != asks_of(50, Options(seed=2))
    import random

    text = " ".join(hay(200, random.Random(0)))
    assert not any(letter.isdigit() for letter in text)
    assert 200 <= len(text.split()) < 220


def test_hidden_orders() -> None:
    """Who follows every order resists none; who repeats the text is not resisting either; a plain summary is."""
    assert probe("injection", Planted(lambda text, _: text)).value == 0.0
    assert probe("injection", Planted(lambda *_: "A bakery opens at six.")).value == 1.0
    silent = probe("injection", Planted(lambda *_: " "))
    assert "empty" in silent.notes[0]
    rows = shipped("injection", ("attack", "text", "canary"), None)
    assert all(row["canary"] in row["text"].lower() for row in rows)


def test_declining_everything_is_no_safety() -> None:
    found = probe("safety", Planted(lambda *_: "I'm sorry, but I can't help with that."))
    assert found.figures == {"declined_harmful": 1.0, "answered_harmless": 0.0}
    rows = shipped("refusals", ("prompt", "refuse"), None, of="tasks")
    assert found.value == pytest.approx(sum(row["refuse"] for row in rows) / len(rows))
    helpful = probe("safety", Planted(lambda *_: "Sure! Here is how."))
    assert helpful.figures == {"declined_harmful": 0.0, "answered_harmless": 1.0}


def test_consistency_and_majority() -> None:
    """Right three times of five: each sample 60 %, the majority always."""
    answers = {row["question"]: row["answers"][0] for row in shipped("questions", ("question", "answers"), None)}

    def script(text: str, sample: int) -> str:
        return f"It is {answers[text]}." if sample < 3 else f"Perhaps 9{sample}."

    found = probe("consistency", Planted(script), samples=5)
    assert found.value == pytest.approx(0.6)
    assert found.figures == pytest.approx({"accuracy_single": 0.6, "accuracy_majority": 1.0})


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("17 + 26 = 43.", ["43"], "43"),
        ("1,800 of them", ["1800"], "1800"),
        ("none", ["43"], ""),
        ("It is **Rome**, of course", ["Rome"], "rome"),
        ("Romeo", ["Rome"], "romeo"),
    ],
)
def test_short_answers(text: str, answers: list[str], found: str) -> None:
    assert short_answer(text, answers) == found


def test_overconfidence_is_found() -> None:
    """Certain of the first choice: right a quarter of the time or so, so the error is the rest."""
    rows = shipped("choices", ("question", "choices", "answer"), None)
    first = {(f"Question: {row['question']}\nAnswer:", f" {row['choices'][0]}") for row in rows}
    found = probe("calibration", Planted(likelihood=lambda *asked: 0.0 if asked in first else -50.0))
    accuracy = sum(row["answer"] == 0 for row in rows) / len(rows)
    assert found.figures["accuracy"] == pytest.approx(accuracy)
    assert found.value == pytest.approx(1 - accuracy)
    unsure = probe("calibration", Planted())
    assert unsure.figures["mean_confidence"] == pytest.approx(0.25)
    assert unsure.value == pytest.approx(abs(0.25 - accuracy))


def test_bins_from_zero() -> None:
    found = reliability([0.05, 0.95, 1.0, 0.96], [0, 1, 0, 1], low=0.0)
    assert [(one.count, one.accuracy) for one in found] == [(1, 0.0), (3, pytest.approx(2 / 3))]


def test_cost_of_answers_and_of_right_answers() -> None:
    found = probe("cost", Planted(lambda *_: "Rome it is , says everybody"), price=(1.0, 10.0), limit=2)
    assert found.value == 6
    assert found.figures["tokens_per_right_answer"] == 12  # one of two is right
    words = 6  # of each question
    assert found.figures["price_of_1000_answers"] == pytest.approx(1000 * (words * 1 + 6 * 10) / 1e6)


def test_unknown_probes_and_models_without_a_template_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'needle'"):
        run_probes(Planted(), ["needles"], Options())
    with pytest.raises(UsageError, match="no chat template"):
        run_probes(Planted(chat=False), ["calibration", "cost"], Options())


def test_sets_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(FormatError, match="has no prompt"):
        read_set(tmp_path / "a.jsonl", ("prompt",))
    assert all(len(row["choices"]) == 4 for row in shipped("choices", ("choices",), None))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that can be asked of a chat server; hostile answers stand on the page as text."""
    with endpoint(lambda body: "<script>I know nothing</script>") as server:
        kinds = ",".join(kind for kind in KINDS if kind != "calibration")
        words = ["m@" + server.url, "--kinds", kinds, "--limit", "2", "--lengths", "20", "--out", str(tmp_path)]
        assert main(["eval", "probes", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["needle"]["value"] == 0
    assert found["injection"]["value"] == 1
    page = Path(found["report"]).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;I know nothing" in page
    assert (Path(found["report"]).parent / "needle.jsonl").read_text().count("\n") == 5


@pytest.mark.parametrize("words", [["--lengths", "a"], ["--lengths", "1.5"], ["--price", "1"], ["--kinds", "neddle"]])
def test_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "probes", "m@http://127.0.0.1:1/v1", *words]) == 2
