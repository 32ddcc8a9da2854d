"""A run as a page: counts, reasons, and pairs side by side with their critiques."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.align.constitution.pairs import Judgement
from tokenmill.core.html import render_page, write_page

SHOWN = 200
"""Pairs on the page; all are in the file."""
SHOWN_DROPPED = 40


def write_constitution_report(path: Path, judged: Sequence[Judgement], about: Mapping[str, Any]) -> None:
    """Write the page. `about`: what was asked of whom, by the names under which it is shown."""
    kept = [one for one in judged if one.reason is None]
    dropped = [one for one in judged if one.reason is not None]
    template = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    page = render_page(
        template,
        about=about,
        tiles=[
            ("prompts", len({one.transcript.prompt for one in judged})),
            ("answers", len(judged)),
            ("pairs", len(kept)),
            ("of them on harmless prompts", sum(one.transcript.harmless for one in kept)),
        ],
        reasons=Counter(str(one.reason) for one in dropped).most_common(),
        principles=Counter(one.principle for one in kept).most_common(),
        kept=kept[:SHOWN],
        more=max(0, len(kept) - SHOWN),
        dropped=dropped[:SHOWN_DROPPED],
    )
    write_page(path, page)
