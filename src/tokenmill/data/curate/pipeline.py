"""Run a curation recipe: plan, stages, verdicts, output; and go on where a killed run was.

Everything under way is in ``OUTPUT/.work``: the plan (inputs with their hashes, the jobs they are cut into), a folder a
stage and a verdict a global step. Each file there is written aside and renamed when it is whole, so a kill at any
moment costs the jobs under way and nothing else, and the bytes that come out are the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.data.curate import manifest
from tokenmill.data.curate.files import Plan, Scan, Source, find_sources, jobs, scan
from tokenmill.data.curate.recipe import CurateRecipe
from tokenmill.data.curate.runners import Runner, runner
from tokenmill.data.curate.step import GlobalStep
from tokenmill.data.curate.work import (
    Job,
    Setup,
    Stage,
    Worker,
    done_file,
    shards,
    stage_folder,
    stages_of,
    verdict_folder,
)

Progress = Callable[[str, int, int], None]
"""``(what, done, of)``; what is a stage's name."""


class CurateError(TokenmillError):
    """A run cannot begin or go on."""


@dataclass
class Curated:
    """A finished run."""

    folder: Path
    manifest: dict[str, Any]
    """What ``manifest.json`` holds."""
    new: bool = True
    """False: it had been finished before, and nothing was done."""


def curate(
    recipe: CurateRecipe,
    *,
    services: Mapping[str, Callable[..., Any]] | None = None,
    progress: Progress = lambda what, done, of: None,
    fresh: bool = False,
) -> Curated:
    """Run the recipe, or what is left of it.

    Args:
        services: what steps may ask for that needs a model (see `step.Context`).
        fresh: throw away what an earlier run has left in the output folder.

    Raises:
        NotFoundError: no input. ConfigError: a step's options do not go together. CurateError: the output folder holds
        something else, or the input changed since the run that is gone on with.
    """
    folder = Path(recipe.output.path).expanduser().absolute()  # workers may stand elsewhere
    sources, unknown = find_sources(recipe.input)
    sources = [source for source in sources if not Path(source.path).is_relative_to(folder)]
    setup = Setup(recipe, folder / ".work", services or {})
    worker = Worker(setup)
    stages = stages_of(worker.steps)  # what cannot be read or made is told before a folder is
    with _locked(folder):
        ours = fresh and manifest.remove_run(folder)
        finished = None if ours else _finished(folder, recipe, sources)
        if finished is not None:
            return finished
        plan = _planned(setup, sources, unknown, progress)
        with runner(setup, worker) as run:
            for stage in stages:
                _run_stage(setup, worker, run, stage, plan, progress)
        values = manifest.finish(setup, stages, plan)
        shutil.rmtree(setup.folder)
        return Curated(folder, values)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=3)  # workers of a run that was just killed need a moment to notice
    except Timeout as error:
        raise CurateError(f"{folder}: another run is writing there") from error
    try:
        yield
    finally:
        lock.release()


def _finished(folder: Path, recipe: CurateRecipe, sources: list[Source]) -> Curated | None:
    """The run that is in the folder already, if it is this one."""
    values = manifest.read_manifest(folder)
    if values is None:
        others = [path.name for path in folder.iterdir() if path.name not in (".work", ".lock")]
        if others and not (folder / ".work").is_dir():
            raise CurateError(f"{folder}: not empty ({', '.join(sorted(others)[:4])}); give another output")
        return None
    same = values["recipe"] == json.loads(json.dumps(recipe.content())) and values["tokenmill"] == __version__
    same = same and values["files"] == manifest.named_files(recipe)
    named = [(one["name"], one["bytes"]) for one in values["inputs"]] == [(one.name, one.size) for one in sources]
    hashes = (scan(source, 1 << 62).sha256 for source in sources)
    if same and named and all(one["sha256"] == now for one, now in zip(values["inputs"], hashes, strict=True)):
        shutil.rmtree(folder / ".work", ignore_errors=True)
        return Curated(folder, values, new=False)
    raise CurateError(
        f"{folder}: holds the result of {'other input' if same else 'another recipe'}; give another output, or --fresh "
        "to make it anew"
    )


# --- the plan


def _planned(setup: Setup, sources: list[Source], unknown: int, progress: Progress) -> Plan:
    """The plan of this run, made now or by the run that was killed."""
    file = setup.folder / "plan.json"
    every = setup.recipe.shard_mb << 20
    expected = {
        "tokenmill": __version__,
        "recipe": json.loads(json.dumps(setup.recipe.content())),
        "input": [asdict(one) for one in sources],
        "files": manifest.named_files(setup.recipe),
    }
    if file.is_file():
        values = json.loads(file.read_bytes())
        for what, now in expected.items():
            if values[what] != now:
                raise CurateError(
                    f"{setup.folder.parent}: holds a run that was not finished, and since then the {what} changed; "
                    "--fresh begins anew"
                )
        scans = [Scan(one["sha256"], [(at, first) for at, first in one["cuts"]]) for one in values["scans"]]
    else:
        scans = []
        for number, source in enumerate(sources, 1):
            scans.append(scan(source, every))
            progress("look at input", number, len(sources))
        with atomic_write(file) as written:
            written.write(json.dumps(expected | {"scans": [asdict(one) for one in scans]}).encode())
    return Plan(sources, scans, unknown, jobs(sources, scans, every))


# --- stages

_FORGOTTEN = "forgotten"
"""Marks a stage whose documents the next one has taken over."""


def _run_stage(setup: Setup, worker: Worker, run: Runner, stage: Stage, plan: Plan, progress: Progress) -> None:
    """Do what is left of a stage and, after it, the decision that it was observed for."""
    name = _stage_name(setup.recipe, stage)
    verdict = None if stage.observe is None else verdict_folder(setup, stage.observe)
    if (stage_folder(setup, stage.number) / _FORGOTTEN).is_file():
        return
    all_jobs = list(_jobs(setup, stage, plan))
    _sweep(stage_folder(setup, stage.number))
    left = [job for job in all_jobs if not done_file(setup, stage.number, job.number).is_file()]
    done = len(all_jobs) - len(left)
    for _ in run(left):
        done += 1
        progress(name, done, len(all_jobs))
    if stage.number > 0:
        _forget(stage_folder(setup, stage.number - 1))
    if verdict is not None and not verdict.is_dir():
        assert stage.observe is not None
        step = worker.steps[stage.observe]
        assert isinstance(step, GlobalStep)
        aside = verdict.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        progress(f"decide {setup.recipe.steps[stage.observe].name}", 0, 1)
        step.decide([path.with_suffix(".observed") for path in shards(setup, stage.number)], aside)
        progress(f"decide {setup.recipe.steps[stage.observe].name}", 1, 1)
        aside.rename(verdict)


def _jobs(setup: Setup, stage: Stage, plan: Plan) -> Iterator[Job]:
    if stage.number == 0:
        for number, pieces in enumerate(plan.jobs):
            yield Job(stage, number, pieces=tuple(pieces))
    else:
        for number, path in enumerate(shards(setup, stage.number - 1)):
            yield Job(stage, number, shard=path)


def _stage_name(recipe: CurateRecipe, stage: Stage) -> str:
    names = [*([] if stage.apply is None else [recipe.steps[stage.apply].name])]
    names += [recipe.steps[place].name for place in stage.maps]
    return " ".join([*(["read"] if stage.number == 0 else []), *names, *(["write"] if stage.observe is None else [])])


def _sweep(folder: Path) -> None:
    """Remove what a kill left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob(".*.part"):
        file.unlink()


def _forget(folder: Path) -> None:
    """Free the disk of documents that the stage after it has taken over."""
    (folder / _FORGOTTEN).touch()
    for pattern in ("*.arrow", "*.observed"):
        for file in folder.glob(pattern):
            file.unlink()
