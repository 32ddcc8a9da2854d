"""Importance matrices collected by our own runs: the squares of what reaches each matrix, summed over a text.

What llama-imatrix collects: the text is cut into windows, each read on its own with BOS in place of its first token;
the output matrix and the embedding are left out, for they are given more bits anyway.

Axes: T tokens · K columns · E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.formats.gguf.imatrix import ImportanceMatrix
from tokenmill.models.load import Model
from tokenmill.models.weights import modules_by_name
from tokenmill.nn.context import Packed
from tokenmill.nn.linear import LinearLayer
from tokenmill.nn.moe import StackedLinear

MIN_TOKENS = 1024
"""Fewer say little of a layer's inputs (llama-imatrix asks for two windows of 512)."""


@torch.inference_mode()
def collect(
    model: Model,
    ids: Sequence[int],
    *,
    dataset: str,
    ctx: int = 512,
    bos_token_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportanceMatrix:
    """Run a model over a text given as ids. UsageError for a text of fewer than two windows.

    ConfigError where a matrix was never reached: its zeros would turn importances into noise.
    """
    network = model.decoder
    ctx = min(ctx, network.config.max_position)
    if len(ids) < max(2 * ctx, min(MIN_TOKENS, 4 * ctx)):
        raise UsageError(f"the calibration text has {len(ids)} tokens; at least {max(2 * ctx, MIN_TOKENS)} are needed")
    matrix = ImportanceMatrix(datasets=[dataset], chunk_size=ctx)
    hooks = [_listen(matrix, name, module) for name, module in _matrices(model)]
    try:
        windows = len(ids) // ctx
        for window in range(windows):
            tokens_T = torch.tensor(ids[window * ctx : (window + 1) * ctx], device=network.device)
            if bos_token_id is not None:
                tokens_T[0] = bos_token_id
            network.hidden(tokens_T, Packed([ctx], network.device))
            if progress is not None:
                progress(window + 1, windows)
    finally:
        for hook in hooks:
            hook.remove()
    if silent := [name for name, counts in matrix.counts.items() if not counts.sum()]:
        raise ConfigError(f"the calibration never reached {len(silent)} matrices ({silent[0]}, …); this is a bug")
    return matrix


def _matrices(model: Model) -> list[tuple[str, nn.Module]]:
    """The matrices of the layers by their GGUF names; of fused ones the first part, since all see the same inputs."""
    network = model.decoder
    found: list[tuple[str, nn.Module]] = []
    for named in modules_by_name(network, model.family.gguf_weights):
        module = network.get_submodule(named.ours[0])
        if named.theirs.startswith("blk.") and isinstance(module, LinearLayer | StackedLinear):
            found.append((f"{named.theirs}.weight", module))
    return found


def _listen(matrix: ImportanceMatrix, name: str, module: nn.Module) -> Any:
    experts = module.weight.shape[0] if isinstance(module, StackedLinear) else 1
    columns = module.weight.shape[2] if isinstance(module, StackedLinear) else int(module.in_features)  # type: ignore[arg-type]
    matrix.sums[name], matrix.counts[name] = torch.zeros(experts, columns), torch.zeros(experts)
    return module.register_forward_pre_hook(partial(_add, matrix, name))


def _add(matrix: ImportanceMatrix, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A forward-pre-hook: inputs are (x [T, K]) or, for stacked experts, (x [T, K], number of the expert)."""
    del module
    x_TK: Tensor = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
    expert = inputs[1] if len(inputs) > 1 else 0
    matrix.sums[name][expert] += (x_TK * x_TK).sum(0).cpu()
    matrix.counts[name][expert] += len(x_TK)
