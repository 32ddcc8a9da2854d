"""Needles: a fact hidden at some depth of a long text that has nothing to do with it, and asked for at the end."""

from __future__ import annotations

import random

from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.evals.probes.finding import Case, Finding, Options, share
from tokenmill.evals.subject import Ask, Progress, Subject, Writing

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
THINGS = ("blue cabinet", "north gate", "old safe", "garden shed", "music room")
_WHO = ("The gardener", "A ferryman", "The baker's son", "An old teacher", "The postwoman", "A clerk", "The miller")
_DID = ("carried", "painted", "sold", "repaired", "counted", "forgot", "borrowed", "washed")
_WHAT = ("three baskets", "a wooden chair", "the wet sails", "some brass lamps", "two carts of hay", "a box of plums")
_WHERE = ("at the mill", "behind the church", "on the quay", "in the market", "by the river", "near the station")
_WHEN = ("on Monday", "before noon", "after the rain", "late in May", "in the evening", "that winter")


def hay(words: int, draw: random.Random) -> list[str]:
    """Sentences of about so many words in all, in which no number stands."""
    sentences: list[str] = []
    count = 0
    while count < words:
        parts = [draw.choice(one) for one in (_WHO, _DID, _WHAT, _WHERE, _WHEN)]
        sentences.append(" ".join(parts) + ".")
        count += len(sentences[-1].split())
    return sentences


def asks_of(length: int, options: Options) -> list[tuple[Ask, str, float]]:
    """A question for each depth of a text of ``length`` words, its answer, and the depth."""
    found = []
    for depth, thing in zip(DEPTHS, THINGS, strict=True):
        draw = random.Random(f"{options.seed} {length} {depth}")
        code = str(draw.randrange(1000, 10_000))
        sentences = hay(length, draw)
        sentences.insert(round(depth * len(sentences)), f"The code of the {thing} is {code}.")
        text = f"{' '.join(sentences)}\n\nWhat is the code of the {thing}? Answer with the code only."
        found.append((Ask(messages=({"role": "user", "content": text},)), code, depth))
    return found


def needle(subject: Subject, options: Options, progress: Progress | None = None) -> Finding:
    """Share of needles that are found, by length and depth. Lengths that do not fit the context are left out and told;
    UsageError: none fits."""
    cases: list[Case] = []
    notes: list[str] = []
    how = Writing(max_tokens=24, seed=options.seed)
    for number, length in enumerate(sorted(options.lengths), 1):
        asked = asks_of(length, options)
        try:
            replies = subject.write([ask for ask, _, _ in asked], how)
        except OutOfContextError:
            notes.append(f"a text of {length} words does not fit the model's context")
            continue
        for (ask, code, depth), said in zip(asked, replies, strict=True):
            details = {"words": length, "depth": depth, "tokens": said[0].prompt_tokens}
            text = str(ask.messages[0]["content"])
            cases.append(Case(f"{length} words, {depth:.0%}", text[-90:], said[0].text, code in said[0].text, details))
        if progress is not None:
            progress(number, len(options.lengths))
    if not cases:
        raise UsageError(f"no text of {', '.join(map(str, options.lengths))} words fits the model's context")
    lengths = sorted({case.details["words"] for case in cases})
    grid = [
        [str(length), *("found" if case.right else "missed" for case in cases if case.details["words"] == length)]
        for length in lengths
    ]
    by_length = {
        f"found_at_{length}_words": share([case for case in cases if case.details["words"] == length])[0]
        for length in lengths
    }
    header = ["words", *(f"depth {depth:.0%}" for depth in DEPTHS)]
    return Finding(
        "needle", "needles found", *share(cases), by_length, tuple(cases), (("By depth", header, grid),), tuple(notes)
    )
