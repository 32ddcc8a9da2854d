"""A curation recipe: where raw text comes from, what is done to it, where it goes.

    recipe = read_recipe("web", ["input=raw/", "output=curated", "steps.gopher.min_words=20"])

As with training recipes: a name or a ``.yaml`` file, overrides in Hydra's grammar, and everything that is wrong said in
one RecipeError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tokenmill.config.compose import RECIPES
from tokenmill.config.hydra_compose import compose_file, parse_override
from tokenmill.config.parts import Count, Part
from tokenmill.core.errors import ConfigError, RecipeError, UnknownNameError, did_you_mean
from tokenmill.data.curate.steps import entry

SHIPPED = RECIPES / "data"
"""The curation recipes that come with tokenmill."""

Kind = Literal["jsonl", "json", "parquet", "arrow", "text", "html", "warc"]


class Input(Part):
    """What is read."""

    path: Annotated[str | list[str] | dict[str, str], Field(min_length=1)]
    """A file, a folder (with all folders in it), a pattern, or several, which may have names (``{web: raw/, books:
    b.jsonl}``): these stand before the ids of their documents, and `mix` goes by them. ``input=PATH`` means this."""
    format: Literal["auto"] | Kind = "auto"
    """What the files are; ``auto`` goes by their names (``.jsonl .json .parquet .arrow .txt .md .rst .html .warc`` and
    kin, also with ``.gz .zst .bz2 .xz``) and leaves out, counted, what it does not know."""
    text_field: str = "text"
    """The column of tables that holds the text. Rows without it are taken if they are a conversation, a prompt with its
    completion or the like. A column ``text`` beside another one chosen here is written as ``other_text``."""
    text_as: Literal["file", "paragraphs", "lines"] = "file"
    """What one document of a plain text file is."""
    max_mb: Count = 16
    """Documents (and lines of JSON) longer than this go to the quarantine."""


class Output(Part):
    """What is written."""

    path: Annotated[str, Field(min_length=1)]
    """The folder. ``output=FOLDER`` means this."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """What the files are. In Parquet a column whose values are of several kinds becomes JSON text."""
    compression: Literal["none", "gz", "zst"] = "zst"
    """Of JSONL; Parquet has its own."""


class StepChoice(Part):
    """One step of a recipe, its options checked."""

    name: str
    options: dict[str, Any]
    """All of them, defaults included."""


class CurateRecipe(Part):
    """All of a curation recipe."""

    input: Input
    output: Output
    steps: list[StepChoice]
    """In order, each a name or ``{name: {option: value}}``."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything random: hashes, samples, what is mixed and split."""
    workers: Count | None = None
    """Processes; without it one for each core. The result does not depend on it."""
    runner: Literal["local", "ray"] = "local"
    """``ray``: spread over the machines of a Ray cluster (``RAY_ADDRESS``), which share the folders."""
    shard_mb: Annotated[int, Field(ge=1, le=256)] = 32
    """Text that one process holds at a time. It shapes the output's files."""

    def content(self) -> dict[str, Any]:
        """What the result depends on: everything but how the work is spread and where it goes."""
        plain = self.model_dump(exclude={"workers", "runner"})
        del plain["output"]["path"]
        return plain


def recipe_names() -> list[str]:
    """The recipes that come with tokenmill."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def read_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> CurateRecipe:
    """The checked recipe.

    Args:
        recipe: a shipped name, a ``.yaml`` file or a mapping.
        overrides: ``key=value``; ``steps.NAME.OPTION=value`` sets an option of the step of that name.

    Raises:
        NotFoundError: no such recipe. UsageError: an override that cannot be read. RecipeError: all else.
    """
    if isinstance(recipe, Mapping):
        tree, source = dict(recipe), "the recipe"
    else:
        tree, source = compose_file(_file(recipe), SHIPPED), f"recipe {Path(recipe).stem}"
    problems: list[str] = []
    steps = list(_steps(tree.pop("steps", []), problems))
    for name in ("input", "output"):
        tree[name] = _part(tree.get(name, {}))
    for text in overrides:
        override = parse_override(text)
        _override(tree, steps, override.key_or_group, override.value(), problems)
    choices = [choice for name, options in steps if (choice := _choice(name, options, problems)) is not None]
    try:
        # the steps are checked above, each against its own class
        checked = CurateRecipe.model_validate(tree | {"steps": choices})
    except ValidationError as error:
        problems += _said(error, CurateRecipe)
    if problems:
        several = f"{len(problems)} problems:\n  " if len(problems) > 1 else ""
        raise RecipeError(f"{source}: {several}" + "\n  ".join(problems))
    return checked


def _file(recipe: str | Path) -> Path:
    if isinstance(recipe, str) and recipe in recipe_names():
        return SHIPPED / f"{recipe}.yaml"
    path = Path(recipe)
    if path.is_file():
        if path.suffix not in (".yaml", ".yml"):
            raise RecipeError(f"{path}: a recipe is a .yaml file")
        return path
    names = recipe_names()
    near = did_you_mean(str(recipe), names)
    raise UnknownNameError(f"no curation recipe {str(recipe)!r}{near}; give a .yaml file or one of: {', '.join(names)}")


def _part(value: Any) -> Any:
    """``input: raw/`` means ``input: {path: raw/}``."""
    return {"path": value} if isinstance(value, str | list) else value


def _steps(given: Any, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Name and options of each step as written."""
    if not isinstance(given, list):
        problems.append(f"steps: {given!r} is not a list of steps")
        return
    for item in given:
        if isinstance(item, str):
            yield item, {}
        elif isinstance(item, Mapping) and len(item) == 1:
            ((name, options),) = item.items()
            yield str(name), dict(options) if isinstance(options, Mapping) else ({} if options is None else options)
        else:
            problems.append(f"steps: {item!r} is neither a step's name nor one name with its options")


def _override(tree: dict[str, Any], steps: list[tuple[str, Any]], key: str, value: Any, problems: list[str]) -> None:
    first, _, rest = key.partition(".")
    if first == "steps" and rest:
        name, _, option = rest.partition(".")
        meant = [options for step, options in steps if step == name]
        if not meant:
            near = did_you_mean(name, [step for step, _ in steps])
            problems.append(f"{key}: the recipe has no step {name!r}{near}")
        for options in meant:
            if option and isinstance(options, dict):
                options[option] = value
            else:
                problems.append(f"{key}: name one option, as steps.{name}.OPTION=value")
    elif first == "steps":
        steps[:] = _steps(value, problems)
    elif rest and isinstance(tree.get(first), dict):
        tree[first][rest] = value
    elif first in ("input", "output") and not rest and not isinstance(value, Mapping):
        tree[first] = {**(tree[first] if isinstance(tree[first], dict) else {}), "path": value}
    else:
        tree[key] = value


def _choice(name: str, options: Any, problems: list[str]) -> StepChoice | None:
    try:
        checked = entry(name).options_class().model_validate(options)
    except ConfigError as error:
        problems.append(f"steps: {error}")
    except ValidationError as error:
        problems += _said(error, entry(name).options_class(), f"steps.{name}.")
    else:
        return StepChoice(name=name, options=checked.model_dump())
    return None


def _said(error: ValidationError, model: type[Part], prefix: str = "") -> Iterator[str]:
    """One line a wrong key; pydantic lists the members of a union one by one, of which the person has no use."""
    seen: set[str] = set()
    for item in error.errors():
        names: list[str] = []
        fields: Any = model.model_fields
        for word in map(str, item["loc"]):
            names.append(word)
            if word not in fields:
                break
            kind = fields[word].annotation
            fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Part) else {}
            if not fields:
                break
        key = prefix + ".".join(names)
        if key in seen:
            continue
        seen.add(key)
        if item["type"] == "extra_forbidden":
            yield f"{key}: no such key{did_you_mean(names[-1], fields)}"
        elif item["type"] == "missing":
            yield f"{key}: has to be given" + (f" ({key.partition('.')[0]}=…)" if key.endswith(".path") else "")
        else:
            yield f"{key}: {item['input']!r}: {item['msg'].removeprefix('Value error, ').removeprefix('Input ')}"
