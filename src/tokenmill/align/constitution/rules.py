"""A constitution and the prompts that it is tried on: YAML and JSONL files, checked; both are shipped, written for this
project.

A constitution holds principles (what a critic is asked, what a reviser is asked), examples that show a model how
critiques and revisions look, and patterns that tell a revised answer from one that still does what it should not.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from tokenmill.config.parts import Part
from tokenmill.core.errors import ConfigError, MissingFileError, did_you_mean
from tokenmill.data.files import Broken, find_files, read_rows

Said = Annotated[str, Field(min_length=1)]


class Principle(Part):
    """One rule, as two requests."""

    name: Said
    """Shown in reports; examples refer to it."""
    critique: Said
    """What the critic is asked of an answer."""
    revision: Said
    """What the reviser is asked, with the critique before it."""


class Example(Part):
    """A critique and a revision to learn the form from, before every question (few-shot)."""

    prompt: Said
    answer: Said
    critique: Said
    revision: Said
    principle: str | None = None
    """Only for this principle; None: for all."""


class Checks(Part):
    """Patterns (regular expressions, searched anywhere) that an answer is told by."""

    good: str | None = None
    """A revised answer has to match it; a first answer that does needs no revision."""
    bad: str | None = None
    """No revised answer may match it."""

    @field_validator("good", "bad")
    @classmethod
    def _is_an_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def accepts(self, text: str) -> bool:
        """Whether neither pattern speaks against the text."""
        return not (self.good and not re.search(self.good, text)) and not (self.bad and re.search(self.bad, text))

    def is_good(self, text: str) -> bool:
        """Whether the text is known to be good; never without a pattern."""
        return self.good is not None and self.accepts(text)


class Constitution(Part):
    """All of a file."""

    principles: Annotated[list[Principle], Field(min_length=1)]
    examples: list[Example] = Field(default_factory=list)
    stop: Annotated[list[Said], Field(max_length=4)] = Field(default_factory=list)
    """Texts that end a critique or a revision."""
    checks: Checks = Field(default_factory=Checks)

    @model_validator(mode="after")
    def _names_are_known(self) -> Constitution:
        names = [principle.name for principle in self.principles]
        if len(set(names)) < len(names):
            raise ValueError("two principles have the same name")
        for example in self.examples:
            if example.principle is not None and example.principle not in names:
                near = did_you_mean(example.principle, names)
                raise ValueError(f"an example is for the principle {example.principle!r}, which there is not{near}")
        return self

    def examples_for(self, principle: Principle) -> list[Example]:
        """The examples that go before questions about this principle."""
        return [one for one in self.examples if one.principle in (None, principle.name)]


class Prompt(Part):
    """What a model is asked."""

    prompt: Said
    refuse: bool = True
    """Whether the request should be declined (`eval tasks` reads the same key). Where not, the answer that helps is
    better than a revision that declines, so that training does not teach to decline everything."""


def read_constitution(path: Path | None) -> Constitution:
    """A constitution's file; None is the one that is shipped.

    Raises NotFoundError, ConfigError with every key that is wrong.
    """
    import yaml

    shipped = resources.files(__package__) / "default.yaml"
    if path is not None and not path.is_file():
        raise MissingFileError(f"no constitution at {path}; without one the shipped principles are used")
    text = (shipped if path is None else path).read_text(encoding="utf-8")
    try:
        return Constitution.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "\n  ".join(_problem(one) for one in error.errors())) from error


def read_prompts(path: str | None) -> list[Prompt]:
    """Prompts of a file (.jsonl, .parquet …: ``prompt``, and ``refuse`` where it is false); None is the shipped set.

    Raises ConfigError for the first row that is none.
    """
    found = []
    files = find_files(path) if path is not None else [Path(str(resources.files(__package__) / "red_team.jsonl"))]
    for file in files:
        for row in read_rows(file):
            try:
                if isinstance(row, Broken):
                    raise ConfigError(str(row))
                found.append(Prompt.model_validate({k: v for k, v in row.value.items() if k in Prompt.model_fields}))
            except ValidationError as error:
                raise ConfigError(f"{file}:{row.line}: " + _problem(error.errors()[0])) from error
    unique = list({one.prompt: one for one in found}.values())
    if not unique:
        raise ConfigError(f"{path}: there is no prompt")
    return unique


def _problem(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = {name for part in (Constitution, Principle, Example, Checks) for name in part.model_fields}
        return f"{where}: no such key{did_you_mean(str(error['loc'][-1]), known)}"
    said = "has to be given" if error["type"] == "missing" else error["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
