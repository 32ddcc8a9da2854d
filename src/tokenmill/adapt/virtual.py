"""Prompt tuning (Lester et al. 2021) and prefix tuning (Li and Liang 2021): learned positions before every document.

A virtual token is a token id behind the vocabulary: ``vocab_size + i`` is the i-th. Prompt tuning gives these ids
embeddings; prefix tuning replaces the keys and values that they have in every layer (what they compute themselves is
never seen). So one mechanism trains both and serves both, with any cache, and positions are those of PEFT: the first
real token stands at position P. Axes: T tokens · P virtual tokens · L layers · K, D as in ``ops/attention.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenmill.adapt.switch import Adapters
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.nn.context import AttentionContext, How, Packed
from tokenmill.nn.decoder import Decoder, Prompt


class PromptTokens(nn.Module):
    """Embeddings of virtual tokens, [P, C]."""

    def __init__(self, embeddings_PC: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings_PC)

    @property
    def count(self) -> int:
        """P."""
        return self.embeddings.shape[0]

    def embed(self, x_TC: Tensor, where: Tensor, which: Tensor) -> Tensor:
        """Embeddings of a row of tokens with those of the virtual ones in place."""
        return x_TC.index_copy(0, where, self.embeddings[which].to(x_TC.dtype))

    def context(self, context: AttentionContext, where: Tensor, which: Tensor) -> AttentionContext:
        """The attention context as it is."""
        del where, which
        return context


class PrefixTokens(nn.Module):
    """Keys and values of virtual tokens in every layer, [P, 2L, K, D]: keys and values in turn, as PEFT stores them."""

    def __init__(self, keys_values: Tensor) -> None:
        super().__init__()
        self.keys_values = nn.Parameter(keys_values)

    @property
    def count(self) -> int:
        """P."""
        return self.keys_values.shape[0]

    def embed(self, x_TC: Tensor, where: Tensor, which: Tensor) -> Tensor:
        """The embeddings as they are."""
        del where, which
        return x_TC

    def context(self, context: AttentionContext, where: Tensor, which: Tensor) -> AttentionContext:
        """One that puts the learned keys and values in the virtual tokens' places."""
        return _Replaced(context, where, self.keys_values[which])


class _Replaced:
    """The context inside, with the keys and values of some rows replaced on their way into it."""

    def __init__(self, inner: AttentionContext, where: Tensor, keys_values: Tensor) -> None:
        self.inner, self.where, self.keys_values = inner, where, keys_values
        self.positions_T, self.lengths_T = inner.positions_T, inner.lengths_T

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        k_TKD = k_TKD.index_copy(0, self.where, self.keys_values[:, 2 * layer].to(k_TKD.dtype))
        v_TKD = v_TKD.index_copy(0, self.where, self.keys_values[:, 2 * layer + 1].to(v_TKD.dtype))
        return self.inner.attend(layer, q_THD, k_TKD, v_TKD, how)


class VirtualTokens(Prompt):
    """A decoder's prompts and prefixes by name; one at a time is on."""

    def __init__(self, switch: Adapters) -> None:
        super().__init__()
        self.switch = switch
        self.adapters = nn.ModuleDict()

    @property
    def count(self) -> int:
        """P of the one that is on, else 0."""
        part = self.on()
        return 0 if part is None else part.count

    def on(self) -> PromptTokens | PrefixTokens | None:
        """The one that takes part in this call."""
        names = [name for name in self.switch.active if name in self.adapters]
        if len(names) > 1:
            raise UsageError(f"only one prompt or prefix can be on at a time, not {', '.join(names)}")
        part = self.adapters[names[0]] if names else None
        assert part is None or isinstance(part, PromptTokens | PrefixTokens)
        return part

    def forward(self, decoder: Decoder, tokens_T: Tensor, context: AttentionContext) -> Tensor:
        """Documents of a :class:`Packed` row get their virtual tokens here; whoever fills a cache gives their ids."""
        part, vocabulary = self.on(), decoder.config.vocab_size
        if part is None:
            return decoder.run(decoder.embed(tokens_T), context)
        real_T = tokens_T < vocabulary
        added = isinstance(context, Packed) and bool(real_T.all())
        if added:
            assert isinstance(context, Packed)
            tokens_T, context = _with_virtual(tokens_T, context, vocabulary, part.count)
            real_T = tokens_T < vocabulary
        where = (~real_T).nonzero()[:, 0]
        which = tokens_T[where] - vocabulary
        x_TC = part.embed(decoder.embed(tokens_T.clamp(max=vocabulary - 1)), where, which)
        hidden_TC = decoder.run(x_TC, part.context(context, where, which))
        return hidden_TC[real_T] if added else hidden_TC


def _with_virtual(tokens_T: Tensor, context: Packed, vocabulary: int, count: int) -> tuple[Tensor, Packed]:
    """The row with the virtual tokens' ids before every document."""
    ids = torch.arange(vocabulary, vocabulary + count, device=tokens_T.device)
    pieces = [piece for document in tokens_T.split(context.lengths) for piece in (ids, document)]
    return torch.cat(pieces), Packed([count + length for length in context.lengths], tokens_T.device)


def virtual_ids(decoder: Decoder) -> list[int]:
    """The ids to put before every prompt while a prompt or prefix is on; none otherwise."""
    part = decoder.prompt.on() if isinstance(decoder.prompt, VirtualTokens) else None
    return [] if part is None else list(range(decoder.config.vocab_size, decoder.config.vocab_size + part.count))


def put_virtual(decoder: Decoder, switch: Adapters, name: str, part: PromptTokens | PrefixTokens) -> None:
    """Give a decoder a prompt or prefix. ConfigError where its shape or the model's arithmetic does not allow it."""
    if isinstance(part, PromptTokens):
        if decoder.config.embedding_scale != 1.0:
            raise ConfigError(
                "prompt tuning is not possible for a model that scales its embeddings (Gemma, Granite): programs "
                "differ in whether a prompt is scaled too; use prefix tuning or LoRA"
            )
        if part.embeddings.shape[1] != decoder.config.hidden_size:
            raise ConfigError(f"a prompt of width {part.embeddings.shape[1]} does not fit a model of width "
                              f"{decoder.config.hidden_size}")  # fmt: skip
    elif (shape := tuple(part.keys_values.shape[1:])) != (wanted := prefix_shape(decoder)):
        raise ConfigError(f"a prefix of {list(shape)} (two a layer, heads, head size) does not fit this model's "
                          f"{list(wanted)}")  # fmt: skip
    if decoder.prompt is None:
        decoder.prompt = VirtualTokens(switch)
    assert isinstance(decoder.prompt, VirtualTokens)
    decoder.prompt.adapters[name] = part


def prefix_shape(decoder: Decoder) -> tuple[int, int, int]:
    """(2L, K, D) of a decoder; ConfigError where layers differ in their heads."""
    shapes = {(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in decoder.config.layers}
    if len(shapes) != 1:
        raise ConfigError("prefix tuning needs layers of equal heads")
    return (2 * decoder.config.num_layers, *shapes.pop())


class _Recorder(Packed):
    """Notes the keys and values of every layer on the way."""

    def __init__(self, length: int, device: torch.device) -> None:
        super().__init__([length], device)
        self.seen: list[Tensor] = []

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        self.seen += [k_TKD, v_TKD]
        return super().attend(layer, q_THD, k_TKD, v_TKD, how)


@torch.no_grad()
def prefix_of_text(decoder: Decoder, tokens: Sequence[int]) -> Tensor:
    """The keys and values that the model itself has for a text: where prefix tuning begins best. [P, 2L, K, D]."""
    recorder = _Recorder(len(tokens), decoder.device)
    decoder.run(decoder.embed(torch.tensor(tokens, device=decoder.device)), recorder)
    return torch.stack(recorder.seen, dim=1).float()
