"""``tokenmill plan scaling``: the size and the tokens for a budget, by published laws or one fitted to own runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, emit, note
from tokenmill.cli.plan.show import Html, amount, bars, short, table
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.plan.fit import Fit

EPILOG = """\b
Examples:
  tokenmill plan scaling --budget 1e21
  tokenmill plan scaling --gpu h100 --gpu-hours 1000 --served 1T
  tokenmill plan scaling --budget 1e18 --runs runs/a --runs runs/b --runs table.csv --html law.html
"""


def scaling(
    budget: Annotated[str | None, typer.Option("--budget", metavar="N", help="Operations of training: 1e21.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="With --gpu-hours: which.")] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", min=0.001, help="The budget as device hours.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.01, max=1, help="With --gpu-hours: share of the data sheet (MFU).")
    ] = 0.4,
    served: Annotated[
        str | None,
        typer.Option("--served", metavar="N", help="Tokens that it will read and write in its life."),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", metavar="PATH", help="Folders of runs, or .csv, .jsonl of parameters, tokens, loss."),
    ] = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """The best split of a budget between parameters and tokens."""
    flops = _budget(budget, gpu, gpu_hours, utilisation)
    asked = 0.0 if served is None else amount("--served", served)
    answers = _answers(flops, asked)
    document: dict[str, Any] = {"flops": flops, "served": asked, "laws": answers}
    fitted = None
    if runs:
        from tokenmill.plan.fit import fit, read_runs

        fitted = fit(read_runs(runs))
        document["fit"] = _fit_document(fitted, flops)
    if html is not None:
        from tokenmill.plan.page.page import write_scaling_page

        write_scaling_page(html, flops, answers, fitted)
        document["html"] = str(html)
    emit(document, as_json, "" if as_json else _text(flops, asked, answers, fitted))


def _budget(budget: str | None, gpu: str | None, hours: float | None, utilisation: float) -> float:
    if (budget is None) == (hours is None) or (hours is None) != (gpu is None):
        raise UsageError("the budget: either --budget (operations) or --gpu with --gpu-hours")
    if budget is not None:
        return amount("--budget", budget)
    from tokenmill.plan.catalog import gpus
    from tokenmill.plan.subject import peak_flops

    assert gpu is not None
    assert hours is not None
    return hours * 3600 * peak_flops(gpus().find(gpu), "bf16") * utilisation


def _answers(flops: float, served: float) -> list[dict[str, Any]]:
    """Parameters, tokens and loss of each published law."""
    from tokenmill.plan import laws
    from tokenmill.plan.fit import CHINCHILLA, REFITTED

    kaplan = (laws.kaplan_parameters(flops), laws.kaplan_tokens(flops))
    found = [
        ("Kaplan 2020", *kaplan, laws.kaplan_loss(*kaplan), "without embeddings; stops far from convergence"),
        ("Chinchilla, 20 tokens a parameter", *_pair(flops, laws.rule_parameters(flops)), None, "approaches 1 and 2"),
        ("Chinchilla, approach 3", *CHINCHILLA.best(flops), CHINCHILLA.loss(*CHINCHILLA.best(flops)), "as printed"),
        ("Chinchilla, fitted again", *REFITTED.best(flops), REFITTED.loss(*REFITTED.best(flops)), "arXiv 2404.10102"),
    ]
    if served:
        law = REFITTED
        best, tokens = law.best(flops)
        loss = law.loss(best, tokens)
        constants = (law.e, law.a, law.b, law.alpha, law.beta)
        small = laws.best_parameters_served(loss, served, best, *constants)
        long = laws.tokens_for_loss(small, loss, *constants)
        whole = laws.life_flops(small, loss, served, *constants) / laws.life_flops(best, loss, served, *constants)
        why = f"same loss; training and serving together cost {100 * whole:.0f} % (arXiv 2401.00448)"
        found.append((f"and {short(served)} tokens served", small, long, loss, why))
    keys = ("law", "parameters", "tokens", "loss", "note")
    return [dict(zip(keys, row, strict=True)) for row in found]


def _pair(flops: float, parameters: float) -> tuple[float, float]:
    return parameters, flops / (6 * parameters)


def _fit_document(fitted: Fit, flops: float) -> dict[str, Any]:
    law = fitted.law
    best = law.best(flops)
    figures: dict[str, Any] = {
        name: {"value": getattr(law, name), "interval": fitted.interval(lambda x, n=name: float(getattr(x, n)))}  # type: ignore[misc]
        for name in ("e", "a", "b", "alpha", "beta")
    }
    most = max(6 * run.parameters * run.tokens for run in fitted.runs)
    return figures | {
        "runs": len(fitted.runs),
        "spread": fitted.spread,
        "held_out_error": None if math.isnan(fitted.held_out) else fitted.held_out,
        "best": {
            "parameters": {"value": best[0], "interval": fitted.interval(lambda x: x.best(flops)[0])},
            "tokens": {"value": best[1], "interval": fitted.interval(lambda x: x.best(flops)[1])},
            "loss": {"value": law.loss(*best), "interval": fitted.interval(lambda x: x.loss(*x.best(flops)))},
        },
        "times_the_largest_run": flops / most,
    }


def _text(flops: float, served: float, answers: list[dict[str, Any]], fitted: Fit | None) -> str:
    rows = [
        (
            a["law"],
            short(a["parameters"]),
            short(a["tokens"]),
            f"{a['tokens'] / a['parameters']:.3g}",
            "" if a["loss"] is None else f"{a['loss']:.3f}",
            a["note"],
        )
        for a in answers
    ]
    text = table(f"{flops:.3g} operations", ("law", "parameters", "tokens", "a parameter", "loss", ""), rows)
    text += "\n" + bars("parameters", [(a["law"], a["parameters"], short(a["parameters"])) for a in answers])
    if fitted is None:
        return text
    found = _fit_document(fitted, flops)
    if found["times_the_largest_run"] > 100:
        times = found["times_the_largest_run"]
        note(f"note: the budget is {times:.0f} times the largest run; the intervals know nothing of a law that bends")
    lines = [(name, f"{found[name]['value']:.4g}", _interval(found[name])) for name in ("e", "a", "b", "alpha", "beta")]
    lines += [(f"best {name}", short(f["value"]), _interval(f)) for name, f in found["best"].items()]
    lines.append(("left over", f"{100 * fitted.spread:.2f} %", "of the loss, in the mean"))
    if found["held_out_error"] is not None:
        lines.append(("largest run", f"{100 * fitted.held_out:+.2f} %", "its loss, by a law fitted to the others"))
    title = f"fitted to {len(fitted.runs)} runs: L = e + a / N^alpha + b / D^beta"
    return text + "\n" + table(title, ("", "", "90 % interval"), lines)


def _interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{short(low)} to {short(high)}"
