"""Hydra's part of a recipe: a YAML file with its ``defaults`` put together, overrides read in Hydra's grammar.

Hydra keeps its state in singletons. Here it is borrowed: one composition at a time, in a process whose own Hydra (a
program that itself was started by Hydra calls us) finds everything as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenmill.core.errors import RecipeError, UsageError

_LOCK = threading.Lock()


@contextmanager
def _borrowed_hydra(folder: Path) -> Iterator[None]:
    from hydra import initialize_config_dir, version
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    resolvers = ("hydra", "now", "python_version")
    with _LOCK:
        theirs, base = GlobalHydra.instance().hydra, version.VersionBase.instance().version_base
        ours = [name for name in resolvers if not OmegaConf.has_resolver(name)]
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(folder), job_name="tokenmill", version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = theirs
            version.VersionBase.instance().version_base = base
            for name in ours:
                OmegaConf.clear_resolver(name)


def compose_file(file: Path, shipped: Path) -> dict[str, Any]:
    """The plain values of a recipe file. Its ``defaults`` name files beside it, or recipes in the folder `shipped`.

    Raises:
        RecipeError: broken YAML, a missing default, an interpolation that leads nowhere.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with _borrowed_hydra(file.parent.resolve()):
            # single quotes: a folder's name may hold what the grammar means something by
            path = str(shipped).replace("'", "\\'")
            config = compose(file.stem, overrides=[f"hydra.searchpath=['file://{path}']"])
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: {_first_lines(error)}") from error
    if not isinstance(plain, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of keys to values, not a {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:4] if line.strip())


def parse_override(text: str, *, sweep: bool = False) -> Any:
    """Hydra's ``Override`` of one ``key=value``; UsageError if it is none, or sweeps where `sweep` is False.

    A value that names a file is taken as it stands, whatever characters the name has.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r} is not key=value")
    if not sweep and value and len(value) < 4096 and Path(value).exists():
        text = f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UsageError(
            f"{text!r} cannot be read: {_first_lines(error)}; put quotes around a value with special "
            f"characters: \"{key}='…'\""
        ) from error
    if override.package is not None or override.key_or_group.startswith("hydra"):
        raise UsageError(f"{text!r}: Hydra's own settings and packages have no meaning here, only a recipe's keys")
    if override.is_delete():
        raise UsageError(f"{text!r}: nothing of a recipe can be deleted; set it to null")
    if override.is_sweep_override() and not sweep:
        raise UsageError(f"{text!r} has several values; give it with --sweep, or as a list: {key}=[{value}]")
    return override
