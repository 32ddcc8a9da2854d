"""A run's ``config.yaml``: every value of the recipe as it was run, each with its origin behind it.

The file is a recipe itself, so that ``tokenmill train runs/latest/config.yaml`` does the same again. Origins stand in
comments; `read_run_config` reads them back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenmill.config.compose import Composed
from tokenmill.config.recipe import Recipe
from tokenmill.core.errors import FormatError, MissingFileError
from tokenmill.core.paths import atomic_write

NAME = "config.yaml"
_KEY = re.compile(r"( *)(\w+):")
_MARK = "  # "


def write_run_config(composed: Composed, folder: Path) -> Path:
    """Write ``config.yaml`` into a run folder."""
    path = folder / NAME
    with atomic_write(path) as file:
        file.write(run_config_text(composed).encode())
    return path


def run_config_text(composed: Composed) -> str:
    """The text of ``config.yaml``."""
    head = "# Every setting of this run and where it came from. This file is a recipe: it can be run again.\n"
    return head + "\n".join(_lines(composed.recipe.model_dump(), composed.origins)) + "\n"


def _lines(tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str = "", indent: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, origins, f"{prefix}{key}.", indent + "  ")
        else:
            # JSON is YAML, on one line, and keeps text from being taken for numbers or dates; 1e-05 needs its point
            said = re.sub(r"^(-?\d+)(e-?\d+)$", r"\1.0\2", json.dumps(value, ensure_ascii=False))
            origin = origins.get(f"{prefix}{key}", "default").replace(_MARK, " # ").replace("\n", " ")
            yield f"{indent}{key}: {said}{_MARK}{origin}"


def read_run_config(folder: Path) -> Composed:
    """The recipe and origins of a run folder, as they were written; FormatError if the file was spoilt."""
    import yaml

    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        recipe = Recipe.model_validate(tree)
    except (ValueError, yaml.YAMLError) as error:
        raise FormatError(path, "", str(error)) from error
    except FileNotFoundError as error:
        raise MissingFileError(f"{folder} is no run folder: it has no {NAME}") from error
    return Composed(recipe, dict(_origins(text)))


def _origins(text: str) -> Iterator[tuple[str, str]]:
    parents: list[str] = []
    for line in text.splitlines():
        match = _KEY.match(line)
        if match is not None:
            parents = [*parents[: len(match[1]) // 2], match[2]]
            _, mark, origin = line.rpartition(_MARK)
            if mark:
                yield ".".join(parents), origin
