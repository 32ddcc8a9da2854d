"""``tokenmill data mix`` and the recipe ``chats`` from outside: files in, files out, mistakes told before anything is
read; real global steps through the pipeline with one worker and two."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tokenmill.cli.app import main
from tokenmill.data.curate.pipeline import curate
from tokenmill.data.curate.recipe import read_recipe
from tokenmill.data.files import find_files, read_rows


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    random_of = random.Random(0)
    for name, count in (("web/a", 150), ("web/b", 150), ("books/a", 30)):
        rows = [{"text": f"{name} " + "word " * random_of.randrange(1, 20)} for _ in range(count)]
        write(Path(f"{name}.jsonl"), rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: str, split: str = "data") -> list[dict[str, Any]]:
    return [row.value for file in find_files(f"{folder}/{split}-*") for row in read_rows(file)]


def test_a_mix_has_the_shares_and_names_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    """Two sources have files of one name: their documents do not meet."""
    command = ["data", "mix", "web", "prose=books", "-o", "out", "--weight", "web=2", "--weight", "prose=1"]
    assert main([*command, "--tokens", "1.2K", "--max-epochs", "prose=3", "--max-epochs", "web=1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = rows_of("out")
    words = {name: sum(len(row["text"].replace("/", " ").split()) for row in rows if row["source"] == name)
             for name in ("web", "prose")}  # fmt: skip
    assert 800 - 22 <= words["web"] <= 800
    assert 400 - 22 <= words["prose"] <= 400
    assert len({row["id"] for row in rows}) == len(rows) == told["written"]["documents"]
    assert {row["id"].split("/")[0] for row in rows} == {"web", "prose"}
    assert main([*command, "--seed", "1"]) == 1
    assert "--fresh" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--fresh"]) == 0
    assert "use  data=out/manifest.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["web", "books", "--weight", "web=1"], 1, "source 'books' has none"),
        (["web", "--weight", "wep=1"], 1, "did you mean 'web'"),
        (["web", "web"], 2, "two sources are called 'web'"),
        (["web", "--weight", "2"], 2, "give NAME=NUMBER"),
        (["web", "--max-epochs", "often"], 2, "give a number"),
        (["web", "--tokens", "many"], 2, "5M or 2B"),
        (["web", "--format", "csv"], 2, "output.format"),
        (["web", "--temperature", "0"], 2, "temperature"),
        (["a b=web"], 2, "give the source a name"),
        (["nowhere"], 2, "no such file"),
    ],
)
def test_mistakes_are_told(words: list[str], status: int, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "mix", "-o", "out", *words]) == status
    assert problem in capsys.readouterr().err
    assert not rows_of_any("out")


def rows_of_any(folder: str) -> list[Path]:
    return list(Path(folder).glob("*.jsonl*"))


def test_chats_of_every_kind_become_messages_without_copies() -> None:
    turns = [("system", ""), ("user", "What is a quern?"), ("assistant", "A mill turned by hand.")]
    mapping: dict[str, Any] = {}
    for number, (role, text) in enumerate(turns):
        message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
        mapping[f"n{number}"] = {"parent": f"n{number - 1}" if number else None, "children": [], "message": message}
    export = {"title": "Mills", "mapping": mapping, "current_node": "n2"}
    Path("conversations.json").write_text(json.dumps([export, {"mapping": {}, "current_node": "x"}]))
    write(
        Path("more.jsonl"),
        [
            {"conversations": [{"from": "human", "value": turns[1][1]}, {"from": "gpt", "value": turns[2][1]}]},
            {"instruction": "Name a mill.", "output": "A quern."},
            {"text": "no conversation"},
        ],
    )
    recipe = read_recipe("chats", ["input=[conversations.json,more.jsonl]", "output=chats", "workers=1"])
    done = curate(recipe)
    rows = [row for split in ("train", "validation", "test") if list(Path("chats").glob(f"{split}-*"))
            for row in rows_of("chats", split)]  # fmt: skip
    rows.sort(key=lambda row: row["id"])
    assert [row["messages"][-1]["content"] for row in rows] == ["A mill turned by hand.", "A quern."]
    assert rows[0]["title"] == "Mills"
    assert all(set(row) <= {"id", "messages", "title", "split"} for row in rows)
    assert done.manifest["quarantined"] == 1
    assert done.manifest["steps"][0]["dropped"] == {"unconvertible": 1}


def test_workers_change_nothing() -> None:
    """Deduplication and splitting: the same bytes from one process and two."""
    random_of = random.Random(1)
    rows = []
    for _ in range(300):
        words = [f"w{random_of.randrange(3000)}" for _ in range(400)]
        rows += [{"text": " ".join(words)}] * random_of.randrange(1, 3)
        rows.append({"text": " ".join([*words[:200], "edited", *words[201:]])})
    random_of.shuffle(rows)
    write(Path("raw/all.jsonl"), rows)
    steps: list[Any] = ["minhash", {"mix": {"tokens": 60_000}},
                        {"split": {"validation": 0.2}}]  # fmt: skip
    outputs = []
    for workers in (1, 2):
        tree = {"input": "raw", "output": f"out{workers}", "steps": steps, "workers": workers, "shard_mb": 1}
        done = curate(read_recipe(tree))
        outputs.append([(file["file"], file["sha256"]) for file in done.manifest["outputs"]])
        assert done.manifest["read"]["characters"] > 3 << 19, "one shard proves nothing"
        assert done.manifest["steps"][0]["went"] == 300
    assert outputs[0] == outputs[1]
