"""docs/data-steps.md lists every key of a curation recipe and every step's options. After a change that is meant:

python tests/meta/test_data_steps_page.py
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from tokenmill.config.parts import Part
from tokenmill.data.curate.recipe import CurateRecipe, Input, Output
from tokenmill.data.curate.step import GlobalStep
from tokenmill.data.curate.steps import STEPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "data-steps.md"
HEAD = """# Every step of a curation recipe

Generated from `src/tokenmill/data/curate/`. [data.md](data.md) says how recipes are run. An option is set in the
recipe's file (`- gopher: {min_words: 20}`) or on the command line (`steps.gopher.min_words=20`).

## The recipe

| key | values | default | meaning |
|---|---|---|---|
"""
TABLE = "| option | values | default | meaning |\n|---|---|---|---|\n"


def _words() -> object:
    """The other page's way of naming types: tests are no package that could be imported from."""
    spec = importlib.util.spec_from_file_location("recipe_page", Path(__file__).with_name("test_recipe_page.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = _words()


def rows(model: type[Part], prefix: str = "") -> str:
    found = ""
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined else f"`{_plain(default)}`"
        if isinstance(default, list) and len(shown) > 60:
            shown = f"all {len(default)}"
        meaning = " ".join((info.description or "").replace("``", "`").replace("|", "\\|").split())
        kind = WORDS.words(info.annotation)  # type: ignore[attr-defined]
        found += f"| `{prefix}{name}` | {kind} | {shown} | {meaning} |\n"
    return found


def page() -> str:
    text = HEAD + rows(Input, "input.") + rows(Output, "output.")
    text += "".join(
        line for line in rows(CurateRecipe).splitlines(True) if not re.match(r"\| `(input|output|steps)`", line)
    )
    for name, entry in STEPS.items():
        options = entry.options_class()
        text += f"\n## {name}\n\n{entry.about[0].upper()}{entry.about[1:]}.{_sees_all(name)}\n\n{TABLE}{rows(options)}"
    return text


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _sees_all(name: str) -> str:
    """Global steps say so: they cut a recipe into stages."""
    made = inspect.get_annotations(STEPS[name].builder(), eval_str=True)["return"]
    whole = made is GlobalStep or all(hasattr(made, part) for part in ("observe", "decide", "apply"))
    return " Sees all documents before it decides." if whole else ""


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "a step's options changed; if that is meant, run: python tests/meta/test_data_steps_page.py"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
