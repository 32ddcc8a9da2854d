"""Values that fit a JSON schema, drawn by a seed: arguments of calls that nobody has made.

Strings come from a property's ``examples``, its ``format``, or lists of plain words chosen by the property's name; what
was drawn is checked against the schema, so that a schema which cannot be met this way (a pattern without examples) is
refused, not met badly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.text.json_schema import Schema

TRIES = 50
_DEEPEST = 6
_WORDS: dict[str, tuple[str, ...]] = {
    "city": ("Bern", "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Graz", "Cork", "Turin", "Quebec"),
    "country": ("Norway", "Peru", "Kenya", "Japan", "Portugal", "Chile", "Ireland", "Italy"),
    "language": ("English", "Spanish", "Swahili", "Japanese", "Norwegian", "Italian"),
    "currency": ("EUR", "USD", "CHF", "JPY", "NOK", "GBP"),
    "name": ("Ada", "Bruno", "Chiara", "Dmitri", "Esi", "Farid", "Greta", "Hugo", "Ines", "Jonas"),
    "street": ("Mill Lane", "Station Road", "Harbour Street", "Church Row"),
    "title": ("Meeting", "Dentist", "Lunch with Esi", "Swimming", "Piano lesson", "Call the bank"),
    "text": ("hello there", "see you soon", "the train is late", "please bring bread", "it works now"),
    "query": ("bread without yeast", "used bicycles", "weather balloons", "quiet cafes", "old maps"),
    "": ("apple", "river", "window", "garden", "lamp", "violin", "engine", "island", "jacket", "pencil"),
}
"""By what a property's name ends in or has in it; the last are for all others."""
_ALSO = {
    "location": "city", "place": "city", "town": "city", "destination": "city", "origin": "city", "person": "name",
    "recipient": "name", "user": "name", "to": "name", "message": "text", "body": "text", "note": "text",
    "subject": "title", "event": "title", "search": "query", "question": "query", "keywords": "query",
}  # fmt: skip


def draw_arguments(schema: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    """An object that fits the schema; ConfigError where none was found."""
    check = Schema(schema)
    for _ in range(TRIES):
        value = _value(schema, schema, "", draw, 0)
        if isinstance(value, dict) and check.fits(value):
            return value
    problems = "; ".join(check.problems(value, most=2))
    raise ConfigError(f"no arguments were found that fit this schema ({problems}); give its strings examples")


def _value(schema: Any, root: Mapping[str, Any], name: str, draw: random.Random, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return draw.choice(_WORDS[""])
    if "$ref" in schema:
        return _value(_resolved(schema["$ref"], root), root, name, draw, depth + 1)
    if "const" in schema:
        return schema["const"]
    for choices in ("enum", "examples"):
        if schema.get(choices):
            return draw.choice(list(schema[choices]))
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return _value(draw.choice(list(schema[several])), root, name, draw, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = draw.choice([one for one in kind if one != "null"] or ["null"])
    if kind == "object":
        return _object(schema, root, draw, depth)
    if kind == "array":
        low = int(schema.get("minItems", 1))
        count = draw.randint(low, max(low, min(int(schema.get("maxItems", low + 2)), low + 2)))
        return [_value(schema.get("items", {}), root, name, draw, depth + 1) for _ in range(count)]
    if kind == "boolean":
        return draw.random() < 0.5
    if kind in ("integer", "number"):
        return _number(schema, kind == "integer", draw)
    return None if kind == "null" else _string(schema, name, draw)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], draw: random.Random, depth: int) -> dict[str, Any]:
    """All that is required, of the rest every second."""
    required = schema.get("required", ())
    names = [name for name in schema.get("properties", {}) if name in required or draw.random() < 0.5]
    return {name: _value(schema["properties"][name], root, name, draw, depth + 1) for name in names}


def _number(schema: Mapping[str, Any], whole: bool, draw: random.Random) -> int | float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 1 if whole else 0.5))
    high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 100))
    if step := schema.get("multipleOf"):
        return step * draw.randint(-(-low // step), high // step)
    return draw.randint(int(low), int(high)) if whole else round(draw.uniform(low, high), 1)


def _string(schema: Mapping[str, Any], name: str, draw: random.Random) -> str:
    day = date(2026, 1, 1) + timedelta(days=draw.randrange(365))
    clock = f"{draw.randrange(24):02}:{draw.choice((0, 15, 30, 45)):02}"
    made = {
        "date": day.isoformat(),
        "time": f"{clock}:00",
        "date-time": f"{day.isoformat()}T{clock}:00Z",
        "email": f"{draw.choice(_WORDS['name']).lower()}@example.org",
        "uri": f"https://example.org/{draw.choice(_WORDS[''])}",
    }
    if schema.get("format") in made:
        return made[schema["format"]]
    return draw.choice(words_for(name))


def words_for(name: str) -> Sequence[str]:
    """Plain words for a property of this name."""
    parts = name.lower().replace("-", "_").split("_")
    known = [_ALSO.get(part, part) for part in reversed(parts)]
    return _WORDS[next((part for part in known if part in _WORDS and part), "")]


def _resolved(ref: str, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema means; others, and those that lead nowhere, the schema's check has refused."""
    found: Any = root
    for part in ref.lstrip("#/").split("/") if ref != "#" else ():
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found
