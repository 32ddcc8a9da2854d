"""What steps count, what a run says of it, and the verb."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.curation import rows, write_jsonl

from tokenmill.cli.app import main
from tokenmill.data.curate.step import SAMPLE_CHARS, SAMPLES, Document, Tally
from tokenmill.data.curate.steps import STEPS, entry
from tokenmill.data.curate.work import Stage, stages_of


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abc"), st.booleans()), max_size=80), st.integers())
def test_tallies_add_up_in_any_order(events: list[tuple[int, str, bool]], seed: int) -> None:
    def count(some: list[tuple[int, str, bool]]) -> Tally:
        tally = Tally(7)
        for number, reason, dropped in some:
            document = Document(f"f#{number}", f"text {number}")
            if dropped:
                tally.drop(document, reason)
            else:
                tally.change(document, reason, "before", 2)
                tally.keep()
        return tally

    whole = count(events)
    mixed = list(events)
    random.Random(seed).shuffle(mixed)
    merged = Tally(7)
    for at in range(0, len(mixed), 9):
        merged.merge(Tally.from_dict(json.loads(json.dumps(count(mixed[at : at + 9]).as_dict()))))
    assert merged.as_dict() == whole.as_dict()
    for reason, found in whole.dropped.items():
        assert found.documents == sum(1 for _, r, d in events if d and r == reason)
        assert len(found.samples) == min(SAMPLES, found.documents)


def test_samples_are_bounded_and_show_the_place() -> None:
    tally = Tally()
    before = "x" * 5000 + "here" + "y" * 5000
    tally.change(Document("a", before.replace("here", "there")), "r", before)
    (sample,) = tally.changed["r"].samples
    assert len(sample.before) == SAMPLE_CHARS
    assert sample.after is not None
    assert "here" in sample.before
    assert "there" in sample.after
    for number in range(1000):
        tally.drop(Document(f"b#{number}", "z" * 10_000), "s")
    assert len(json.dumps(tally.as_dict())) < 10_000
    assert {sample.id for sample in tally.dropped["s"].samples} != {f"b#{n}" for n in range(SAMPLES)}  # not the first


def test_a_recipe_is_cut_at_global_steps() -> None:
    class Whole:
        def observe(self, documents: list[Document]) -> bytes:
            return b""

        def decide(self, observed: object, folder: Path) -> None: ...

        def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
            return documents

    def one(documents: list[Document], tally: Tally) -> list[Document]:
        return documents

    assert stages_of([one, Whole(), one, one, Whole(), Whole()]) == [  # type: ignore[list-item]
        Stage(0, None, (0,), 1),
        Stage(1, 1, (2, 3), 4),
        Stage(2, 4, (), 5),
        Stage(3, 5, (), None),
    ]
    assert stages_of([]) == [Stage(0, None, (), None)]


@pytest.mark.parametrize("name", list(STEPS))
def test_every_step_can_be_named(name: str) -> None:
    assert entry(name).options_class().__doc__
    assert callable(entry(name).builder())
    assert entry(name).about


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "raw.jsonl", iter([*rows(30), {"text": "<script>alert(1)</script> " * 9}, {"body": "x"}]))
    (tmp_path / "mine.yaml").write_text("steps: [gopher, exact]\nworkers: 1\n")
    words = [
        "data",
        "run",
        str(tmp_path / "mine.yaml"),
        f"input={tmp_path / 'raw.jsonl'}",
        f"output={tmp_path / 'out'}",
    ]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["new"]
    assert document["read"]["documents"] + document["quarantined"] == 32
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert" in page
    for word in ("Funnel", "gopher", "exact", "Quarantine", "no column"):
        assert word in page
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*words, "steps.gopher.min_wrods=3", "wrokers=2"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'min_words'" in said
    assert "did you mean 'workers'" in said
    assert main(["data", "run", "input=x"]) == 2
    assert "web" in capsys.readouterr().err


def test_the_shipped_recipes_are_in_order() -> None:
    from tokenmill.data.curate.recipe import read_recipe, recipe_names

    assert {"web", "strict"} <= set(recipe_names())
    for name in recipe_names():
        assert read_recipe(name, ["input=raw", "output=out"]).steps
