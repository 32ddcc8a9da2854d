"""What a run will need of memory, before it is begun: an estimate from the configuration alone."""

from __future__ import annotations

from tokenmill.config.recipe import Recipe
from tokenmill.nn import cost
from tokenmill.nn.config import DecoderConfig

_STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw": 8.0, "paged_adamw_8bit": 2.1, "muon": 4.0}
"""Optimiser state a trained weight: two float32 moments, two of a byte with block scales, one."""


def memory_needed(recipe: Recipe, decoder: DecoderConfig, parameters: int) -> dict[str, int]:
    """Bytes on one process, by ``nn/cost.py``'s counts: an estimate, activations by Korthikanti 2022 (2205.05198)
    without the scores, which attention does not keep."""
    width = 4 if recipe.dtype == "float32" else 2
    trained = trained_parameters(recipe, decoder)
    base = parameters * (0.53 if recipe.quantize == "nf4" else width)
    own_width = 4 if recipe.adapter is not None else width
    rows = recipe.micro_batch * (recipe.seq_len or 0)
    layers = 1 if recipe.checkpointing else decoder.num_layers
    activations = rows * decoder.hidden_size * (17 * layers + 2 * decoder.num_layers) * width
    state = _STATE_BYTES.get(recipe.optimizer, 0.1)
    # full training in 16 bits keeps what rounding cuts off beside each weight
    rest = trained * 2 if recipe.adapter is None and width == 2 else 0
    return {
        "weights": int(base) + (trained * own_width if recipe.adapter is not None else 0),
        "gradients": trained * own_width,
        "optimizer": int(trained * state) + rest,
        "activations": activations,
    }


def trained_parameters(recipe: Recipe, decoder: DecoderConfig) -> int:
    """Weights that a recipe trains: all, or an adapter's over every linear layer that it names."""
    if recipe.adapter is None:
        return cost.parameters(decoder)
    adapter, total = recipe.adapter, 0
    for layer in decoder.layers:
        a, hidden = layer.attention, decoder.hidden_size
        q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        mlp = getattr(layer.mlp, "size", 0)
        linears = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)]
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
