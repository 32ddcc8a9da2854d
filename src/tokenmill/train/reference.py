"""Log-probabilities of the data under the reference model, computed once, before the first step, and kept on disk.

The reference is the policy as it begins: with its adapters switched off, so that no second copy of the weights exists;
without an adapter the very weights, before they are trained. Or it is another model, which is let go afterwards. What
is on disk (``TOKENMILL_HOME/cache/reference``) is named by everything that it follows from: the samples (and so the
files, the tokenizer, its chat template and the row length), the model's files, and the numbers it computes in.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenmill.adapt import switch_of
from tokenmill.config.recipe import REFERENCED, Recipe
from tokenmill.core.device import pick_device, pick_dtype
from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import atomic_write, home
from tokenmill.data.compared import CollateCompared, Compared
from tokenmill.data.prepare import KEEP_DAYS
from tokenmill.models import load_model, load_tokenizer
from tokenmill.models.load import Model
from tokenmill.store import Store
from tokenmill.text.same import differences
from tokenmill.train.distributed import World
from tokenmill.train.objectives.logprobs import answer_logprobs
from tokenmill.train.plan import Plan

_VERSION = 1  # raise it when the same settings give other numbers
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class References:
    """Log-probabilities of both documents of every sample, float32 [N, 2]."""

    train: np.ndarray
    eval: np.ndarray | None
    told: str
    """Whose they are and where they come from, for the person."""


def references(plan: Plan, model: Model, world: World, store: Store | None = None) -> References | None:
    """The reference's log-probabilities for a plan; None where its objective has no reference.

    To be called before the model is trained. ConfigError: the reference model has another tokenizer.
    """
    recipe = plan.recipe
    if recipe.objective not in REFERENCED:
        return None
    name = recipe.preference.reference or recipe.model
    assert name is not None
    identity = _identity(recipe, name, model, store)
    reference = _Reference(plan, model, world, store)
    found: list[np.ndarray | None] = []
    computed = 0
    for dataset in (plan.splits.train, plan.splits.eval):
        if dataset is None:
            found.append(None)
            continue
        assert isinstance(dataset, Compared)
        path = _path(identity, dataset) if recipe.data.cache else None
        values_N2 = _read(path, len(dataset))
        here = float(values_N2 is not None)
        if world.sum([here])[0] < world.size:  # all processes share the work, or none works
            values_N2 = reference.logprobs(dataset)
            computed += len(dataset)
            if path is not None and world.rank == 0:
                _write(path, values_N2)
        found.append(values_N2)
    assert found[0] is not None
    whose = name if recipe.preference.reference else f"{name} as it begins"
    how = "from the cache" if not computed else f"{computed:,} samples computed"
    return References(found[0], found[1], f"log-probabilities of the reference ({whose}): {how}")


class _Reference:
    """Runs the reference model; another one than the policy is loaded when it is first needed."""

    def __init__(self, plan: Plan, model: Model, world: World, store: Store | None) -> None:
        self.plan, self.policy, self.world, self.store = plan, model, world, store
        self._other: Model | None = None

    @property
    def model(self) -> Model:
        recipe = self.plan.recipe
        if recipe.preference.reference is None:
            return self.policy
        if self._other is None:
            name = recipe.preference.reference
            theirs = load_tokenizer(name, store=self.store)
            if odd := differences(theirs, self.plan.tokenizer):
                raise ConfigError(f"preference.reference={name} has another tokenizer than {recipe.model}: their "
                                  "log-probabilities cannot be compared: " + "; ".join(odd))  # fmt: skip
            device = pick_device(recipe.device)
            dtype = pick_dtype(recipe.dtype, device, None, 0)
            self._other = load_model(name, device=device, dtype=dtype, store=self.store)
        return self._other

    @torch.no_grad()
    def logprobs(self, dataset: Compared) -> np.ndarray:
        """[N, 2], each process computing its share."""
        model, collate = self.model, CollateCompared()
        network = model.decoder
        values_N2 = torch.zeros(len(dataset), 2)
        training = network.training
        network.eval()
        try:
            with switch_of(model).off():
                for indices in groups_of_samples(dataset.lengths)[self.world.rank :: self.world.size]:
                    batch = collate([dataset[i] for i in indices], 0).to(network.device)
                    values_N2[indices] = answer_logprobs(network, batch).view(-1, 2).float().cpu()
        finally:
            network.train(training)
        self.world.sum_tensors([values_N2])
        return values_N2.numpy()


def groups_of_samples(lengths: np.ndarray) -> list[list[int]]:
    """Samples that go through a model together, of like lengths."""
    groups: list[list[int]] = []
    size = TOKENS_AT_ONCE + 1
    for index in np.argsort(lengths, kind="stable").tolist():
        length = int(lengths[index])
        if size + length > TOKENS_AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += length
    return groups


# --- on disk


def _identity(recipe: Recipe, name: str, model: Model, store: Store | None) -> dict[str, Any]:
    """Everything beside the data that the numbers follow from."""
    own = recipe.preference.reference is None
    return {
        "version": _VERSION,
        "files": model_files(name, store),
        "quantize": [recipe.quantize, recipe.double_quant] if own and recipe.quantize is not None else None,
        "dtype": str(model.network.dtype),
        "device": model.network.device.type,
        "vocabulary": model.network.config.vocab_size if own else None,
    }


def model_files(name: str, store: Store | None) -> list[list[Any]]:
    """Name, size and time of change of a model's files: what numbers that were computed with them are named by."""
    path = (store or Store()).resolve(name, pull=True).path
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


def _path(identity: dict[str, Any], dataset: Compared) -> Path:
    said = json.dumps({**identity, "samples": dataset.fingerprint}, sort_keys=True)
    return home() / "cache" / "reference" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"


def _read(path: Path | None, count: int) -> np.ndarray | None:
    """What an earlier run wrote; None where there is nothing, or nothing whole."""
    if path is None or not path.is_file():
        return None
    try:
        values_N2: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        return None
    path.touch()
    return values_N2 if values_N2.shape == (count, 2) else None


def _write(path: Path, values_N2: np.ndarray) -> None:
    """Keep them, and remove what no run has opened for a month."""
    with atomic_write(path) as file:
        np.save(file, values_N2, allow_pickle=False)
    drop_old(path.parent)


def drop_old(folder: Path) -> None:
    """Remove the arrays that no run has opened for a month."""
    for other in folder.glob("*.npy"):
        if time.time() - other.stat().st_mtime > KEEP_DAYS * 86400:
            other.unlink(missing_ok=True)
