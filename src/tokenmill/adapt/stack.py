"""Adapters as ``run --adapter``, a Modelfile and ``merge`` want them: folded in where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmill.adapt.folder import load_adapter
from tokenmill.adapt.merge import UNMERGEABLE, merge_adapter, unmergeable
from tokenmill.adapt.peft_config import read_config
from tokenmill.adapt.places import switch_of
from tokenmill.models import Model


def stack_adapters(model: Model, paths: Sequence[Path]) -> None:
    """Put adapters on a model for good; changes of weights are folded in, and add up as PEFT adds them.

    An IA3 adapter scales what those before it made of the weights. What cannot be folded (prompts, prefixes,
    bottlenecks) stays beside the weights. The base is to be as :func:`read_note` says. Raises what
    :func:`load_adapter` raises, and UsageError for two prompts or prefixes.
    """
    beside, waiting = [], 0
    for path in paths:
        kind = read_config(path).config.kind if path.is_dir() else "lora"
        if kind in UNMERGEABLE:
            beside.append(path)
            continue
        if kind == "ia3":
            _fold(model, waiting)
            waiting = 0
        load_adapter(model, path, str(waiting))
        waiting += 1
        if kind == "ia3":
            _fold(model, waiting)
            waiting = 0
    _fold(model, waiting)
    names = [str(number) for number in range(len(beside))]
    for name, path in zip(names, beside, strict=True):
        load_adapter(model, path, name)
    switch_of(model).set_default(*names)


def _fold(model: Model, count: int) -> None:
    if count:
        switch_of(model).set_default(*map(str, range(count)))
        merge_adapter(model)


def check_kinds(paths: Sequence[Path]) -> None:
    """ConfigError with the reason where one of these adapters can never be merged; no model is needed to say so."""
    for path in paths:
        kind = read_config(path).config.kind if path.is_dir() else "lora"
        if kind in UNMERGEABLE:
            raise unmergeable(str(path), kind)
