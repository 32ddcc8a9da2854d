"""``tokenmill plan cost``: the same tokens from an API and from own machines, and from which volume on which is
cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli.output import Json, emit
from tokenmill.cli.plan.show import Html, amount, bars, money, short, table, warn
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.plan.cost import CostPlan
    from tokenmill.plan.prices import Machine

EPILOG = """\b
Examples:
  tokenmill plan cost --api gpt-4o --machine dual-rtx-5090 --model qwen2.5-coder-32b --quant awq --tokens-a-day 5M
  tokenmill plan cost --api gpt-4o --machine 8x-h100-colocation --machine-tokens-s 20000 --tokens-a-day 10M --html
  cost.html
"""


def cost(
    api: Annotated[str, typer.Option("--api", metavar="NAME", help="A model behind an API, of the catalog.")],
    machine: Annotated[str, typer.Option("--machine", metavar="NAME", help="A machine of the catalog.")],
    tokens_a_day: Annotated[
        str, typer.Option("--tokens-a-day", metavar="N", help="Read and written together: 300k, 10M.")
    ],
    model: Annotated[str | None, typer.Option("--model", help="What the machine serves: its rate is computed.")] = None,
    quant: Annotated[str, typer.Option("--quant", metavar="NAME", help="With --model: number format.")] = "bf16",
    machine_tokens_s: Annotated[
        float | None,
        typer.Option("--machine-tokens-s", min=0.001, help="Tokens a second, read and written; or --model."),
    ] = None,
    output_share: Annotated[
        float, typer.Option("--output-share", min=0, max=1, help="Share of the tokens that are written.")
    ] = 0.25,
    cached_share: Annotated[
        float, typer.Option("--cached-share", min=0, max=1, help="Share of the read tokens that the API has cached.")
    ] = 0.0,
    years: Annotated[float, typer.Option("--years", min=0.1, help="Of use, for a bought machine.")] = 3.0,
    residual: Annotated[
        float, typer.Option("--residual", min=0, max=1, help="What it is worth then, as a share of its price.")
    ] = 0.2,
    interest: Annotated[float, typer.Option("--interest", min=0, max=1, help="A year, on what is tied up.")] = 0.05,
    hours: Annotated[float, typer.Option("--hours", min=0.1, max=24, help="Hours a day that it is on.")] = 24.0,
    kwh: Annotated[float, typer.Option("--kwh", min=0, metavar="USD", help="Price of electricity.")] = 0.12,
    pue: Annotated[
        float, typer.Option("--pue", min=1, help="What the building draws over what the machine does.")
    ] = 1.0,
    peak: Annotated[float, typer.Option("--peak", min=1, help="Load of the busiest hour over the mean.")] = 3.0,
    staff: Annotated[float, typer.Option("--staff", min=0, metavar="USD", help="People's time, a month.")] = 0.0,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """API against own machines: both bills, the break-even, and what it hangs on."""
    from tokenmill.plan.cost import case_of, plan_cost
    from tokenmill.plan.prices import apis, machines, old_prices

    if (model is None) == (machine_tokens_s is None):
        raise UsageError("the machine's rate: either --machine-tokens-s, or --model (and --quant) to compute it")
    api_catalog, machine_catalog = apis(), machines()
    provider, own = api_catalog.find(api), machine_catalog.find(machine)
    warn([*old_prices(api_catalog, provider), *old_prices(machine_catalog, own)])
    rate = machine_tokens_s if machine_tokens_s is not None else _rate(str(model), quant, own, output_share)
    plan = plan_cost(
        case_of(
            provider,
            own,
            machine_tokens_s=rate,
            tokens_a_day=amount("--tokens-a-day", tokens_a_day),
            output_share=output_share,
            cached_share=cached_share,
            years=years,
            residual_share=residual,
            interest=interest,
            on_hours=hours,
            power_overhead=pue,
            price_kwh=kwh,
            peak_factor=peak,
            staff_month=staff,
        )
    )
    document = plan.as_dict() | {"api": provider.name, "machine": own.name}
    if html is not None:
        from tokenmill.plan.page.page import write_cost_page

        write_cost_page(html, plan, api=provider.name, machine=own, output_share=output_share)
        document["html"] = str(html)
    emit(document, as_json, "" if as_json else _text(plan, provider.name, own.name))


def _rate(model: str, quant: str, machine: Machine, output_share: float) -> float:
    """Tokens a second, read and written, that the machine carries with 1,280 tokens a request of which
    ``output_share`` are written."""
    from tokenmill.plan.catalog import gpus, quantisations
    from tokenmill.plan.headers import find_shape
    from tokenmill.plan.serve import Wanted, plan_serve
    from tokenmill.plan.subject import free_bytes, hardware, subject

    shape, _ = find_shape(model)
    number_format = quantisations().find(quant)
    written = min(1279, max(1, round(1280 * output_share)))
    found = subject(shape, number_format, prompt_tokens=1280 - written, output_tokens=written, gpus=machine.count)
    device = hardware(gpus().find(machine.gpu), machine.count, number_format.name)
    return plan_serve(found, device, free_bytes(found, device), Wanted(headroom=0.0)).requests_per_s * 1280


def _text(plan: CostPlan, api: str, machine: str) -> str:
    case, bill = plan.case, plan.bill
    even = plan.break_even_tokens_a_day
    rows = [
        (api, money(bill.api), f"{money(case.api_price)} a million tokens"),
        (
            f"{bill.machines} x {machine}",
            money(bill.own),
            f"{money(plan.own_price)} a million tokens; electricity {money(plan.electricity_month)}",
        ),
        (
            "break-even",
            f"{short(even)} tokens a day" if even else "never",
            f"a machine carries {case.machine_tokens_s:,.0f} tokens a second",
        ),
        (
            "paid back",
            f"in {plan.payback_months:.1f} months"
            if plan.payback_months
            else "never"
            if case.machine_price
            else "nothing bought",
            "at this volume",
        ),
    ]
    volumes = [
        (short(b.tokens_a_day), money(b.api), money(b.own), str(b.machines), api if b.api < b.own else "own")
        for b in plan.volumes
    ]
    moves = [(m.name, short(m.value), _even(m.low), _even(m.high)) for m in plan.moves if m.swing > 1.001]
    bounded = [
        (f"{m.name} ±25 %", m.swing, f"{_even(m.low)} to {_even(m.high)}") for m in plan.moves if 1.001 < m.swing < 1e6
    ]
    return (
        table(f"{short(case.tokens_a_day)} tokens a day, a month", ("", "", ""), rows, words=3)
        + "\n"
        + table("by volume", ("tokens a day", api, "own", "machines", "cheaper"), volumes, words=0)
        + "\n"
        + table("break-even when it is a quarter", ("", "is", "less", "more"), moves)
        + "\n"
        + bars("how far a quarter moves the break-even", bounded)
    )


def _even(tokens: float) -> str:
    return short(tokens) if tokens else "never"
