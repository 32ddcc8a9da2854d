"""What one worker does: a job of a stage, from its pieces or shard to files on disk.

A recipe is cut into stages at its global steps. A stage carries out the verdict of the global step before it, runs the
map steps, and either lets the next global step observe and puts the documents aside, or writes the output. A job leaves
a file that says what it did, by renaming it into place last: where that file stands, the job is done, whatever happens.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenmill.core.paths import atomic_write
from tokenmill.data.curate.read import Bad, Piece, read_piece
from tokenmill.data.curate.recipe import CurateRecipe
from tokenmill.data.curate.spill import read_spill, write_spill
from tokenmill.data.curate.step import Context, Document, GlobalStep, Step, Tally, bytes_of
from tokenmill.data.curate.steps import entry
from tokenmill.data.curate.write import suffix, write_documents

BATCH_DOCUMENTS, BATCH_CHARS = 2048, 4 << 20
"""A batch of documents that a map step gets is cut at whichever comes first."""
OVERHEAD = 512
"""Bytes that a document takes besides its text: a shard of very short ones is cut earlier."""


@dataclass(frozen=True)
class Setup:
    """What every worker has to know."""

    recipe: CurateRecipe
    folder: Path
    """Of the work that is going on."""
    services: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stretch of the recipe that is done in one pass. Steps by their place in the recipe."""

    number: int
    apply: int | None
    """The global step whose verdict is carried out first."""
    maps: tuple[int, ...]
    observe: int | None
    """The global step that looks at what comes out; None: it is written."""


@dataclass(frozen=True)
class Job:
    """A part of a stage. Exactly one of `pieces` and `shard` is given."""

    stage: Stage
    number: int
    pieces: tuple[Piece, ...] = ()
    shard: Path | None = None


@dataclass
class Shape:
    """What a set of documents looks like; shapes of parts add up."""

    documents: int = 0
    characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents by the number of bits of their length in characters: 8 is 128 to 255."""
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, documents: Iterable[Document]) -> None:
        """Count these too."""
        for document in documents:
            length = len(document.text)
            self.documents += 1
            self.characters += length
            self.lengths[length.bit_length()] += 1
            self.languages[str(document.meta.get("language", "not looked for"))] += 1

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add a shape in plain values."""
        self.documents += values["documents"]
        self.characters += values["characters"]
        self.lengths.update({int(bits): count for bits, count in values["lengths"].items()})
        self.languages.update(values["languages"])

    def as_dict(self) -> dict[str, Any]:
        """Plain values in a fixed order."""
        lengths = {str(bits): self.lengths[bits] for bits in sorted(self.lengths)}
        languages = dict(sorted(self.languages.items(), key=lambda item: (-item[1], item[0])))
        return asdict(self) | {"lengths": lengths, "languages": languages}


@dataclass
class StepCount:
    """What one step did in one or all jobs."""

    tally: Tally
    came: int = 0
    went: int = 0
    characters: int = 0
    """Of what went on."""
    seconds: float = 0.0

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add a count in plain values."""
        self.tally.merge(Tally.from_dict(values["tally"]))
        self.came += values["came"]
        self.went += values["went"]
        self.characters += values["characters"]
        self.seconds += values["seconds"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "came": self.came,
            "went": self.went,
            "characters": self.characters,
            "seconds": self.seconds,
            "tally": self.tally.as_dict(),
        }


def stages_of(steps: list[Step | GlobalStep]) -> list[Stage]:
    """The recipe cut at its global steps."""
    result: list[Stage] = []
    apply: int | None = None
    maps: list[int] = []
    for number, step in enumerate(steps):
        if isinstance(step, GlobalStep):
            result.append(Stage(len(result), apply, tuple(maps), number))
            apply, maps = number, []
        else:
            maps.append(number)
    return [*result, Stage(len(result), apply, tuple(maps), None)]


def stage_folder(setup: Setup, stage: int) -> Path:
    """Where a stage's shards and its jobs' words of what they did are."""
    return setup.folder / f"stage-{stage}"


def verdict_folder(setup: Setup, step: int) -> Path:
    """Where the global step with this place in the recipe left its verdict."""
    return setup.folder / f"verdict-{step}"


def done_file(setup: Setup, stage: int, number: int) -> Path:
    """What a job leaves last."""
    return stage_folder(setup, stage) / f"{number:06}.json"


def words_of(setup: Setup, stage: int) -> Iterator[dict[str, Any]]:
    """What the jobs of a stage said of what they did, in order."""
    for file in sorted(stage_folder(setup, stage).glob("*.json")):
        yield json.loads(file.read_bytes())


def shards(setup: Setup, stage: int) -> list[Path]:
    """The files that a stage put aside, in order."""
    folder = stage_folder(setup, stage)
    return [folder / part["file"] for words in words_of(setup, stage) for part in words["parts"]]


class Worker:
    """Does jobs, one after the other. The steps are made once."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def steps(self) -> list[Step | GlobalStep]:
        """The recipe's steps, ready to work."""
        recipe = self.setup.recipe
        context = Context(recipe.seed, self.setup.services)
        made = []
        for choice in recipe.steps:
            found = entry(choice.name)
            made.append(found.builder()(found.options_class().model_validate(choice.options), context))
        return made

    def run(self, job: Job) -> int:
        """Do the job; returns how many documents came out."""
        run = _Run(self, job)
        documents = run.done()
        with atomic_write(done_file(self.setup, job.stage.number, job.number)) as file:
            file.write(json.dumps(run.words()).encode())
        return documents


class _Run:
    """One job while it is done."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.setup, self.job, self.steps = worker.setup, job, worker.steps
        seed = self.setup.recipe.seed
        places = [*([] if job.stage.apply is None else [job.stage.apply]), *job.stage.maps]
        self.counts = {place: StepCount(Tally(seed)) for place in places}
        self.read, self.written = Shape(), Shape()
        self.parts: list[dict[str, Any]] = []
        self.quarantined = 0

    def done(self) -> int:
        """Everything but the last word."""
        most = self.setup.recipe.shard_mb << 20
        held: list[Document] = []
        size = went = 0
        for batch in self._batches():
            for place in self.job.stage.maps:
                batch = self._mapped(place, batch)
            for document in batch:  # the words' arrays are larger than the text, and the shard is held longer
                document.lexed = document.folded = None
            held += batch
            went += len(batch)
            size += bytes_of(batch) + OVERHEAD * len(batch)
            if size >= most:
                self._put(held)
                held, size = [], 0
        if held:
            self._put(held)
        return went

    def words(self) -> dict[str, Any]:
        """What was done, as JSON values."""
        counts = {str(place): count.as_dict() for place, count in self.counts.items()}
        shapes = {"read": self.read.as_dict(), "written": self.written.as_dict()}
        return {"parts": self.parts, "steps": counts, "quarantined": self.quarantined, **shapes}

    def _batches(self) -> Iterator[list[Document]]:
        if self.job.shard is not None:
            documents = list(read_spill(self.job.shard))
            if self.job.stage.apply is not None:
                documents = self._applied(self.job.stage.apply, documents)
            yield from _cut(documents)
            return
        for batch in _cut(self._pieces()):
            self.read.add(batch)
            yield batch

    def _pieces(self) -> Iterator[Document]:
        with tempfile.SpooledTemporaryFile(BATCH_CHARS, dir=str(self.setup.folder)) as bad:  # there may be millions
            for piece in self.job.pieces:
                for found in read_piece(piece, self.setup.recipe.input):
                    if isinstance(found, Bad):
                        bad.write(found.as_json().encode() + b"\n")
                        self.quarantined += 1
                    else:
                        yield found
            if self.quarantined:
                bad.seek(0)
                with atomic_write(self.setup.folder / "quarantine" / f"{self.job.number:06}.jsonl") as file:
                    shutil.copyfileobj(bad, file)

    def _applied(self, place: int, documents: list[Document]) -> list[Document]:
        step, count = self.steps[place], self.counts[place]
        assert isinstance(step, GlobalStep)
        started, count.came = time.perf_counter(), len(documents)
        documents = step.apply(documents, count.tally, verdict_folder(self.setup, place), self.job.number)
        count.seconds = time.perf_counter() - started
        count.went, count.characters = len(documents), bytes_of(documents)
        return documents

    def _mapped(self, place: int, documents: list[Document]) -> list[Document]:
        step, count = self.steps[place], self.counts[place]
        assert not isinstance(step, GlobalStep)
        started = time.perf_counter()
        count.came += len(documents)
        documents = step(documents, count.tally)
        count.went += len(documents)
        count.characters += bytes_of(documents)
        count.seconds += time.perf_counter() - started
        return documents

    def _put(self, documents: list[Document]) -> None:
        """A part that is full: put aside for the next stage, or written."""
        name = f"{self.job.number:06}-{len(self.parts):04}"
        folder = stage_folder(self.setup, self.job.stage.number)
        if self.job.stage.observe is not None:
            step = self.steps[self.job.stage.observe]
            assert isinstance(step, GlobalStep)
            with atomic_write(folder / f"{name}.observed") as file:
                file.write(step.observe(documents))
            write_spill(folder / f"{name}.arrow", documents)
            self.parts.append({"file": f"{name}.arrow", "observed": f"{name}.observed"})
            return
        self.written.add(documents)
        output = self.setup.recipe.output
        for split, some in _by_split(documents):
            file_name = f"{name}-{split}{suffix(output)}"
            self.parts.append({"file": file_name, "split": split, **write_documents(folder / file_name, some, output)})


def _by_split(documents: list[Document]) -> Iterator[tuple[str, list[Document]]]:
    """The documents of train, validation and test, where the recipe has a step that split them; else all as data."""

    def split(document: Document) -> str:
        return str(document.meta.get("split", "data"))

    for name, some in groupby(sorted(documents, key=split), split):
        yield "".join(c if c.isalnum() or c in "_-" else "_" for c in name) or "data", list(some)


def _cut(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches for map steps."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
