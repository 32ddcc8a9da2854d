"""``plan choose``: which model for a task, as a ranked list whose every place has its reasons; specialised or base;
API or own.

What a model cannot (task, language, context, licence, memory, speed) excludes it, with the reason. What is left is
ranked by points that are shown: a published benchmark of the task where there is one, else a guess from the model's
size; more for specialists and for recent models. A ranking is a place to begin: measure the first three on your own
task (``tokenmill eval``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.plan.catalog import Model
from tokenmill.plan.prices import Api

Licence = Literal["any", "commercial", "permissive"]

TASKS: dict[str, tuple[tuple[str, ...], str]] = {
    "chat": ((), "conversation and general questions"),
    "code": (("humaneval", "mbpp"), "writing and completing code"),
    "agentic-code": (("swe-bench", "aider"), "changing a code base with tools"),
    "reasoning": (("math", "gpqa"), "mathematics, logic, analysis in steps"),
    "tools": ((), "calling functions"),
    "documents": ((), "long documents, retrieval, summaries"),
    "base": ((), "a starting point for training, not for answers"),
}
"""Task: the benchmarks that measure it, best first, and what it is."""

LICENCES: dict[str, tuple[Licence, str]] = {
    "Apache-2.0": ("permissive", "any use, with a grant of patents"),
    "MIT": ("permissive", "any use; says nothing of patents"),
    "Modified-MIT": ("commercial", "any use; its name has to be shown above 100 million users a month"),
    "Llama-2-Community": ("commercial", "below 700 million users a month; not to train other models with"),
    "Llama-3.1-Community": ("commercial", "below 700 million users a month; what is built on it is called Llama"),
    "Llama-3.2-Community": ("commercial", "below 700 million users a month; what is built on it is called Llama"),
    "Llama-3.3-Community": ("commercial", "below 700 million users a month; what is built on it is called Llama"),
    "Llama-4-Community": ("commercial", "below 700 million users a month; what is built on it is called Llama"),
    "Qwen": ("commercial", "below 100 million users a month"),
    "Gemma": ("commercial", "within Google's list of forbidden uses, which is passed on"),
    "BigCode-OpenRAIL-M": ("commercial", "within its list of forbidden uses, which is passed on"),
    "CC-BY-SA-4.0": ("commercial", "what is made from it carries the same licence"),
    "Mistral-Research": ("any", "research only; commercial use needs a contract"),
}
"""Licence: what it allows at least, and the catch. A licence that is not here counts as "any": read it."""

REGIMES: dict[str, tuple[bool, str]] = {
    "none": (True, ""),
    "internal": (False, "Data must not leave: only self-hosted models are in question, whatever an API promises."),
    "hipaa": (
        True,
        "HIPAA: health data goes to a provider only with a business associate agreement (BAA), which most API plans do "
        "not include; self-hosted, log neither prompts nor answers outside the protected zone.",
    ),
    "gdpr": (
        True,
        "GDPR: a processing agreement with the provider and a lawful transfer, or processing within the EU; a server "
        "in the EU settles where, not why: purpose, retention and deletion stay yours.",
    ),
    "itar": (
        False,
        "ITAR: technical data stays with US persons in the country: self-hosted, best without any network.",
    ),
    "finance": (
        False,
        "Financial supervision: many require audited infrastructure and a written way out; self-hosted, with an audit "
        "log of who asked which model version what.",
    ),
}
"""Rules: whether an API is in question at all, and what to mind."""

ORDER: dict[Licence, int] = {"any": 0, "commercial": 1, "permissive": 2}
SPECIALIST, RECENT, UNKNOWN = 5.0, 2.0, 0.9
"""Points of a model made for few tasks; a year; and what a guess from size is worth beside a published figure."""


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    task: str
    languages: tuple[str, ...] = ()
    licence: Licence = "any"
    context: int = 8192
    regime: str = "none"
    least_tok_s: float = 0.0
    """That each user should see."""
    requests_a_day: float = 0.0
    examples: int = 0
    """Of the task, that could be learned from."""
    knowledge: Literal["fixed", "changing"] = "fixed"
    """Whether answers hang on documents that change."""


@dataclass(frozen=True)
class Room:
    """How a model fits the machine: the best number format that does, and how fast it then is."""

    quantisation: str
    bytes_needed: float
    headroom: float
    """Share of the memory that stays free."""
    tok_s: float
    """That each user sees."""


@dataclass(frozen=True)
class Ranked:
    """A place in the list."""

    model: str
    points: float
    room: Room | None
    licence: str
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """What ``plan choose`` answers."""

    wish: Wish
    ranked: tuple[Ranked, ...]
    excluded: dict[str, str]
    """Model: the first thing that it lacks."""
    specialised: tuple[str, ...]
    """Base, instruction-tuned or specialised; prompts, retrieval or training."""
    hosting: tuple[str, ...]
    """API or self-hosted, and why."""
    apis: tuple[str, ...] = field(default=())
    """Models behind APIs that could do it, cheapest first; empty where the rules exclude them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)


def check_wish(wish: Wish) -> None:
    """UsageError for a task or a regime that is not known, with the nearest that is."""
    for word, known, what in ((wish.task, TASKS, "task"), (wish.regime, REGIMES, "privacy rule")):
        if word not in known:
            raise UsageError(f"no {what} {word!r}{did_you_mean(word, known)}; known: {', '.join(known)}")


def choose(
    models: Iterable[Model], apis: Iterable[Api], wish: Wish, room: Callable[[Model], Room | str] | None = None
) -> Advice:
    """Rank ``models``; ``room`` says how one fits the machine, or why it does not.

    Raises:
        UsageError: an unknown task or rule.
    """
    check_wish(wish)
    ranked, excluded = [], {}
    for model in models:
        lacking = _lacking(model, wish)
        found = room(model) if room is not None and not lacking else None
        if isinstance(found, str):
            lacking = found
        elif found is not None and found.tok_s < wish.least_tok_s:
            lacking = f"{found.tok_s:.0f} tokens a second for each user, {wish.least_tok_s:g} wanted"
        if lacking:
            excluded[model.name] = lacking
        else:
            ranked.append(_ranked(model, wish, found if isinstance(found, Room) else None))
    ranked.sort(key=lambda place: -place.points)
    usable = _usable(apis, wish)
    return Advice(
        wish=wish,
        ranked=tuple(ranked),
        excluded=excluded,
        specialised=tuple(_specialised(wish, ranked)),
        hosting=tuple(_hosting(wish, ranked, usable)),
        apis=tuple(api.name for api in usable),
    )


def licence_of(model: Model) -> tuple[Licence, str]:
    """What a model's licence allows, and the catch."""
    return LICENCES.get(model.license, ("any", "not one that tokenmill knows: read it"))


def _lacking(model: Model, wish: Wish) -> str:
    missing = [code for code in wish.languages if code not in model.languages]
    if wish.task not in model.tasks:
        return f"is not made for {wish.task} but for {', '.join(model.tasks) or 'nothing that the catalog names'}"
    if missing:
        return f"its makers do not name {', '.join(missing)}, only {', '.join(model.languages)}"
    if model.context < wish.context:
        return f"reads {model.context:,} tokens, {wish.context:,} wanted"
    if ORDER[licence_of(model)[0]] < ORDER[wish.licence]:
        return f"licence {model.license}: {licence_of(model)[1]}"
    return ""


def _ranked(model: Model, wish: Wish, room: Room | None) -> Ranked:
    reasons, cautions = [], []
    published = next((name for name in TASKS[wish.task][0] if name in model.scores), None)
    if published is not None:
        points = model.scores[published]
        reasons.append(f"{published} {points:g} %")
    else:
        size = math.sqrt(model.parameters * (model.active_parameters or model.parameters))
        points = UNKNOWN * min(95.0, 45 + 22 * math.log10(max(1.0, size / 1e9)))
        reasons.append(f"no published figure for {wish.task}: {points:.0f} guessed from {size / 1e9:.3g}B parameters")
    # everything is made for chat; a specialist is one in something else
    if wish.task != "chat" and len(model.tasks) <= 2 and model.tasks[0] == wish.task:
        points += SPECIALIST
        reasons.append(f"made for {wish.task} (+{SPECIALIST:g})")
    points += RECENT * (model.year - 2023)
    reasons.append(f"of {model.year} (+{RECENT * (model.year - 2023):g})")
    if room is not None:
        reasons.append(
            f"{room.quantisation}: {room.bytes_needed / 1e9:.1f} GB, {100 * room.headroom:.0f} % free, "
            f"{room.tok_s:.0f} tokens a second"
        )
        if room.headroom < 0.1:
            cautions.append("less than a tenth of the memory stays free")
    if licence_of(model)[0] != "permissive":
        cautions.append(f"{model.license}: {licence_of(model)[1]}")
    return Ranked(model.name, points, room, model.license, tuple(reasons), tuple(cautions))


def _usable(apis: Iterable[Api], wish: Wish) -> list[Api]:
    if not REGIMES[wish.regime][0]:
        return []
    able = [api for api in apis if wish.task in api.tasks and api.context >= wish.context]
    return sorted(able, key=lambda api: 0.75 * api.input_usd + 0.25 * api.output_usd)


def _specialised(wish: Wish, ranked: Sequence[Ranked]) -> Iterable[str]:
    if wish.knowledge == "changing":
        yield "Knowledge that changes belongs in retrieval, not in weights: training is out of date at once."
    if wish.task == "base":
        yield "A base model continues text and follows no instructions: take one only to train it yourself."
    elif any("made for" in reason for place in ranked[:3] for reason in place.reasons):
        yield f"A specialist for {wish.task} is among the first: it beats larger generalists there, and only there."
    if wish.examples >= 100_000:
        yield f"{wish.examples:,} examples carry full fine-tuning, of the base model too (`train sft`)."
    elif wish.examples >= 500:
        yield (
            f"{wish.examples:,} examples: LoRA over the instruction-tuned model (`train lora`); a prompt with "
            "examples in it is the thing to beat."
        )
    elif wish.examples:
        yield f"{wish.examples:,} examples are too few to train on: put the best of them into the prompt."
    else:
        yield "No examples to train on: prompts and a model that is made for the task."


def _hosting(wish: Wish, ranked: Sequence[Ranked], apis: Sequence[Api]) -> Iterable[str]:
    allowed, note = REGIMES[wish.regime]
    if note:
        yield note
    if not allowed:
        yield "Self-hosted." if ranked else "Self-hosted is the only way, and nothing in the catalog fits: more memory."
        return
    if not ranked:
        yield f"API: nothing of the catalog fits; {apis[0].name} is the cheapest." if apis else "Nothing fits."
        return
    if not apis:
        yield f"Self-hosted: no API in the catalog names {wish.task} with {wish.context:,} tokens."
        return
    if wish.requests_a_day >= 100_000:
        yield f"Self-hosted: {wish.requests_a_day:,.0f} requests a day are usually worth a machine (`plan cost`)."
    else:
        yield (
            f"Either: {ranked[0].model} on your own machine, or {apis[0].name} by API; `plan cost` has the volume from "
            "which your own is cheaper. With OpenAI's protocol on both sides you change later by the address alone."
        )
