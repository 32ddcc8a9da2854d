"""A finished run as a page: the funnel, lengths, languages, and what each step dropped and changed, with samples."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.core.html.charts import Series, line_chart
from tokenmill.core.html.page import render_page, write_page
from tokenmill.data.curate.recipe import CurateRecipe
from tokenmill.data.curate.step import Count
from tokenmill.data.curate.steps import entry
from tokenmill.data.curate.work import StepCount

LANGUAGES = 20
"""Languages that are named; the rest is added up."""


def write_report(
    path: Path,
    recipe: CurateRecipe,
    values: Mapping[str, Any],
    counts: Mapping[int, StepCount],
    bad: list[dict[str, Any]],
) -> None:
    """Write the page of a run.

    Args:
        values: what the manifest holds.
        counts: of each step, by its place in the recipe.
        bad: the first things that are in quarantine.
    """
    template = (resources.files("tokenmill.data.curate") / "report.html.jinja").read_text(encoding="utf-8")
    page = render_page(
        template,
        values=values,
        tiles=_tiles(values),
        funnel=_funnel(values, counts),
        charts=[chart for chart in (_lengths(values),) if chart],
        languages=_languages(values["written"]["languages"]),
        steps=[_step(recipe.steps[place].name, recipe.steps[place].options, count) for place, count in counts.items()],
        bad=bad,
    )
    write_page(path, page)


def _tiles(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    read, written = values["read"], values["written"]
    share = written["characters"] / read["characters"] if read["characters"] else 0.0
    return [
        ("documents in", f"{read['documents']:,}"),
        ("documents out", f"{written['documents']:,}"),
        ("characters out", f"{written['characters']:,}"),
        ("text kept", f"{share:.1%}"),
        ("files read", f"{len(values['inputs']):,}"),
        ("put aside, broken", f"{values['quarantined']:,}"),
    ]


def _funnel(values: Mapping[str, Any], counts: Mapping[int, StepCount]) -> list[dict[str, Any]]:
    """One bar a step: what share of the documents that were read is still there after it."""
    first = max(1, values["read"]["documents"])
    rows = [{"name": "read", "went": values["read"]["documents"], "gone": 0, "seconds": None}]
    for step, count in zip(values["steps"], counts.values(), strict=True):
        rows.append(
            {"name": step["name"], "went": step["went"], "gone": step["came"] - step["went"], "seconds": count.seconds}
        )
    return [row | {"share": min(1.0, row["went"] / first)} for row in rows]


def _lengths(values: Mapping[str, Any]) -> Any:
    """Documents by length, before and after."""
    sides = [(name, values[key]["lengths"]) for name, key in (("read", "read"), ("written", "written"))]
    bits = sorted({int(bit) for _, lengths in sides for bit in lengths})
    if not bits:
        return ""
    places = range(bits[0] - 1, bits[-1] + 2)
    series = [Series(name, [(bit, float(lengths.get(str(bit), 0))) for bit in places]) for name, lengths in sides]
    return line_chart("Documents by length", series, x_label="log₂ of characters")


def _languages(counted: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Most frequent first, with its share."""
    total = max(1, sum(counted.values()))
    rows = list(counted.items())
    shown = rows[:LANGUAGES]
    rest = sum(count for _, count in rows[LANGUAGES:])
    shown += [("others", rest)] if rest else []
    return [(name, count, count / total) for name, count in shown]


def _step(name: str, options: Mapping[str, Any], count: StepCount) -> dict[str, Any]:
    return {
        "name": name,
        "about": entry(name).about,
        "options": ", ".join(f"{key}={value}" for key, value in options.items() if value is not None),
        "count": count,
        "dropped": _reasons(count.tally.dropped),
        "changed": _reasons(count.tally.changed),
    }


def _reasons(counted: Mapping[str, Count]) -> list[dict[str, Any]]:
    """Most frequent first."""
    rows = sorted(counted.items(), key=lambda item: (-item[1].documents, item[0]))
    return [
        {
            "reason": reason,
            "documents": count.documents,
            "hits": count.hits,
            "samples": [sample.as_dict() for sample in sorted(count.samples, reverse=True)],
        }
        for reason, count in rows
    ]
