"""``--html``: one file with sliders, the formulas as JavaScript, and what the verb found above them.

Nothing is loaded from elsewhere, and the page's policy lets run this one script alone, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.core.html.charts import Series, line_chart
from tokenmill.core.html.page import render_page, write_page
from tokenmill.plan import formulas, laws, money, rates
from tokenmill.plan.fit import REFITTED, Fit
from tokenmill.plan.page import sheet
from tokenmill.plan.page.controls import FILES_OWN, Section, sections
from tokenmill.plan.page.transpile import javascript
from tokenmill.plan.words import short

if TYPE_CHECKING:
    from markupsafe import Markup

    from tokenmill.plan.cost import CostPlan
    from tokenmill.plan.prices import Machine
    from tokenmill.plan.serve import ServePlan
    from tokenmill.plan.shape import Shape
    from tokenmill.plan.train import TrainPlan

MODULES = (formulas, rates, money, laws, sheet)
"""Whose functions the page has, in the order of their calls."""


@dataclass(frozen=True)
class Found:
    """What a verb found, above the sliders: a title, rows of words, charts."""

    title: str
    rows: Sequence[tuple[str, str]] = ()
    charts: Sequence[Markup] = ()


def arguments(name: str) -> list[str]:
    """The figures that a sheet takes, in order."""
    return list(inspect.signature(getattr(sheet, name)).parameters)


def script(shown: Sequence[Section]) -> str:
    """The page's script: formulas, the controls' data, and what ties them to the page."""
    data = [
        {
            **asdict(section),
            "arguments": arguments(section.sheet),
        }
        for section in shown
    ]
    # "<" as an escape, so that no name can end the script
    plain = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    hand = (resources.files("tokenmill.plan.page") / "page.js").read_text(encoding="utf-8")
    return f'"use strict";\n{javascript(MODULES)}\nconst SECTIONS = {plain};\n{hand}'


def page(
    title: str,
    *,
    first: str = "serving",
    found: Found | None = None,
    chosen: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
    model: Shape | None = None,
    own_bits: float | None = None,
    fitted: Fit | None = None,
) -> str:
    """The page, with the section of the verb that writes it on top."""
    from markupsafe import Markup

    law = REFITTED if fitted is None else fitted.law
    shown = sections(chosen or {}, values or {}, model, law, own_bits)
    shown = sorted(shown, key=lambda section: section.name != first)
    code = script(shown)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    template = (resources.files("tokenmill.plan.page") / "page.html.jinja").read_text(encoding="utf-8")
    return render_page(
        template,
        title=title,
        found=found,
        sections=shown,
        script=Markup(code),  # ours: formulas by ast, data by json without "<"
        script_policy=f"; script-src 'sha256-{digest}'",
    )


def write_serve_page(
    path: Path, plan: ServePlan, *, model: str, gpu: str | None, quant: str | None, load: float
) -> None:
    """The page of ``plan serve``."""
    from tokenmill.plan import catalog
    from tokenmill.plan.headers import find_shape

    shape, _ = find_shape(model)
    own = None if quant is not None or shape.stored_bytes is None else 8 * shape.stored_bytes / shape.parameters
    number_format = FILES_OWN if own is not None else catalog.quantisations().find(quant or "bf16").name
    chosen = {"model": shape.name, "quant": number_format}
    if gpu is not None:
        chosen["gpu"] = catalog.gpus().find(gpu).name
    values = {
        "gpus": float(plan.hardware.gpus),
        "prompt": float(plan.subject.prompt_tokens),
        "output": float(plan.subject.output_tokens),
        "users": float(plan.point.batch),
        "load": load,
    }
    rows = [
        ("one user alone", f"{plan.decode_tok_s:,.0f} tokens a second"),
        ("at once", f"{plan.point.batch}, limited by {plan.limited_by}"),
        ("all together", f"{plan.point.tokens_per_s:,.0f} tokens a second"),
        ("replicas", f"{plan.replicas}"),
    ]
    points = [(float(p.batch), p.tokens_per_s) for p in plan.points]
    chart = line_chart("tokens a second, all together", [Series("tokens/s", points)], x_label="at once")
    found = Found(f"{shape.name} on {plan.hardware.gpus} x {plan.hardware.name}", rows, [chart])
    write_page(path, page("Serving", found=found, chosen=chosen, values=values, model=shape, own_bits=own))


def write_train_page(path: Path, plan: TrainPlan, *, shape: Shape) -> None:
    """The page of ``plan train``."""
    cluster = plan.cluster
    values = {
        "train_tokens": plan.work.tokens,
        "train_gpus": float(cluster.gpus),
        "utilisation": cluster.utilisation,
        "gpu_hour": cluster.usd_gpu_hour or 0.0,
    }
    rows = [
        ("operations", f"{plan.flops:.3g}"),
        ("days", f"{plan.days:.3g}, {100 * plan.goodput:.1f} % of them computing"),
        ("device hours", f"{plan.gpu_hours:,.0f}"),
        ("cost", "no price known" if plan.usd is None else f"${plan.usd:,.0f}"),
        ("checkpoint", f"{plan.checkpoint_bytes / 1e9:,.1f} GB every {plan.checkpoint_every_s / 60:,.0f} minutes"),
    ]
    found = Found(f"Training {plan.work.name} on {cluster.gpus} x {cluster.gpu}", rows)
    chosen = {"model": shape.name, "gpu": cluster.gpu}
    write_page(path, page("Training", first="training", found=found, chosen=chosen, values=values, model=shape))


def write_cost_page(path: Path, plan: CostPlan, *, api: str, machine: Machine, output_share: float) -> None:
    """The page of ``plan cost``; the chart and what moves it are drawn by the page itself."""
    case = plan.case
    values = {
        name: float(getattr(case, name))
        for name in arguments("costing")
        if hasattr(case, name) and name not in ("machine_price", "rent_hour", "month_fee", "busy_w", "idle_w")
    }
    even = plan.break_even_tokens_a_day
    rows = [
        (api, f"${plan.bill.api:,.2f} a month"),
        (f"{plan.bill.machines} x {machine.name}", f"${plan.bill.own:,.2f} a month"),
        ("break-even", f"{even:,.0f} tokens a day" if even else "never"),
    ]
    found = Found(f"{case.tokens_a_day:,.0f} tokens a day", rows)
    chosen = {"api": api, "machine": machine.name}
    write_page(
        path, page("Cost", first="costing", found=found, chosen=chosen, values=values | {"output_share": output_share})
    )


def write_scaling_page(path: Path, flops: float, answers: Sequence[Mapping[str, Any]], fitted: Fit | None) -> None:
    """The page of ``plan scaling``, with the fitted runs and what the law says of each size."""
    rows = [(str(a["law"]), f"{short(a['parameters'])} parameters, {short(a['tokens'])} tokens") for a in answers]
    charts = [] if fitted is None else [_fit_chart(fitted), _law_chart(fitted)]
    found = Found(f"{flops:.3g} operations", rows, charts)
    write_page(path, page("Scaling", first="scaling", found=found, values={"budget": flops}, fitted=fitted))


def _fit_chart(fitted: Fit) -> Markup:
    """The runs of each size, and beside them, thin, the law."""
    series = []
    lengths = sorted({run.tokens for run in fitted.runs})
    for size in sorted({run.parameters for run in fitted.runs}):
        runs = sorted((run.tokens, run.loss) for run in fitted.runs if run.parameters == size)
        series.append(Series(f"law {short(size)}", [(t, fitted.law.loss(size, t)) for t in lengths], faint=True))
        series.append(Series(f"{short(size)} parameters", runs))
    return line_chart("loss by tokens: runs, and the law (thin)", series, x_label="tokens", log=True)


def _law_chart(fitted: Fit) -> Markup:
    """The best loss by budget with its interval."""
    most = max(6 * run.parameters * run.tokens for run in fitted.runs)
    decades = [most * 10 ** (n / 4) for n in range(-8, 9)]
    import math

    bounds = [fitted.interval(lambda law, c=c: law.loss(*law.best(c))) for c in decades]  # type: ignore[misc]
    at = [math.log10(c) for c in decades]
    series = [
        Series("5 %", [(x, low) for x, (low, _) in zip(at, bounds, strict=True)], faint=True),
        Series("95 %", [(x, high) for x, (_, high) in zip(at, bounds, strict=True)], faint=True),
        Series("best loss", [(x, fitted.law.loss(*fitted.law.best(c))) for x, c in zip(at, decades, strict=True)]),
    ]
    return line_chart("best loss by budget C, 90 % interval (thin)", series, x_label="log10 C")
