"""``tokenmill train``: a recipe to a trained model, several of them as a sweep, or only the plan of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, human_count, human_duration, human_size, note, verb
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe
    from tokenmill.train.plan import Plan
    from tokenmill.train.run import RunResult
    from tokenmill.train.sweep import Sweep

app = verb()

EPILOG = """\b
Examples:
  tokenmill train lora model=smollm2:135m data=chats.jsonl
  tokenmill train pretrain size=tiny data=book.txt --dry-run
  tokenmill train lora model=smollm2:135m data=chats.jsonl --sweep lr=1e-4,3e-4
  tokenmill train dpo model=smollm2:135m data=pairs.jsonl
  tokenmill train grpo model=smollm2:135m data=prompts.jsonl rewards=rewards.py:function
  tokenmill train --resume runs/latest
"""


@app.command(epilog=EPILOG)
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE...]", help="A recipe's name or .yaml file, then what is different."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="One run for each value; several make a grid. May be repeated."),
    ] = None,
    sweep_optuna: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=interval(A,B)", help="Search for the best value with Optuna. May be repeated."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Runs of --sweep-optuna.")] = 20,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done: data, steps, memory, time. Train nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder, from its latest checkpoint.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train by a recipe. Ctrl-C and SIGTERM save a checkpoint and leave; --resume goes on exactly there."""
    recipe, overrides = _split(words or [], resume)
    chosen = [name for name, on in (("--sweep", sweep), ("--sweep-optuna", sweep_optuna), ("--dry-run", dry_run)) if on]
    if len(chosen) > 1 or (resume is not None and chosen):
        raise UsageError(f"{' and '.join([*chosen, *(['--resume'] if resume else [])])} do not go together")
    if dry_run:
        _dry_run(recipe, overrides, as_json)
    elif sweep or sweep_optuna:
        _sweep(recipe, overrides, sweep or [], sweep_optuna or [], trials, as_json)
    else:
        result = _train(recipe, overrides, resume)
        if _first_process():
            emit(_result(result), as_json, _result_text(result))


def _split(words: list[str], resume: Path | None) -> tuple[str, list[str]]:
    """The recipe and its overrides; with --resume there are only overrides."""
    if resume is not None:
        if words and "=" not in words[0]:
            raise UsageError(f"--resume takes the recipe from its run; {words[0]!r} is too much")
        return "", words
    if not words or "=" in words[0]:
        from tokenmill.config.compose import recipe_names

        raise UsageError(f"name a recipe first: {', '.join(recipe_names())}, or a .yaml file")
    return words[0], words[1:]


def _first_process() -> bool:
    """Under torchrun only the first process speaks."""
    return os.environ.get("RANK", "0") == "0"


def _train(recipe: str, overrides: list[str], resume: Path | None = None) -> RunResult:
    from tokenmill.align.policy import train as train_run
    from tokenmill.config.compose import compose
    from tokenmill.config.run_config import read_run_config
    from tokenmill.evals.samples import samples_of
    from tokenmill.train.watch.watchers import watchers

    composed = None if resume is not None else compose(recipe, overrides)
    known = composed.recipe if composed is not None else read_run_config(resume or Path()).recipe
    with _reading() as progress:
        return train_run(
            composed,
            overrides if resume is not None else (),
            resume=resume,
            watchers=watchers(known),
            samples=samples_of,
            progress=progress,
            planned=_announce,
        )


@contextmanager
def _reading() -> Iterator[Any]:
    """Says how far the reading of the data is, where that takes long."""

    def progress(what: str, rows: int) -> None:
        if rows and rows % 10_000 == 0:
            note(f"{what}: {rows:,} rows read")

    yield progress


# --- the plan


def _announce(plan: Plan) -> None:
    if _first_process():
        note(_plan_text(plan))


def _dry_run(recipe: str, overrides: list[str], as_json: bool) -> None:
    from tokenmill.align.policy import feed
    from tokenmill.config.compose import compose
    from tokenmill.core.machine import probe_machine
    from tokenmill.train.plan import plan_run
    from tokenmill.train.run import probe

    with _reading() as progress:
        plan = plan_run(compose(recipe, overrides), progress=progress)
    seconds = probe(plan, feeds=feed)
    total = seconds * plan.steps
    available = probe_machine().memory_available
    document = {**plan.as_dict(), "seconds_per_step": seconds, "seconds": total, "memory_available": available}
    lines = [
        _plan_text(plan),
        "",
        f"time       {human_duration(total)}: {plan.steps} steps of {human_duration(seconds)}, as two of them took; "
        "evaluations and samples come on top",
    ]
    emit(document, as_json, "\n".join(lines))


def _plan_text(plan: Plan) -> str:
    from tokenmill.config.recipe import POLICY

    recipe, report = plan.recipe, plan.splits.report
    lines = []
    if plan.derivations:
        rows = [(key, str(value), why) for key, value, why in plan.derivations if value is not None]
        lines += [columns(("derived", "value", "why"), rows, gap=2), ""]
    lines += [columns(("data", "train", "eval"), _telling(report.table()), gap=2), ""]
    lines += [f"warning: {text}" for text in report.warnings()]
    base = recipe.model or f"new {recipe.shape.family}"
    parameters = "" if plan.decoder is None else f", {human_count(_parameters(plan))} parameters"
    lines.append(f"model      {base}{parameters}, {recipe.dtype} on {recipe.device}")
    rates = f"lr {recipe.lr:g}, {recipe.optimizer}, {recipe.schedule}"
    policy = recipe.policy
    if recipe.objective in POLICY:
        rewards = ", ".join(reward.name or reward.kind for reward in recipe.rewards)
        each = policy.iterations * policy.minibatches
        lines.append(
            f"run        {plan.steps} steps, {each} on each rollout of {policy.prompts} prompts x {policy.group} "
            f"answers of {policy.completion_tokens} tokens at most, {rates}; rewards {rewards}"
        )
    else:
        lines.append(
            f"run        {plan.steps} steps of {plan.tokens_per_step:,} tokens ({plan.accumulate} x "
            f"{recipe.micro_batch} rows of {recipe.seq_len}), {rates}"
        )
    if plan.memory:
        parts = ", ".join(f"{name} {human_size(size)}" for name, size in plan.memory.items())
        lines.append(f"memory     about {human_size(sum(plan.memory.values()))}: {parts}")
    return "\n".join(lines)


def _telling(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The first rows always, those that count mishaps where there are any."""
    return [row for number, row in enumerate(rows) if number < 5 or row[1] not in ("0", "") or row[2] not in ("0", "")]


def _parameters(plan: Plan) -> int:
    from tokenmill.nn import cost

    assert plan.decoder is not None
    return cost.parameters(plan.decoder)


# --- the result


def _result(result: RunResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "reason": result.reason,
        "step": result.step,
        "metrics": dict(result.metrics),
        "model": None if result.model is None else str(result.model),
    }


def _result_text(result: RunResult) -> str:
    folder = _short(result.folder)
    if result.model is None:
        return f"stopped at step {result.step}; go on with: tokenmill train --resume {folder}"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    model = _short(result.model)
    adapter = (result.model / "adapter_config.json").is_file()
    use = f"tokenmill run {_base(result)} --adapter {model}" if adapter else f"tokenmill run ./{model}"
    if _recipe(result).objective == "reward":
        use = f"tokenmill eval reward ./{model} --data PAIRS"
    return f"{result.reason} at step {result.step}: {figures}\nreport     {folder}/report.html\ntry        {use}"


def _base(result: RunResult) -> str:
    return _recipe(result).model or "MODEL"


def _recipe(result: RunResult) -> Recipe:
    from tokenmill.config.run_config import read_run_config

    return read_run_config(result.folder).recipe


def _short(path: Path) -> str:
    """Relative to where the person stands, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# --- sweeps


def _sweep(recipe: str, overrides: list[str], grid: list[str], search: list[str], trials: int, as_json: bool) -> None:
    from tokenmill.config.compose import compose
    from tokenmill.train.loop import TrainingError
    from tokenmill.train.sweep import sweep_grid, sweep_search

    values = _first_values(grid or search)
    plain = compose(recipe, [*overrides, *values]).recipe  # a mistake is said before the first run

    def run(more: list[str]) -> RunResult:
        note(f"run with {' '.join(more)}")
        return _train(recipe, [*overrides, *more])

    where = {"out": Path(plain.out), "recipe": plain.recipe}
    if grid:
        sweeps = sweep_grid(grid, run, **where)  # type: ignore[arg-type]
    else:
        sweeps = sweep_search(search, run, trials=trials, seed=plain.seed, **where)  # type: ignore[arg-type]
    done: Sweep | None = None
    for done in sweeps:
        last = done.runs[-1]
        note(f"{' '.join(last.overrides)}: {last.problem or f'loss {last.value:.4f}'}")
    assert done is not None
    rows = [(values, loss, _short(Path(where)) if loss else where) for values, loss, where in done.table()]
    text = columns(("run", "loss", "folder"), rows) + f"\n\nwritten to {_short(done.folder)}/summary.json"
    emit({"folder": str(done.folder), **done.as_dict()}, as_json, text)
    if done.best is None:
        raise TrainingError("no run of the sweep came to an end")


def _first_values(sweeps: list[str]) -> list[str]:
    """One value of every swept key."""
    from tokenmill.config.sweep import grid, space

    try:
        return grid(sweeps)[0]
    except UsageError:
        return [one.override(one.choices[0] if one.choices else one.low) for one in space(sweeps)]
