"""A model's weights pruned layer by layer, each on the inputs that the layers pruned before it give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tokenmill.models.load import Model
from tokenmill.models.walk import LayerStep, walk
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.prune.weights import Method, Sparsity, prune_matrix
from tokenmill.quant.layers import LEAST_TOKENS, layers_of, matrices
from tokenmill.quant.run import check_enough
from tokenmill.quant.statistics import InputStatistics, LayerStatistics

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MatrixRecord:
    """What became of one matrix."""

    name: str
    zeros: float
    """Share of its weights."""
    error: float | None
    """Squared change of its outputs on the calibration data as a share of their square; None without data."""
    problem: str = ""


@torch.no_grad()
def prune_weights(
    model: Model,
    method: Method,
    sparsity: Sparsity,
    documents: Sequence[Tensor],
    *,
    damping: float = 0.01,
    progress: Progress | None = None,
) -> list[MatrixRecord]:
    """Zero weights of every linear layer but head, embedding and routers, in place.

    ``documents``: calibration token ids, int64 [n] each; magnitude does without. ConfigError: they are missing where
    they are needed, too few, or of another tokenizer.
    """
    decoder = model.decoder
    records: list[MatrixRecord] = []
    if documents or method != "magnitude":
        check_enough(decoder, documents)
        steps: Sequence[LayerStep | None] | object = walk(decoder, documents)
    else:
        steps = [None] * decoder.config.num_layers
    for index, step in enumerate(steps):  # type: ignore[arg-type, var-annotated]
        block = decoder.layers[index]
        assert isinstance(block, Block)
        heard = LayerStatistics()
        if step is not None:
            step.watch({name: partial(heard.hear, name) for name in layers_of(block)})
            heard.finish()
        for name, layer in layers_of(block).items():
            done = []
            for key, weight_OI in matrices(name, layer).items():
                new_OI, record = _one(
                    f"layers.{index}.{key}", weight_OI, method, sparsity, heard.by_name.get(key), damping
                )
                done.append(new_OI)
                records.append(record)
            new = done[0] if isinstance(layer, Linear) else torch.stack(done)
            layer.weight = nn.Parameter(new, requires_grad=layer.weight.requires_grad)
        if progress is not None:
            progress(index + 1, decoder.config.num_layers)
    return records


def _one(
    name: str, weight_OI: Tensor, method: Method, sparsity: Sparsity, inputs: InputStatistics | None, damping: float
) -> tuple[Tensor, MatrixRecord]:
    problem = ""
    if method != "magnitude" and (inputs is None or inputs.tokens < LEAST_TOKENS):
        method, problem = "magnitude", f"{inputs.tokens if inputs else 0} calibration tokens reached it: by magnitude"
    pruned = prune_matrix(weight_OI, method, sparsity, inputs, damping=damping)
    new_OI = pruned.weight_OI.to(weight_OI.dtype)
    before_OI = weight_OI.float()
    error = None if inputs is None else inputs.error(before_OI, new_OI.float() - before_OI)
    return new_OI, MatrixRecord(name, float((new_OI == 0).float().mean()), error, problem or pruned.problem)
