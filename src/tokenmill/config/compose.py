"""A recipe by name or file, plus a person's overrides, as one checked `Recipe` that knows where each value came from.

    composed = compose("lora", ["model=smollm2:135m", "data=chats.jsonl", "adapter.rank=32"])
    composed.recipe.adapter.rank            # 32
    composed.origins["adapter.rank"]        # "override"

Values may also be given as Python's own (`compose("lora", values={"lr": 1e-4})`). Everything that is wrong is said in
one RecipeError: unknown keys with the nearest known one, wrong types, contradictions.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tokenmill.config.check import contradictions
from tokenmill.config.hydra_compose import compose_file, parse_override
from tokenmill.config.recipe import Recipe, Source
from tokenmill.config.rewards import KINDS as REWARDS
from tokenmill.core.errors import RecipeError, UnknownNameError, did_you_mean

EXCLUSIVE = (("steps", "epochs", "tokens"), ("accumulate", "batch_tokens"), ("model", "size"))
"""Keys that say the same in different words: an override of one takes the place of a recipe's other one."""

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
"""The recipes that come with tokenmill."""


@dataclass(frozen=True)
class Composed:
    """A checked recipe and, for the dotted key of every value, ``recipe``, ``override``, ``default`` or
    ``derived: formula``."""

    recipe: Recipe
    origins: dict[str, str] = field(default_factory=dict)

    def derived(self, values: Mapping[str, Any], reasons: Mapping[str, str]) -> Composed:
        """The same with `values` (by dotted key) filled in, each with its reason as origin; checked again."""
        tree = self.recipe.model_dump()
        for key, value in values.items():
            _put(tree, key, value)
        origins = self.origins | {key: f"derived: {reason}" for key, reason in reasons.items()}
        return Composed(_checked(tree, f"recipe {self.recipe.recipe}"), origins)


def recipe_names() -> list[str]:
    """The recipes that come with tokenmill."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_file(recipe: str | Path) -> Path:
    """The file of a recipe given by name or path; UnknownNameError names what there is."""
    shipped = RECIPES / f"{recipe}.yaml"
    path = Path(recipe)
    if isinstance(recipe, str) and recipe in recipe_names():
        return shipped
    if path.is_file():
        if path.suffix not in (".yaml", ".yml"):
            raise RecipeError(f"{path}: a recipe is a .yaml file")
        return path
    near = did_you_mean(str(recipe), recipe_names())
    known = ", ".join(recipe_names())
    raise UnknownNameError(f"no recipe {str(recipe)!r}{near}; give a .yaml file or one of: {known}")


def compose(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, values: Mapping[str, Any] | None = None
) -> Composed:
    """The recipe with everything set, and the origins.

    Args:
        recipe: a name, a ``.yaml`` file (its ``defaults`` may name others) or a mapping.
        overrides: ``key=value`` in Hydra's grammar, nested keys with dots.
        values: the same as Python values; nested ones as mappings or with dotted keys.

    Raises:
        NotFoundError: no such recipe. UsageError: an override that cannot be read. RecipeError: all else.
    """
    if isinstance(recipe, Mapping):
        tree, name, source = _merged({}, recipe), "custom", "the recipe"
    else:
        file = recipe_file(recipe)
        tree, name, source = _merged({}, compose_file(file, RECIPES)), file.stem, f"recipe {file.stem}"
    tree.setdefault("recipe", name)
    origins = dict.fromkeys(_leaves(tree), "recipe")
    given = {key: value for name, part in (values or {}).items() for key, value in _flat(name, part)}
    for text in overrides:
        override = parse_override(text)
        given |= _flat(override.key_or_group, override.value())
    for group in EXCLUSIVE:
        if any(given.get(key) is not None for key in group):
            tree = {key: value for key, value in tree.items() if key not in group}
            origins = {key: origin for key, origin in origins.items() if key not in group}
    for key, value in given.items():
        _put(tree, key, value, shorthand=True)
        origins[_shorthand(key, value)] = "override"
    checked = _checked(tree, source)
    return Composed(checked, {key: origins.get(key, "default") for key in _leaves(checked.model_dump())})


def _merged(into: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        _put(into, str(key), value, shorthand=True)
    return into


def _put(tree: dict[str, Any], key: str, value: Any, *, shorthand: bool = False) -> None:
    """Set a dotted key; a mapping is merged into what stands there."""
    *parents, last = (_shorthand(key, value) if shorthand else key).split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    if isinstance(value, Mapping):
        if not isinstance(tree.get(last), dict):
            tree[last] = {}
        for name, item in value.items():
            _put(tree[last], str(name), item)
    else:
        tree[last] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of everything that is no mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A mapping by its dotted keys."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    else:
        yield key, value


def _shorthand(key: str, value: Any) -> str:
    """``data=FILE`` and ``data=[a, b]`` mean ``data.path``, and leave the rest as it is; ``tools`` likewise."""
    short = {"data": "data.path", "tools": "tools.use"}
    return short[key] if key in short and isinstance(value, str | list) else key


# --- checking


def _checked(tree: Mapping[str, Any], source: str) -> Recipe:
    """The recipe of these values. Contradictions are looked for among what is right in itself, so that a wrong type
    does not hide them."""
    problems: list[str] = []
    wrong: set[str] = set()
    try:
        recipe = Recipe.model_validate(dict(tree))
    except ValidationError as error:
        found, meant = _said(error)
        problems, wrong = list(found.values()), set(found) | meant
        recipe = Recipe.model_validate(_without(tree, wrong))
    problems += [text for keys, text in contradictions(recipe) if not wrong & set(keys)]
    if problems:
        several = f"{len(problems)} problems:\n  " if len(problems) > 1 else ""
        raise RecipeError(f"{source}: {several}" + "\n  ".join(problems))
    return recipe


def _without(tree: Mapping[str, Any], wrong: set[str], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if f"{prefix}{key}" not in wrong:
            kept[key] = _without(value, wrong, f"{prefix}{key}.") if isinstance(value, Mapping) else value
    return kept


def _said(error: ValidationError) -> tuple[dict[str, str], set[str]]:
    """One line a wrong key, and the keys that unknown ones probably meant. Pydantic lists the members of a union one
    by one, of which the person has no use."""
    known = known_keys()
    said: dict[str, str] = {}
    meant: set[str] = set()
    for item in error.errors():
        words = [str(word) for word in item["loc"]]
        if words[0] == "rewards" and len(words) > 1:
            said["rewards"] = "\n  ".join(filter(None, [said.get("rewards"), _said_of_reward(words, item)]))
            continue
        paths = [".".join(words[:n]) for n in range(len(words), 0, -1)]
        key = next((path for path in paths if path in known), paths[0])
        if item["type"] == "extra_forbidden":
            unknown = paths[0] if len(words) == 1 or paths[1] in known else f"{key}[…].{words[-1]}"
            near = _nearest(unknown, known if "[" not in unknown else Source.model_fields)
            meant.add(near)
            said[paths[0] if unknown == paths[0] else key] = f"{unknown}: no such key" + (
                f" (did you mean {near!r}?)" if near else ""
            )
        elif options := _options(known.get(key)):
            near = did_you_mean(str(item["input"]), map(str, options))
            said[key] = f"{key}: {item['input']!r} is not one of {', '.join(map(str, options))}{near}"
        elif key not in said:
            wanted = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            said[key] = f"{key}: {item['input']!r} {wanted}"
    return said, meant


def _said_of_reward(words: Sequence[str], item: Any) -> str:
    """What is wrong with one member of ``rewards``, whose keys follow from its kind."""
    place, given = f"rewards[{words[1]}]", item["input"]
    if len(words) == 2:
        kind = given.get("kind") if isinstance(given, dict) else given
        wrong = "has no kind" if kind is None else f"{kind!r} is no kind of reward{did_you_mean(str(kind), REWARDS)}"
        return f"{place}: {wrong}; there are {', '.join(REWARDS)}"
    key = words[-1]
    if item["type"] == "extra_forbidden":
        return f"{place}: {words[2]} has no key {key}{did_you_mean(key, REWARDS[words[2]].model_fields)}"
    if item["type"] == "missing":
        return f"{place}: {words[2]} needs {key}"
    return f"{place}: {words[2]}.{key}: {given!r} {item['msg'].removeprefix('Input ')}"


def _nearest(key: str, known: Collection[str]) -> str:
    """The known key that was probably meant: the same word in a part of the recipe, or a similar one; or nothing."""
    word = key.rpartition(".")[2]
    inside = [name for name in known if name.rpartition(".")[2] == word]
    return (inside or difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(word, known) or [""])[0]


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a recipe and its type."""
    keys: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        keys[f"{prefix}{name}"] = info.annotation
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys |= known_keys(part, f"{prefix}{name}.")
    return keys


def _options(kind: Any) -> tuple[Any, ...]:
    """The words that a key may be; empty where it takes anything else too."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return _options(parts[0]) if len(parts) == 1 else ()
    if get_origin(kind) is list:
        return _options(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) is Literal else ()
