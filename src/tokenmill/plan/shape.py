"""A model as the planner sees it: counts and widths, from wherever they can be had without its weights.

From the catalog, from ``config.json``, from the header of a GGUF or safetensors file here or far away
(``headers.py``), or given. What a file's header says (its tensors' sizes) is exact; what follows from dimensions is as
exact as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.plan import formulas
from tokenmill.plan.catalog import Model

if TYPE_CHECKING:
    from tokenmill.nn.config import DecoderConfig


EXPERT_KEEPS = 3
"""Hidden states that training keeps of a token at each of its experts: gathered, put out, weighted."""


@dataclass(frozen=True)
class Shape:
    """Dimensions in the words of ``plan/formulas.py``; widths are numbers of one token in one layer."""

    name: str
    origin: str
    """Where the dimensions come from, for the person."""
    parameters: float
    active_parameters: float
    expert_parameters: float
    """In experts of which only some are met; part of ``parameters``."""
    table: float
    """Weights of the embeddings and of an output layer of its own."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    query: int
    key: int
    """Of keys, as wide as values."""
    mlp: int
    """Of the feed-forward layer that a token meets: its experts together."""
    vocab: int
    context: int
    full_values: float
    """Numbers that a token adds to the cache in layers that keep all positions; ``windowed_values`` in the others."""
    windowed_values: float = 0.0
    window: int = 0
    state_values: float = 0.0
    """Numbers of a sequence's state in layers with linear attention."""
    latent: bool = False
    gated: bool = True
    adapted: tuple[tuple[str, int, int], ...] = ()
    """(name, inputs, outputs) of one layer's linear layers: what LoRA may stand beside. ``layers`` of each."""
    beside: float = 0.0
    """Numbers of a token that training keeps in a layer for what few families have: norms of queries and keys, norms
    behind attention and feed-forward, an expert's input and output."""
    transposed: bool = False
    """Its files have matrices the other way round (GPT-2): loading copies them."""
    moe_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    stored: Mapping[str, int] | None = None
    """Bytes by number format, where a file's header has them."""
    file_bytes: int | None = None

    @property
    def stored_bytes(self) -> int | None:
        """Bytes of all tensors, as the file has them."""
        return None if self.stored is None else sum(self.stored.values())

    @property
    def stored_as(self) -> str:
        """The format of most of the file's bytes; empty where there is no file."""
        return max(self.stored, key=lambda kind: (self.stored or {})[kind]) if self.stored else ""


def _linears(hidden: int, query: int, key: int, mlp: int, gated: bool) -> tuple[tuple[str, int, int], ...]:
    attention = (("q", hidden, query), ("k", hidden, key), ("v", hidden, key), ("o", query, hidden))
    if not mlp:
        return attention
    gate = (("gate", hidden, mlp),) if gated else ()
    return (*attention, *gate, ("up", hidden, mlp), ("down", mlp, hidden))


def from_catalog(model: Model) -> Shape:
    """An entry of ``models.yaml``."""
    query, key = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    moe = model.moe_layers
    dense = 0 if moe == model.num_layers else model.intermediate_size
    met = model.experts_per_token * model.expert_size + model.shared_size
    matrices = 3 if model.gated else 2
    attending = model.num_layers - model.linear_layers
    if model.kv_rank:
        full, windowed = formulas.latent_values(attending, model.kv_rank, model.rope_dim), 0.0
    else:
        full = formulas.grouped_values(attending - model.window_layers, model.num_kv_heads, model.head_dim)
        windowed = formulas.grouped_values(model.window_layers, model.num_kv_heads, model.head_dim)
    return Shape(
        name=model.name,
        origin="catalog",
        parameters=model.parameters,
        active_parameters=model.active_parameters or model.parameters,
        expert_parameters=moe * matrices * model.hidden_size * model.num_experts * model.expert_size,
        table=model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2),
        hidden=model.hidden_size,
        layers=model.num_layers,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        query=query,
        key=key,
        mlp=max(dense, met),
        vocab=model.vocab_size,
        context=model.context,
        full_values=full,
        windowed_values=windowed,
        window=model.window or 0,
        state_values=model.linear_layers * model.linear_state,
        latent=bool(model.kv_rank),
        gated=model.gated,
        adapted=_linears(model.hidden_size, query, key, dense, model.gated),
        beside=EXPERT_KEEPS * model.hidden_size * model.experts_per_token,
        moe_layers=moe,
        num_experts=model.num_experts,
        experts_per_token=model.experts_per_token,
    )


def from_decoder(config: DecoderConfig, name: str, origin: str) -> Shape:
    """A decoder that tokenmill itself builds: counted by ``nn/cost.py``."""
    from tokenmill.nn import cost
    from tokenmill.nn.config import MoEConfig

    layers = config.layers
    first = layers[0].attention
    windows = [layer.attention.window for layer in layers if layer.attention.window]
    parameters = cost.parameters(config)
    everything = cost.kv_bytes(config, 1, 1)
    windowed = sum(2 * x.attention.num_kv_heads * x.attention.head_dim for x in layers if x.attention.window)
    moe = [layer.mlp for layer in layers if isinstance(layer.mlp, MoEConfig)]
    dense = [layer.mlp for layer in layers if not isinstance(layer.mlp, MoEConfig)]
    met = [m.experts_per_token * m.expert.size for m in moe]
    gated = dense[0].gated if dense else moe[0].expert.gated
    query = max(x.attention.num_heads * x.attention.head_dim for x in layers)
    key = max(x.attention.num_kv_heads * x.attention.head_dim for x in layers)
    matrices = 3 if gated else 2
    beside = 2 * config.hidden_size * config.post_norms + (query + key) * first.qk_norm
    return Shape(
        name=name,
        origin=origin,
        parameters=parameters,
        active_parameters=cost.parameters(config, active=True),
        expert_parameters=sum(m.num_experts * matrices * config.hidden_size * m.expert.size for m in moe),
        table=config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2),
        hidden=config.hidden_size,
        layers=config.num_layers,
        heads=first.num_heads,
        kv_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        query=query,
        key=key,
        mlp=max([m.size for m in dense] + met),
        vocab=config.vocab_size,
        context=config.max_position,
        full_values=everything - windowed,
        windowed_values=windowed,
        window=max(windows, default=0),
        gated=gated,
        adapted=_linears(config.hidden_size, query, key, dense[0].size if dense else 0, gated),
        beside=beside + (EXPERT_KEEPS * config.hidden_size * moe[0].experts_per_token if moe else 0),
        moe_layers=len(moe),
        num_experts=moe[0].num_experts if moe else 0,
        experts_per_token=moe[0].experts_per_token if moe else 0,
    )


def from_config(config: Mapping[str, Any], name: str) -> Shape:
    """A ``config.json``: through its family where tokenmill has it, else by the keys that all configurations share.

    Raises:
        ConfigError: a key that the dimensions hang on is missing, or what the family refuses.
    """
    # imports torch, as everything that builds models does; a catalog name needs none
    from tokenmill.models.load import FAMILIES, read_config

    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a model that also takes images: the part that continues texts
        return replace(from_config({**inner}, name), origin="config.json (text part)")
    if config.get("model_type") in FAMILIES:
        family, decoder = read_config(config, name)
        transposed = any(row.transposed for row in family.weights)
        return replace(from_decoder(decoder, name, "config.json"), transposed=transposed)
    return replace(from_catalog(_as_entry(config, name)), origin="config.json (its common keys)")


def _as_entry(config: Mapping[str, Any], name: str) -> Model:
    """Common keys of configurations as a catalog entry; weights are counted from them."""
    problems: list[str] = []

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is not None:
            return default
        problems.append(f"{' or '.join(keys)} is missing or no positive integer")
        return 1

    hidden, layers = number("hidden_size", "n_embd", "d_model"), number("num_hidden_layers", "n_layer", "num_layers")
    heads = number("num_attention_heads", "n_head", "num_heads")
    experts = number("n_routed_experts", "num_local_experts", "num_experts", default=0)
    kinds = list(config.get("layer_types") or [])
    rank = number("kv_lora_rank", default=0)
    moe_layers = layers - number("first_k_dense_replace", default=0) if experts > 1 else 0
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": number("num_key_value_heads", "num_kv_heads", default=heads),
        "head_dim": number("qk_nope_head_dim", "head_dim", default=max(1, hidden // heads)),
        "intermediate_size": number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        "vocab_size": number("vocab_size"),
        "context": number("max_position_embeddings", "n_positions", "max_seq_len", default=2048),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "window": config.get("sliding_window") or config.get("attention_chunk_size"),
        "window_layers": sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds),
        "linear_layers": sum(kind == "linear_attention" for kind in kinds),
        "kv_rank": rank,
        "rope_dim": number("qk_rope_head_dim", default=64) if rank else 0,
        "q_rank": number("q_lora_rank", default=0) if rank else 0,
        "value_dim": number("v_head_dim", default=128) if rank else 0,
        "num_experts": experts if experts > 1 else 0,
        "experts_per_token": number("num_experts_per_tok", "experts_per_token", default=0),
        "expert_size": number("moe_intermediate_size", "intermediate_size", default=0) if experts > 1 else 0,
        "moe_layers": moe_layers,
    }
    shared = number("n_shared_experts", default=0) * fields["expert_size"]
    fields["shared_size"] = number("shared_expert_intermediate_size", default=0) or shared
    if problems:
        raise ConfigError("\n  ".join([f"{name}: no dimensions to plan with:", *problems]))
    about: dict[str, Any] = {"family": str(config.get("model_type")), "developer": "", "license": "", "year": 0}
    entry = Model(name=name, parameters=1.0, source="config.json", **about, **fields)
    total, active = counted(entry)
    return entry.model_copy(update={"parameters": total, "active_parameters": active})


def counted(m: Model) -> tuple[float, float]:
    """Weights that follow from an entry's dimensions, all and those that one token meets, without norms and biases."""
    hidden = m.hidden_size
    if m.kv_rank:
        q = hidden * m.q_rank + m.q_rank * m.num_heads * (m.head_dim + m.rope_dim)
        q = q or hidden * m.num_heads * (m.head_dim + m.rope_dim)
        kv = hidden * (m.kv_rank + m.rope_dim) + m.kv_rank * m.num_heads * (m.head_dim + m.value_dim)
        attention = q + kv + m.num_heads * m.value_dim * hidden
    else:
        attention = 2 * hidden * (m.num_heads + m.num_kv_heads) * m.head_dim
    matrices = 3 if m.gated else 2
    expert = matrices * hidden * m.expert_size
    per_moe = expert * m.num_experts + matrices * hidden * m.shared_size + hidden * m.num_experts
    total = m.vocab_size * hidden * (1 if m.tied_embeddings else 2)
    total += (m.num_layers - m.linear_layers) * attention + m.linear_layers * m.linear_parameters
    total += (m.num_layers - m.moe_layers) * matrices * hidden * m.intermediate_size + m.moe_layers * per_moe
    return total, total - m.moe_layers * expert * (m.num_experts - m.experts_per_token)


def given(**dimensions: Any) -> Shape:
    """A model that does not exist yet, by the words of ``config.json``; as little as hidden size, layers and heads.

    Raises:
        UsageError: heads that the hidden size or the key/value heads do not divide into.
    """
    hidden, heads = dimensions["hidden_size"], dimensions["num_heads"]
    kv = dimensions.get("num_kv_heads") or heads
    head_dim = dimensions.get("head_dim")
    if head_dim is None and hidden % heads:
        near = min((n for n in range(1, hidden + 1) if hidden % n == 0), key=lambda n: abs(n - heads))
        raise UsageError(f"hidden size {hidden} does not divide into {heads} heads; {near} do, or give a head size")
    if heads % kv:
        near = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - kv))
        raise UsageError(f"{heads} heads cannot share {kv} key/value heads evenly; {near} can be shared")
    config = {
        "model_type": "given",
        "hidden_size": hidden,
        "num_hidden_layers": dimensions["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_dim or hidden // heads,
        "intermediate_size": dimensions.get("intermediate_size"),
        "vocab_size": dimensions["vocab_size"],
        "max_position_embeddings": dimensions.get("context"),
        "tie_word_embeddings": dimensions.get("tied_embeddings", False),
    }
    return replace(from_catalog(_as_entry(config, "given dimensions")), origin="given")
