"""``tokenmill plan choose``: which model, with reasons; specialised or base; API or self-hosted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tokenmill.cli.output import Json, emit
from tokenmill.cli.plan.show import bars, gigabytes, table
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenmill.plan.catalog import Model
    from tokenmill.plan.choose import Advice, Room

EPILOG = """\b
Examples:
  tokenmill plan choose --task agentic-code --context 65536 --gpu rtx-5090 --gpus 2
  tokenmill plan choose --task chat --language de --licence permissive --gpu rtx-4090 --users 20 --tokens-s 20
  tokenmill plan choose --task documents --privacy hipaa --examples 2000
"""

FORMATS = ("bf16", "fp8", "awq")
"""Tried from the most exact to the smallest."""


def choose(
    task: Annotated[str, typer.Option("--task", help="chat, code, agentic-code, reasoning, tools, documents, base.")],
    language: Annotated[
        list[str] | None, typer.Option("--language", metavar="CODE", help="ISO 639-1; may be repeated.")
    ] = None,
    licence: Annotated[
        Literal["any", "commercial", "permissive"], typer.Option("--licence", help="What it has to allow.")
    ] = "any",
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of prompt and answer.")] = 8192,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="A device of the catalog.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many of them.")] = 1,
    users: Annotated[int, typer.Option("--users", min=1, help="With --gpu: at once, each with a whole context.")] = 1,
    tokens_s: Annotated[float, typer.Option("--tokens-s", min=0, help="With --gpu: that each user should see.")] = 0.0,
    privacy: Annotated[str, typer.Option("--privacy", help="none, internal, hipaa, gdpr, itar, finance.")] = "none",
    requests_a_day: Annotated[float, typer.Option("--requests-a-day", min=0, help="For API or self-hosted.")] = 0.0,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Of the task, to learn from.")] = 0,
    knowledge: Annotated[
        Literal["fixed", "changing"], typer.Option("--knowledge", help="Whether answers hang on changing documents.")
    ] = "fixed",
    among: Annotated[
        list[str] | None, typer.Option("--among", metavar="MODEL", help="Only these of the catalog; may be repeated.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Places to show.")] = 8,
    as_json: Json = False,
) -> None:
    """A ranked list whose every place has its reasons, and what speaks against the rest."""
    from tokenmill.plan.catalog import models
    from tokenmill.plan.choose import Wish
    from tokenmill.plan.choose import choose as chosen
    from tokenmill.plan.prices import apis

    if gpu is None and (gpus > 1 or users > 1 or tokens_s):
        raise UsageError("--gpus, --users and --tokens-s belong to a --gpu")
    catalog = models()
    candidates = [catalog.find(name) for name in among] if among else list(catalog.entries.values())
    wish = Wish(
        task=task,
        languages=tuple(language or ()),
        licence=licence,
        context=context,
        regime=privacy,
        least_tok_s=tokens_s,
        requests_a_day=requests_a_day,
        examples=examples,
        knowledge=knowledge,
    )
    room = None if gpu is None else _room(gpu, gpus, context, users)
    advice = chosen(candidates, apis().entries.values(), wish, room)
    emit(advice.as_dict(), as_json, "" if as_json else _text(advice, top))


def _room(gpu: str, gpus: int, context: int, users: int) -> Callable[[Model], Room | str]:
    """What says of a model in which number format it fits, the most exact that does."""
    from tokenmill.plan.catalog import gpus as gpu_catalog
    from tokenmill.plan.catalog import quantisations
    from tokenmill.plan.choose import Room
    from tokenmill.plan.serve import step_seconds
    from tokenmill.plan.shape import from_catalog
    from tokenmill.plan.subject import check_split, free_bytes, hardware, subject

    catalog, device = quantisations(), gpu_catalog().find(gpu)

    def room(model: Model) -> Room | str:
        shape = from_catalog(model)
        try:
            check_split(shape, gpus)
        except UsageError as error:
            return str(error)
        short = 0.0
        for name in FORMATS:
            found = subject(
                shape, catalog.find(name), prompt_tokens=max(1, context // 2), output_tokens=context // 2, gpus=gpus
            )
            on = hardware(device, gpus, name)
            free = free_bytes(found, on) - users * found.kv_bytes
            if free >= 0:
                step = step_seconds(found, on, users)
                return Room(name, found.weight_bytes + users * found.kv_bytes, free / (gpus * on.memory), 1 / step)
            short = -free
        return f"lacks {gigabytes(short)} of memory even in four bits, for {users} x {context:,} tokens"

    return room


def _text(advice: Advice, top: int) -> str:
    places = advice.ranked[:top]
    rows = [
        (str(n), place.model, f"{place.points:.0f}", place.licence, "; ".join((*place.reasons, *place.cautions)))
        for n, place in enumerate(places, 1)
    ]
    other = f"is not made for {advice.wish.task}"
    left_out = [(name, why) for name, why in advice.excluded.items() if not why.startswith(other)]
    if elsewhere := len(advice.excluded) - len(left_out):
        left_out.append((f"{elsewhere} more", other))
    parts = [table(f"for {advice.wish.task}", ("", "model", "points", "licence", "why"), rows, words=5)]
    if places:
        parts.append(bars("points", [(place.model, place.points, f"{place.points:.0f}") for place in places]))
    parts.append(table("specialised or base", ("",), [(line,) for line in advice.specialised]))
    parts.append(table("API or self-hosted", ("",), [(line,) for line in advice.hosting]))
    if left_out:
        parts.append(table("left out", ("model", "because it"), left_out, words=2))
    return "\n".join(parts)
