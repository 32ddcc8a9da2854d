"""A decoder's layers one after the other over calibration documents: what quantisation and pruning see of a model.

A layer runs on what the layers before it make of the documents as they are by then (quantised, pruned), so that it can
correct their errors (GPTQ, SparseGPT). Of the activations only the hidden states between two layers are kept.
Documents are packed without padding, so no statistic counts a token that is none. A module that was to be watched and
never ran is an error: statistics that stay zero turn every method into plain rounding without a word (keras #23512).

Axes: T tokens of a batch of documents · C hidden size · I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Block, Decoder
from tokenmill.nn.linear import LinearLayer
from tokenmill.nn.moe import StackedLinear

TOKENS_AT_ONCE = 4096
"""Tokens of a batch of documents: bounds the memory of a layer's inner activations."""
Listener = Callable[..., None]
"""Given what a module is given: a linear layer's inputs [T, I]; stacked experts also say the number of the expert."""


class LayerStep:
    """One layer of a walk, and the hidden states that reach it."""

    def __init__(self, index: int, block: Block, states: list[Tensor], contexts: list[Packed], angles: list[Any]):
        self.index, self.block = index, block
        self.inputs = states
        """Hidden states [T, C] of every batch, as they reach the layer. Not to be changed."""
        self._contexts, self._angles = contexts, angles

    def linears(self) -> dict[str, LinearLayer | StackedLinear]:
        """The layer's linear layers, experts and routers included, by their names in it: ``attn.q``, ``mlp.down``."""
        found = self.block.named_modules()
        return {name: module for name, module in found if isinstance(module, LinearLayer | StackedLinear)}

    @torch.no_grad()
    def outputs(self) -> Iterator[Tensor]:
        """What the layer, as it is now, makes of every batch, [T, C] each."""
        for x_TC, context, angles in zip(self.inputs, self._contexts, self._angles, strict=True):
            yield self.block(x_TC, angles, context)

    def watch(self, listeners: Mapping[str, Listener]) -> None:
        """Run the layer over all batches, telling each listener, by the name of a module, what that one is given.

        Raises ConfigError for a module that was never run (an expert that no token was sent to).
        """
        heard = dict.fromkeys(listeners, 0)

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def tell(module: nn.Module, given: tuple[Any, ...]) -> None:
                heard[name] += 1
                listeners[name](*given)

            return tell

        handles = [self.block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in listeners]
        try:
            for _ in self.outputs():
                pass
        finally:
            for handle in handles:
                handle.remove()
        if silent := sorted(name for name, times in heard.items() if not times):
            raise ConfigError(
                f"layer {self.index}: {', '.join(silent)} saw nothing of the calibration data; more of it, or more "
                "varied, is needed"
            )


@torch.no_grad()
def walk(decoder: Decoder, documents: Sequence[Tensor]) -> Iterator[LayerStep]:
    """The layers in order; what the caller does to a layer's weights before it asks for the next one counts there.

    ``documents``: token ids, int64 [n] each. Raises ConfigError where there are none, or one is longer than the model's
    context or of another vocabulary.
    """
    check_documents(decoder, documents)
    together = batches(documents)
    contexts = [Packed([len(document) for document in batch], decoder.device) for batch in together]
    begun = [
        decoder.begin(decoder.embed(torch.cat(list(batch)).to(decoder.device)), context)
        for batch, context in zip(together, contexts, strict=True)
    ]
    states = [x_TC for x_TC, _ in begun]
    blocks = zip(decoder.layers, decoder.config.layers, strict=True)
    for index, (block, layer) in enumerate(blocks):
        assert isinstance(block, Block)
        rope = layer.attention.rope
        rotaries = [None if rope is None else angles[rope] for _, angles in begun]
        step = LayerStep(index, block, states, contexts, rotaries)
        yield step
        if index + 1 < decoder.config.num_layers:
            states = list(step.outputs())


def check_documents(decoder: Decoder, documents: Sequence[Tensor]) -> None:
    """ConfigError where documents cannot be what this model is measured on."""
    config = decoder.config
    if not documents or not sum(len(document) for document in documents):
        raise ConfigError("the calibration data is empty")
    longest = max(len(document) for document in documents)
    if longest > config.max_position:
        raise ConfigError(f"a calibration document has {longest} tokens, the model's context {config.max_position}")
    highest = max(int(document.max()) for document in documents if len(document))
    if highest >= config.vocab_size:
        raise ConfigError(
            f"the calibration data has token {highest}, the model's vocabulary ends at {config.vocab_size - 1}: it was "
            "made with another tokenizer"
        )


def batches(documents: Sequence[Tensor]) -> list[list[Tensor]]:
    """Documents that go through a layer together."""
    together: list[list[Tensor]] = []
    size = TOKENS_AT_ONCE + 1
    for document in documents:
        if not len(document):
            continue
        if size + len(document) > TOKENS_AT_ONCE:
            together.append([])
            size = 0
        together[-1].append(document)
        size += len(document)
    return together
