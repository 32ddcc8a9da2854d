"""Collecting preferences: the page's routes, the file of verdicts, agreement and bias against known values."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tokenmill.align.label import Label, LabelLog, agreement, pairs_of, position_bias, read_items
from tokenmill.align.label.measures import krippendorff_alpha
from tokenmill.cli.app import main
from tokenmill.core.errors import FormatError, UsageError
from tokenmill.core.statistics import binomial_p
from tokenmill.serve.label import create_app


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    given = [{"prompt": f"question {i}", "answers": [f"good {i}", f"bad {i}"]} for i in range(20)]
    given.append({"prompt": [{"role": "user", "content": "x"}], "chosen": "<b>y</b>", "rejected": "z"})
    path.write_text("\n".join(map(json.dumps, [*given, given[0]])))
    return path


def test_two_raters_on_the_page(rows: Path, tmp_path: Path) -> None:
    """One who knows what is good, one who always takes the left: the measures tell them apart."""
    items = read_items(str(rows))
    assert len(items) == 21  # equal rows are one item
    log = LabelLog(tmp_path / "labels.jsonl")
    client = TestClient(create_app(items, log, secret="s3cret"))
    for rater, chooses in (("ada", "good"), ("bob", "left")):
        while (shown := client.get("/s3cret/next", params={"rater": rater}).json())["item"] is not None:
            item = shown["item"]
            verdict = "left" if chooses == "left" or str(item["left"]).startswith(("good", "<b>")) else "right"
            said = {"item": item["id"], "rater": rater, "verdict": verdict, "seconds": 1.5}
            assert client.post("/s3cret/verdict", json=said).json() == {"saved": True}
        assert shown["done"] == shown["of"] == 21
    again = LabelLog(tmp_path / "labels.jsonl")
    assert again.labels == log.labels
    ada = [label for label in log.labels if label.rater == "ada"]
    assert {label.verdict for label in ada} == {"first"}
    assert 3 < sum(label.left for label in ada) < 18  # sides are drawn
    bob = position_bias(label for label in log.labels if label.rater == "bob")
    assert bob.left == 21
    assert bob.p_value is not None
    assert bob.p_value < 1e-5
    measured = client.get("/s3cret/measures").json()
    assert measured["agreement"]["items"] == 21
    assert measured["labels"] == 42
    pairs = pairs_of(items, ada)
    assert len(pairs) == 21
    assert all(str(pair["chosen"]).startswith(("good", "<b>")) for pair in pairs)
    assert len(pairs_of(items, log.labels)) == sum(item.left("bob", 0) == 0 for item in items)  # else they disagree


def test_only_who_knows_the_secret_gets_in(rows: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(read_items(str(rows)), LabelLog(tmp_path / "l"), secret="s3cret"))
    for path in ("/", "/next?rater=a", "/other/next?rater=a", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 404
    page = client.get("/s3cret/")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for part in ("label.js", "label.css"):
        assert client.get(f"/s3cret/parts/{part}").status_code == 200
    assert client.get("/s3cret/parts/page.html").status_code == 404
    script = client.get("/s3cret/parts/label.js").text
    assert "innerHTML" not in script


@pytest.mark.parametrize(
    "wrong",
    [
        {"item": "nothing", "rater": "a", "verdict": "left"},
        {"rater": "a", "verdict": "left"},
        {"item": "x", "rater": "", "verdict": "left"},
        {"item": "x", "rater": "a", "verdict": "both"},
        {"item": "x", "rater": "a", "verdict": "left", "seconds": -1},
        {"item": "x", "rater": "a", "verdict": "left", "more": 1},
    ],
)
def test_what_is_no_verdict_is_refused(rows: Path, tmp_path: Path, wrong: dict[str, object]) -> None:
    client = TestClient(create_app(read_items(str(rows)), LabelLog(tmp_path / "l"), secret="s"))
    assert client.post("/s/verdict", json=wrong).status_code in (404, 422)
    assert not (tmp_path / "l").exists()


def test_a_torn_line_costs_one_verdict(tmp_path: Path) -> None:
    """The last line of a crash is passed over and the next verdict begins a line; a broken one inside is an error."""
    path = tmp_path / "labels.jsonl"
    log = LabelLog(path)
    log.add(Label("a", "r", "first", 0))
    log.add(Label("b", "r", "tie", 1))
    path.write_bytes(path.read_bytes()[:-9])
    log = LabelLog(path)
    assert [label.item for label in log.labels] == ["a"]
    log.add(Label("c", "r", "second", 1))
    with pytest.raises(FormatError, match="line 2"):
        LabelLog(path)


def test_a_second_thought_counts(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.add(Label("a", "r", "first", 0))
    log.add(Label("a", "r", "second", 0))
    assert [label.verdict for label in LabelLog(log.path).labels] == ["second"]


def test_alpha_is_krippendorffs() -> None:
    """His own example (Krippendorff 2011, C: nominal data, four observers, missing values): 0.743."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[str(v) for v in unit if v is not None] for unit in zip(*table, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_chance_is_none() -> None:
    draw = random.Random(0)
    labels = [Label(str(i), rater, draw.choice(("first", "second")), 0) for i in range(2000) for rater in ("a", "b")]
    found = agreement(labels)
    assert found.alpha == pytest.approx(0, abs=0.06)
    assert found.kappas["a, b"] == pytest.approx(0, abs=0.06)
    same = [Label(str(i), rater, "first" if i % 2 else "tie", 0) for i in range(10) for rater in ("a", "b")]
    assert agreement(same).alpha == agreement(same).kappas["a, b"] == 1.0
    assert agreement([Label("x", "a", "first", 0)]).alpha is None


def test_binomial_test() -> None:
    assert binomial_p(5, 10) == 1.0
    assert binomial_p(9, 10) == pytest.approx(22 / 1024)
    assert binomial_p(1100, 2001) == pytest.approx(binomial_p(1100, 2000), rel=0.2)  # exact and approximate meet


def test_command(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measures and pairs without a server; nothing to write is said."""
    assert main(["label", str(rows), "--pairs", str(tmp_path / "pairs.jsonl")]) == 2
    log = LabelLog(Path(f"{rows}.labels.jsonl"))
    for item in read_items(str(rows))[:5]:
        for rater in ("a", "b"):
            log.add(Label(item.id, rater, "first", item.left(rater, 0)))
    capsys.readouterr()
    assert main(["label", str(rows), "--measures", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["share"] == 1.0
    assert main(["label", str(rows), "--pairs", str(tmp_path / "pairs.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 5
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "p", "answers": ["a"]}, "two answers"),
        ({"prompt": "p", "answers": ["a", "a"]}, "the same"),
        ({"answers": ["a", "b"]}, "prompt must be text"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "answer 2 must be"),
    ],
)
def test_rows_that_cannot_be_compared(tmp_path: Path, row: dict[str, object], part: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=part):
        read_items(str(tmp_path / "x.jsonl"))
