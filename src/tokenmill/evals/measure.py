"""The folder of one measure: ``results.json`` with all figures, JSONL files of its cases, ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.core.html import render_page, write_page
from tokenmill.core.paths import atomic_write

PAGE: dict[str, Any] = {"warnings": (), "tiles": (), "charts": (), "tables": (), "samples": ()}
"""Parts of a page that a measure may have."""


def write_measure(
    folder: Path, document: Mapping[str, Any], cases: Mapping[str, Sequence[Mapping[str, Any]]], **values: Any
) -> Path:
    """Write figures, cases (rows by the name of their file) and the page made of ``values``; the page's path.

    ``values``: title, subtitle, verdict, files (name and what is in it) and any of `PAGE`'s.
    """
    with atomic_write(folder / "results.json") as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "replace"))
    for name, rows in cases.items():
        with atomic_write(folder / name) as file:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.write(text.encode("utf-8", "replace"))
    template = (resources.files("tokenmill.evals") / "measure.html.jinja").read_text(encoding="utf-8")
    path = folder / "report.html"
    write_page(path, render_page(template, **PAGE | values))
    return path
