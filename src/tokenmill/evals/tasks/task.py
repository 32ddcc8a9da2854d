"""What a task is: a YAML file beside its rows, or rows alone (then the rows' fields say what they are).

``prompt``, ``chat_prompt``, ``choices`` and ``answer`` are Jinja templates over a row's fields. Unknown keys are
refused. Names without a suffix are the sets that ship with tokenmill (``sets/``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmill.core.errors import ConfigError, UnknownNameError, UsageError, did_you_mean
from tokenmill.data.files import Broken, find_files, read_rows
from tokenmill.evals.identity import content_digest, digest_of

KindName = Literal["choice", "write", "code", "instructions", "tools", "refusal"]
"""The most likely of several, a text written, a program that passes tests, checkable demands, calls, declining."""
Normal = Literal["text", "number", "none"]
WRITTEN_METRICS = (
    "exact_match",
    "contains",
    "f1",
    "jaccard",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
)


class TaskConfig(BaseModel):
    """The keys of a task's YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    kind: KindName
    data: str
    """Rows: a file, a folder or a pattern, relative to the YAML file."""
    description: str = ""
    category: str = ""
    """Of rows that have no ``category`` of their own."""
    prompt: str = "{{ prompt }}"
    chat_prompt: str | None = None
    """The prompt in chats; default: ``prompt``."""
    choices: list[str] | None = None
    """Of every row; default: the row's ``choices``."""
    answer: str | None = None
    """Default: the row's ``answer`` (a text, a list of texts that are all right, or the number of a choice)."""
    delimiter: str = " "
    """Between a prompt and what follows it, outside of chats."""
    system: str = ""
    """The system message; outside of chats what comes first, once."""
    chat: bool | None = None
    """Whether prompts are messages; default: where the model has a chat template, and the kind is not ``choice``."""
    shots: int = Field(0, ge=0)
    shots_data: str | None = None
    """Rows that examples are drawn from; default: the other rows."""
    max_tokens: int = Field(256, ge=1)
    stop: list[str] = []
    temperature: float = Field(0.0, ge=0)
    samples: int = Field(1, ge=1)
    extract: str | None = None
    """A regular expression; its first group (else all of it), where it matches last, is the answer."""
    normalise: Normal = "text"
    metrics: list[Literal[WRITTEN_METRICS]] = ["exact_match"]  # type: ignore[valid-type]
    """Of the kind ``write``; the first is the one that counts."""
    pass_at: list[int] = [1, 10, 100]
    """Of the kind ``code``: every k that there are enough samples for."""


@dataclass(frozen=True)
class Item:
    """One row of a task."""

    id: str
    fields: Mapping[str, Any]
    category: str


@dataclass(frozen=True)
class Task:
    """A task with its rows."""

    config: TaskConfig
    items: tuple[Item, ...]
    shot_pool: tuple[Item, ...]
    """Where examples come from."""
    digest: str
    """Hash of the definition and of all rows: what makes two results comparable."""
    files: tuple[Path, ...] = field(default=(), compare=False)


@cache
def shipped() -> dict[str, Path]:
    """The sets that come with tokenmill, by name."""
    folder = Path(str(resources.files("tokenmill.evals.tasks"))) / "sets"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name or path; ``all`` is every set that ships. UsageError for an unknown one or none at all."""
    wanted: list[str] = []
    for name in names:
        wanted += shipped() if name == "all" else [name]
    if not wanted:
        raise UsageError(f"no task given; there are {', '.join(shipped())}, or the path of a .yaml or .jsonl file")
    tasks = [load_task(name) for name in dict.fromkeys(wanted)]
    seen: dict[str, str] = {}
    for task, name in zip(tasks, dict.fromkeys(wanted), strict=True):
        if (first := seen.setdefault(task.config.name, name)) != name:
            raise UsageError(f"{first} and {name} are both called {task.config.name!r}; give one of them another name")
    return tasks


def load_task(name: str) -> Task:
    """A task by the name of a shipped set or by a path; ConfigError, with every problem, where it is not sound."""
    path = shipped().get(name, Path(name).expanduser())
    if path.suffix in (".yaml", ".yml") and path.is_file():
        config = _read_config(path)
        files = find_files(str(path.parent / config.data))
    elif path.exists() and path.suffix not in (".yaml", ".yml"):
        files = find_files(str(path))
        config = None
    else:
        near = did_you_mean(name, shipped())
        raise UnknownNameError(f"there is no task {name!r}{near}; there are {', '.join(shipped())}, or give a file")
    rows = _rows(files)
    if config is None:
        config = _inferred(path, rows)
    items = _items(rows, config.category)
    shot_files = find_files(str(path.parent / config.shots_data)) if config.shots_data else []
    pool = _items(_rows(shot_files), config.category) if shot_files else items
    digest = digest_of([config.model_dump(), content_digest(files), content_digest(shot_files)])
    given = (path,) if path.is_file() and path not in files else ()
    return Task(config, items, pool, digest, (*given, *files, *shot_files))


def _read_config(path: Path) -> TaskConfig:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a task is a list of keys and values, such as `kind: choice`")
    return _checked({"name": path.stem, **tree}, path)


def _checked(tree: dict[str, Any], path: Path) -> TaskConfig:
    try:
        config = TaskConfig.model_validate(tree)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            near = did_you_mean(key, TaskConfig.model_fields) if one["type"] == "extra_forbidden" else ""
            said = f"no such key{near}" if one["type"] == "extra_forbidden" else one["msg"]
            problems.append(f"{key}: {said}")
        raise ConfigError(f"{path}: " + "; ".join(problems)) from None
    if config.extract is not None:
        try:
            re.compile(config.extract)
        except re.error as error:
            raise ConfigError(f"{path}: extract: {error}") from None
    return config


def _rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    for file in files:
        for row in read_rows(file):
            if isinstance(row, Broken):
                broken.append(str(row))
            else:
                rows.append(row.value)
    if broken:  # a test set with holes gives figures that compare with nothing
        raise ConfigError(f"{len(broken)} rows cannot be read: {'; '.join(broken[:3])}")
    return rows


def _items(rows: Sequence[Mapping[str, Any]], category: str) -> tuple[Item, ...]:
    if not rows:
        raise ConfigError("the task has no rows")
    items = [Item(str(row.get("id", n)), row, str(row.get("category", category))) for n, row in enumerate(rows)]
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ConfigError(f"two rows have the id {twice!r}: results are paired by it")
    return tuple(items)


_SIGNS: tuple[tuple[str, KindName], ...] = (
    ("tests", "code"),
    ("choices", "choice"),
    ("checks", "instructions"),
    ("calls", "tools"),
    ("refuse", "refusal"),
    ("answer", "write"),
)
"""Fields that say what a row without a definition is."""


def _inferred(path: Path, rows: Sequence[Mapping[str, Any]]) -> TaskConfig:
    """What rows that come alone mean, by the fields of the first."""
    first: Mapping[str, Any] = rows[0] if rows else {}
    kind = next((kind for sign, kind in _SIGNS if sign in first), None)
    if kind is None:
        raise ConfigError(
            f"{path}: rows need a prompt and one of {', '.join(sign for sign, _ in _SIGNS)}; "
            f"the first has {', '.join(first) or 'nothing'}. A YAML file beside them can say what their fields mean"
        )
    prompt = next((name for name in ("prompt", "question", "input") if name in first), None)
    if prompt is None:
        raise ConfigError(f"{path}: rows need a prompt (or question, or input); the first has {', '.join(first)}")
    name = re.sub(r"[^\w.-]", "-", path.name.partition(".")[0] if path.is_file() else path.name)
    tree = {"name": name, "kind": kind, "data": path.name, "prompt": f"{{{{ {prompt} }}}}"}
    return _checked(tree | ({"metrics": ["exact_match", "f1"]} if kind == "write" else {}), path)


assert {kind for _, kind in _SIGNS} == set(get_args(KindName))
