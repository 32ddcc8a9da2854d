"""The end of a run: files at their final places, and the manifest that makes them a version.

``manifest.json`` says what went in (with hashes), the recipe, what each step did, and what came out (with hashes). It
holds no times and no paths of the machine: the same input and recipe give the same manifest. A training run names the
set by it: ``data=curated/manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenmill.core.checksums import sha256_of
from tokenmill.core.errors import FormatError
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.data.curate.files import Plan
from tokenmill.data.curate.recipe import CurateRecipe
from tokenmill.data.curate.report import write_report
from tokenmill.data.curate.step import Tally
from tokenmill.data.curate.work import Setup, Shape, Stage, StepCount, stage_folder, verdict_folder, words_of
from tokenmill.data.curate.write import suffix

FORMAT = "tokenmill-data-1"
NAME = "manifest.json"
_OURS = (NAME, "report.html", "samples.jsonl", "quarantine.jsonl")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, or None; FormatError if it is broken or of another kind."""
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise FormatError(file, "", f"not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise FormatError(file, "format", f"is not {FORMAT}")
    return values


def remove_run(folder: Path) -> bool:
    """Remove what a run has left in a folder, and nothing else. False: there was no run."""
    values = read_manifest(folder)
    work = folder / ".work"
    if values is None and not work.is_dir():
        return False
    for one in (values or {}).get("outputs", []):
        (folder / one["file"]).unlink(missing_ok=True)
    for one in (values or {}).get("made", []):
        shutil.rmtree(folder / Path(one["file"]).parts[0], ignore_errors=True)
    if values is None:  # killed while it put its files in place
        for file in [
            *folder.glob("*-[0-9][0-9][0-9][0-9][0-9].jsonl*"),
            *folder.glob("*-[0-9][0-9][0-9][0-9][0-9].p*"),
        ]:
            file.unlink()
    for name in _OURS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    return True


def finish(setup: Setup, stages: list[Stage], plan: Plan) -> dict[str, Any]:
    """Put the output in place, write quarantine, samples, report and, last, the manifest; returns what it holds.

    May be killed and called again.
    """
    recipe, folder = setup.recipe, setup.folder.parent
    counts, read, written, quarantined = _added_up(setup, stages)
    outputs = list(_placed(setup, stages[-1]))
    made = [one for stage in stages for one in _artifacts(setup, stage)]
    steps = [{"name": choice.name, **_without_samples(counts[place])} for place, choice in enumerate(recipe.steps)]
    version = hashlib.sha256("".join(one["sha256"] for one in [*outputs, *made]).encode()).hexdigest()
    values = {
        "format": FORMAT,
        "version": version,
        "tokenmill": __version__,
        "recipe": json.loads(json.dumps(recipe.content())),
        "inputs": [
            {"name": source.name, "bytes": source.size, "sha256": scanned.sha256}
            for source, scanned in zip(plan.sources, plan.scans, strict=True)
        ],
        "files": named_files(recipe),
        "left_out": plan.unknown,
        "quarantined": quarantined,
        "read": read.as_dict(),
        "steps": steps,
        "written": written.as_dict(),
        "outputs": outputs,
        "made": made,
    }
    _write_quarantine(setup)
    _write_samples(folder / "samples.jsonl", recipe, counts)
    write_report(folder / "report.html", recipe, values, counts, _first_bad(folder))
    with atomic_write(folder / NAME) as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n")
    return values


def _added_up(setup: Setup, stages: list[Stage]) -> tuple[dict[int, StepCount], Shape, Shape, int]:
    """What all jobs said: of each step, of what was read and written, and how much was put aside."""
    counts = {place: StepCount(Tally(setup.recipe.seed)) for place in range(len(setup.recipe.steps))}
    read, written, quarantined = Shape(), Shape(), 0
    for stage in stages:
        for words in words_of(setup, stage.number):
            for place, values in words["steps"].items():
                counts[int(place)].merge(values)
            read.merge(words["read"])
            written.merge(words["written"])
            quarantined += words["quarantined"]
    return counts, read, written, quarantined


def _without_samples(count: StepCount) -> dict[str, Any]:
    tally = count.tally
    return {
        "came": count.came,
        "went": count.went,
        "characters": count.characters,
        "dropped": {reason: tally.dropped[reason].documents for reason in sorted(tally.dropped)},
        "changed": {
            reason: {"documents": tally.changed[reason].documents, "hits": tally.changed[reason].hits}
            for reason in sorted(tally.changed)
        },
    }


def _placed(setup: Setup, last: Stage) -> Iterator[dict[str, Any]]:
    """Number the files of each split through and move them to the output folder."""
    numbers: dict[str, int] = {}
    source = stage_folder(setup, last.number)
    for words in words_of(setup, last.number):
        for part in words["parts"]:
            split = part["split"]
            number = numbers[split] = numbers.get(split, -1) + 1
            name = f"{split}-{number:05}{suffix(setup.recipe.output)}"
            _move(source / part["file"], setup.folder.parent / name)
            yield {"file": name, **{key: value for key, value in part.items() if key != "file"}}


def _move(source: Path, target: Path) -> None:
    if source.exists():  # else it was moved before a kill
        os.replace(source, target)


def _artifacts(setup: Setup, stage: Stage) -> Iterator[dict[str, Any]]:
    """Files that a global step made for the person, such as token shards."""
    if stage.observe is None:
        return
    name = setup.recipe.steps[stage.observe].name
    source, target = verdict_folder(setup, stage.observe) / "output", setup.folder.parent / name
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        os.replace(source, target)
    if target.is_dir():  # or it was moved before a kill
        for file in sorted(target.rglob("*")):
            if file.is_file():
                below = file.relative_to(setup.folder.parent).as_posix()
                yield {"file": below, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def named_files(recipe: CurateRecipe) -> dict[str, str]:
    """Hashes of files that options name, such as the tests that a set is cleared of: they shape the result as the
    input does."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            looks_so = 0 < len(value) < 4096 and ("." in value or "/" in value) and not {"\n", "\0"} & set(value)
            if looks_so and Path(value).is_file():
                yield value
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    found = {name for choice in recipe.steps for name in walk(choice.options)}
    return {name: sha256_of(Path(name)) for name in sorted(found)}


def _write_quarantine(setup: Setup) -> None:
    """One file of all that could not be read; none where everything could."""
    parts = sorted((setup.folder / "quarantine").glob("*.jsonl"))
    if parts:
        with atomic_write(setup.folder.parent / "quarantine.jsonl") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)


def _first_bad(folder: Path, most: int = 20) -> list[dict[str, Any]]:
    file = folder / "quarantine.jsonl"
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(most), strict=False)]


def _write_samples(path: Path, recipe: CurateRecipe, counts: dict[int, StepCount]) -> None:
    """What steps dropped and changed, a few of each, one a line."""
    with atomic_write(path) as file:
        for place, count in counts.items():
            for kind, reasons in (("dropped", count.tally.dropped), ("changed", count.tally.changed)):
                for reason in sorted(reasons):
                    for sample in sorted(reasons[reason].samples, reverse=True):
                        values = {"step": recipe.steps[place].name, kind: reason, **sample.as_dict()}
                        file.write(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
