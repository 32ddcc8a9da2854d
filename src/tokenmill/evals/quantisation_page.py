"""The report of a quantisation, or of several compared, as one page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from tokenmill.core.html import Series, line_chart, render_page
from tokenmill.evals.quantisation import Result
from tokenmill.quant.settings import Settings

if TYPE_CHECKING:
    from markupsafe import Markup

MEGA = 1e6


def result_page(source: str, result: Result, original_bytes: int, command: str) -> str:
    """The page of one quantisation."""
    settings = result.settings
    tiles = [
        ("size", f"{result.nbytes / MEGA:.1f} MB"),
        ("bits a weight", f"{result.weight_bits:.3f}"),
        ("quantised in", f"{result.seconds:.1f} s"),
    ]
    if result.divergence is not None:
        found = result.divergence
        tiles += [
            ("perplexity", f"{found.ppl:.3f}"),
            ("original's perplexity", f"{found.original_ppl:.3f}"),
            ("KL divergence", f"{found.kl:.4f}"),
            ("same top token", f"{found.agreement:.1%}"),
        ]
    tiles += [(name, f"{value:.1f} tokens/s") for name, value in result.speed.items()]
    noted = [layer for layer in result.layers if layer["note"]]
    rows = [_layer_row(layer) for layer in result.layers]
    plain = sum("plainly" in layer["note"] for layer in noted)
    return _page(
        f"{source} by {settings.method}",
        f"{_bits(settings)}, {_groups(settings.group_size)}, {'symmetric' if settings.symmetric else 'with zeros'}, "
        f"layout {settings.layout}; the original takes {original_bytes / MEGA:.1f} MB",
        [f"{plain} layers were rounded plainly"] if plain and settings.calibrated else [],
        tiles,
        [*bits_charts(result), error_chart(result)],
        [
            (
                "Layers",
                "Error: squared error of the outputs over their squares on the calibration inputs (of the weights "
                "where there were none). Hook: how often the calibration reached the layer, with how many tokens.",
                ("layer", "bits", "group", "error", "hook", "tokens", "damping", "note"),
                rows,
            )
        ],
        command,
    )


def comparison_page(source: str, results: Sequence[tuple[str, Result]], original_bytes: int, command: str) -> str:
    """The page of several quantisations of one model: which gives the least loss for its size."""
    measured = [(name, result) for name, result in results if result.divergence is not None]
    best = frontier(measured)
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{result.nbytes / MEGA:.1f} MB",
            f"{result.weight_bits:.3f}",
            f"{result.divergence.ppl:.3f}" if result.divergence else "-",
            f"{result.divergence.kl:.4f} ± {result.divergence.kl_stderr:.4f}" if result.divergence else "-",
            f"{result.divergence.agreement:.1%}" if result.divergence else "-",
            f"{result.seconds:.1f} s",
            "yes" if name in best else "",
        )
        for name, result in results
    ]
    original = measured[0][1].divergence.original_ppl if measured and measured[0][1].divergence else None
    return _page(
        f"{source}: {len(results)} quantisations compared",
        f"the original takes {original_bytes / MEGA:.1f} MB"
        + (f" and has a perplexity of {original:.3f}" if original is not None else ""),
        [],
        [],
        [
            frontier_chart(measured, best),
            *(chart for name, result in results for chart in (*bits_charts(result, name), error_chart(result, name))),
        ],
        [
            (
                "Size against loss",
                "On the frontier: no other one is both smaller and nearer to the original.",
                ("method", "size", "bits a weight", "perplexity", "KL", "same top token", "time", "on the frontier"),
                rows,
            )
        ],
        command,
    )


def frontier(measured: Sequence[tuple[str, Result]]) -> list[str]:
    """Names of those that no other one beats in size and KL divergence, the smallest first."""
    chosen, least = [], float("inf")
    for name, result in sorted(measured, key=lambda one: (one[1].nbytes, _kl(one[1]))):
        if _kl(result) < least:
            chosen.append(name)
            least = _kl(result)
    return chosen


def _kl(result: Result) -> float:
    return result.divergence.kl if result.divergence is not None else float("inf")


def frontier_chart(measured: Sequence[tuple[str, Result]], best: Sequence[str]) -> Markup:
    """A dot for each, a line through those on the frontier."""
    at = {name: (result.nbytes / MEGA, _kl(result)) for name, result in measured}
    line = Series("frontier", [at[name] for name in best], faint=True)
    dots = [Series(name, [point]) for name, point in sorted(at.items(), key=lambda one: one[1])]
    return line_chart("KL divergence by size", [*dots, line], x_label="MB", log=True)


def bits_charts(result: Result, name: str = "") -> list[Markup]:
    """The bits that every kind of layer was given over the depth of the model, where they are not all alike."""
    if result.settings.budget is None:
        return []
    series = _by_kind(result, "bits")
    return [line_chart(f"Bits by layer{': ' + name if name else ''}", series, x_label="layer")]


def error_chart(result: Result, name: str = "") -> Markup:
    """The error of every kind of layer over the depth of the model."""
    series = _by_kind(result, "error")
    return line_chart(f"Error by layer{': ' + name if name else ''}", series, x_label="layer", log=True)


def _by_kind(result: Result, figure: str) -> list[Series]:
    kinds: dict[str, list[tuple[float, float]]] = {}
    for layer in result.layers:
        found = re.match(r"layers\.(\d+)\.(.*)$", layer["name"])
        assert found is not None, layer["name"]
        if not found[2].rpartition(".")[2].isdigit():  # experts are too many for a chart
            kinds.setdefault(found[2], []).append((float(found[1]), layer[figure]))
    return [Series(kind, points) for kind, points in kinds.items()]


def _layer_row(layer: dict[str, Any]) -> tuple[str, ...]:
    damping = "" if layer["damping"] is None else f"{layer['damping']:g}"
    group = "-" if layer["kept"] else "row" if layer["group_size"] == -1 else str(layer["group_size"])
    hook, tokens = str(layer["heard"]), f"{layer['tokens']:,}"
    return layer["name"], f"{layer['bits']:.3f}", group, f"{layer['error']:.3g}", hook, tokens, damping, layer["note"]


def _bits(settings: Settings) -> str:
    return f"{settings.bits} bits" if settings.budget is None else f"a budget of {settings.budget:g} bits a weight"


def _groups(size: int) -> str:
    return {-1: "a scale a row", 0: "one scale a matrix"}.get(size, f"groups of {size}")


def _page(
    title: str,
    about: str,
    notices: list[str],
    tiles: list[tuple[str, str]],
    charts: list[Markup],
    tables: list[tuple[str, str, tuple[str, ...], list[tuple[str, ...]]]],
    command: str,
) -> str:
    template = (resources.files("tokenmill.evals") / "quantisation.html.jinja").read_text(encoding="utf-8")
    return render_page(
        template,
        title=title,
        about=about,
        notices=notices,
        tiles=tiles,
        charts=charts,
        tables=tables,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        command=command,
    )
