"""Comparisons: paired statistics against their owners, planted regressions, conditions for CI, pages, the command."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest

from fakes.subject import FakeSubject
from tokenmill.cli.app import main
from tokenmill.core.errors import FormatError, NotFoundError, UsageError
from tokenmill.core.html import Interval, interval_chart, radar_chart
from tokenmill.evals.compare import compare
from tokenmill.evals.gates import Figure, failures, read_gate
from tokenmill.evals.paired import mcnemar, paired_difference
from tokenmill.evals.reports import write_comparison, write_tasks_report
from tokenmill.evals.subject import Ask, Identity
from tokenmill.evals.tasks.folder import Results, new_folder, read_results, write_results
from tokenmill.evals.tasks.run import Settings, run_task
from tokenmill.evals.tasks.task import load_task

HOSTILE = "</td><script>alert(1)</script>"
ROWS = [
    {"id": n, "prompt": f"q{n} {HOSTILE}", "answer": f"a{n}", "category": "odd" if n % 2 else "even"} for n in range(40)
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))


def measured(folder: Path, name: str, right: int, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Results:
    """Results of a model that knows the first ``right`` rows."""
    file = folder / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def say(ask: Ask) -> str:
        number = int(re.findall(r"q(\d+)", ask.shown())[-1])
        return f"a{number}" if number < right else HOSTILE

    identity = Identity(name, name)
    result = run_task(FakeSubject(say=say, identity=identity), load_task(str(file)), Settings(**settings))
    return write_results(folder / name, identity, [result])


# --- statistics


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 9), (12, 12), (700, 600)])
def test_mcnemar_is_a_two_sided_binomial_test(gained: int, lost: int) -> None:
    count = gained + lost
    observed = comb(count, gained)
    as_odd = sum(comb(count, k) for k in range(count + 1) if comb(count, k) <= observed)
    assert mcnemar(gained, lost) == pytest.approx(float(Fraction(as_odd, 2**count)))


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 3) == pytest.approx(2 * 5 / 16)


def test_the_interval_is_that_of_paired_rows() -> None:
    """Rows that differ widely, models that differ by 0.1 on each: certain, though each mean is very uncertain."""
    draw = random.Random(0)
    base = [draw.random() * 10 for _ in range(60)]
    found = paired_difference(base, [one + 0.1 + draw.gauss(0, 0.05) for one in base])
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.05
    assert found.p is None
    assert found == paired_difference(base, _again(base))


def _again(base: list[float]) -> list[float]:
    draw = random.Random(0)
    assert [draw.random() * 10 for _ in range(60)] == base
    return [one + 0.1 + draw.gauss(0, 0.05) for one in base]


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Of 200 pairs of equally good models about 5 % are called different."""
    draw = random.Random(1)
    called = 0
    for _ in range(200):
        pairs = [(float(draw.random() < 0.6), float(draw.random() < 0.6)) for _ in range(80)]
        found = paired_difference([a for a, _ in pairs], [b for _, b in pairs], rounds=500)
        called += not found.low <= 0 <= found.high
    assert 2 <= called <= 22


# --- comparisons


def test_a_planted_regression_is_found_and_noise_is_not(tmp_path: Path) -> None:
    base = measured(tmp_path, "base", 32)
    comparison = compare(base, [measured(tmp_path, "worse", 16), measured(tmp_path, "same", 31)])
    assert [(comparison.labels[one.model + 1], one.metric) for one in comparison.regressions] == [
        ("worse", "exact_match")
    ]
    [line] = [one for one in comparison.lines if one.model == 0 and one.metric == "exact_match" and not one.category]
    assert (line.difference.value, line.difference.gained, line.difference.lost) == (-0.4, 0, 16)
    assert line.difference.p == pytest.approx(mcnemar(0, 16))
    parts = {one.category: one.difference.value for one in comparison.lines if one.model == 0 and one.category}
    assert parts == {"even": -0.4, "odd": -0.4}


def test_four_rows_of_forty_are_no_certainty(tmp_path: Path) -> None:
    """The bootstrap's interval leaves out zero; a coin would do as much one time in eight."""
    comparison = compare(measured(tmp_path, "base", 20), [measured(tmp_path, "tuned", 16)])
    [line] = [one for one in comparison.lines if one.metric == "exact_match" and not one.category]
    assert line.difference.high < 0
    assert line.difference.p == pytest.approx(0.125)
    assert comparison.regressions == []


def test_results_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    base = measured(tmp_path, "base", 10)
    with pytest.raises(UsageError, match="other rows"):
        compare(base, [measured(tmp_path, "other", 10, ROWS[:-1])])
    with pytest.raises(UsageError, match="seed"):
        compare(base, [measured(tmp_path, "seeded", 10, seed=1)])
    assert compare(base, [measured(tmp_path, "plain", 10, chat=False)]).notes == (
        "quiz: chat is True for the base, False for plain",
    )


def test_a_figure_whose_low_is_good_is_read_so(tmp_path: Path) -> None:
    base, tuned = measured(tmp_path, "base", 32), measured(tmp_path, "tuned", 16)
    base.document["tasks"][0]["lower_is_better"] = ["exact_match"]
    assert compare(base, [tuned]).regressions == []


def test_folders_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = measured(tmp_path, "base", 10)
    assert read_results(written.folder) == written
    (written.folder / "results.json").write_text('{"format": "tokenmill-eval-1"}')
    with pytest.raises(FormatError):
        read_results(written.folder)
    with pytest.raises(NotFoundError, match="eval tasks"):
        read_results(tmp_path)
    assert new_folder(tmp_path, "hf:a/b").parent == tmp_path


# --- conditions


FIGURES = [
    Figure("m", "quiz", "acc", 0.5, change=-0.1, worse=True),
    Figure("m", "other", "acc", 0.9, change=0.0),
    Figure("m", "quiz", "f1", 0.7, change=0.2, counts=False),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("acc<0.6", ["m: quiz.acc is 0.5 (acc<0.6)"]),
        ("quiz.acc <= 0.5", ["m: quiz.acc is 0.5 (quiz.acc <= 0.5)"]),
        ("other.acc<0.6", []),
        ("f1>0.6", ["m: quiz.f1 is 0.7 (f1>0.6)"]),
        ("change:acc<-0.05", ["m: quiz.acc changed by -0.1 (change:acc<-0.05)"]),
        ("regression", ["m: quiz.acc is worse by 0.1"]),
    ],
)
def test_a_condition_holds_or_not(text: str, found: list[str]) -> None:
    assert failures([read_gate(text)], FIGURES) == found


@pytest.mark.parametrize("text", ["acc", "acc=0.5", "acc<", "<0.5", "acc<x", "acc<1.2.3"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no condition"):
        read_gate(text)


def test_a_condition_that_nothing_answers_to_is_no_pass() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        failures([read_gate("ac<0.5")], FIGURES)
    alone = [Figure("m", "quiz", "acc", 0.5)]
    for text in ("regression", "change:acc<0"):
        with pytest.raises(UsageError, match="base"):
            failures([read_gate(text)], alone)


# --- pages


def links(page: Path) -> set[Path]:
    found = re.findall(r'href="([^"#]+)"', page.read_text(encoding="utf-8"))
    return {(page.parent / one).resolve() for one in found}


def test_pages_are_safe_and_every_link_leads_to_a_file(tmp_path: Path) -> None:
    base, tuned = measured(tmp_path, "base", 32), measured(tmp_path, "tuned", 16)
    pages = [write_tasks_report(base), write_comparison(tmp_path / "out" / "report.html", compare(base, [tuned]))]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert links(page)
        assert all(path.is_file() for path in links(page))
    # every figure in a table of the comparison leads somewhere
    rows = re.findall(r"<tr><td>quiz.*?</tr>", pages[1].read_text(encoding="utf-8"), re.DOTALL)
    assert rows
    assert all(row.count("<a href=") == 2 for row in rows)


def test_a_radar_stays_inside_its_frame() -> None:
    chart = radar_chart("t", ["a", HOSTILE, "c", "d"], {"m": [0.0, 0.5, 1.0, 7.0], HOSTILE: [1, float("nan"), -1, 0.2]})
    assert "<script" not in chart
    assert "nan" not in chart
    assert "missing" in chart
    for path in re.findall(r' d="([^"]*)"', chart):
        corners = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
        assert len(corners) == 4
        assert all(150 <= x <= 410 and 44 <= y <= 304 for x, y in corners)
    assert radar_chart("t", ["a", "b"], {"m": [0.1, 0.2]}) == ""


def test_intervals_stay_inside_their_frame() -> None:
    chart = interval_chart("t", [Interval(HOSTILE, 0.1, -0.1, 0.3), Interval("b" * 90, -5, -6, -4, "bad")])
    assert "<script" not in chart
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx)="([\d.-]+)"', chart)]
    assert min(places) >= 210
    assert max(places) <= 546
    assert interval_chart("t", [Interval("a", float("nan"), 0, 1)]) == ""


# --- the command


def test_the_command_compares_folders_and_fails_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = measured(tmp_path, "base", 32), measured(tmp_path, "tuned", 16)
    words = ["eval", "compare", str(base.folder), str(tuned.folder), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["regressions"] == ["tuned: quiz.exact_match -0.4"]
    assert Path(document["report"]).is_file()
    assert main([*words, "--fail-if", "exact_match<0.8", "--fail-if", "regression"]) == 1
    said = capsys.readouterr()
    assert "failed: tuned: quiz.exact_match is 0.4 (exact_match<0.8)" in said.err
    assert len(json.loads(said.out.splitlines()[-1])["failed"]) == 2
    assert main([*words, "--fail-if", "exact_match<0.3"]) == 0
    assert main([*words, "--fail-if", "bleu<0.3"]) == 2
    assert main([*words, "--tasks", "format"]) == 2
    assert main(["eval", "compare", str(base.folder), "no-results", "--json"]) == 2
