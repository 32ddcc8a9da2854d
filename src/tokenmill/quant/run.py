"""A model quantised layer by layer, in a working folder that a killed run goes on from.

Each layer's codes are written when it is done; a run that finds them puts them in place and goes on behind them, with
the inputs that they give: the result is the same to the last bit. The model's folder is built aside, read back and
compared, and renamed into place at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.core.log import get_logger
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.formats.cache_scales import CacheScales
from tokenmill.models.load import Model
from tokenmill.models.walk import LayerStep, walk
from tokenmill.nn.decoder import Block, Decoder
from tokenmill.nn.moe import MoE
from tokenmill.quant.kv_cache import cache_scales
from tokenmill.quant.layers import LayerRecord, Stored, install, layers_of, quantise_block
from tokenmill.quant.mixed import chosen_bits
from tokenmill.quant.settings import Settings, refuse_sizes
from tokenmill.quant.state import load_block, save_block
from tokenmill.quant.statistics import LayerStatistics

log = get_logger(__name__)
Progress = Callable[[int, int], None]
RUN, BITS = "run.json", "bits.json"


@dataclass
class Quantised:
    """A model whose layers hold codes, and these by their names in the model (``layers.3.attn.q``)."""

    model: Model
    settings: Settings
    codes: dict[str, Stored | list[Stored]]
    records: list[LayerRecord]
    resumed: int = 0
    """Layers that an earlier run had done."""
    losses: dict[str, float] = field(default_factory=dict)
    """Where layers have bits of their own: nats a token that each one's unit is thought to lose by its number."""
    cache: CacheScales | None = None
    """Scales of keys and values, where they were asked for."""


def quantise(
    model: Model,
    settings: Settings,
    documents: Sequence[Tensor],
    work: Path,
    *,
    source: str,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> Quantised:
    """Quantise a model in place.

    Args:
        model: in float32, on the device that is to do the work.
        documents: token ids of the calibration texts, int64 [n] each; used where the method needs them.
        work: the working folder; what a run with the same settings, model and data left there is used.
        source: names the model, so that nothing of another one is used.
        dtype: of scales, and of what stays unquantised when it is written.

    Raises:
        ConfigError: a model without linear layers to quantise, or calibration data that is empty, too short or of
        another tokenizer.
    """
    decoder = model.decoder
    if settings.calibrated:
        check_enough(decoder, documents)
    done = _begin(work, settings, documents, source, dtype)
    bits: dict[str, int] | None = None
    losses: dict[str, float] = {}
    if settings.budget is not None:
        bits, losses = chosen_bits(decoder, documents, settings, dtype, work / BITS)
    result = Quantised(model, settings, {}, [], len(done), losses)
    blocks = walk(decoder, documents) if settings.calibrated else _bare(decoder)
    for index, step in enumerate(blocks):
        block = decoder.layers[index]
        assert isinstance(block, Block)
        path = work / f"layer-{index:05d}.safetensors"
        if index in done:
            quantised = load_block(path)
        else:
            quantised = quantise_block(block, index, settings, dtype, _statistics(step), bits)
            save_block(path, quantised)
        install(block, quantised, settings.inputs)
        result.codes |= {f"layers.{index}.{name}": codes for name, codes in quantised.codes.items()}
        result.records += quantised.records
        if progress is not None:
            progress(index + 1, decoder.config.num_layers)
    if settings.kv_cache is not None:
        result.cache = cache_scales(decoder, documents, settings.kv_cache)
    return result


def _bare(decoder: Decoder) -> Iterator[None]:
    yield from [None] * decoder.config.num_layers


def _statistics(step: LayerStep | None) -> LayerStatistics:
    heard = LayerStatistics()
    if step is not None:
        step.watch({name: partial(heard.hear, name) for name in layers_of(step.block)})
        heard.finish()
    return heard


def check_enough(decoder: Decoder, documents: Sequence[Tensor]) -> None:
    """ConfigError where the calibration has fewer tokens than the widest layer has inputs: what is known of these would
    be of a rank too low to say anything about most of them."""
    tokens = sum(len(document) for document in documents)
    first = decoder.layers[0]
    assert isinstance(first, Block)
    widest = max(layer.weight.shape[-1] for layer in layers_of(first).values())
    if documents and tokens < widest:
        raise ConfigError(
            f"the calibration data is too short: {tokens} tokens, and the widest layer has {widest} inputs; give at "
            f"least {8 * widest} tokens"
        )


def _begin(work: Path, settings: Settings, documents: Sequence[Tensor], source: str, dtype: torch.dtype) -> set[int]:
    """Open the working folder; returns the layers that it has."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents if settings.calibrated else ():
        digest.update(document.numpy().tobytes())
        digest.update(b"|")
    run = {
        "version": __version__,
        "settings": asdict(settings),
        "data": digest.hexdigest(),
        "source": source,
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
    }
    path = work / RUN
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if known != run:
        if known is not None:
            log.warning("%s is of other settings, data or threads, or of another model; it is begun anew", work)
        # Before this run is named: whatever a kill leaves here must not be taken for its own
        for stale in [*work.glob("layer-*.safetensors"), work / BITS]:
            stale.unlink(missing_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(run, indent=1).encode())
    return {int(found.stem.rpartition("-")[2]) for found in work.glob("layer-*.safetensors")}


def refuse_unfit(model: Model, settings: Settings) -> None:
    """UsageError for a model that this layout cannot hold."""
    if any(row.transposed for row in model.family.weights):
        raise UsageError(
            f"{model.family.name} stores its weights transposed, and no layout holds such layers quantised"
        )
    blocks = [block for block in model.decoder.layers if isinstance(block, Block)]
    rows = {layer.weight.shape[-1] for block in blocks for layer in layers_of(block).values()}
    refuse_sizes(settings, {settings.grid(torch.float16).fitted(columns).group_size for columns in rows})
    moe = any(isinstance(block.mlp, MoE) for block in blocks)
    if moe and settings.layout == "bitsandbytes":
        raise UsageError("experts of a mixture are not held by the layout bitsandbytes")
