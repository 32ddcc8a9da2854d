"""A run from a recipe to a trained model in its folder; ``tokenmill.train`` and ``tokenmill train`` both come here."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenmill.adapt import adapt, learning_rates, merge_adapter, save_adapter
from tokenmill.config.compose import Composed, compose
from tokenmill.config.recipe import COMPARING, POLICY, Recipe
from tokenmill.config.run_config import read_run_config, write_run_config
from tokenmill.core.device import pick_device, pick_dtype
from tokenmill.core.errors import MissingFileError, UsageError
from tokenmill.data.compared import CollateCompared, Likelihood
from tokenmill.data.corrupt import CorruptSpans, MaskTokens
from tokenmill.data.loader import Collate, Loader
from tokenmill.data.prepare import Progress
from tokenmill.data.taught import RECORD, CollateTaught
from tokenmill.models import load_model
from tokenmill.models.generation import generation_config
from tokenmill.models.load import Model
from tokenmill.models.resize import grow_vocabulary
from tokenmill.models.scorer import add_score_head
from tokenmill.nn.scorer import Scorer
from tokenmill.quant.nf4 import quantize_linears
from tokenmill.store import Store
from tokenmill.train.checkpoint import Checkpoints
from tokenmill.train.distributed import World, world
from tokenmill.train.evaluate import Evaluation, evaluate
from tokenmill.train.feed import Feed, Feeds
from tokenmill.train.initialise import new_weights
from tokenmill.train.loop import Loop, Settings, Source
from tokenmill.train.objectives import Objective, build_objective
from tokenmill.train.objectives.distill import Distill, add_projections
from tokenmill.train.optim import build_optimizer
from tokenmill.train.plan import CAUSAL, Plan, plan_run
from tokenmill.train.qat import as_trained, round_layers
from tokenmill.train.reference import References, references
from tokenmill.train.schedules import Schedule
from tokenmill.train.signals import stop_on_signals
from tokenmill.train.teacher import Lists, Teacher, lists, load_teacher
from tokenmill.train.watch_protocol import Event, RunEnd, RunStart, Sample, StepMetrics, Watcher, Watchers

Samples = Callable[[Model, Plan], "Callable[[int], Iterable[Sample]] | None"]
"""What makes samples for a model and its plan (``evals.samples``; ``train`` may not import the engine)."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    folder: Path
    reason: str
    """``finished``, ``early stop`` or ``stopped``; what was stopped goes on with ``resume``."""
    step: int
    metrics: Mapping[str, float]
    model: Path | None
    """A Hugging Face folder or a PEFT adapter; None when the run was stopped."""


def train(
    recipe: str | Path | Mapping[str, Any] | Composed | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: Path | str | None = None,
    watchers: Sequence[Watcher] | None = None,
    samples: Samples | None = None,
    feeds: Feeds | None = None,
    planned: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    store: Store | None = None,
    **values: Any,
) -> RunResult:
    """Train by a recipe: its name, file or mapping, with ``key=value`` overrides or keyword arguments.

    ``resume``: the folder of a run to go on with, from its latest checkpoint, instead of a recipe; overrides then
    change it (more ``steps``, another ``schedule``). ``watchers``: None takes those that the recipe names, without
    progress bars. ``feeds``: what makes batches while training, for objectives that need it (``align.policy``).
    ``planned`` is told the plan before anything is trained, ``progress`` how far the data is read.
    SIGTERM and Ctrl-C save and return.

    Raises:
        ConfigError: the recipe, the model or the data is not as it must be; all problems in one message.
        TrainingError: the run cannot go on. NotFoundError: no such recipe, model, file or run.
    """
    if (recipe is None) == (resume is None):
        raise UsageError("give a recipe, or a run to resume")
    if resume is not None:
        folder = Path(resume).resolve()
        composed = _resumed(folder, overrides, values)
    else:
        assert recipe is not None
        folder = None
        composed = recipe if isinstance(recipe, Composed) else compose(recipe, overrides, values=values)
    with world(pick_device(composed.recipe.device)) as processes:
        plan = plan_run(composed, world_size=processes.size, store=store, progress=progress)
        if planned is not None:
            planned(plan)
        how: dict[str, Any] = {"watchers": watchers, "samples": samples, "feeds": feeds, "store": store}
        return run_plan(plan, resume=folder, processes=processes, **how)


def _resumed(folder: Path, overrides: Sequence[str], values: Mapping[str, Any]) -> Composed:
    """A run's own recipe with changes; what was trained before (a tokenizer) is taken from its folder."""
    if not (folder / "config.yaml").is_file():
        raise MissingFileError(f"{folder}: no run is here: there is no config.yaml")
    before = read_run_config(folder)
    tree = before.recipe.model_dump()
    if (folder / "tokenizer").is_dir():
        tree |= {"tokenizer": str(folder / "tokenizer"), "vocab_size": None}
    if overrides or values:
        return compose(tree, overrides, values=values)
    return Composed(Recipe.model_validate(tree), before.origins)


def run_plan(
    plan: Plan,
    *,
    resume: Path | None = None,
    watchers: Sequence[Watcher] | None = None,
    samples: Samples | None = None,
    feeds: Feeds | None = None,
    store: Store | None = None,
    processes: World | None = None,
) -> RunResult:
    """Train what was planned; ``resume``: in this folder, from its latest checkpoint."""
    recipe, processes = plan.recipe, processes or World()
    if watchers is None:
        from tokenmill.train.watch.watchers import watchers as watchers_of

        watchers = watchers_of(recipe, screen=False)
    watcher = Watchers(*(watchers if processes.rank == 0 else []))
    folder = Path(processes.same_text(str(resume or _new_folder(recipe))))
    with ExitStack() as stack:
        stack.enter_context(_deterministic(recipe))
        stop = stack.enter_context(stop_on_signals())
        model = build_model(plan, store)
        # before a checkpoint is loaded: the policy as it begins
        known = references(plan, model, processes, store) or lists(plan, processes, store)
        teacher = teacher_of(plan, model, store)
        fed = feed_of(plan, model, processes, feeds, store)
        if fed is not None and fed.guards is not None and processes.rank == 0:
            watcher = Watchers(watcher, fed.guards(watcher.on_event))
        how: dict[str, Any] = {"watcher": watcher, "processes": processes, "samples": samples, "fed": fed}
        loop = build_loop(plan, model, folder, known=known, teacher=teacher, **how)
        if resume is not None:
            latest = Checkpoints(folder / "checkpoints", keep=1, failed=lambda step, why: None).latest()
            if latest is not None:
                loop.resume(latest)
        elif processes.rank == 0:
            _begin_folder(plan, folder)
        watcher.on_start(_start(plan, loop, folder, processes))
        if known is not None:
            kind = "reference" if isinstance(known, References) else "teacher"
            watcher.on_event(Event(loop.progress.step, kind, known.told))
        end = RunEnd(loop.progress.step, "failed", {}, None)
        try:
            end = loop.run(stop)
            if end.reason != "stopped" and processes.rank == 0:
                end = replace(end, model=export(plan, model, folder / "model"))
        finally:
            watcher.on_end(replace(end, step=loop.progress.step))
    return RunResult(folder, end.reason, end.step, end.metrics, end.model)


def build_model(plan: Plan, store: Store | None = None) -> Model:
    """The model as its training begins: loaded or new, quantised, with its adapter; what is trained has gradients."""
    recipe, device = plan.recipe, pick_device(plan.recipe.device)
    dtype = pick_dtype(recipe.dtype, device, None, 0)
    if recipe.model is None:
        model = new_weights(plan.config, std=recipe.shape.init_std, seed=recipe.seed, dtype=dtype, device=device)
    else:
        model = load_model(recipe.model, device=device, dtype=dtype, store=store)
    if recipe.objective == "reward":
        pad = plan.tokenizer.pad_token_id
        model = add_score_head(
            model, seed=recipe.seed, pad_token_id=plan.tokenizer.eos_token_id if pad is None else pad
        )
    if recipe.adapter is None:
        model.network.requires_grad_(True)
    else:
        _adapt(plan, model)
    if recipe.qat is not None:
        round_layers(model, recipe.qat)
    return model


def _adapt(plan: Plan, model: Model) -> None:
    """The recipe's adapter on a frozen model, quantised where it says so."""
    recipe = plan.recipe
    assert recipe.adapter is not None
    if recipe.quantize is not None:
        quantize_linears(model.network, double=recipe.double_quant)
    if recipe.adapter.new_tokens and plan.tokenizer.vocab_size > model.network.config.vocab_size:
        grow_vocabulary(model, plan.tokenizer.vocab_size)
    encode = plan.tokenizer.encode
    adapt(
        model,
        recipe.adapter,
        seed=recipe.seed,
        init_tokens=encode(recipe.adapter.init_text) if recipe.adapter.init_text else (),
        new_tokens=[encode(text)[-1] for text in recipe.adapter.new_tokens],
    )
    if isinstance(model.network, Scorer):
        model.network.score.requires_grad_(True)


def teacher_of(plan: Plan, model: Model, store: Store | None = None) -> Teacher | None:
    """Whom a distillation asks in every step; the model gets what it needs to be compared with it."""
    recipe = plan.recipe
    if recipe.objective != "distill" or recipe.distill.top_k:
        return None
    teacher = load_teacher(plan, store)
    if recipe.distill.hidden_weight:
        add_projections(model.network, teacher, seed=recipe.seed)
    return teacher


def feed_of(plan: Plan, model: Model, processes: World, feeds: Feeds | None, store: Store | None) -> Feed | None:
    """The batches of an objective that makes its own. UsageError where nobody can make them."""
    if plan.recipe.objective not in POLICY and not plan.recipe.distill.lmbda:
        return None
    if feeds is None:
        raise UsageError(f"objective={plan.recipe.objective} writes its own data: use tokenmill.align.policy.train")
    return feeds(plan, model, processes, store)


def build_loop(
    plan: Plan,
    model: Model,
    folder: Path,
    *,
    watcher: Watcher | None = None,
    processes: World | None = None,
    samples: Samples | None = None,
    known: References | Lists | None = None,
    teacher: Teacher | None = None,
    fed: Feed | None = None,
) -> Loop:
    """The loop of a plan over its model, ready to run. ``known``: what a reference model or a teacher says of the data;
    without it (for measurements) it says nothing. ``teacher``: one that is asked in every step. ``fed``: what takes the
    place of data that is there before."""
    recipe, processes = plan.recipe, processes or World()
    device = pick_device(recipe.device)
    assert recipe.lr is not None
    objective, judged = _objectives(plan, teacher)
    evaluation: Callable[[], Evaluation] | None = None
    source: Source
    if fed is not None and fed.source is not None:
        source, evaluation, samples = fed.source, fed.evaluation, lambda model, plan: fed.samples
    else:
        source = _loader(plan, plan.splits.train, processes, None if known is None else known.train)
        if fed is not None and fed.over is not None:
            source = fed.over(source)
    if (fed is None or fed.source is None) and plan.splits.eval is not None:
        held_out = _loader(plan, plan.splits.eval, processes, None if known is None else known.eval)
        lengths = torch.from_numpy(plan.splits.byte_lengths_V) if recipe.objective in CAUSAL else None

        how: dict[str, Any] = {"device": device, "byte_lengths_V": lengths, "world": processes}
        how["likelihood"] = recipe.objective not in COMPARING

        def evaluation() -> Evaluation:
            return evaluate(model.network, judged, held_out.once(recipe.eval_batches), **how)

    return Loop(
        model.network,
        objective,
        source,
        build_optimizer(model.network, recipe, folder, learning_rates(model) | critic_rates(model.network, recipe)),
        Schedule.of(recipe, total=plan.steps, accumulate=plan.accumulate, lr=recipe.lr),
        folder=folder,
        settings=settings_of(recipe),
        device=device,
        watcher=watcher,
        world=processes,
        evaluation=evaluation,
        samples=None if samples is None else samples(model, plan),
    )


def _objectives(plan: Plan, teacher: Teacher | None) -> tuple[Objective, Objective]:
    """What is trained by, and what is evaluated by."""
    if plan.recipe.objective != "distill":
        objective = build_objective(plan.recipe)
        return objective, objective
    distill = Distill(plan.recipe.distill, teacher, plan.tokenizer.vocab_size)
    return distill, distill.evaluated()


def critic_rates(network: nn.Module, recipe: Recipe) -> dict[str, float]:
    """The head of PPO's critic learns faster than the weights that are there already."""
    heads = ("critic.weight", "critic.bias", "critic.trunk.score.weight")
    return {name: recipe.ppo.critic_lr for name, _ in network.named_parameters() if name in heads}


def settings_of(recipe: Recipe) -> Settings:
    """The loop's numbers from a recipe without anything open."""
    return Settings(
        seed=recipe.seed,
        clip=recipe.clip,
        checkpointing=recipe.checkpointing,
        scale_loss=recipe.dtype == "float16",
        eval_every=recipe.eval_every or 0,
        eval_first=recipe.objective in POLICY,
        sample_every=recipe.sample_every or 0,
        early_stop=recipe.early_stop,
        save_every=recipe.save_every or 0,
        save_minutes=recipe.save_minutes,
        save_keep=recipe.save_keep,
        save_best=recipe.save_best,
        on_nonfinite=recipe.safety_nonfinite,
        on_spike=recipe.safety_spike,
        sigma=recipe.safety_sigma,
        window=recipe.safety_window,
        retries=recipe.safety_retries,
    )


def probe(plan: Plan, *, steps: int = 2, feeds: Feeds | None = None, store: Store | None = None) -> float:
    """Seconds of an optimiser step, by doing ``steps`` after a first one that warms up. Nothing is written but paged
    state; for dry runs."""
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="tokenmill-probe-") as scratch:
        model = build_model(plan, store)
        fed = feed_of(plan, model, World(), feeds, store)
        teacher = teacher_of(plan, model, store)
        loop = build_loop(plan, model, Path(scratch), watcher=clock, teacher=teacher, fed=fed)
        loop.time_steps(1 + steps)
    return sum(clock.times[1:]) / max(1, steps)


class _Clock(Watcher):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, metrics: StepMetrics) -> None:
        self.times.append(metrics.seconds)


def export(plan: Plan, model: Model, folder: Path) -> Path:
    """Write what was trained: a Hugging Face folder, or a PEFT adapter. A reward model is always a folder, whose head
    other programs find; its adapter is folded in, and so is one that was trained with rounded weights."""
    if plan.recipe.qat is not None:
        as_trained(model)
    elif plan.recipe.objective == "reward" and plan.recipe.adapter is not None:
        merge_adapter(model)
    elif plan.recipe.adapter is not None:
        save_adapter(model, folder, base=plan.recipe.model)
        if plan.recipe.adapter.new_tokens:
            plan.tokenizer.save(folder)
        return folder
    if model.family.task == "CAUSAL_LM":
        model.generation_config = generation_config(model.generation_config, plan.tokenizer)
    model.save(folder)
    plan.tokenizer.save(folder)
    return folder


def _loader(plan: Plan, dataset: Any, processes: World, said: Any = None) -> Loader:
    recipe = plan.recipe
    assert recipe.seq_len is not None
    return Loader(
        dataset,
        seq_len=recipe.seq_len,
        micro_batch=recipe.micro_batch,
        seed=recipe.seed,
        rank=processes.rank,
        world_size=processes.size,
        workers=recipe.workers,
        packing=recipe.packing,
        collate=_collate(plan, dataset, said),
    )


def _collate(plan: Plan, dataset: Any, said: Any = None) -> Collate | None:
    """What spoils the text for objectives that restore it, puts answers side by side, or adds a teacher's lists; others
    take it as it is. ``said``: what a reference or a teacher says of the data."""
    recipe = plan.recipe
    if recipe.objective == "distill" and recipe.distill.top_k:
        return CollateTaught(_uniform(plan, dataset) if said is None else said, dataset.lengths)
    if recipe.objective in COMPARING:
        likelihood: Likelihood = "all" if recipe.objective == "orpo" else "answer"
        wanted = recipe.objective == "orpo" or recipe.preference.sft_weight > 0
        return CollateCompared(likelihood if wanted else "none", said)
    if recipe.objective == "mlm":
        return MaskTokens(recipe.corrupt, plan.tokenizer)
    if recipe.objective == "span":
        return CorruptSpans(recipe.corrupt, plan.tokenizer, start_id=plan.config.get("decoder_start_token_id"))
    return None


def _uniform(plan: Plan, dataset: Any) -> np.ndarray:
    """Lists of a teacher that knows nothing, in the memory of one."""
    count = plan.recipe.distill.top_k
    one_K = np.array([(i, -math.log(plan.tokenizer.vocab_size)) for i in range(count)], RECORD)
    return np.broadcast_to(one_K, (dataset.num_tokens, count))


def _start(plan: Plan, loop: Loop, folder: Path, processes: World) -> RunStart:
    return RunStart(
        folder=folder,
        recipe=plan.recipe,
        model=loop.network,
        step=loop.progress.step,
        tokens=loop.progress.tokens,
        total_steps=plan.steps,
        tokens_per_step=plan.tokens_per_step,
        trainable=sum(p.numel() for p in loop.parameters.values()),
        world_size=processes.size,
    )


def _new_folder(recipe: Recipe) -> Path:
    """``runs/<date>_<time>-<recipe>``; a number behind it where that is taken."""
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{recipe.recipe}"
    names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 1000))
    return next(path for path in (Path(recipe.out).absolute() / name for name in names) if not path.exists())


def _begin_folder(plan: Plan, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # paged state may lie in it already
    write_run_config(plan.composed, folder)
    if plan.new_tokenizer:
        plan.tokenizer.save(folder / "tokenizer")
    link = folder.parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.parent / "latest")


@contextmanager
def _deterministic(recipe: Recipe) -> Iterator[None]:
    """On CUDA, only operations that give the same bits again; on a CPU all that we use do, with the same threads."""
    if not recipe.deterministic or pick_device(recipe.device).type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    module: Any = torch.utils.deterministic
    filled = module.fill_uninitialized_memory
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=workspace not in (":4096:8", ":16:8"))
    module.fill_uninitialized_memory = False  # it would write all memory twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        module.fill_uninitialized_memory = filled
