"""Tasks of lm-eval on our engine, their figures and samples in the form of our own, so that they are compared alike.

Nothing is kept for the next time: what such a task's rows are is known only to lm-eval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.evals.identity import digest_of
from tokenmill.evals.local import LocalSubject
from tokenmill.evals.subject import Subject
from tokenmill.evals.tasks.run import Result, Settings
from tokenmill.evals.tasks.sample import Sample

PREFERRED = ("acc_norm", "exact_match", "acc", "pass@1", "f1")
"""Figures that count, where a task has several; else its first."""


def check_names(names: Sequence[str], include: Path | None) -> Any:
    """lm-eval's task manager, which knows these names; UsageError where it does not, or lm-eval is missing."""
    if find_spec("lm_eval") is None:
        raise UsageError("tasks of lm-eval need it: pip install 'tokenmill[lm-eval]'")
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise UsageError(f"--include {include}: no such folder")
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(f"lm-eval has no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    return manager


def run_lm_eval(subject: Subject, names: Sequence[str], settings: Settings, *, include: Path | None) -> list[Result]:
    """Give a model on this machine tasks of lm-eval. UsageError for settings that lm-eval's tasks decide themselves."""
    manager = check_names(names, include)
    if not isinstance(subject, LocalSubject):
        raise UsageError(
            "lm-eval asks servers by itself: lm_eval --model local-completions --model_args "
            "base_url=URL/v1/completions,model=NAME,tokenizer=FOLDER --tasks …"
        )
    for name in ("samples", "temperature", "max_tokens"):
        if getattr(settings, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: tasks of lm-eval decide that themselves")
    import lm_eval

    from tokenmill.evals.lm_eval_model import EngineLM

    found = lm_eval.simple_evaluate(
        model=EngineLM(subject.llm, batch_size=subject.batch_size),
        tasks=list(names),
        num_fewshot=settings.shots,
        limit=settings.limit,
        apply_chat_template=bool(settings.chat),
        fewshot_random_seed=settings.seed,
        task_manager=manager,
        bootstrap_iters=100,
        log_samples=True,
    )
    return [
        _result(name, found, settings)
        for name in found["results"]
        if name in found["samples"]  # a group's mean has no rows of its own
    ]


def _result(name: str, found: Mapping[str, Any], settings: Settings) -> Result:
    rows = found["samples"][name]
    metrics = _figures(found["results"][name], len({row["doc_id"] for row in rows}))
    samples = _samples(rows)
    higher = found.get("higher_is_better", {}).get(name, {})
    main = next((one for one in PREFERRED if one in metrics), next(iter(metrics), ""))
    config = {key: str(value) for key, value in found["configs"][name].items()}
    summary: dict[str, Any] = {
        "task": name,
        "kind": "lm-eval",
        "description": f"lm-eval's {name}, version {found['versions'].get(name)}",
        "rows": len(samples),
        "main": main,
        "metrics": metrics,
        "categories": {},
        "lower_is_better": [one for one in metrics if higher.get(one.partition("@")[0]) is False],
        "settings": {
            "shots": found["n-shot"].get(name),
            "seed": settings.seed,
            "chat": bool(settings.chat),
            "limit": settings.limit,
            "samples": 1,
            "temperature": config.get("generation_kwargs"),
        },
        "task_digest": digest_of([config, [[row["doc_hash"], row["target_hash"]] for row in rows]]),
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }
    return Result(summary, samples)


def _figures(found: Mapping[str, Any], rows: int) -> dict[str, dict[str, float]]:
    """``acc,none`` and ``acc_stderr,none`` as one; a filter other than ``none`` is told behind an @."""
    figures = {}
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = found.get(f"{metric}_stderr,{chosen}")
        figures[_metric(metric, chosen)] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else 0.0,
            "rows": rows,
        }
    return figures


def _metric(name: str, chosen: str) -> str:
    return name if chosen == "none" else f"{name}@{chosen}"


def _samples(rows: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    """One sample a document; a row of lm-eval's for each filter becomes metrics of the same sample."""
    found: dict[str, Sample] = {}
    for row in rows:
        own = {
            _metric(name, row["filter"]): float(row[name])
            for name in row["metrics"]
            if isinstance(row.get(name), int | float)
        }
        number = str(row["doc_id"])
        before = found[number].metrics if number in found else {}
        arguments = row["arguments"]
        first = arguments["gen_args_0"] if isinstance(arguments, Mapping) else arguments[0]
        prompt = first["arg_0"] if isinstance(first, Mapping) else first[0]
        found[number] = Sample(
            id=number,
            category="",
            prompt=str(prompt),
            target=str(row["target"]),
            output=str(row["filtered_resps"]),
            metrics={**before, **own},
            details={"resps": row["resps"], "doc": hashlib.sha256(str(row["doc"]).encode()).hexdigest()[:16]},
        )
    return tuple(found.values())
