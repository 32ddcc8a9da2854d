"""A folder of results: ``results.json`` with all figures and what they follow from, ``samples/TASK.jsonl``,
``report.html``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError, MissingFileError
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.evals.identity import code_digest
from tokenmill.evals.subject import Identity
from tokenmill.evals.tasks.run import Result, identity_dict
from tokenmill.evals.tasks.sample import Sample

RESULTS, SAMPLES, REPORT = "results.json", "samples", "report.html"
FORMAT = "tokenmill-eval-1"


@dataclass(frozen=True)
class Results:
    """What one model made of several tasks, and where that lies."""

    folder: Path
    model: str
    document: dict[str, Any]
    samples: dict[str, tuple[Sample, ...]]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The summary of each task."""
        return {one["task"]: one for one in self.document["tasks"]}


def new_folder(parent: Path, name: str, now: datetime | None = None) -> Path:
    """A folder that is not there yet: ``<date>_<time>-<name>``."""
    stamp = (now or datetime.now()).strftime("%Y-%m-%d_%H%M%S")
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    number, folder = 1, parent / f"{stamp}-{slug}"
    while folder.exists():
        number += 1
        folder = parent / f"{stamp}-{slug}-{number}"
    return folder


def write_results(folder: Path, identity: Identity, results: Sequence[Result]) -> Results:
    """Put figures and samples into ``folder``; what stands there under the same names is replaced."""
    document = {
        "format": FORMAT,
        "model": identity_dict(identity),
        "tokenmill": __version__,
        "code": code_digest(),
        "tasks": [{**one.summary, "cached": one.cached, "samples": f"{SAMPLES}/{one.name}.jsonl"} for one in results],
    }
    for one in results:
        with atomic_write(folder / SAMPLES / f"{one.name}.jsonl") as file:
            for sample in one.samples:
                file.write((json.dumps(sample.as_dict(), ensure_ascii=True) + "\n").encode())
    with atomic_write(folder / RESULTS) as file:
        file.write((json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode())
    return Results(folder, identity.name, document, {one.name: one.samples for one in results})


def read_results(folder: Path) -> Results:
    """What :func:`write_results` wrote. NotFoundError, FormatError where there is no such thing."""
    path = folder / RESULTS
    if not path.is_file():
        raise MissingFileError(f"{folder}: no {RESULTS} there; `tokenmill eval tasks` writes such folders")
    try:
        document = json.loads(path.read_bytes())
        if document.get("format") != FORMAT:
            raise FormatError(path, "format", f"is {document.get('format')!r}, not {FORMAT!r}")
        samples = {one["task"]: _samples(folder / one["samples"]) for one in document["tasks"]}
        return Results(folder, document["model"]["name"], document, samples)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(path, "", f"cannot be read as results: {error!r}") from error


def _samples(path: Path) -> tuple[Sample, ...]:
    with path.open(encoding="utf-8") as file:
        return tuple(Sample(**json.loads(line)) for line in file)
