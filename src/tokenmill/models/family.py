"""What a family file declares, and the parts of it that most families have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.core.errors import did_you_mean
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.weights import Table, row
from tokenmill.nn.config import (
    AttentionConfig,
    Config,
    DecoderConfig,
    LayerConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
)
from tokenmill.ops.activation import ACTIVATIONS

MAX_LAYERS = 4096  # a broken configuration must not make us build a million layers before a weight is looked at


@dataclass(frozen=True)
class Family:
    """An architecture: how its configuration is read, and what its weights are called."""

    name: str
    architecture: str
    """The class name in ``architectures`` of a Hugging Face ``config.json``."""
    read: Callable[[ConfigReader], Config]
    weights: Table
    gguf_weights: Table = ()
    gguf_config: Callable[[ConfigReader, dict[str, Any]], None] = lambda reader, config: None
    """Add to a configuration made from GGUF metadata what only this family has (see ``models/gguf.py``)."""
    ignored: str = r"rotary_emb\.inv_freq$|^lm_head\.weight$"
    """Names that a file may carry and that hold nothing: recomputed tables, the copy of a tied head."""
    variant: Callable[[Mapping[str, Any]], Family] | None = None
    """The family that a configuration really means, where versions of it name their weights in different ways."""
    task: str = "CAUSAL_LM"
    """PEFT's word for what the model does, which adapter folders carry."""


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def read_shape(r: ConfigReader) -> Shape:
    """The dimensions every configuration names; key/value heads default to heads, the head size to their share."""
    hidden, heads = r.integer("hidden_size"), r.integer("num_attention_heads")
    kv_heads = r.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        r.problem(f"{heads} attention heads cannot share {kv_heads} key/value heads evenly")
    if r.get("head_dim") is None and hidden % heads:
        r.problem(f"hidden_size {hidden} is no multiple of {heads} attention heads, and head_dim is not given")
    return Shape(
        hidden_size=hidden,
        num_layers=r.integer("num_hidden_layers", most=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=r.integer("head_dim", hidden // heads),
    )


def read_attention(r: ConfigReader, shape: Shape, **special: Any) -> AttentionConfig:
    """Plain attention of these dimensions, scaled by 1/sqrt(head size); ``special`` says what the family does else."""
    return AttentionConfig(
        **{
            "num_heads": shape.num_heads,
            "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "scale": shape.head_dim**-0.5,
            **special,
        }
    )


def read_activation(r: ConfigReader, key: str, default: str) -> str:
    name = r.text(key, default)
    if name not in ACTIVATIONS:
        r.problem(
            f"{key!r} = {name!r} is not supported{did_you_mean(name, ACTIVATIONS)}; known: {', '.join(ACTIVATIONS)}"
        )
    return name


def read_mlp(r: ConfigReader, *, activation: str = "silu", **special: Any) -> MLPConfig:
    return MLPConfig(r.integer("intermediate_size"), read_activation(r, "hidden_act", activation), **special)


def read_layer_types(r: ConfigReader, num_layers: int, default: Callable[[int], bool]) -> list[bool]:
    """Which layers slide: ``layer_types`` where it is given, else ``default(layer)``."""
    given = r.sequence("layer_types")
    if given is None:
        return [default(layer) for layer in range(num_layers)]
    known = {"sliding_attention": True, "full_attention": False}
    unknown = set(map(str, given)) - known.keys()
    if unknown or len(given) != num_layers:
        r.problem(f"'layer_types' must name one of {', '.join(known)} for each of {num_layers} layers, not {given}")
        return [False] * num_layers
    return [known[kind] for kind in given]


def decoder(
    r: ConfigReader,
    shape: Shape,
    attention: AttentionConfig | Sequence[AttentionConfig],
    mlp: MLPConfig | MoEConfig | Sequence[MLPConfig | MoEConfig],
    *,
    norm: NormConfig | None = None,
    tied: bool = False,
    **special: Any,
) -> DecoderConfig:
    """Put the layers together; one attention or feed-forward part stands for all of them. ``tied``: the default."""
    attentions = [attention] * shape.num_layers if isinstance(attention, AttentionConfig) else attention
    mlps = [mlp] * shape.num_layers if isinstance(mlp, MLPConfig | MoEConfig) else mlp
    return DecoderConfig(
        vocab_size=r.integer("vocab_size"),
        hidden_size=shape.hidden_size,
        layers=tuple(LayerConfig(a, m) for a, m in zip(attentions, mlps, strict=True)),
        max_position=r.integer("max_position_embeddings", 2048),
        norm=norm or NormConfig(eps=r.number("rms_norm_eps", 1e-6)),
        tied_embeddings=r.flag("tie_word_embeddings", tied),
        **special,
    )


LAYER = "model.layers.{layer}"
OURS = "layers.{layer}"

LLAMA_WEIGHTS: Table = (
    row("model.embed_tokens", "embed"),
    row(f"{LAYER}.input_layernorm", f"{OURS}.attn_norm"),
    row(f"{LAYER}.self_attn.q_proj", f"{OURS}.attn.q"),
    row(f"{LAYER}.self_attn.k_proj", f"{OURS}.attn.k"),
    row(f"{LAYER}.self_attn.v_proj", f"{OURS}.attn.v"),
    row(f"{LAYER}.self_attn.o_proj", f"{OURS}.attn.out"),
    row(f"{LAYER}.self_attn.q_norm", f"{OURS}.attn.q_norm"),
    row(f"{LAYER}.self_attn.k_norm", f"{OURS}.attn.k_norm"),
    row(f"{LAYER}.post_attention_layernorm", f"{OURS}.mlp_norm"),
    row(f"{LAYER}.mlp.gate_proj", f"{OURS}.mlp.gate"),
    row(f"{LAYER}.mlp.up_proj", f"{OURS}.mlp.up"),
    row(f"{LAYER}.mlp.down_proj", f"{OURS}.mlp.down"),
    row("model.norm", "norm"),
    row("lm_head", "head"),
)

# GGUF's names are the same for all architectures (gguf.constants.TENSOR_NAMES); families differ in what they do to them
GGUF_WEIGHTS: Table = (
    row("token_embd", "embed"),
    row("blk.{layer}.attn_norm", f"{OURS}.attn_norm"),
    row("blk.{layer}.attn_q", f"{OURS}.attn.q"),
    row("blk.{layer}.attn_k", f"{OURS}.attn.k"),
    row("blk.{layer}.attn_v", f"{OURS}.attn.v"),
    row("blk.{layer}.attn_output", f"{OURS}.attn.out"),
    row("blk.{layer}.attn_q_norm", f"{OURS}.attn.q_norm"),
    row("blk.{layer}.attn_k_norm", f"{OURS}.attn.k_norm"),
    row("blk.{layer}.post_attention_norm", f"{OURS}.attn_post_norm"),
    row("blk.{layer}.ffn_norm", f"{OURS}.mlp_norm"),
    row("blk.{layer}.post_ffw_norm", f"{OURS}.mlp_post_norm"),
    row("blk.{layer}.ffn_gate", f"{OURS}.mlp.gate"),
    row("blk.{layer}.ffn_up", f"{OURS}.mlp.up"),
    row("blk.{layer}.ffn_down", f"{OURS}.mlp.down"),
    row("blk.{layer}.ffn_gate_inp", f"{OURS}.mlp.router"),
    row("blk.{layer}.ffn_gate_exps", f"{OURS}.mlp.experts.gate"),
    row("blk.{layer}.ffn_up_exps", f"{OURS}.mlp.experts.up"),
    row("blk.{layer}.ffn_down_exps", f"{OURS}.mlp.experts.down"),
    row("output_norm", "norm"),
    row("output", "head"),
)

# llama.cpp turns neighbouring features of queries and keys for these families, so its files have the rows reordered
GGUF_LLAMA_WEIGHTS: Table = tuple(
    row(r.theirs, *r.ours, interleaved=True) if r.theirs.endswith(("attn_q", "attn_k")) else r for r in GGUF_WEIGHTS
)
