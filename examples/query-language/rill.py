"""Rill, a small query language made up for this example, and questions in English with the query that answers each.

    orders ? country = france ? total > 500 # mean price @ city ^ 3

A table; filters (``?``); what is computed (``# count``, ``# sum FIELD``, ``# mean FIELD``, ``# max FIELD``); for each
what (``@``); how many of the largest (``^``) or smallest (``v``). Nobody's model has seen it before.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Fields with words and the words that stand in them; fields with numbers."""

    words: dict[str, tuple[str, ...]]
    numbers: tuple[str, ...]


TABLES = {
    "orders": Table(
        {
            "country": ("france", "japan", "brazil", "kenya", "norway", "canada"),
            "status": ("open", "paid", "late"),
            "city": (),
        },
        ("total", "weight"),
    ),
    "users": Table(
        {"plan": ("free", "basic", "gold"), "language": ("german", "spanish", "hindi", "english"), "team": ()},
        ("age", "score"),
    ),
    "tickets": Table(
        {"priority": ("low", "normal", "urgent"), "product": ("printer", "router", "tablet", "camera"), "agent": ()},
        ("hours", "replies"),
    ),
}
OPERATIONS = {"sum": ("total of the", "sum of the"), "mean": ("average", "mean"), "max": ("highest", "largest")}

_FILTER = r"(?: \? [a-z]+ (?:= [a-z]+|[<>] \d+))"
GRAMMAR = re.compile(
    rf"(?:{'|'.join(TABLES)}){_FILTER}*(?: # (?:count|(?:sum|mean|max) [a-z]+)(?: @ [a-z]+)?(?: [v^] \d+)?)?"
)
"""What is a query at all."""

DESCRIPTION = """Translate the question to a query of the language Rill. Answer with the query only.
A query is: TABLE ? FILTER ... # COMPUTE @ FIELD ^ N
FILTER is FIELD = WORD, FIELD > NUMBER or FIELD < NUMBER. COMPUTE is count, sum FIELD, mean FIELD or max FIELD.
@ FIELD computes it for each value of the field. ^ N keeps the N largest, v N the N smallest.
Examples:
How many orders are there from Japan? -> orders ? country = japan # count
What is the average age of users with plan gold for each team? -> users ? plan = gold # mean age @ team
Which 3 agents have the fewest tickets with hours above 20? -> tickets ? hours > 20 # count @ agent v 3"""
"""What a model that has not learned Rill is told of it."""
SHORT = "Rill"


@dataclass(frozen=True)
class Pair:
    """A question and its query."""

    question: str
    query: str


def pairs(count: int, seed: int) -> list[Pair]:
    """Different questions, the same for the same seed."""
    draw = random.Random(seed)
    found: dict[str, Pair] = {}
    while len(found) < count:
        one = _pair(draw)
        found.setdefault(one.question, one)
    return list(found.values())


def held_out(count: int, seed: int, seen: list[Pair]) -> list[Pair]:
    """Pairs of another seed whose queries are none of `seen`: not even in other words were they asked."""
    queries = {one.query for one in seen}
    found = [one for one in pairs(8 * count, seed) if one.query not in queries]
    return found[:count]


def _pair(draw: random.Random) -> Pair:
    name = draw.choice(sorted(TABLES))
    table = TABLES[name]
    said, filters = _filters(draw, table)
    kind = draw.choice(("count", "compute", "each", "most", "list"))
    number = draw.choice(table.numbers)
    group = draw.choice(sorted(table.words))
    if kind == "list":
        begin = draw.choice(("Show all", "List the", "Give me every one of the"))
        return Pair(f"{begin} {name}{said}.", f"{name}{filters}")
    if kind == "count":
        asked = draw.choice((f"How many {name}{said} are there?", f"Count the {name}{said}."))
        return Pair(asked, f"{name}{filters} # count")
    operation = draw.choice(sorted(OPERATIONS))
    words = f"{draw.choice(OPERATIONS[operation])} {number} of {name}{said}"
    if kind == "compute":
        asked = draw.choice((f"What is the {words}?", f"Tell me the {words}."))
        return Pair(asked, f"{name}{filters} # {operation} {number}")
    if kind == "each":
        asked = draw.choice((f"What is the {words} for each {group}?", f"By {group}, what is the {words}?"))
        return Pair(asked, f"{name}{filters} # {operation} {number} @ {group}")
    n, sign = draw.randrange(2, 10), draw.choice("^v")
    if draw.random() < 0.5:
        end = "most" if sign == "^" else "fewest"
        return Pair(
            f"Which {n} values of {group} have the {end} {name}{said}?", f"{name}{filters} # count @ {group} {sign} {n}"
        )
    end = "top" if sign == "^" else "bottom"
    return Pair(f"The {end} {n} of {group} by {words}?", f"{name}{filters} # {operation} {number} @ {group} {sign} {n}")


def _filters(draw: random.Random, table: Table) -> tuple[str, str]:
    """None, one or two of them: as the question says them, as the query writes them."""
    said, written = [], []
    for kind in draw.sample(("word", "number"), draw.choice((0, 1, 1, 2))):
        if kind == "word":
            field = draw.choice([field for field, values in table.words.items() if values])
            value = draw.choice(table.words[field])
            said.append(draw.choice((f"with {field} {value}", f"whose {field} is {value}")))
            written.append(f" ? {field} = {value}")
        else:
            field, limit = draw.choice(table.numbers), draw.randrange(2, 90)
            sign = draw.choice("<>")
            word = draw.choice(("above", "over") if sign == ">" else ("below", "under"))
            said.append(f"with {field} {word} {limit}")
            written.append(f" ? {field} {sign} {limit}")
    return "".join(f" {' and '.join(said)}" if said else ""), "".join(written)


def messages(question: str, system: str) -> list[dict[str, str]]:
    """The conversation that a model is to answer."""
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def rows(learned: list[Pair]) -> list[dict[str, list[dict[str, str]]]]:
    """What a model learns from."""
    return [
        {"messages": [*messages(one.question, SHORT), {"role": "assistant", "content": one.query}]} for one in learned
    ]
