"""What a model knows by heart, and what of a test set stands in the training data: both planted, both found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from fakes.tiny_llm import tiny_folder
from tokenmill.cli.app import main
from tokenmill.core.errors import UsageError
from tokenmill.evals.leakage import leakage, training_texts
from tokenmill.evals.memorization import Trained, by_copies, edits, passages_of, rates, recall
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn.context import Packed

PASSAGE = "the log sat on the dog and the hat sat on the cat; what capital of the mat is there? hello, France sat there"


def trained(name: str, ids: list[int], learned: list[bool] | None = None) -> Trained:
    return Trained(name, tuple(ids), tuple(learned or [True] * len(ids)))


def test_a_model_that_knows_one_document_by_heart() -> None:
    draw = random.Random(0)
    known, other = [[draw.randrange(50) for _ in range(60)] for _ in range(2)]

    def continuation(prompts: list[list[int]], count: int) -> list[list[int]]:
        """Goes on as `known` does once it is given eight of its tokens; writes noughts otherwise."""
        found = []
        for prompt in prompts:
            places = [at for at in range(8, 60) if prompt[-8:] == known[at - 8 : at]]
            found.append(known[places[0] : places[0] + count] if places else [0] * count)
        return found

    documents = [trained("known", known), trained("other", other)]
    passages = passages_of(documents, [4, 8, 16], 12, most=10)
    found = rates(recall(continuation, passages, [4, 8, 16]))
    assert [(rate.prefix, rate.exact, rate.near) for rate in found] == [(4, 0, 0), (8, 0.5, 0.5), (16, 0.5, 0.5)]
    hits = [one.passage.document.name for one in recall(continuation, passages, [16]) if one.exact]
    assert hits == ["known"]


def test_one_changed_token_is_near_and_not_exact() -> None:
    ids = list(range(40))
    passages = passages_of([trained("a", ids)], [8], 10, most=1)
    after = list(passages[0].after)
    found = recall(lambda prompts, count: [[*after[:4], 99, *after[5:]]], passages, [8])[0]
    assert not found.exact
    assert found.near
    assert found.similarity == pytest.approx(0.9)


def test_only_what_was_learned_is_looked_for() -> None:
    ids = list(range(30))
    document = trained("chat", ids, [False] * 20 + [True] * 10)
    passages = passages_of([document], [8], 10, most=1)
    assert passages[0].after == tuple(range(20, 30))
    with pytest.raises(UsageError, match="no document"):
        passages_of([document], [8], 11, most=1)


def test_copies_are_counted() -> None:
    ids = random.Random(3).sample(range(1000), 30)
    documents = [trained(str(n), ids) for n in range(5)] + [trained("lone", [n + 2000 for n in range(30)])]
    passages = passages_of(documents, [8], 10, most=10)
    assert sorted(one.copies for one in passages) == [1, 5, 5, 5, 5, 5]
    found = by_copies(recall(lambda prompts, count: [list(one.after) for one in passages], passages, [8]))
    assert found == {"1": 1.0, "5 or more": 1.0}


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edits(a: str, b: str, count: int) -> None:
    assert edits([*map(ord, a)], [*map(ord, b)]) == edits([*map(ord, b)], [*map(ord, a)]) == count


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was trained on one passage until it knew it."""
    folder = tiny_folder(tmp_path_factory.mktemp("knowing"))
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    ids_T = torch.tensor(tokenizer.encode(PASSAGE))
    model.network.requires_grad_(True)
    optimiser = torch.optim.Adam(model.network.parameters(), lr=1e-2)
    for _ in range(60):
        hidden_TC = model.decoder.hidden(ids_T, Packed([len(ids_T)], model.decoder.device))
        loss = torch.nn.functional.cross_entropy(model.decoder.logits(hidden_TC[:-1]), ids_T[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    model.save(folder)
    tokenizer.save(folder)
    return folder


def test_a_planted_passage_is_found_in_a_real_model(
    knowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, control = tmp_path / "train.jsonl", tmp_path / "control.jsonl"
    data.write_text(json.dumps({"text": PASSAGE}) + "\n" + json.dumps({"text": PASSAGE[::-1]}) + "\n")
    control.write_text(json.dumps({"text": " ".join(sorted(PASSAGE.split()))}) + "\n")
    words = ["--data", str(data), "--control", str(control), "--prefixes", "8,16", "--length", "12"]
    assert main(["eval", "memorization", str(knowing), *words, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["data"][-1]["exact"] == 0.5, "the planted one, and not the other"
    assert found["control"][-1]["exact"] == 0
    folder = Path(found["report"]).parent
    known = [row for row in map(json.loads, (folder / "data.jsonl").read_text().splitlines()) if row["exact"]]
    assert all(row["written"] in PASSAGE for row in known)


# --- leaks between train and test


def rows_file(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sentence(seed: int, words: int = 24) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choice("abcdefghij") for _ in range(5)) for _ in range(words))


def test_a_planted_leak_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Test row 1 stands inside a training text, in other letters and without its commas; row 2 as an answer."""
    tests = [
        {"prompt": sentence(1), "completion": "yes"},
        {"prompt": sentence(2), "completion": sentence(3)},
        {"prompt": "short", "completion": "one"},
        {"prompt": sentence(4), "completion": "no"},
    ]
    leaked = sentence(1).upper().replace(" ", ", ", 3)
    train = [{"text": f"{sentence(90)} {leaked} {sentence(91)}"}, {"text": sentence(92)}, {"text": f"A. {sentence(3)}"}]
    train_file, test_file = rows_file(tmp_path / "a.jsonl", train), rows_file(tmp_path / "b.jsonl", tests)
    found = leakage(training_texts(train_file), [test_file])
    assert (found.rows, found.short, found.documents) == (3, 1, 3)
    assert {one.name.rsplit(":", 1)[1]: one.where for one in found.leaked} == {
        "1": [f"{train_file}:1"],
        "2": [f"{train_file}:3"],
    }
    words = ["eval", "leakage", train_file, "--against", test_file, "--out", str(tmp_path / "runs"), "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["leaked"] == 2
    assert main([*words, "--fail-above", "0.5"]) == 1
    assert main([*words, "--fail-above", "0.7"]) == 0


def test_nothing_leaks_where_nothing_is_shared(tmp_path: Path) -> None:
    tests = rows_file(tmp_path / "b.jsonl", [{"question": sentence(1), "answer": "yes"}])
    assert leakage([("a", sentence(2)), ("b", " ".join(sentence(1).split()[:11]))], [tests]).leaked == ()
    assert leakage([("b", " ".join(sentence(1).split()[:11]))], [tests], n=8).rate == 1.0
    with pytest.raises(UsageError, match="long enough"):
        leakage([], [rows_file(tmp_path / "c.jsonl", [{"question": "too short", "answer": "yes"}])])
