"""Pages and curves: safe with hostile text, offline, readable whatever the numbers are."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.core.html import Mark, Series, line_chart, render_page, write_page
from tokenmill.core.html.charts import COLOURS, COLUMNS, figure_text, smoothed, thinned

HOSTILE = "</svg><script>alert(1)</script>\"'&"


def paths(chart: str) -> list[str]:
    return re.findall(r'<path[^>]* d="([^"]*)"', chart)


def test_a_page_is_whole_and_offline(tmp_path: Path) -> None:
    page = render_page('{% extends "base.html.jinja" %}{% block content %}{{ text }}{% endblock %}', text=HOSTILE)
    write_page(tmp_path / "a.html", page)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r"https?://|<link|@import|url\(", page)
    assert "refresh" not in page
    assert list(tmp_path.iterdir()) == [tmp_path / "a.html"]


def test_a_page_of_something_going_on_reads_itself_again() -> None:
    assert '<meta http-equiv="refresh" content="10">' in render_page('{% extends "base.html.jinja" %}', refresh=10)


def test_names_in_a_chart_are_text() -> None:
    series = [Series(HOSTILE, [(1, 1.0), (2, 2.0)]), Series("b", [(1, 2.0)])]
    chart = line_chart(HOSTILE, series, x_label=HOSTILE, marks=[Mark(1.5, HOSTILE, bad=True)])
    assert "<script" not in chart
    assert chart.count("</svg>") == 1


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e12, 1e12) | st.just(math.nan)), max_size=700),
    st.booleans(),
)
def test_any_numbers_make_a_chart_inside_its_frame(points: list[tuple[float, float]], log: bool) -> None:
    points = sorted(points, key=lambda p: p[0])
    chart = line_chart("t", [Series("a", points)], log=log)
    drawable = [y for _, y in points if math.isfinite(y) and (not log or y > 0)]
    assert bool(chart) == bool(drawable)
    assert "nan" not in chart
    for path in paths(chart):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path):
            assert -1 <= float(x) <= 561
            assert -1 <= float(y) <= 221


def test_a_number_that_is_none_leaves_a_gap() -> None:
    chart = line_chart("t", [Series("a", [(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.0), (5, 2.0)])])
    assert paths(chart)[0].count("M") == 2


@pytest.mark.parametrize("count", [2, COLOURS, COLOURS + 1, 2 * COLOURS + 1])
def test_every_curve_is_in_the_legend_and_a_lone_point_is_seen(count: int) -> None:
    page = str(line_chart("c", [Series(f"kind{n}", [(1.0, n + 1.0)]) for n in range(count)]))
    assert page.count("</i>kind") == page.count('class="dot"') == count
    assert ('class="c0 again"></i>' in page) == (count > COLOURS), "a colour that comes again is dashed"
    assert '<i class="' not in str(line_chart("c", [Series("alone", [(1.0, 2.0)])]))


def test_decades_are_told_by_powers_of_ten() -> None:
    page = str(line_chart("c", [Series("kl", [(0.0, 0.0014), (1.0, 0.45)])], log=True))
    assert ">0.01</text>" in page
    assert ">0.1</text>" in page


def test_a_spike_of_one_step_is_kept() -> None:
    points = [(float(x), 50.0 if x == 31_415 else 1.0 + x % 2) for x in range(100_000)]
    kept = thinned(points, 0, 99_999)
    assert (31_415.0, 50.0) in kept
    assert len(kept) <= 2 * (COLUMNS + 1)
    assert kept == sorted(kept)


def test_smoothing_is_not_pulled_to_zero_at_its_beginning() -> None:
    assert all(math.isclose(y, 5.0) for _, y in smoothed([(x, 5.0) for x in range(1000)]))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1234, "1.23k"), (3e-05, "3e-05"), (2.5e6, "2.5M"), (7e9, "7G"), (-1500, "-1.5k"), (math.inf, "inf")],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert figure_text(value) == said
