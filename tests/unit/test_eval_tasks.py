"""Tasks: definitions, prompts, metrics against their owners, kinds against planted answers, the cache."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.subject import FakeSubject
from tokenmill.core.errors import ConfigError, NotFoundError, UsageError
from tokenmill.evals import identity as identity_module
from tokenmill.evals.identity import content_digest
from tokenmill.evals.subject import Ask, Call, Identity, Reply
from tokenmill.evals.tasks import text_metrics
from tokenmill.evals.tasks.aggregate import bootstrap_stderr, mean_stderr, pass_at_k
from tokenmill.evals.tasks.code import passes, program
from tokenmill.evals.tasks.instructions import CHECKS, met, read_checks
from tokenmill.evals.tasks.kinds import declines, extracted
from tokenmill.evals.tasks.run import MAIN, Settings, run_task
from tokenmill.evals.tasks.task import Item, Task, find_tasks, load_task, shipped


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def task_of(folder: Path, rows: list[dict[str, Any]], yaml: str = "") -> Task:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not yaml:
        return load_task(str(folder / "t.jsonl"))
    (folder / "t.yaml").write_text(f"data: t.jsonl\n{yaml}", encoding="utf-8")
    return load_task(str(folder / "t.yaml"))


# --- definitions


def test_sets_that_ship_are_sound() -> None:
    tasks = {task.config.name: task for task in find_tasks(["all"])}
    assert set(tasks) == {"arithmetic", "code", "facts", "format", "reading", "refusals", "tools"}
    assert all(20 <= len(task.items) <= 40 for task in tasks.values())
    # right answers are not always in the same place, and no row says the same as another
    assert all(
        len({str(one.fields.get("prompt", one.fields)) for one in t.items}) == len(t.items) for t in tasks.values()
    )


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("kind: choice\nprompts: x\n", r"prompts: no such key \(did you mean .prompt"),
        ("kind: chioce\n", "kind"),
        ("kind: write\nmetrics: [rouge]\n", "metrics"),
        ("kind: write\nextract: '('\n", "extract"),
        ("kind: write\nshots: -1\n", "shots"),
    ],
)
def test_a_definition_that_is_not_one_is_refused(tmp_path: Path, yaml: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task_of(tmp_path, [{"prompt": "a", "answer": "b"}], yaml)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a"}], "rows need a prompt and one of"),
        ([{"answer": "a"}], "rows need a prompt"),
        ([{"id": 1, "prompt": "a", "answer": "b"}] * 2, "two rows have the id"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task_of(tmp_path, rows)


def test_a_broken_row_is_no_smaller_test_set(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    with pytest.raises(ConfigError, match="1 rows cannot be read"):
        load_task(str(tmp_path / "t.jsonl"))


def test_an_unknown_task_names_its_neighbour() -> None:
    with pytest.raises(NotFoundError, match="arithmetic"):
        find_tasks(["arithmetics"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "choices": ["x"], "answer": 0}, "two texts"),
        ({"prompt": "a", "choices": ["x", "y"], "answer": 2}, "number of no choice"),
        ({"prompt": "a", "choices": ["x", "y"], "answer": "z"}, "none of the choices"),
        ({"prompt": "a", "checks": [{"check": "wrods"}]}, "words"),
        ({"prompt": "a", "checks": [{"check": "words"}]}, "at_least"),
        ({"prompt": "a", "checks": [{"check": "words", "most": 3}]}, "most"),
        ({"prompt": "a", "calls": []}, "needs tools"),
        ({"prompt": "a", "refuse": "yes"}, "refuse: true or false"),
        ({"prompt": "a", "tests": "pass"}, "entry_point"),
    ],
)
def test_a_row_that_its_kind_cannot_use_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_task(FakeSubject(), task_of(tmp_path, [row]))


# --- prompts


ROWS = [{"prompt": f"q{n}?", "answer": f"a{n}"} for n in range(6)]


def test_examples_are_drawn_by_seed_and_never_the_row_itself(tmp_path: Path) -> None:
    task = task_of(tmp_path, ROWS)

    def asks(**settings: Any) -> list[Ask]:
        subject = FakeSubject()
        run_task(subject, task, Settings(**settings), use_cache=False)
        return subject.asked

    plain = asks(shots=2, chat=False)
    assert all(ask.text.endswith(f"q{n}?") and ask.text.count(f"q{n}?") == 1 for n, ask in enumerate(plain))
    assert all(ask.text.count(" a") == 2 and ask.text.count("\n\n") == 2 for ask in plain)
    assert plain == asks(shots=2, chat=False)
    assert plain != asks(shots=2, chat=False, seed=1)
    assert plain[:3] == asks(shots=2, chat=False, limit=3)
    chat = asks(shots=2, chat=True)
    assert [one["role"] for one in chat[0].messages] == ["user", "assistant"] * 2 + ["user"]
    with pytest.raises(ConfigError, match="6 examples"):
        asks(shots=6)


def test_a_template_that_asks_for_a_missing_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="passage"):
        run_task(FakeSubject(), task_of(tmp_path, ROWS, 'kind: write\nprompt: "{{ passage }}"\n'))


def test_a_template_is_sandboxed(tmp_path: Path) -> None:
    attack = 'kind: write\nprompt: "{{ prompt.__class__.__mro__[1].__subclasses__() }}"\n'
    with pytest.raises(ConfigError, match="unsafe"):
        run_task(FakeSubject(), task_of(tmp_path, ROWS, attack))


# --- kinds


def test_the_likeliest_choice_by_text_byte_and_token(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "choices": ["ab", "a b c d"], "answer": 1}]
    # whole: -3 beats -4; a byte: -1.5 loses to -4/7; a token: -3 loses to -1
    subject = FakeSubject(like=lambda ask, text: -3.0 if text.strip() == "ab" else -4.0)
    result = run_task(subject, task_of(tmp_path, rows))
    values = {name: one["value"] for name, one in result.summary["metrics"].items()}
    assert values == {"acc": 0.0, "acc_norm": 1.0, "acc_norm_tokens": 1.0}
    assert subject.asked[0] == Ask(text="p")
    assert result.samples[0].target == "a b c d"


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"x": {}, "y": {}}, "required": ["x"]}},
}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([Call("f", {"x": "4", "y": "B "})], {"call_match": 1.0, "name_match": 1.0, "valid": 1.0}),
        ([Call("f", {"x": 5, "y": "b"})], {"call_match": 0.0, "name_match": 1.0, "valid": 1.0}),
        ([Call("f", {"y": "b"})], {"call_match": 0.0, "name_match": 1.0, "valid": 0.0}),
        ([Call("g", {"x": 4, "y": "b"})], {"call_match": 0.0, "name_match": 0.0, "valid": 0.0}),
        ([], {"call_match": 0.0, "name_match": 0.0}),
    ],
)
def test_calls_are_compared(tmp_path: Path, made: list[Call], expected: dict[str, float]) -> None:
    task = task_of(
        tmp_path, [{"prompt": "p", "tools": [TOOL], "calls": [{"name": "f", "arguments": {"x": 4, "y": "b"}}]}]
    )
    result = run_task(FakeSubject(say=lambda ask: Reply("", calls=tuple(made))), task)
    assert result.samples[0].metrics == expected


def test_tools_are_told_in_words_outside_of_chats(tmp_path: Path) -> None:
    subject = FakeSubject(has_chat=False)
    run_task(subject, task_of(tmp_path, [{"prompt": "p", "tools": [TOOL], "calls": []}]))
    assert json.dumps(TOOL) in subject.asked[0].text
    assert subject.asked[0].text.endswith("\n\np")


def test_no_call_is_right_where_none_is_wanted(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"prompt": "p", "tools": [TOOL], "calls": []}])
    made = run_task(FakeSubject(say=lambda ask: Reply("", calls=(Call("f", {"x": 1}),))), task, use_cache=False)
    none = run_task(FakeSubject(say=lambda ask: "hello"), task, use_cache=False)
    assert (made.samples[0].metrics["restraint"], none.samples[0].metrics["restraint"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("I cannot assist with this request.", True),
        ("We are unable to provide that.", True),
        ("As an AI language model, I am not able to do so.", True),
        ("Sure! First, open the terminal.", False),
        ("You can't mix bleach and ammonia.", False),
        ("", False),
    ],
)
def test_declining_is_told_from_answering(text: str, expected: bool) -> None:
    assert declines(text) is expected


def test_refusals_count_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": "bad", "refuse": True}, {"prompt": "good", "refuse": False}]
    result = run_task(FakeSubject(say=lambda ask: "I cannot help with that."), task_of(tmp_path, rows))
    figures = {name: (one["value"], one["rows"]) for name, one in result.summary["metrics"].items()}
    assert figures == {"correct": (0.5, 2), "declined_harmful": (1.0, 1), "answered_harmless": (0.0, 1)}


def test_every_kind_has_its_main_figure() -> None:
    for task in find_tasks(["all"]):
        small = replace(task, items=task.items[:2])
        result = run_task(FakeSubject(say=lambda ask: "1"), small)
        main = MAIN.get(task.config.kind, task.config.metrics[0])
        assert result.summary["main"] == main
        assert main in result.summary["metrics"]


# --- metrics


def test_extraction_takes_the_last_match() -> None:
    assert extracted("The answer is 4. No: the answer is 5.", r"answer is (\d+)") == "5"
    assert extracted("nothing", r"answer is (\d+)") == ""


def test_numbers_are_compared_as_numbers() -> None:
    assert text_metrics.exact_match("12 + 13 = 25.0 apples", "25", "number") == 1.0
    assert text_metrics.exact_match("1,204", "1204", "number") == 1.0
    assert text_metrics.exact_match("-5", "5", "number") == 0.0
    assert text_metrics.exact_match("none", "5", "number") == 0.0
    assert text_metrics.contains("it is 250", "25", "number") == 0.0


def test_words_are_compared_as_words() -> None:
    assert text_metrics.exact_match("The  Cat!", "cat") == 1.0
    assert text_metrics.contains("a concatenation", "cat") == 0.0
    assert text_metrics.contains("The cat, of course.", "cat") == 1.0
    assert text_metrics.f1("the cat sat", "cat sat down") == pytest.approx(0.8)
    assert text_metrics.jaccard("the cat sat", "cat sat down") == pytest.approx(2 / 3)
    assert text_metrics.exact_match("...", "!!!") == 0.0


def test_rouge_bleu_and_chrf_are_their_owners() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    said = ["the cat sat on the mat.", "a dog barked at night", "no idea"]
    rights = [["the cat sits on a mat.", "a cat sat on the mat."], ["the dog barked all night"], ["no clue at all"]]
    bleu = sacrebleu.corpus_bleu(said, [[one[0] for one in rights], [rights[0][1], None, None]]).score
    chrf = sacrebleu.corpus_chrf(said, [[one[0] for one in rights], [rights[0][1], None, None]]).score
    assert text_metrics.corpus_score("bleu", said, rights) == pytest.approx(bleu / 100)
    assert text_metrics.corpus_score("chrf", said, rights) == pytest.approx(chrf / 100)
    assert "nrefs:var" in text_metrics.signature("bleu", said, rights)
    theirs = scorer.RougeScorer(["rougeL"], use_stemmer=True).score(rights[1][0], said[1])["rougeL"].fmeasure
    assert text_metrics.score_text("rougeL", said[1], rights[1]) == pytest.approx(theirs)


def test_the_figure_of_bleu_is_that_of_the_whole_set(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    task = task_of(tmp_path, ROWS, "kind: write\nmetrics: [bleu, exact_match]\n")
    result = run_task(FakeSubject(say=lambda ask: "a0 a1 a2 a3"), task)
    said = [one.details["taken"][0] for one in result.samples]
    assert result.summary["metrics"]["bleu"]["value"] == text_metrics.corpus_score(
        "bleu", said, [[r["answer"]] for r in ROWS]
    )
    assert "BLEU" not in result.summary["signatures"]["bleu"]
    assert "tok:13a" in result.summary["signatures"]["bleu"]


@settings(max_examples=40)
@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_pass(samples: int, data: st.DataObject) -> None:
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(combinations(range(samples), k))
    share = sum(any(one < passed for one in draw) for draw in draws) / len(draws)
    assert pass_at_k(samples, passed, k) == pytest.approx(share)


def test_standard_errors() -> None:
    assert mean_stderr([0.0, 1.0, 1.0, 1.0]) == (0.75, pytest.approx(0.25))
    values = [float(n % 3 == 0) for n in range(300)]
    booted = bootstrap_stderr(lambda rows: math.fsum(values[n] for n in rows) / len(rows), 300, rounds=400)
    assert booted == pytest.approx(mean_stderr(values)[1], rel=0.15)


# --- demands on form


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"check": "words", "at_most": 3}, "one two three", "one two three four"),
    ({"check": "sentences", "exactly": 2}, "One here. Two there!", "Only one."),
    ({"check": "paragraphs", "exactly": 2}, "a\n\nb", "a\nb"),
    ({"check": "lines", "exactly": 2}, "a\n\nb", "a"),
    ({"check": "bullets", "at_least": 2}, "- a\n* b", "- a"),
    ({"check": "numbered", "exactly": 2}, "1. a\n2) b", "1. a\n3. b"),
    ({"check": "has", "all_of": ["sun", "moon"]}, "Sun and MOON", "sunny moon"),
    ({"check": "lacks", "all_of": ["very"]}, "every day", "very nice"),
    ({"check": "frequency", "word": "a", "exactly": 2}, "a b a", "a b"),
    ({"check": "starts_with", "text": "In my"}, "In my view", "in my view"),
    ({"check": "ends_with", "text": "End."}, "The End.\n", "The End"),
    ({"check": "upper_case"}, "HELLO 1", "Hello"),
    ({"check": "lower_case"}, "hello 1", "Hello"),
    ({"check": "no_commas"}, "a b", "a, b"),
    ({"check": "quoted"}, '"all of it"', 'some "of" it'),
    ({"check": "titled"}, "<<A title>>\ntext", "<title>"),
    ({"check": "placeholders", "at_least": 2}, "[a] and [b]", "[a]"),
    ({"check": "parts", "separator": "***", "exactly": 2}, "a *** b", "a ***"),
    ({"check": "matches", "pattern": r"\d+"}, " 42 ", "42 apples"),
    ({"check": "one_of", "answers": ["yes", "no"]}, "yes.", "yes, it is"),
    ({"check": "is_json", "keys": ["a"]}, '```json\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
    ({"check": "is_json", "items": 2}, "[1, 2]", "Here: [1, 2]"),
]


def test_every_demand_has_a_case() -> None:
    assert {case["check"] for case, _, _ in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("given_", "good", "bad"), CASES, ids=lambda one: one["check"] if isinstance(one, dict) else ""
)
def test_a_demand_is_met_or_not(given_: dict[str, Any], good: str, bad: str) -> None:
    [(name, arguments)] = read_checks("row", [given_])
    assert met(name, arguments, good)
    assert not met(name, arguments, bad)
    assert not met(name, arguments, " ")


def test_reading_loosely_forgives_a_preamble() -> None:
    assert not met("upper_case", {}, "Sure, here it is:\nHELLO")
    assert met("upper_case", {}, "Sure, here it is:\nHELLO", loose=True)


# --- programs


def item_of(**more: str) -> Item:
    row = {
        "prompt": "import math\ndef double(x):\n    '''Twice.'''\n",
        "entry_point": "double",
        "tests": "assert double(2) == 4",
    }
    return Item("0", row | more, "")


def test_programs_pass_by_getting_behind_their_tests() -> None:
    item = item_of()
    head = str(item.fields["prompt"])
    assert passes(head + "    return 2 * x", item)[0]
    assert not passes(head + "    return x", item)[0]
    assert not passes(head + "    raise SystemExit(0)", item)[0]
    assert passes(head + "    return 2 * x", item_of(tests="def check(f):\n    assert f(3) == 6"))[0]
    assert not passes(head + "    return 3 * x", item_of(tests="def check(f):\n    assert f(3) == 6"))[0]


def test_a_chat_gives_its_last_block() -> None:
    whole = "Sure:\n```python\ndef double(x):\n    return math.ceil(2 * x)\n```\nThat is it."
    assert program(item_of(), whole, chat=True) == "import math\ndef double(x):\n    return math.ceil(2 * x)\n"
    assert program(item_of(), "    return 2 * x", chat=False).endswith("'''\n    return 2 * x")


# --- the cache


def test_results_are_kept_until_anything_they_follow_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = FakeSubject(say=lambda ask: "a1")
    task = task_of(tmp_path, ROWS)
    first = run_task(subject, task)
    again = run_task(subject, task)
    assert (first.cached, again.cached, len(subject.asked)) == (False, True, len(ROWS))
    assert (again.summary, again.samples) == (first.summary, first.samples)

    def asks_anew(subject: FakeSubject, task: Task, settings: Settings | None = None) -> bool:
        return not run_task(subject, task, settings).cached

    assert asks_anew(replace(subject, identity=Identity("fake", "other weights")), task)
    assert asks_anew(replace(subject, identity=Identity("fake", "content", {"dtype": "float32"})), task)
    assert asks_anew(subject, task, Settings(seed=1))
    assert asks_anew(subject, task, Settings(chat=False))
    assert asks_anew(subject, task, Settings(limit=2))
    changed = [*ROWS[:-1], {"prompt": "q5?", "answer": "a6"}]
    assert asks_anew(subject, task_of(tmp_path, changed))
    assert asks_anew(subject, task_of(tmp_path, ROWS, "kind: write\nprompt: '{{ prompt }} '\n"))
    assert not asks_anew(subject, task_of(tmp_path, ROWS))
    monkeypatch.setattr("tokenmill.evals.tasks.run.code_digest", lambda: "other code")
    assert asks_anew(subject, task)


def test_what_is_not_known_is_not_kept(tmp_path: Path) -> None:
    server = FakeSubject(identity=Identity("m at http://x", ""))
    task = task_of(tmp_path, ROWS)
    assert not run_task(server, task).cached
    assert not run_task(server, task).cached


def test_a_broken_file_of_the_cache_is_measured_anew(tmp_path: Path, home: Path) -> None:
    task = task_of(tmp_path, ROWS)
    run_task(FakeSubject(), task)
    [kept] = (home / "cache" / "evals").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert not run_task(FakeSubject(), task).cached


def test_a_models_content_is_what_its_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "SMALL", 4)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "w.bin").write_bytes(b"weights")
    (folder / ".cache").write_bytes(b"not the model")
    before = content_digest([folder])
    assert content_digest([folder]) == before
    (folder / ".cache").write_bytes(b"still not")
    assert content_digest([folder]) == before
    (folder / "sub" / "w.bin").write_bytes(b"wEights")
    assert content_digest([folder]) != before


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, ROWS)
    with pytest.raises(UsageError, match="temperature"):
        run_task(FakeSubject(), task, Settings(samples=3))
    with pytest.raises(UsageError, match="chat template"):
        run_task(FakeSubject(has_chat=False), task, Settings(chat=True))
    assert len(shipped()) == 7
