"""Tasks done by a subject: figures with standard errors, a log of samples, and results kept for the next time.

A result is found again only if everything it follows from is the same: the model's content and how it computes, the
task's definition and rows, the settings, tokenmill's own code. A server's content is not known: nothing of it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.core.paths import atomic_write, home
from tokenmill.evals.identity import code_digest, digest_of
from tokenmill.evals.subject import Identity, Progress, Subject, Writing
from tokenmill.evals.tasks import kinds
from tokenmill.evals.tasks.aggregate import bootstrap_stderr, mean_stderr
from tokenmill.evals.tasks.code import code
from tokenmill.evals.tasks.prompts import ask_of
from tokenmill.evals.tasks.sample import Sample
from tokenmill.evals.tasks.task import Task
from tokenmill.evals.tasks.text_metrics import CORPUS, corpus_score, signature

KINDS: dict[str, kinds.Kind] = {
    "choice": kinds.choice,
    "write": kinds.write,
    "code": code,
    "instructions": kinds.instructions,
    "tools": kinds.tools,
    "refusal": kinds.refusal,
}
MAIN = {
    "choice": "acc_norm",
    "code": "pass@1",
    "instructions": "prompt_strict",
    "tools": "call_match",
    "refusal": "correct",
}
"""The figure that counts; of ``write`` it is the task's first metric."""


@dataclass(frozen=True)
class Settings:
    """What the person decides; None: what the task says."""

    shots: int | None = None
    seed: int = 0
    """Of the examples drawn, and of sampling."""
    chat: bool | None = None
    limit: int | None = None
    """Only the first so many rows."""
    max_tokens: int | None = None
    samples: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of one task."""

    summary: dict[str, Any]
    samples: tuple[Sample, ...]
    cached: bool = False

    @property
    def name(self) -> str:
        return str(self.summary["task"])


def run_task(
    subject: Subject,
    task: Task,
    settings: Settings | None = None,
    *,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Do one task, or find what came of it before. ConfigError where its rows are not as its kind needs them."""
    settings = settings or Settings()
    decided = decide(subject, task, settings)
    key = cache_key(subject.identity, task, decided)
    path = home() / "cache" / "evals" / f"{key}.json" if key and use_cache else None
    if path is not None and (kept := _read(path)) is not None:
        return kept
    try:
        result = _done(subject, task, decided, progress)
    except ConfigError as error:
        raise ConfigError(f"task {task.config.name}: {error}") from None
    if path is not None:
        with atomic_write(path) as file:
            file.write(json.dumps([result.summary, [one.as_dict() for one in result.samples]]).encode())
    return result


def decide(subject: Subject, task: Task, settings: Settings) -> dict[str, Any]:
    """Every setting with its value: the person's, else the task's."""
    config = task.config
    chat = settings.chat if settings.chat is not None else config.chat
    if chat is None:
        chat = subject.has_chat and config.kind != "choice"
    if chat and not subject.has_chat:
        raise UsageError(f"{subject.identity.name} has no chat template: --chat off")
    samples = settings.samples or config.samples
    temperature = config.temperature if settings.temperature is None else settings.temperature
    if samples > 1 and temperature == 0:
        raise UsageError(f"{samples} samples at temperature 0 are {samples} times the same: give --temperature too")
    return {
        "shots": config.shots if settings.shots is None else settings.shots,
        "seed": settings.seed,
        "chat": chat,
        "limit": settings.limit,
        "max_tokens": settings.max_tokens or config.max_tokens,
        "samples": samples,
        "temperature": temperature,
    }


def cache_key(identity: Identity, task: Task, decided: Mapping[str, Any]) -> str | None:
    """The name of a result by all it follows from; None where the model's content is not known."""
    if not identity.content:
        return None
    return digest_of([identity.content, identity.facts, task.digest, decided, code_digest()])


def _done(subject: Subject, task: Task, decided: Mapping[str, Any], progress: Progress | None) -> Result:
    config = task.config
    items = task.items[: decided["limit"]]
    asks = [ask_of(task, one, shots=decided["shots"], seed=decided["seed"], chat=decided["chat"]) for one in items]
    how = Writing(
        max_tokens=decided["max_tokens"],
        temperature=decided["temperature"],
        # outside of a chat nothing else ends an answer before the next example
        stop=tuple(config.stop) if config.stop or decided["chat"] or not decided["shots"] else ("\n\n",),
        samples=decided["samples"],
        seed=decided["seed"],
    )
    work = kinds.Work(config, items, tuple(asks), how, decided["chat"])
    samples = tuple(KINDS[config.kind](work, subject, progress))
    main = MAIN.get(config.kind, config.metrics[0])
    metrics = figures(samples)
    signatures = {}
    for name in [name for name in CORPUS if name in metrics]:
        said = [one.details["taken"][0] for one in samples]
        rights = [one.details["answers"] for one in samples]
        metrics[name] = _corpus(name, said, rights)
        signatures[name] = signature(name, said, rights)
    summary: dict[str, Any] = {
        "task": config.name,
        "kind": config.kind,
        "description": config.description,
        "rows": len(samples),
        "main": main,
        "metrics": metrics,
        "categories": _categories(samples, main),
        "settings": dict(decided),
        "task_digest": task.digest,
        "prompt_tokens": sum(one.prompt_tokens for one in samples),
        "completion_tokens": sum(one.completion_tokens for one in samples),
    }
    if signatures:
        summary["signatures"] = signatures
    return Result(summary, samples)


def figures(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Mean, standard error and number of rows of each metric, over the rows that count for it."""
    names = dict.fromkeys(name for one in samples for name in one.metrics)
    found = {}
    for name in names:
        values = [one.metrics[name] for one in samples if name in one.metrics]
        mean, stderr = mean_stderr(values)
        found[name] = {"value": mean, "stderr": stderr, "rows": len(values)}
    return found


def _corpus(name: str, said: Sequence[str], rights: Sequence[Sequence[str]]) -> dict[str, float]:
    def score(rows: Sequence[int]) -> float:
        return corpus_score(name, [said[n] for n in rows], [rights[n] for n in rows])

    stderr = bootstrap_stderr(score, len(said)) if len(said) > 1 else 0.0
    return {"value": score(range(len(said))), "stderr": stderr, "rows": len(said)}


def _categories(samples: Sequence[Sample], main: str) -> dict[str, dict[str, float]]:
    """The figure that counts, by category of rows; nothing where all are of one."""
    names = dict.fromkeys(one.category for one in samples)
    if len(names) < 2:
        return {}
    return {name: figures([one for one in samples if one.category == name]).get(main, {}) for name in names}


def _read(path: Path) -> Result | None:
    """A kept result; None where there is none, or half of one."""
    try:
        summary, samples = json.loads(path.read_bytes())
        return Result(summary, tuple(Sample(**one) for one in samples), cached=True)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        path.unlink(missing_ok=True)
        return None


def identity_dict(identity: Identity) -> dict[str, Any]:
    """Plain values, for a result file."""
    return asdict(identity)
