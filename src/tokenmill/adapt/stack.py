"""Adapters as ``run --adapter`` and a Modelfile want them: one after the other, folded in where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmill.adapt.folder import load_adapter
from tokenmill.adapt.merge import UNMERGEABLE, merge_adapter
from tokenmill.adapt.peft_config import read_config
from tokenmill.adapt.places import switch_of
from tokenmill.models import Model


def stack_adapters(model: Model, paths: Sequence[Path]) -> None:
    """Put adapters on a model for good, each over what those before it made of the weights.

    Those that cannot be folded (prompts, prefixes, bottlenecks) stay beside the weights and are on together. Raises
    what :func:`load_adapter` raises, and UsageError for two prompts or prefixes.
    """
    beside = []
    for path in paths:
        if path.is_dir() and read_config(path).config.kind in UNMERGEABLE:
            beside.append(path)
        else:
            load_adapter(model, path)
            merge_adapter(model)
    names = [str(number) for number in range(len(beside))]
    for name, path in zip(names, beside, strict=True):
        load_adapter(model, path, name)
    switch_of(model).set_default(*names)
