"""The stop matcher against a naive search of the whole text, over random cuts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.core.errors import UsageError
from tokenmill.text.stop import StopMatcher

LETTERS = st.text(alphabet="abé", max_size=14)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The first end of any stop string in `text`; of several ending there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 14)), include=st.booleans())
def test_any_cutting_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    borders = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    given_out = "".join(matcher.push(text[a:b]) for a, b in itertools.pairwise(borders)) + matcher.flush()
    found = naive(text, stops)
    if found is None:
        assert (given_out, matcher.matched) == (text, None)
    else:
        end, stop = found
        assert (given_out, matcher.matched) == (text[: end if include else end - len(stop)], stop)


@given(text=LETTERS, stops=STOPS)
def test_only_a_possible_beginning_waits(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_out = "".join(matcher.push(char) for char in text)
    if matcher.matched is None:
        waiting = text[len(given_out) :]
        beginnings = [
            length for length in range(len(text) + 1) if any(s.startswith(text[len(text) - length :]) for s in stops)
        ]
        assert len(waiting) == (max(beginnings) if stops else 0)


def test_nothing_waits_when_the_stop_string_is_given_out_anyway() -> None:
    matcher = StopMatcher(["###"], include_stop=True)
    assert [matcher.push(piece) for piece in ("a#", "#", "#b", "c")] == ["a#", "#", "#", ""]
    assert matcher.matched == "###"


def test_what_comes_first_wins_and_the_rest_is_dropped() -> None:
    matcher = StopMatcher(["bc", "abcd"])
    assert matcher.push("xabcd more") == "xa"
    assert matcher.matched == "bc"
    assert matcher.push("more") == matcher.flush() == ""


def test_a_beginning_that_comes_to_nothing_is_given_out_at_the_end() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("a</") == "a"
    assert matcher.flush() == "</"
    assert matcher.matched is None


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc", [None]])
def test_an_empty_or_wrongly_typed_stop_is_refused(stops: object) -> None:
    with pytest.raises(UsageError, match="non-empty strings"):
        StopMatcher(stops)  # type: ignore[arg-type]
