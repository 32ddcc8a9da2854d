"""A curation run: counts, resuming, what its bytes depend on, and what it leaves behind."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from tests.fakes.curation import ENTRIES, rows, write_jsonl

from tokenmill.core.errors import ConfigError, NotFoundError
from tokenmill.data.curate import pipeline, runners, steps, work
from tokenmill.data.curate.pipeline import CurateError, curate
from tokenmill.data.curate.read import MissingLibrary
from tokenmill.data.curate.recipe import CurateRecipe, read_recipe
from tokenmill.data.files import find_files, read_rows


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEPS", steps.STEPS | ENTRIES)


def recipe(source: Path, output: Path, **values: Any) -> CurateRecipe:
    tree = {"steps": ["short", "same"], "workers": 1, "shard_mb": 1, "seed": 3}
    return read_recipe(tree | {"input": str(source), "output": {"path": str(output)}} | values)


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves, except the page, which says how long it took."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in ("report.html", ".lock"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def read_back(folder: Path) -> list[dict[str, Any]]:
    return [row.value for file in find_files(str(folder / "data-*")) for row in read_rows(file)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three files of some MB altogether, so that a shard of 1 MB cuts them."""
    folder = tmp_path / "raw"
    for number, count in enumerate((2500, 50, 1)):
        write_jsonl(folder / f"{number}.jsonl", rows(count, seed=number))
    with gzip.open(folder / "3.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(1500, seed=9))
    return folder


def test_documents_are_the_right_ones(raw: Path, tmp_path: Path) -> None:
    done = curate(recipe(raw, tmp_path / "out"))
    seen: set[str] = set()
    wanted = []
    for number, count in (("0.jsonl", 2500), ("1.jsonl", 50), ("2.jsonl", 1), ("3.jsonl.gz", 1500)):
        for line, row in enumerate(rows(count, seed=9 if number[0] == "3" else int(number[0])), 1):
            text = row["text"].replace("foo", "bar")
            if len(text) >= 20 and text not in seen:
                seen.add(text)
                wanted.append({"id": f"{number}#{line}", "text": text, "number": row["number"]})
    assert read_back(tmp_path / "out") == wanted
    short, same = done.manifest["steps"]
    assert short["came"] == done.manifest["read"]["documents"] == 4051 - done.manifest["quarantined"]
    assert done.manifest["quarantined"] > 200  # empty texts
    assert short["came"] - short["dropped"]["short"] == short["went"] == same["came"]
    assert same["went"] == len(wanted) == done.manifest["written"]["documents"]
    assert same["dropped"]["same"] == same["came"] - same["went"] > 200
    assert len(done.manifest["outputs"]) > 2  # the shards do cut
    assert (tmp_path / "out" / "same" / "count.txt").read_text() == str(len(wanted))
    assert not (tmp_path / "out" / ".work").exists()


def test_again_does_nothing_and_another_recipe_is_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = curate(recipe(raw, out))
    assert first.new
    again = curate(recipe(raw, out, workers=2))
    assert not again.new
    assert again.manifest == first.manifest
    with pytest.raises(CurateError, match="another recipe"):
        curate(recipe(raw, out, steps=["short"]))
    same_size = (raw / "1.jsonl").read_text().replace("word0", "wordX", 1)
    (raw / "1.jsonl").write_text(same_size)
    with pytest.raises(CurateError, match="other input"):
        curate(recipe(raw, out))
    write_jsonl(raw / "new.jsonl", rows(3, seed=77))
    with pytest.raises(CurateError, match="other input"):
        curate(recipe(raw, out))
    (out / "mine.txt").write_text("mine")
    assert curate(recipe(raw, out, steps=["short"]), fresh=True).new
    assert (out / "mine.txt").exists()
    assert not (out / "same").exists()


def test_strangers_files_are_not_written_among(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(CurateError, match="thesis"):
        curate(recipe(raw, tmp_path / "out"))


class Killed(BaseException):
    """As good as kill -9: nobody catches it, and no file that is being written is finished."""


def test_killed_at_any_rename_it_goes_on_to_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run is a row of renames; it is stopped again and again, after one to five of them."""
    curate(recipe(raw, tmp_path / "whole"))
    wanted = bytes_in(tmp_path / "whole")
    out = tmp_path / "out"
    real, left = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    kills = 0
    while True:
        left[0] = 1 + kills % 5  # the end is four renames that are made again after each kill
        try:
            curate(recipe(raw, out))
        except Killed:
            kills += 1
            continue
        break
    assert kills >= 10
    assert bytes_in(out) == wanted


def test_input_that_changed_since_the_kill_is_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_run_stage", broken)
        with pytest.raises(Killed):
            curate(recipe(raw, tmp_path / "out"))
    with (raw / "1.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(CurateError, match="input changed"):
        curate(recipe(raw, tmp_path / "out"))
    with pytest.raises(CurateError, match="recipe changed"):
        curate(recipe(raw, tmp_path / "out", seed=4))
    assert curate(recipe(raw, tmp_path / "out"), fresh=True).new


def test_input_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        curate(recipe(tmp_path / "gone", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_order_of_jobs_and_size_of_batches_change_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(recipe(raw, tmp_path / "one"))

    @contextmanager
    def backwards(setup: work.Setup, worker: work.Worker) -> Iterator[runners.Runner]:
        yield lambda jobs: (work.Worker(setup).run(job) for job in reversed(jobs))

    monkeypatch.setattr(pipeline, "runner", backwards)
    monkeypatch.setattr(work, "BATCH_DOCUMENTS", 7)
    curate(recipe(raw, tmp_path / "other"))
    one, other = bytes_in(tmp_path / "one"), bytes_in(tmp_path / "other")
    # parts are cut between batches, so that other batches give other files with the same documents in the same order
    assert read_back(tmp_path / "one") == read_back(tmp_path / "other")
    assert one["samples.jsonl"] == other["samples.jsonl"]


def test_a_worker_that_dies_is_told(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_run_job", _die)
    with pytest.raises(runners.WorkerDied, match="the same command goes on"):
        curate(recipe(raw, tmp_path / "out", steps=[], workers=2))


def _die(job: work.Job) -> int:
    os._exit(9)


@pytest.mark.parametrize(
    ("format", "compression", "suffix"),
    [
        ("jsonl", "none", ".jsonl"),
        ("jsonl", "gz", ".jsonl.gz"),
        ("jsonl", "zst", ".jsonl.zst"),
        ("parquet", "zst", ".parquet"),
    ],
)
def test_every_way_of_writing_is_read_back_by_the_trainer(
    tmp_path: Path, format: str, compression: str, suffix: str
) -> None:
    values = [
        {"text": "one two", "id": 7, "odd": {}},
        {"text": "three ünï", "tags": ["a", "b"], "odd": {"x": 1}},
        {"text": "four", "odd": "word"},
        {"messages": [{"role": "user", "content": "five"}, {"role": "assistant", "content": "six"}]},
    ]
    write_jsonl(tmp_path / "raw.jsonl", iter(values))
    output = {"path": str(tmp_path / "out"), "format": format, "compression": compression}
    curate(read_recipe({"input": str(tmp_path / "raw.jsonl"), "output": output, "steps": [], "workers": 1}))
    assert (tmp_path / "out" / f"data-00000{suffix}").is_file()
    found = read_back(tmp_path / "out")
    if format == "jsonl":
        assert found == [values[0], *({"id": f"raw.jsonl#{n}"} | values[n - 1] for n in (2, 3, 4))]
    else:  # a column of several kinds of values is JSON text
        assert [row.get("text") for row in found] == ["one two", "three ünï", "four", None]
        assert [row.get("odd") for row in found] == ["{}", '{"x": 1}', '"word"', None]
        assert found[3]["messages"] == values[3]["messages"]


def test_another_column_may_be_the_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw.jsonl", iter([{"body": "the text", "text": "a summary"}]))
    source = {"path": str(tmp_path / "raw.jsonl"), "text_field": "body"}
    curate(read_recipe({"input": source, "output": str(tmp_path / "out"), "steps": [], "workers": 1}))
    (row,) = read_back(tmp_path / "out")
    assert row == {"id": "raw.jsonl#1", "text": "the text", "other_text": "a summary"}


def test_many_bad_lines_and_short_documents_are_not_held(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b"x\n" * 20_000 + b'{"text":"a"}\n' * 5000)
    done = curate(recipe(path, tmp_path / "out", steps=[]))
    assert done.manifest["quarantined"] == 20_000
    assert len((tmp_path / "out" / "quarantine.jsonl").read_bytes().splitlines()) == 20_000
    assert len(done.manifest["outputs"]) > 1


def test_spill_keeps_documents_exactly(tmp_path: Path) -> None:
    from tokenmill.data.curate.spill import read_spill, write_spill
    from tokenmill.data.curate.step import Document

    documents = [
        Document(f"a#{n}", text, {"n": n, "deep": [{"x": None, "ü": 1.5}]} if n % 2 else {}, derived=n == 3)
        for n, text in enumerate(["", "\0", "a\r\n", "😀 ü", "x" * 100_000] * 2000)
    ]
    write_spill(tmp_path / "x.arrow", documents)
    assert list(read_spill(tmp_path / "x.arrow")) == documents
    assert pyarrow.ipc.open_file(tmp_path / "x.arrow").num_record_batches == 3


def test_mistakes_in_a_recipe_are_all_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(
            {"steps": [{"shrot": {}}, {"short": {"leats": 1}}, 7], "input": {"pth": "x"}, "wrokers": 3, "seed": -1}
        )
    said = str(caught.value)
    for part in ("did you mean 'short'", "did you mean 'least'", "7 is neither", "did you mean 'path'", "output",
                 "did you mean 'workers'", "seed"):  # fmt: skip
        assert part in said, part


def test_overrides_reach_steps(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("input: raw\noutput: out\nsteps:\n- short: {least: 5}\n- same\n")
    found = read_recipe(file, ["steps.short.least=9", "input.text_as=lines", "output=elsewhere", "seed=5"])
    assert found.steps[0].options == {"least": 9}
    assert (found.input.path, found.input.text_as, found.output.path, found.seed) == ("raw", "lines", "elsewhere", 5)
    with pytest.raises(ConfigError, match=r"no step 'shirt' \(did you mean 'short'"):
        read_recipe(file, ["steps.shirt.least=9"])
    with pytest.raises(ConfigError, match=r"steps\.short\.least: 'many'"):
        read_recipe(file, ["steps.short.least=many"])
    with pytest.raises(NotFoundError, match="no curation recipe"):
        read_recipe("nothing-like-it")


def test_two_runs_do_not_share_a_folder(raw: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(CurateError, match="another run"):
        curate(recipe(raw, tmp_path / "out"))


def test_ray_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for runner in ("local", "ray"):
        curate(recipe(raw, tmp_path / runner, steps=["exact"], runner=runner, workers=2))
    assert bytes_in(tmp_path / "ray") == bytes_in(tmp_path / "local")


def test_without_ray_the_extra_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingLibrary, match=r"tokenmill\[ray\]"):
        curate(recipe(raw, tmp_path / "out", steps=[], runner="ray"))
