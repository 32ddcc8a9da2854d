"""The worked examples: what is generated is what is planted, scorers see what was answered, nothing is asked twice."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokenmill.text.grammar import GuideFactory
from tokenmill.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def modules_of(folder: str, *names: str) -> Iterator[list[ModuleType]]:
    """Modules of an example, as its own script imports them; gone from the path afterwards."""
    kept = list(sys.path)
    sys.path[:0] = [str(EXAMPLES / folder), str(EXAMPLES)]
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path[:] = kept


@pytest.fixture(scope="module")
def doctor() -> Iterator[Any]:
    for patients, briefing, script in modules_of("ai-doctor", "patients", "briefing", "doctor"):
        script.p, script.b = patients, briefing
        yield script


@pytest.fixture(scope="module")
def rill() -> Iterator[Any]:
    for language, script in modules_of("query-language", "rill", "teach"):
        script.r = language
        yield script


def test_patients_are_the_same_for_a_seed_and_nobody_is_asked_about_who_was_learned(doctor: Any) -> None:
    seen = doctor.p.patients(120, 1)
    assert seen == doctor.p.patients(120, 1) != doctor.p.patients(120, 2)
    unseen = doctor.p.held_out(50, 2, seen)
    assert len(unseen) == 50
    assert not {one.record for one in seen} & {one.record for one in unseen}


def test_targets_have_the_form_and_name_exactly_the_dangers(doctor: Any) -> None:
    some = doctor.p.patients(150, 3)
    assert {len(one.interactions) for one in some} == {0, 1}
    assert any(not one.dangers for one in some)
    for one in some:
        assert doctor.b.FORM.fullmatch(doctor.b.target(one))
        assert doctor.b.named_in_text(doctor.b.target(one), one) == one.dangers
        assert doctor.b.named_in_checks(doctor.b.checks(one)) == one.dangers
        assert not doctor.b.named_in_text(one.record, one), "to repeat the record is to name no danger"


def test_half_of_an_interaction_is_none(doctor: Any) -> None:
    """A drug of the table stands as often without its partner: its name alone tells nothing."""
    some = doctor.p.patients(300, 4)
    known = {drug for pair in doctor.p.INTERACTIONS for drug in pair}
    halves = [one for one in some if not one.interactions and known & set(one.drugs)]
    assert 0.35 < len(halves) / len(some) < 0.65


def test_dangers_are_named_in_other_words_too(doctor: Any) -> None:
    one = doctor.p.Patient(
        "man", 50, ("gout", "asthma"), "BP 1/1", ("warfarin", "ibuprofen", "metformin"), (("K", 6.1),)
    )
    named = doctor.b.named_in_text
    assert named("Elevated risk: ibuprofen with warfarin may cause bleeding.", one) == {"warfarin + ibuprofen"}
    assert named("His K 6.1 is above the range.", one) == {"K high"}
    assert named("He takes warfarin and ibuprofen. K 6.1.", one) == set()
    # what the form says counts as it stands there: the right effect behind the wrong drug is a danger made up
    wrong = named("Drugs: warfarin, ibuprofen, metformin (bleeding with warfarin).", one)
    assert wrong == {"metformin + warfarin"}


def test_checks_keep_to_the_patient(doctor: Any) -> None:
    """The schema takes the right checks and none with a lab left out, a drug of somebody else, or more."""
    one = doctor.p.patients(1, 5)[0]
    right, schema = json.loads(doctor.b.checks(one)), doctor.b.schema(one)

    def valid(value: Any, form: Any = schema) -> bool:
        if "enum" in form:
            return value in form["enum"]
        return set(value) == set(form["required"]) and all(valid(value[k], form["properties"][k]) for k in value)

    assert valid(right)
    first = next(iter(right["labs"]))
    assert not valid({**right, "labs": {k: v for k, v in right["labs"].items() if k != first}})
    assert not valid({**right, "labs": {**right["labs"], first: "fine"}})
    assert not valid({**right, "drugs": {**right["drugs"], one.drugs[0]: "heroin"}})
    assert not valid({**right, "drugs": {**right["drugs"], one.drugs[0]: one.drugs[0]}}), "not with itself"


def test_the_schema_guides(doctor: Any, byte_tokenizer: Tokenizer) -> None:
    """The right checks are a text that the grammar takes to its end, as they are trained."""
    factory = GuideFactory(byte_tokenizer, byte_tokenizer.vocab_size)
    for one in doctor.p.patients(3, 6):
        guide = factory.from_format(doctor.b.schema(one))
        for token in byte_tokenizer.encode(doctor.b.checks(one), add_special_tokens=False):
            guide.accept(token)
        assert guide.complete


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from fakes.tiny_llm import tiny_folder
    from tokenmill.models import load_tokenizer

    return load_tokenizer(tiny_folder(tmp_path_factory.mktemp("bytes")))


def test_the_doctor_is_scored(doctor: Any) -> None:
    planted = [frozenset({"K high", "a + b"}), frozenset({"Na low"}), frozenset()]
    found = [frozenset({"K high"}), frozenset({"Na low", "Hb low"}), frozenset()]
    figures = doctor.score(found, planted)
    assert figures["recall"].value == pytest.approx(2 / 3)
    assert figures["of interactions"].value == 0
    assert figures["of labs"].value == 1
    assert figures["precision"].value == pytest.approx(2 / 3)
    assert figures["recall"].low < 2 / 3 < figures["recall"].high
    assert doctor.gain(found, [frozenset()] * 3, planted).value == pytest.approx(2 / 3)
    one = doctor.p.patients(1, 1)[0]
    assert doctor.has_form("lora", doctor.b.target(one) + "\n")
    assert not doctor.has_form("lora", doctor.b.target(one) + " And more.")
    assert doctor.has_form("structured", doctor.b.checks(one))
    cut = doctor.b.checks(one)[:-1]
    assert not doctor.has_form("structured", cut)
    assert doctor.named_by("structured", cut, one) == frozenset()


def test_intervals(doctor: Any) -> None:
    figure = doctor.share([True] * 40)
    assert figure.value == figure.high == 1.0
    assert 0.9 < figure.low < 0.95  # Wilson: forty of forty are no proof of always
    assert str(doctor.share([True, False])) == "0.50 [0.09, 0.91]"


def test_queries_are_of_the_language_and_none_is_asked_that_was_learned(rill: Any) -> None:
    learned = rill.r.pairs(300, 1)
    assert learned == rill.r.pairs(300, 1)
    asked = rill.r.held_out(60, 2, learned)
    assert len(asked) == 60
    assert not {one.query for one in learned} & {one.query for one in asked}
    assert all(rill.r.GRAMMAR.fullmatch(one.query) for one in [*learned, *asked])
    examples = [line.split(" -> ")[1] for line in rill.r.DESCRIPTION.splitlines() if " -> " in line]
    assert len(examples) == 3
    assert all(rill.r.GRAMMAR.fullmatch(one) for one in examples)


@pytest.mark.parametrize("text", ["select * from orders", "orders ? total", "orders # sum", "orders # count ^", ""])
def test_what_is_no_query(rill: Any, text: str) -> None:
    assert rill.r.GRAMMAR.fullmatch(text) is None


def test_queries_are_scored(rill: Any) -> None:
    asked = [rill.r.Pair("a", "orders # count"), rill.r.Pair("b", "users ? age > 5"), rill.r.Pair("c", "users")]
    figures = rill.score(["orders  # count\n", "users ? age > 6", "all users please"], asked)
    assert figures["exact match"].value == pytest.approx(1 / 3)
    assert figures["well formed"].value == pytest.approx(1 / 3)  # the first has two blanks: a match, and not the form


def test_results_of_other_settings_are_refused(doctor: Any, tmp_path: Path) -> None:
    keep = sys.modules["worked"].keep_settings
    keep(tmp_path / "run", {"seed": 1})
    keep(tmp_path / "run", {"seed": 1})
    with pytest.raises(SystemExit, match="other settings"):
        keep(tmp_path / "run", {"seed": 2})


def test_rows_that_are_there_stay_as_they_are(doctor: Any, tmp_path: Path) -> None:
    """A training refuses to go on with a file that was touched."""
    path, write = tmp_path / "rows.jsonl", sys.modules["worked"].write_rows
    write(path, [{"a": 1}])
    os.utime(path, ns=(1, 1))
    write(path, [{"a": 1}])
    assert path.stat().st_mtime_ns == 1
    write(path, [{"a": 2}])
    assert path.stat().st_mtime_ns != 1


def test_answers_that_are_there_are_not_asked_again(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second of three: only two are asked."""
    import tokenmill

    asked: list[Any] = []

    class Fake:
        def __init__(self, *given: Any, **more: Any) -> None:
            pass

        def prompt_ids(self, messages: Any) -> list[int]:
            return [len(messages[0]["content"])]

        def complete(self, prompts: Any, params: Any, format: Any = None) -> list[Any]:
            asked.extend(prompts)
            return [type("Done", (), {"text": f"said {ids[0]}"})() for ids in prompts]

    monkeypatch.setattr(tokenmill, "LLM", Fake, raising=False)
    path = tmp_path / "answers.jsonl"
    path.write_text('{"answer": "kept"}\n{"answ')
    questions = [[{"role": "user", "content": "x" * n}] for n in (1, 2, 3)]
    answers = sys.modules["worked"].answers
    assert answers(path, questions, max_tokens=4) == ["kept", "said 2", "said 3"]
    assert asked == [[2], [3]]
    assert answers(path, questions, max_tokens=4) == ["kept", "said 2", "said 3"]
    assert len(asked) == 2
