"""``tokenmill eval tasks``: what a model makes of tasks, with samples, standard errors and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, note, step_meter
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.gates import Figure, Gate
    from tokenmill.evals.tasks.folder import Results
    from tokenmill.evals.tasks.run import Settings

EPILOG = """\b
Examples:
  tokenmill eval tasks smollm2:135m --tasks arithmetic,reading
  tokenmill eval tasks runs/latest/model --tasks all --chat on --json
  tokenmill eval tasks smollm2:135m --tasks my.jsonl --shots 3 --fail-if "exact_match<0.8"
  tokenmill eval tasks qwen3@http://127.0.0.1:11434/v1 --tasks format
"""
LM_EVAL = "lm-eval:"
CHATS = {"auto": None, "on": True, "off": False}

Tasks = Annotated[
    list[str],
    typer.Option(
        metavar="A,B",
        help="Sets that ship (all: each of them), .yaml or .jsonl files, lm-eval:NAME; several with commas.",
    ),
]
Shots = Annotated[int | None, typer.Option(min=0, help="Examples before each row; default: what the task says.")]
Seed = Annotated[int, typer.Option(help="Of the examples drawn, and of sampling.")]
Chat = Annotated[
    str,
    typer.Option(
        metavar="auto|on|off",
        help="Prompts as messages in the model's chat template, or as plain text. auto: as the task says, else a chat "
        "where the model has a template and the task no choices.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of each task.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Answers to each row (pass@k needs k of them).")]
Temperature = Annotated[float | None, typer.Option(min=0, help="0: the most likely token.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Of an answer; default: what the task says.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences, or questions to a server, at a time.")]
Fast = Annotated[
    bool, typer.Option("--fast", help="Quicker kernels, whose rounding may depend on the batch size in the last digit.")
]
Dtype = Annotated[str | None, typer.Option(help="What to compute in, such as float32; default: as the model says.")]
CtxSize = Annotated[int | None, typer.Option(min=1, help="Context in tokens; default: what the model can do.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure anew, whatever is known from before.")]
Include = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of lm-eval task files, for lm-eval:NAME of your own.")
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help='Exit with status 1 where it holds: "exact_match<0.8", "my.acc<=0.5".'),
]
KeyVariable = Annotated[
    str | None, typer.Option(metavar="NAME", help="Environment variable that holds a server's key.")
]


@dataclass(frozen=True)
class How:
    """How models are loaded and asked, the same for all of one command."""

    settings: Settings
    adapter: Sequence[str] | None
    batch_size: int
    fast: bool
    dtype: str | None
    ctx_size: int | None
    no_cache: bool
    include: Path | None
    key_variable: str | None


def eval_tasks(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or NAME@URL of one behind a server.")],
    tasks: Tasks,
    shots: Shots = None,
    seed: Seed = 0,
    chat: Chat = "auto",
    limit: Limit = None,
    samples: Samples = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An adapter to put on it, PEFT or GGUF; may be repeated.")
    ] = None,
    batch_size: BatchSize = 16,
    fast: Fast = False,
    dtype: Dtype = None,
    ctx_size: CtxSize = None,
    no_cache: NoCache = False,
    include: Include = None,
    key_variable: KeyVariable = None,
    fail_if: FailIf = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results go; default: a new folder below evals/.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a model tasks; write figures, samples and a report."""
    from tokenmill.evals.gates import Figure
    from tokenmill.evals.reports import write_tasks_report
    from tokenmill.evals.tasks.folder import new_folder

    gates = read_gates(fail_if)
    settings = settings_of(shots, seed, chat, limit, max_tokens, samples, temperature)
    how = How(settings, adapter, batch_size, fast, dtype, ctx_size, no_cache, include, key_variable)
    results = measure(model, split(tasks), how, out or new_folder(Path("evals"), model))
    report = write_tasks_report(results)
    figures = [
        Figure(model, task["task"], name, figure["value"], counts=name == task["main"])
        for task in results.tasks.values()
        for name, figure in task["metrics"].items()
    ]
    failed = check_gates(gates, figures)
    document = {**results.document, "folder": str(results.folder), "report": str(report), "failed": failed}
    emit(document, as_json, f"{_table(results)}\n\n{report}")
    finish(failed)


def split(names: Sequence[str]) -> list[str]:
    """``a,b`` and repeated options as one list."""
    return [name.strip() for one in names for name in one.split(",") if name.strip()]


def settings_of(
    shots: int | None,
    seed: int,
    chat: str,
    limit: int | None,
    max_tokens: int | None,
    samples: int | None,
    temperature: float | None,
) -> Settings:
    """What the person decided, checked."""
    from tokenmill.evals.tasks.run import Settings

    if chat not in CHATS:
        raise UsageError(f"--chat {chat}: give {', '.join(CHATS)}")
    return Settings(
        shots=shots,
        seed=seed,
        chat=CHATS[chat],
        limit=limit,
        max_tokens=max_tokens,
        samples=samples,
        temperature=temperature,
    )


def measure(model: str, names: Sequence[str], how: How, folder: Path) -> Results:
    """Give one model all tasks and write its folder. Tasks are read before the model is loaded, for that takes time."""
    from tokenmill.cli.subjects import open_subject
    from tokenmill.evals.tasks.folder import write_results
    from tokenmill.evals.tasks.run import run_task
    from tokenmill.evals.tasks.task import find_tasks

    foreign = [name.removeprefix(LM_EVAL) for name in names if name.startswith(LM_EVAL)]
    if foreign:
        from tokenmill.evals.lm_eval_tasks import check_names

        check_names(foreign, how.include)
    elif how.include is not None:
        raise UsageError("--include is for tasks of lm-eval: --tasks lm-eval:NAME")
    own = [name for name in names if not name.startswith(LM_EVAL)]
    tasks = find_tasks(own) if own or not foreign else []
    subject = open_subject(
        model,
        adapter=how.adapter,
        dtype=how.dtype,
        ctx_size=how.ctx_size,
        batch_size=how.batch_size,
        exact=not how.fast,
        cache=folder / "answers",
        key_variable=how.key_variable,
    )
    results = []
    with step_meter() as meter:
        for task in tasks:
            name = task.config.name
            progress = lambda done, total, name=name: meter(name, done, total)  # noqa: E731
            results.append(run_task(subject, task, how.settings, use_cache=not how.no_cache, progress=progress))
            if results[-1].cached:
                note(f"{name}: known from before")
    if foreign:
        from tokenmill.evals.lm_eval_tasks import run_lm_eval

        results += run_lm_eval(subject, foreign, how.settings, include=how.include)
    return write_results(folder, subject.identity, results)


def read_gates(given: Sequence[str] | None) -> list[Gate]:
    """Conditions are read before anything is measured."""
    from tokenmill.evals.gates import read_gate

    return [read_gate(one) for one in given or ()]


def check_gates(gates: Sequence[Gate], figures: Sequence[Figure]) -> list[str]:
    """The lines of conditions that hold."""
    from tokenmill.evals.gates import failures

    return failures(gates, figures)


def finish(failed: Sequence[str]) -> None:
    """Exit with status 1, and say why, where a condition holds."""
    if failed:
        for line in failed:
            note(f"failed: {line}")
        raise typer.Exit(1)


def _table(results: Results) -> str:
    rows: list[tuple[str, ...]] = []
    for task in results.tasks.values():
        figures: dict[str, dict[str, Any]] = task["metrics"]
        for name, figure in figures.items():
            said = f"{figure['value']:.4f} ± {figure['stderr']:.4f}"
            rows.append((task["task"], name + (" *" if name == task["main"] else ""), said, str(figure["rows"])))
    return columns(("task", "figure", "value", "rows"), rows)
