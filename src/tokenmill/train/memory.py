"""What a run will need of memory, before it is begun: an estimate from the configuration alone."""

from __future__ import annotations

from tokenmill.config.recipe import Recipe
from tokenmill.nn import cost
from tokenmill.nn.config import DecoderConfig, MoEConfig
from tokenmill.ops.cross_entropy import SCORED_BYTES
from tokenmill.ops.native import native

MOST_AT_ONCE = 256
"""Completions that are decoded together; a rollout of more waits its turn."""

_STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw": 8.0, "paged_adamw_8bit": 2.1, "muon": 4.0}
"""Optimiser state a trained float32 weight: two moments, two of a byte with block scales, one."""


def memory_needed(
    recipe: Recipe, decoder: DecoderConfig, parameters: int, *, longest: int | None = None
) -> dict[str, int]:
    """Bytes on one process, part by part: what ``plan memory`` says of a training here (a test holds both alike).

    ``longest``: tokens of a policy's longest prompt with the longest completion; its rows are no longer than that.
    """
    width = 4 if recipe.dtype == "float32" else 2
    trained = trained_parameters(recipe, decoder)
    base = parameters * (0.53 if recipe.quantize == "nf4" else width)
    own_width = 4 if recipe.adapter is not None else width
    state = _STATE_BYTES.get(recipe.optimizer, 0.1)
    if recipe.adapter is None and width == 2:
        # AdamW's moments have the weights' 16 bits, and what rounding cuts off is kept beside each weight
        state = (state / 2 if recipe.optimizer in ("adamw", "paged_adamw") else state) + 2
    rows = recipe.micro_batch * (longest or recipe.seq_len or 0)
    needed = {
        "weights": int(base) + (trained * own_width if recipe.adapter is not None else 0),
        "gradients": trained * own_width,
        "optimizer": int(trained * state),
        "activations": rows * width * _kept_values(recipe, decoder),
        "scores": min(rows * width * decoder.vocab_size, SCORED_BYTES),
    }
    return needed | (_rollout(recipe, decoder, parameters, width, longest) if longest is not None else {})


def _rollout(recipe: Recipe, decoder: DecoderConfig, parameters: int, width: int, longest: int) -> dict[str, int]:
    """What a policy holds besides: the engine's cache and, where kernels compute it, its matrices in their layout; a
    second model where the reference is none of its own weights, or where the critic is one."""
    policy = recipe.policy
    cached = {"auto": width, "fp32": 4, "bf16": 2, "int8": 1}[policy.rollout_cache]
    tokens = min(policy.prompts * policy.group, MOST_AT_ONCE) * longest
    found = {"rollout cache": int(tokens * cost.kv_bytes_per_token(decoder, cached))}
    if native() is not None and recipe.device == "cpu":
        found["rollout weights"] = parameters * (2 if policy.rollout_dtype == "bfloat16" else width)
    if policy.beta and recipe.adapter is None:
        found["reference"] = parameters * width
    if recipe.objective == "ppo" and recipe.ppo.critic == "own":
        found["critic"] = parameters * (2 * width + int(_STATE_BYTES.get(recipe.optimizer, 0.1)))
    return found


def _kept_values(recipe: Recipe, decoder: DecoderConfig) -> int:
    """Numbers of a token that the backward pass is waited for with: the residual stream twice a layer, queries, keys
    and values, what attention returns, and gates where they are not computed again (``nn/mlp.py``)."""
    hidden, kept = decoder.hidden_size, []
    for layer in decoder.layers:
        a, mlp = layer.attention, layer.mlp
        attention = 2 * a.head_dim * (a.num_heads + a.num_kv_heads)
        beside = 2 * hidden * decoder.post_norms + a.head_dim * (a.num_heads + a.num_kv_heads) * a.qk_norm
        if isinstance(mlp, MoEConfig):
            gates = 2 * mlp.experts_per_token * mlp.expert.size
        else:
            gates = 0 if mlp.gated and recipe.adapter is None else 2 * mlp.size
        kept.append(2 * hidden + attention + gates + beside)
    return hidden * decoder.num_layers + max(kept) if recipe.checkpointing else sum(kept)


def trained_parameters(recipe: Recipe, decoder: DecoderConfig) -> int:
    """Weights that a recipe trains: all, or an adapter's over every linear layer that it names."""
    if recipe.adapter is None:
        return cost.parameters(decoder)
    adapter, total = recipe.adapter, 0
    for layer in decoder.layers:
        a, hidden = layer.attention, decoder.hidden_size
        q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        mlp = getattr(layer.mlp, "size", 0)
        linears = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, mlp), (mlp, hidden)]
        linears += [(hidden, mlp)] if getattr(layer.mlp, "gated", False) else []
        if adapter.kind in ("lora", "dora"):
            total += sum(adapter.rank * (i + o) + (o if adapter.kind == "dora" else 0) for i, o in linears)
        elif adapter.kind == "ia3":
            total += 2 * kv + mlp
        elif adapter.kind == "bottleneck":
            total += 2 * (2 * hidden * adapter.bottleneck_size)
        elif adapter.kind == "prefix":
            total += 2 * kv * adapter.virtual_tokens
    if adapter.kind == "prompt":
        total = adapter.virtual_tokens * decoder.hidden_size
    return total + len(adapter.new_tokens) * decoder.hidden_size
