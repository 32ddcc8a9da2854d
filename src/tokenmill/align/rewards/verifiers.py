"""Rewards that check an answer by rule, in microseconds: numbers, JSON of a schema, expressions, lengths, tags."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.scored import Outcome, each
from tokenmill.config.rewards import FormatReward, JsonSchemaReward, LengthReward, NumberReward, RegexReward
from tokenmill.core.errors import ConfigError
from tokenmill.text.json_schema import Schema

# every count is bounded: a model may write digits for ever
_MINUS = "\N{MINUS SIGN}"
_NUMBER = re.compile(
    rf"(?:(?<![\w)])[-{_MINUS}])?(?:\d{{1,3}}(?:,\d{{3}}){{1,12}}|\d{{1,40}})(?:\.\d{{1,40}})?(?: ?/ ?\d{{1,40}})?%?",
    re.ASCII,
)
_BOXED = re.compile(r"\\boxed\{([^{}]{0,200})\}")
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)


class Number:
    """See :class:`~tokenmill.config.rewards.NumberReward`."""

    def __init__(self, config: NumberReward) -> None:
        self.config, self.name = config, config.name or config.kind

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(self._score, samples)

    def _score(self, sample: Sample) -> Outcome:
        right = find_number(str(column(sample, self.config.column, self.name)))
        if right is None:
            raise ConfigError(f"reward {self.name}: the rows' column {self.config.column!r} holds no number: "
                              f"{sample.row[self.config.column]!r}")  # fmt: skip
        said = find_number(sample.completion)
        return float(said is not None and abs(said - right) <= Fraction(self.config.tolerance) * abs(right))


def find_number(text: str) -> Fraction | None:
    r"""The number that a text comes to: in its last ``\boxed{}``, behind its last ``####``, else its last one."""
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    elif "####" in text:
        text = text.rpartition("####")[2]
    found = _NUMBER.findall(text)
    if not found:
        return None
    words = found[-1].replace(",", "").replace(_MINUS, "-").replace(" ", "")
    above, _, below = words.rstrip("%").partition("/")
    number = Fraction(above)
    if below:
        if not int(below):
            return None
        number /= int(below)
    return number / 100 if words.endswith("%") else number


class JsonSchema:
    """See :class:`~tokenmill.config.rewards.JsonSchemaReward`."""

    def __init__(self, config: JsonSchemaReward) -> None:
        self.config, self.name = config, config.name or config.kind
        self._schema = None if isinstance(config.wanted, str) else Schema(config.wanted)

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(self._score, samples)

    def _score(self, sample: Sample) -> Outcome:
        schema = self._schema
        if schema is None:
            assert isinstance(self.config.wanted, str)
            wanted = column(sample, self.config.wanted, self.name)
            schema = Schema(json.loads(wanted) if isinstance(wanted, str) else wanted)
        try:
            value = json.loads(fenced(sample.completion, ("json", "")).strip())
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if schema.fits(value) else self.config.json_credit


class Regex:
    """See :class:`~tokenmill.config.rewards.RegexReward`."""

    def __init__(self, config: RegexReward) -> None:
        self.name = config.name or config.kind
        pattern = rf"^(?:{config.pattern})$" if config.whole else config.pattern
        # the schema library's expressions cannot run away, which Python's can on what a model writes
        self._schema = Schema({"type": "string", "pattern": pattern})

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(lambda sample: float(self._schema.fits(sample.completion)), samples)


class Length:
    """See :class:`~tokenmill.config.rewards.LengthReward`."""

    def __init__(self, config: LengthReward) -> None:
        if config.least > config.most:
            raise ConfigError(f"reward length: least={config.least} is more than most={config.most}")
        self.config, self.name = config, config.name or config.kind

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(self._score, samples)

    def _score(self, sample: Sample) -> Outcome:
        config = self.config
        if config.unit == "tokens":
            length = len(sample.completion_ids)
        else:
            length = len(sample.completion.split() if config.unit == "words" else sample.completion)
        outside = max(config.least - length, length - config.most, 0)
        if not outside:
            return 1.0
        return max(0.0, 1 - outside / (config.slack + 1))


class Format:
    """See :class:`~tokenmill.config.rewards.FormatReward`."""

    def __init__(self, config: FormatReward) -> None:
        if odd := [tag for tag in config.tags if not re.fullmatch(r"[\w-]+", tag)]:
            raise ConfigError(f"reward format: {odd[0]!r} is no tag's name; give letters, as in tags: [think, answer]")
        self.tags, self.name = config.tags, config.name or config.kind

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(self._score, samples)

    def _score(self, sample: Sample) -> Outcome:
        rest, whole = sample.completion.strip(), True
        for tag in self.tags:
            begin, end = f"<{tag}>", f"</{tag}>"
            whole = whole and rest.startswith(begin) and end in rest
            rest = rest.partition(end)[2].lstrip() if whole else rest
        text = sample.completion
        once = [text.count(f"<{tag}>") == text.count(f"</{tag}>") == 1 for tag in self.tags]
        if whole and not rest and all(once):
            return 1.0
        return 0.5 * sum(once) / len(once)


def column(sample: Sample, name: str, reward: str) -> Any:
    """A value of the sample's row; ConfigError where its data has none."""
    if sample.row.get(name) is None:
        has = ", ".join(map(str, sample.row)) or "no other columns than the prompt"
        raise ConfigError(f"reward {reward}: row {sample.index} has no {name!r}; it has {has}")
    return sample.row[name]


def fenced(text: str, languages: Sequence[str]) -> str:
    """What stands in the last code fence of one of these languages; the text itself if there is none."""
    found = [body for language, body in _FENCE.findall(text) if language.lower() in languages]
    return str(found[-1]) if found else text
