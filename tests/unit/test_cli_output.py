"""What every verb prints: columns, sizes, ages, progress; and what must not reach a terminal."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from tokenmill.cli.output import PullProgress, columns, emit, human_age, human_count, human_size, sections
from tokenmill.core.terminal import clean

NOW = datetime(2026, 8, 20, 12, tzinfo=UTC)


# The expected texts are Ollama's (format/bytes.go, format/format.go, format/time.go).
@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1500, "1.5 KB"), (98_362_432, "98 MB"), (4_700_000_000, "4.7 GB")],
)
def test_human_size(count: int, said: str) -> None:
    assert human_size(count) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(999, "999"), (2000, "2K"), (134_515_008, "134.52M"), (7_000_000_000, "7B"), (7_240_000_000, "7.2B")],
)
def test_human_count(count: int, said: str) -> None:
    assert human_count(count) == said


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(milliseconds=5), "Less than a second ago"),
        (timedelta(seconds=1), "1 second ago"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(seconds=61), "About a minute ago"),
        (timedelta(minutes=2), "2 minutes ago"),
        (timedelta(minutes=60), "About an hour ago"),
        (timedelta(hours=2), "2 hours ago"),
        (timedelta(hours=47), "47 hours ago"),
        (timedelta(days=2), "2 days ago"),
        (timedelta(days=13), "13 days ago"),
        (timedelta(days=14), "2 weeks ago"),
        (timedelta(days=59), "8 weeks ago"),
        (timedelta(days=60), "2 months ago"),
        (timedelta(days=729), "24 months ago"),
        (timedelta(days=730), "2 years ago"),
    ],
)
def test_human_age(ago: timedelta, said: str) -> None:
    assert human_age(NOW - ago, NOW) == said


def test_columns_align_and_trail_nothing() -> None:
    text = columns(("NAME", "ID"), [("a-long-name", "1"), ("b", "22")])
    assert text.splitlines() == ["NAME           ID", "a-long-name    1", "b              22"]


def test_sections_leave_out_what_is_empty() -> None:
    assert sections({"Model": [("a", "1"), ("bcd", "2")], "Nothing": []}) == "  Model\n    a      1\n    bcd    2\n"


def test_control_characters_never_reach_a_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x9b2Jc\rd\te\nf\x00"
    assert clean(hostile) == "a]0;titleb2Jcd\te\nf"
    assert "\x1b" not in columns(("X",), [("\x1b[2J",)])


def test_json_is_the_last_line_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"text": "zwei\nZeilen ü", "when": NOW, "odd": [math.nan, -math.inf]}, True, "for people")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "NaN" not in out  # which is no JSON
    assert json.loads(out) == {"text": "zwei\nZeilen ü", "when": str(NOW), "odd": [None, None]}


def test_progress_without_a_terminal_is_a_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with PullProgress() as progress:
        progress("pulling manifest")
        progress("pulling manifest")
        for done in range(0, 1001):
            progress("pulling abc", "sha256:abc", 1000, done)
        progress("success")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "pulling manifest",
        *(f"pulling abc: {percent} % of 1 KB" for percent in (0, 25, 50, 75, 100)),
        "success",
    ]
