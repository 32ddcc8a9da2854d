"""The teacher of a distillation: asked in every step, or once for lists of its likeliest tokens, kept on disk.

A teacher that is asked scores a few hundred tokens at a time, as the loss takes them; its scores are never held at
once. Lists (``distill.top_k``) lie mapped in ``TOKENMILL_HOME/cache/teacher``, named by everything they follow from:
the samples, the teacher's files, temperature, length and the numbers computed in; of a teacher behind a server, its
address and name. Refused: a teacher whose tokenizer
has another string behind any id, or cuts a text in another way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill.core.device import pick_device, pick_dtype
from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import atomic_write, home
from tokenmill.data.batch import Batch
from tokenmill.data.dataset import Dataset
from tokenmill.data.taught import RECORD
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.ops import cross_entropy
from tokenmill.ops.distillation import Taught
from tokenmill.store import Store
from tokenmill.text.same import differences
from tokenmill.train.distributed import World
from tokenmill.train.plan import Plan
from tokenmill.train.reference import drop_old, groups_of_samples, model_files
from tokenmill.train.remote_teacher import RemoteTeacher

_VERSION = 1  # raise it when the same settings give other numbers


class Teacher:
    """A frozen model that says what it would say next.

    ``width``: of its scores, those that stand for tokens; what lies behind is padding of the table.
    """

    def __init__(self, network: Decoder, width: int) -> None:
        self.network, self.width = network, width

    @torch.no_grad()
    def lesson(self, batch: Batch, layers: Sequence[int] = ()) -> Lesson:
        """One forward pass over a batch; ``layers``: those whose hidden states are wanted too."""
        with states_of(self.network, layers) as states:
            hidden_TC = self.network.hidden(batch.tokens_T, Packed(batch.lengths, batch.tokens_T.device))
        return Lesson(self, hidden_TC, states)


@dataclass(frozen=True)
class Lesson:
    """What a teacher makes of one batch."""

    teacher: Teacher
    hidden_TC: Tensor
    states: list[Tensor]
    """Hidden states [T, C] behind the layers that were asked for."""

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Taught:
        """Its scores for these tokens, [R, W]."""
        return Taught(self.teacher.network.logits(self.hidden_TC[rows])[:, : self.teacher.width])


@contextmanager
def states_of(network: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Inside, a forward pass leaves the hidden states behind these layers in the list, in the order of the layers."""
    states: list[Tensor] = []
    blocks: Any = network.layers
    handles = [blocks[i].register_forward_hook(lambda block, given, out: states.append(out)) for i in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def load_teacher(plan: Plan, store: Store | None = None) -> Teacher:
    """The teacher of a plan, in the numbers that the run computes in. ConfigError: its tokenizer is another one."""
    recipe = plan.recipe
    name = recipe.distill.teacher
    assert name is not None
    odd = differences(load_tokenizer(name, store=store), plan.tokenizer)
    if odd:
        student = recipe.model or "the new model"
        raise ConfigError(f"distill.teacher={name} has another tokenizer than {student}, so what it says of a token "
                          "means nothing to the student: " + "; ".join(odd))  # fmt: skip
    device = pick_device(recipe.device)
    network = load_model(name, device=device, dtype=pick_dtype(recipe.dtype, device, None, 0), store=store).decoder
    if recipe.seq_len is not None and recipe.seq_len > network.config.max_position:
        raise ConfigError(f"seq_len={recipe.seq_len} is beyond the {network.config.max_position} positions of {name}")
    assert plan.decoder is not None
    width = min(network.config.vocab_size, plan.decoder.vocab_size, plan.tokenizer.vocab_size)
    if recipe.distill.top_k > width:
        raise ConfigError(f"distill.top_k={recipe.distill.top_k} is more than the {width:,} tokens there are")
    return Teacher(network, width)


Likeliest = Callable[[Batch], Iterator[tuple[slice, tuple[Tensor, Tensor]]]]
"""Some tokens of a batch at a time: ids and log-probabilities [R, K] of what a teacher thinks likeliest to follow."""


@dataclass(frozen=True)
class Lists:
    """Records [A, K] of all tokens of the data sets, see :class:`tokenmill.data.taught.CollateTaught`."""

    train: np.ndarray
    eval: np.ndarray | None
    told: str
    """Where they come from, for the person."""


def lists(plan: Plan, world: World, store: Store | None = None) -> Lists | None:
    """The teacher's lists for a plan; None where it is asked in every step. ConfigError as :func:`load_teacher`."""
    recipe = plan.recipe
    if recipe.objective != "distill" or not recipe.distill.top_k or recipe.distill.lmbda == 1:
        return None
    ask: Likeliest | None = None
    found: list[np.ndarray | None] = []
    computed = 0
    for dataset in (plan.splits.train, plan.splits.eval):
        if dataset is None:
            found.append(None)
            continue
        path = _path(plan, dataset, store)
        shape = (dataset.num_tokens, recipe.distill.top_k)
        lists_AK = _read(path, shape)
        if world.sum([float(lists_AK is not None)])[0] < world.size:  # all processes share the work, or none works
            ask = ask or _likeliest_of(plan, store)
            computed += dataset.num_tokens
            lists_AK = _computed(ask, dataset, plan, world, path)
        found.append(lists_AK)
    assert found[0] is not None
    how = "from the cache" if not computed else f"{computed:,} tokens computed"
    told = f"the {recipe.distill.top_k} likeliest tokens of {recipe.distill.teacher} at every place: {how}"
    return Lists(found[0], found[1], told)


def _likeliest_of(plan: Plan, store: Store | None) -> Likeliest:
    """Whom to ask for lists: the server, or a model that is loaded."""
    config = plan.recipe.distill
    if config.url is not None:
        remote = RemoteTeacher(config, plan.tokenizer)
        remote.check((plan.splits.train, plan.splits.eval))
        return remote.likeliest
    teacher = load_teacher(plan, store)
    return lambda batch: _likeliest(teacher, batch.to(teacher.network.device), config.top_k, config.temperature)


def _computed(ask: Likeliest, dataset: Dataset, plan: Plan, world: World, path: Path) -> np.ndarray:
    """Ask the teacher once for every token, write the lists, and map them."""
    lists_AK = np.zeros((dataset.num_tokens, plan.recipe.distill.top_k), RECORD)
    ends = np.cumsum(dataset.lengths)
    for indices in groups_of_samples(dataset.lengths)[world.rank :: world.size]:
        batch = Batch.of([dataset[i] for i in indices])
        rows = np.concatenate([np.arange(ends[i] - dataset.lengths[i], ends[i]) for i in indices])
        for here, (ids_RK, logprobs_RK) in ask(batch):
            lists_AK["id"][rows[here]] = ids_RK.cpu().numpy()
            lists_AK["logprob"][rows[here]] = logprobs_RK.float().cpu().numpy()
    if world.size > 1:  # each process has filled its own tokens, the others are zero
        parts = [
            torch.from_numpy(np.ascontiguousarray(lists_AK[name]).astype(np.float32)) for name in ("id", "logprob")
        ]
        world.sum_tensors(parts)
        for name, part in zip(("id", "logprob"), parts, strict=True):
            lists_AK[name] = part.numpy()
    if world.rank == 0:
        with atomic_write(path) as file:
            np.save(file, lists_AK, allow_pickle=False)
        drop_old(path.parent)
    world.wait()
    mapped = _read(path, lists_AK.shape)
    return lists_AK if mapped is None else mapped


@torch.no_grad()
def _likeliest(
    teacher: Teacher, batch: Batch, count: int, temperature: float
) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Some tokens of a batch at a time: ids and log-probabilities [R, K]."""
    lesson = teacher.lesson(batch)
    total = len(batch.tokens_T)
    for here in cross_entropy.chunks(total, cross_entropy.CHUNK_VALUES // teacher.width):
        scores_RW = lesson(torch.arange(here.start, here.stop, device=batch.tokens_T.device)).values.float()
        logprobs_RK, ids_RK = torch.log_softmax(scores_RW / temperature, -1).topk(count)
        yield here, (ids_RK, logprobs_RK)


def _path(plan: Plan, dataset: Dataset, store: Store | None) -> Path:
    """Where the lists of a data set lie: the name says everything that they follow from."""
    recipe = plan.recipe
    assert recipe.distill.teacher is not None
    device = pick_device(recipe.device)
    said = {
        "version": _VERSION,
        "files": model_files(recipe.distill.teacher, store)
        if recipe.distill.url is None
        else [recipe.distill.url, recipe.distill.teacher],
        "samples": dataset.fingerprint,
        "top_k": recipe.distill.top_k,
        "temperature": recipe.distill.temperature,
        "dtype": str(pick_dtype(recipe.dtype, device, None, 0)),
        "device": device.type,
    }
    name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    return home() / "cache" / "teacher" / f"{name}.npy"


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What an earlier run wrote; None where there is nothing, or nothing whole."""
    if not path.is_file():
        return None
    try:
        lists_AK: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    path.touch()
    return lists_AK if lists_AK.shape == shape and lists_AK.dtype == RECORD else None
