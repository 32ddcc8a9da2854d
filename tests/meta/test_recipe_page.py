"""docs/recipe.md lists every key of a recipe from the code itself. After a change that is meant, write it anew:

python tests/meta/test_recipe_page.py
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from tokenmill.config.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
HEAD = """# Every key of a recipe

Generated from `src/tokenmill/config/recipe.py`. A key is set in a recipe's file, on the command line
(`lr=1e-4`, `adapter.rank=32`) or as a keyword of `tokenmill.train`. `null` is "derived" where the text says from
what, else "off".

| key | values | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    return HEAD + "".join(rows(Recipe)) + "\n"


def rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, info in model.model_fields.items():
        parts = [info.annotation, *get_args(info.annotation)]
        nested = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        default = info.get_default(call_default_factory=True)
        shown = "" if isinstance(default, BaseModel) else f"`{plain(default)}`"
        meaning = " ".join((info.description or "").replace("``", "`").replace("|", "\\|").split())
        kind = "a part" if isinstance(default, BaseModel) else words(info.annotation)
        found.append(f"| `{prefix}{name}` | {kind} | {shown} | {meaning} |\n")
        if nested and "list" not in str(info.annotation):
            found += rows(nested[0], f"{prefix}{name}.")
    return found


def plain(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list)
        else str(value)
    )


def words(kind: Any) -> str:
    """The values of a key, in a person's words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(words(one) for one in arguments if one is not type(None))
    if origin is list:
        return f"list of {words(arguments[0])}"
    if hasattr(kind, "__metadata__"):
        return words(arguments[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a part"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}.get(kind, "")


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "a recipe's keys changed; if that is meant, run: python tests/meta/test_recipe_page.py"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
