"""Settings that contradict each other, or that would be accepted and do nothing: each one rule, said in one line.

A rule names the keys it is about. A value that equals its default is never "given in vain": a run's ``config.yaml``
holds every value, and is a recipe too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenmill.config.check_policy import policy_effects, policy_problems
from tokenmill.config.recipe import COMPARING, POLICY, REFERENCED, Recipe

ROUNDED = ("next_token", "sft", "distill")
"""Objectives of quantisation-aware training: those that need no other state of the model than its present one."""
Problem = tuple[tuple[str, ...], str]
"""The keys that a problem is about, and what it is."""


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Everything that does not go together."""
    yield from _model(recipe)
    yield from _length(recipe)
    yield from _shape(recipe)
    yield from _comparing(recipe)
    yield from _distilling(recipe)
    yield from _rounding(recipe)
    yield from policy_problems(recipe)
    yield from _without_effect(recipe)


def _model(r: Recipe) -> Iterator[Problem]:
    new = r.size is not None or r.shape.hidden_size is not None
    if r.model is not None and new:
        yield (
            ("model", "size", "shape"),
            f"model={r.model} goes on with that model, size and shape make a new one; give one of the two",
        )
    if r.model is None and not new:
        yield (
            ("model", "size", "shape"),
            "neither a model to begin with (model=NAME) nor the size of a new one (size=tiny)",
        )
    if r.model is not None and r.tokenizer is not None:
        yield ("model", "tokenizer"), "the model brings its own tokenizer; tokenizer is for a new model"
    if r.adapter is not None and r.model is None:
        yield ("adapter", "model"), "an adapter needs a model that it is trained over (model=NAME)"
    if r.quantize is not None and r.adapter is None:
        yield ("quantize", "adapter"), f"quantize={r.quantize} freezes the base, so it needs an adapter to train"
    wanted = {"mlm": ("bert",), "span": ("t5",)}.get(r.objective, ("llama", "qwen3"))
    if r.model is None and r.shape.family not in wanted:
        yield (
            ("objective", "shape.family"),
            f"objective={r.objective} trains {' or '.join(wanted)}, not shape.family={r.shape.family}",
        )
    if r.data.path is None:
        yield ("data", "data.path"), "no data: give data=FILE"
    if r.corrupt.mask_share + r.corrupt.random_share > 1:
        yield ("corrupt.mask_share", "corrupt.random_share"), "corrupt: mask_share and random_share are more than 1"


def _length(r: Recipe) -> Iterator[Problem]:
    lengths = {name: getattr(r, name) for name in ("steps", "epochs", "tokens") if getattr(r, name) is not None}
    if len(lengths) > 1:
        given = " and ".join(f"{name}={value}" for name, value in lengths.items())
        yield tuple(lengths), f"{given}: how long the run is can be said only once"
    if r.accumulate is not None and r.batch_tokens is not None:
        yield (
            ("accumulate", "batch_tokens"),
            f"accumulate={r.accumulate} and batch_tokens={r.batch_tokens} say the same; give one",
        )
    if isinstance(r.warmup, int) and r.steps is not None and r.warmup > r.steps:
        yield ("warmup", "steps"), f"warmup={r.warmup} is longer than the run of {r.steps} steps"
    if r.early_stop and r.eval_every == 0:
        yield ("early_stop", "eval_every"), "early_stop needs evaluations while training; eval_every is 0"


def _shape(r: Recipe) -> Iterator[Problem]:
    s = r.shape
    if s.hidden_size is not None and s.num_heads is not None and s.hidden_size % s.num_heads:
        yield (
            ("shape.hidden_size", "shape.num_heads"),
            f"shape: hidden_size {s.hidden_size} is no multiple of {s.num_heads} heads",
        )
    if s.num_heads is not None and s.num_kv_heads is not None and s.num_heads % s.num_kv_heads:
        yield (
            ("shape.num_heads", "shape.num_kv_heads"),
            f"shape: {s.num_heads} heads cannot share {s.num_kv_heads} key/value heads evenly",
        )
    if s.max_position is not None and r.seq_len is not None and r.seq_len > s.max_position:
        yield ("shape.max_position", "seq_len"), f"seq_len {r.seq_len} is beyond shape.max_position {s.max_position}"


def _comparing(r: Recipe) -> Iterator[Problem]:
    if r.objective not in COMPARING:
        return
    if r.model is None:
        yield ("objective", "model"), f"objective={r.objective} goes on with a model that can answer (model=NAME)"
    if r.data.truncate == "split":
        yield ("data.truncate",), "data.truncate=split would part an answer from its prompt; drop, end and start do not"
    if r.adapter is None:
        return
    if r.adapter.dropout:
        yield (
            ("adapter.dropout",),
            f"adapter.dropout={r.adapter.dropout} would be noise in the comparison of two answers; it must be 0 here",
        )
    if r.objective == "reward" and r.adapter.kind in ("prefix", "prompt", "bottleneck"):
        yield (
            ("adapter.kind",),
            f"a reward model is written as one folder, and adapter.kind={r.adapter.kind} cannot be folded into weights",
        )


def _distilling(r: Recipe) -> Iterator[Problem]:
    if r.objective != "distill":
        return
    if r.distill.teacher is None:
        yield ("distill.teacher",), "objective=distill needs a teacher (distill.teacher=NAME)"
    yield from _teacher_elsewhere(r)
    if r.distill.lmbda and not r.distill.weight:
        yield (
            ("distill.lmbda", "distill.weight"),
            "distill.lmbda: what the student writes is learned by the divergence, whose distill.weight is 0",
        )
    if r.distill.lmbda and r.distill.top_k and r.distill.url is None:
        yield (
            ("distill.lmbda", "distill.top_k"),
            "distill.top_k keeps lists of tokens and lets the teacher go, lmbda needs it for what the student writes",
        )
    if r.distill.top_k and r.distill.hidden_weight:
        yield (
            ("distill.top_k", "distill.hidden_weight"),
            "distill.top_k keeps lists of tokens and lets the teacher go, hidden_weight needs it in every step",
        )
    if not r.distill.weight and not r.distill.hidden_weight:
        yield ("distill.weight",), "distill.weight=0 without hidden_weight learns nothing from the teacher"


def _teacher_elsewhere(r: Recipe) -> Iterator[Problem]:
    if r.distill.url is None:
        return
    if not r.distill.top_k:
        yield (
            ("distill.url", "distill.top_k"),
            "distill.url: a server says its likeliest tokens, not all; say how many (distill.top_k=20)",
        )
    if r.distill.temperature != 1.0:
        yield (
            ("distill.url", "distill.temperature"),
            "distill.temperature must be 1 with distill.url: what a server leaves out has no mass at another one",
        )
    if r.model is None and r.tokenizer is None:
        yield ("distill.url", "tokenizer"), "distill.url: a new student needs its teacher's tokenizer (tokenizer=NAME)"


def _rounding(r: Recipe) -> Iterator[Problem]:
    if r.qat is None:
        return
    if r.objective not in ROUNDED:
        yield ("qat", "objective"), f"qat is for objective={', '.join(ROUNDED)}, not for {r.objective}"
    if r.quantize is not None:
        yield ("qat", "quantize"), f"qat rounds the weights that are trained, quantize={r.quantize} has done so already"
    if r.adapter is not None and r.adapter.kind != "lora":
        yield (
            ("qat", "adapter.kind"),
            f"qat rounds the weight with the adapter in it: all weights or adapter.kind=lora, not {r.adapter.kind}",
        )
    if r.adapter is not None and r.adapter.dropout:
        yield ("qat", "adapter.dropout"), "qat folds the adapter into the weight, where its inputs cannot be dropped"


_LORA = ("rank", "alpha", "rslora", "lora_plus", "dropout")
_ADAPTER = {
    "lora": (*_LORA, "targets", "layers"),
    "dora": (*_LORA, "targets", "layers"),
    "prefix": ("virtual_tokens", "init_text"),
    "prompt": ("virtual_tokens", "init_text"),
    "ia3": ("targets", "layers"),
    "bottleneck": ("bottleneck_size", "bottleneck_at", "dropout", "layers"),
}
"""What each kind of adapter reads, beside new_tokens and train_also."""


def _without_effect(r: Recipe) -> Iterator[Problem]:
    """Values that differ from their default although nothing reads them."""
    muon, wsd = r.optimizer == "muon", r.schedule == "wsd"
    span, mlm = r.objective == "span", r.objective == "mlm"
    off = r.safety_spike == "off"
    policy = r.objective in POLICY
    distill, jsd = r.objective == "distill", r.distill.divergence == "jsd"
    comparing, dpo, simpo, kto = (
        r.objective in COMPARING,
        r.objective == "dpo",
        r.objective == "simpo",
        r.objective == "kto",
    )
    smooth = simpo or (dpo and r.preference.loss in ("sigmoid", "robust"))
    rules: list[tuple[str, bool, str]] = [
        ("momentum", muon, "optimizer=muon"),
        ("betas", r.optimizer != "adafactor", "another optimizer than adafactor"),
        ("cooldown", wsd, "schedule=wsd"),
        ("min_lr", r.schedule != "constant", "a schedule that goes down"),
        ("double_quant", r.quantize is not None, "quantize=nf4"),
        ("vocab_size", r.model is None and r.tokenizer is None, "a tokenizer that is trained here (size=…)"),
        ("safety_sigma", not off, "safety_spike other than off"),
        ("safety_window", not off, "safety_spike other than off"),
        ("corrupt.share", span or mlm, "objective=mlm or span"),
        ("corrupt.mask_share", mlm, "objective=mlm"),
        ("corrupt.random_share", mlm, "objective=mlm"),
        ("corrupt.whole_words", mlm, "objective=mlm"),
        ("corrupt.span_length", span, "objective=span"),
        ("data.eval_share", r.data.eval is None, "no data.eval"),
        ("packing", not span and not policy, "a decoder or encoder alone"),
        ("z_loss", not comparing and not distill and not policy, "an objective that learns from likelihood alone"),
        ("data.train_on", not comparing and not policy, "an objective that learns from likelihood, not from answers"),
        ("data.format", not comparing and not policy, "rows of documents; here they are recognised by their keys"),
        ("data.text_field", not comparing and not policy, "rows of documents"),
        ("preference.loss", dpo, "objective=dpo"),
        ("preference.beta", comparing and r.objective != "reward", "objective=dpo, simpo, orpo or kto"),
        ("preference.label_smoothing", smooth, "objective=simpo, or dpo with preference.loss=sigmoid or robust"),
        ("preference.gamma", simpo, "objective=simpo"),
        ("preference.sft_weight", dpo or simpo, "objective=dpo or simpo"),
        ("preference.desirable_weight", kto, "objective=kto"),
        ("preference.undesirable_weight", kto, "objective=kto"),
        ("preference.reference", r.objective in REFERENCED, "an objective with a reference (dpo, kto)"),
        *policy_effects(r),
        ("reward.center", r.objective == "reward", "objective=reward"),
        *(
            (f"distill.{name}", distill, "objective=distill")
            for name in type(r.distill).model_fields
            if name not in ("beta", "key_variable", "completion_tokens")
        ),
        ("distill.key_variable", distill and r.distill.url is not None, "objective=distill and distill.url"),
        ("distill.completion_tokens", distill and r.distill.lmbda > 0, "objective=distill and distill.lmbda"),
        ("distill.beta", distill and jsd, "objective=distill and distill.divergence=jsd"),
    ]
    defaults = Recipe()
    for key, has_effect, when in rules:
        if not has_effect and _at(r, key) != _at(defaults, key):
            yield (key,), f"{key}={_at(r, key)} has no effect here; it needs {when}"
    if r.adapter is not None:
        plain, read = type(r.adapter)(), (*_ADAPTER[r.adapter.kind], "kind", "new_tokens", "train_also")
        for name in type(r.adapter).model_fields:
            value = getattr(r.adapter, name)
            if name not in read and value != getattr(plain, name):
                yield (f"adapter.{name}",), f"adapter.{name}={value} means nothing to adapter.kind={r.adapter.kind}"


def _at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for word in key.split("."):
        value = getattr(value, word)
    return value
