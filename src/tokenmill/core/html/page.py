"""A page: jinja2 fills a template that extends ``base.html.jinja``; whatever came from a model or a file is escaped.

The content policy in the base forbids scripts, frames and everything from elsewhere, so that even text which slipped
past the escaping could do nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.core.paths import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    here = resources.files("tokenmill.core.html")
    shared = {name: (here / name).read_text(encoding="utf-8") for name in ("base.html.jinja", "style.css")}
    return Environment(
        loader=DictLoader(shared), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )


def render_page(template: str, *, refresh: int | None = None, **values: Any) -> str:
    """The page of `template`, a jinja2 text that extends ``base.html.jinja``.

    `refresh`: seconds after which a browser reads the file again, for a report of something still going on. Values are
    escaped, except what `line_chart` drew.
    """
    return _environment().from_string(template).render(refresh=refresh, **values)


def write_page(path: Path, page: str) -> None:
    """Put `page` at `path`; a browser that reads it meanwhile sees the old one or the new one, never half."""
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "replace"))
