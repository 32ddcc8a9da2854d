"""From a checked recipe to a run that can begin: tokenizer, data, dimensions, steps, learning rate, memory.

What a recipe leaves open is derived here, each value with the sentence that explains it; the result is a recipe again,
without anything open. A dry run prints this and stops. No weights are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.config import sizes
from tokenmill.config.compose import Composed
from tokenmill.config.recipe import COMPARING, POLICY, Recipe
from tokenmill.core.device import pick_device
from tokenmill.core.errors import ConfigError
from tokenmill.core.machine import cpu_flags
from tokenmill.data.loader import Loader
from tokenmill.data.prepare import Progress, Splits, load_splits
from tokenmill.data.prompts import load_prompts
from tokenmill.data.tokenise import Kind
from tokenmill.formats import open_tensors
from tokenmill.models.load import config_of, read_config, tokenizer_from_file
from tokenmill.nn import cost
from tokenmill.nn.config import DecoderConfig
from tokenmill.store import Store
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.tools.box import tool_schemas
from tokenmill.train.memory import memory_needed
from tokenmill.train.new_model import ROW, Derivations, new_model
from tokenmill.train.plan_policy import longest_rollout, policy_correction, policy_length
from tokenmill.train.qat import qat_settings

CAUSAL = ("next_token", "sft", "distill")
"""Objectives whose evaluation is the likelihood of the tokens that follow."""
WHOLE = ("mlm", "span", "reward")
"""Objectives that read whole texts: their labels are made elsewhere, or there are none."""
MICRO_TOKENS = 8192
"""Of a derived micro-batch: enough to keep two cores or a GPU busy with small models."""
SMALL = 50_000_000


@dataclass(frozen=True)
class Plan:
    """A run before its first step."""

    composed: Composed
    """Nothing in it is left to derive."""
    tokenizer: Tokenizer
    new_tokenizer: bool
    splits: Splits
    config: Mapping[str, Any]
    """``config.json`` of the model: the one to be loaded, or the new one."""
    decoder: DecoderConfig | None
    """None for an encoder."""
    steps: int
    accumulate: int
    """Micro-batches of each process in a full step."""
    world_size: int
    derivations: tuple[tuple[str, Any, str], ...]
    """(key, value, why), in the order they were made."""
    memory: Mapping[str, int]
    """Bytes by what they are for, on one process."""

    @property
    def recipe(self) -> Recipe:
        """The recipe with everything filled in."""
        return self.composed.recipe

    @property
    def tokens_per_step(self) -> int:
        """At most, over all processes."""
        assert self.recipe.seq_len is not None
        return self.accumulate * self.recipe.micro_batch * self.recipe.seq_len * self.world_size

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "recipe": self.recipe.model_dump(),
            "origins": self.composed.origins,
            "steps": self.steps,
            "accumulate": self.accumulate,
            "tokens_per_step": self.tokens_per_step,
            "parameters": None if self.decoder is None else cost.parameters(self.decoder),
            "data": self.splits.report.as_dict(),
            "memory": dict(self.memory),
            "derivations": [{"key": key, "value": value, "why": why} for key, value, why in self.derivations],
        }


def plan_run(
    composed: Composed, *, world_size: int = 1, store: Store | None = None, progress: Progress | None = None
) -> Plan:
    """Read the data and derive what is open.

    Raises:
        ConfigError: nothing to learn, dimensions that are not possible; everything that the data's checks refuse.
        NotFoundError: no such model or file.
    """
    recipe, open_values = composed.recipe, Derivations()
    if recipe.qat is not None:
        qat_settings(recipe.qat)
    if recipe.model is None:
        tokenizer, config = new_model(recipe, open_values, store)
    else:
        file = open_tensors((store or Store()).resolve(recipe.model, pull=True).weights())
        tokenizer, config = tokenizer_from_file(file), config_of(file)[0]
    if recipe.adapter is not None and recipe.adapter.new_tokens:
        tokenizer = tokenizer.with_tokens(recipe.adapter.new_tokens)
    decoder = read_config(config, recipe.model or "the new model")[1] if _is_decoder(config) else None
    seq_len = _seq_len(recipe, config, open_values)
    splits = _splits(recipe, tokenizer, seq_len, progress)
    parameters = _parameters(config, decoder)
    if recipe.objective in POLICY:
        steps, accumulate = policy_length(recipe, open_values, len(splits.train), world_size)
    else:
        steps, accumulate = _length(composed, open_values, splits, parameters, seq_len, world_size)
    _rates(recipe, open_values, steps)
    _machine(recipe, open_values, parameters)
    if recipe.objective in POLICY:
        policy_correction(recipe, open_values)
    resolved = composed.derived(open_values.values, open_values.reasons)
    derivations = tuple((key, open_values.values[key], why) for key, why in open_values.reasons.items())
    longest = longest_rollout(resolved.recipe, splits)
    memory = memory_needed(resolved.recipe, decoder, parameters, longest=longest) if decoder is not None else {}
    return Plan(
        resolved,
        tokenizer,
        recipe.model is None and recipe.tokenizer is None,
        splits,
        config,
        decoder,
        steps,
        accumulate,
        world_size,
        derivations,
        memory,
    )


def _splits(recipe: Recipe, tokenizer: Tokenizer, seq_len: int, progress: Progress | None) -> Splits:
    """The data as the objective reads it."""
    if recipe.objective in POLICY:
        room, tools = recipe.policy.completion_tokens, tool_schemas(recipe.tools)
        return load_prompts(recipe.data, tokenizer, seq_len=seq_len, room=room, tools=tools)
    return load_splits(
        _data(recipe),
        tokenizer,
        seq_len=seq_len,
        causal=recipe.objective not in WHOLE,
        kind=_kind(recipe),
        progress=progress,
    )


def _data(recipe: Recipe) -> Any:
    """On conversations too, next_token learns everything; sft what the assistant says."""
    if recipe.objective == "next_token" and recipe.data.train_on == "auto":
        return recipe.data.model_copy(update={"train_on": "all"})
    return recipe.data


def _kind(recipe: Recipe) -> Kind:
    if recipe.objective not in COMPARING:
        return "documents"
    return "judged" if recipe.objective == "kto" else "pairs"


# --- lengths, rates, machine


def _is_decoder(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") not in ("bert", "roberta", "t5")


def _parameters(config: Mapping[str, Any], decoder: DecoderConfig | None) -> int:
    if decoder is not None:
        return cost.parameters(decoder)
    # an encoder, for batch and rate: attention and feed-forward of a layer, twice for an encoder with a decoder
    width = int(config.get("hidden_size") or config["d_model"])
    layers = int(config.get("num_hidden_layers") or 2 * config["num_layers"])
    return int(config["vocab_size"]) * width + 12 * layers * width * width


def _seq_len(recipe: Recipe, config: Mapping[str, Any], found: Derivations) -> int:
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if recipe.seq_len is not None:
        if most is not None and recipe.seq_len > most:
            raise ConfigError(f"seq_len={recipe.seq_len} is beyond the model's {most} positions")
        return recipe.seq_len
    if recipe.size is not None:
        derived = sizes.row_length(sizes.target_parameters(recipe.size))
        value, reason = derived.value, derived.reason
    else:
        value, reason = ROW, f"{ROW} suits most conversations"
    if most is not None and value > most:
        value, reason = int(most), "the model's longest context"
    return int(found.put("seq_len", value, reason))


def _length(
    composed: Composed, found: Derivations, splits: Splits, parameters: int, seq_len: int, world_size: int
) -> tuple[int, int]:
    """Steps of the run and micro-batches of a step; batch and learning rate where they are derived."""
    recipe = composed.recipe
    horizon, why = recipe.tokens, ""
    if horizon is None and recipe.steps is None and recipe.epochs is None:
        if recipe.size is None:
            found.put("epochs", 1.0, "one pass, unless steps, epochs or tokens say otherwise")
        else:
            derived = sizes.horizon(recipe.size, parameters, splits.train.num_tokens)
            horizon, why = derived.value, f" ({derived.reason})"
    epochs = found.values.get("epochs", recipe.epochs)
    seen = horizon or (splits.train.num_tokens * epochs if epochs else None)
    usual = sizes.horizon(recipe.size, parameters, splits.train.num_tokens).value if recipe.size is not None else 0
    batch = _batch(composed, found, parameters, int(seen or usual), seq_len)
    micro = found.values.get("micro_batch", recipe.micro_batch)
    accumulate = recipe.accumulate or max(1, math.ceil(batch / (micro * seq_len * world_size)))
    rows = accumulate * micro * world_size
    if recipe.steps is None:
        loader = Loader(splits.train, seq_len=seq_len, micro_batch=micro, seed=recipe.seed, packing=recipe.packing)
        if horizon is not None:
            per_row = splits.train.num_tokens / loader.rows_in_epoch()
            steps = math.ceil(horizon / (rows * per_row))
            reason = f"{horizon:,} tokens / {rows} rows of {per_row:.0f} tokens a step{why}"
        else:
            all_rows = loader.rows_in_epochs(float(epochs or 1.0))
            steps = math.ceil(all_rows / rows)
            reason = f"{epochs:g} epochs = {all_rows:,} rows / {rows} rows a step"
        found.put("steps", max(1, steps), reason)
        for key in ("epochs", "tokens"):
            if found.values.get(key, getattr(recipe, key)) is not None:
                found.put(key, None, "said in steps")
    if recipe.lr is None:
        rate = sizes.learning_rate(parameters, seen or (recipe.steps or 1) * rows * seq_len)
        found.put("lr", rate.value, rate.reason)
    return int(found.values.get("steps") or recipe.steps or 1), accumulate


def _batch(composed: Composed, found: Derivations, parameters: int, tokens: int, seq_len: int) -> int:
    """Tokens of a step over all processes, and the micro-batch of a new model."""
    recipe = composed.recipe
    if recipe.accumulate is not None:
        batch = recipe.accumulate * recipe.micro_batch * seq_len
    elif recipe.batch_tokens is not None:
        batch = recipe.batch_tokens
    elif recipe.size is not None:
        derived = sizes.batch_tokens(parameters, tokens, seq_len)
        batch = found.put("batch_tokens", derived.value, derived.reason)
    else:
        batch = recipe.micro_batch * seq_len
    if recipe.size is not None and composed.origins.get("micro_batch") == "default" and recipe.accumulate is None:
        rows = max(1, min(batch, MICRO_TOKENS) // seq_len)
        found.put("micro_batch", rows, f"the step's {batch // seq_len} rows, at most {MICRO_TOKENS} tokens at once")
    return int(batch)


def _rates(recipe: Recipe, found: Derivations, steps: int) -> None:
    """How often things happen that do not change what is learned."""
    for key, times in (("eval_every", 20), ("save_every", 10)):
        if getattr(recipe, key) is None:
            found.put(key, max(5, steps // times), f"{times} times in {steps} steps, at most every 5")
    if recipe.sample_every is None:
        every = found.values.get("eval_every", recipe.eval_every)
        found.put("sample_every", every, "with every evaluation")


def _machine(recipe: Recipe, found: Derivations, parameters: int) -> None:
    device = pick_device(recipe.device)
    if recipe.device is None:
        found.put("device", device.type, "CUDA is here" if device.type == "cuda" else "no CUDA here")
    if recipe.dtype != "auto":
        return
    if device.type == "cuda":
        found.put("dtype", "bfloat16", "CUDA is fast at it")
    elif recipe.model is None and parameters < SMALL:
        found.put("dtype", "float32", "so small a model gains nothing from bfloat16 on a CPU")
    elif cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        found.put("dtype", "bfloat16", "this CPU has instructions for it")
    else:
        found.put("dtype", "float32", "this CPU is slow at bfloat16")
