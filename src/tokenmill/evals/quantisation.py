"""A model quantised, measured beside the original, written and reported on: the whole of ``tokenmill quantize``."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.checksums import write_sums
from tokenmill.core.finite import finite
from tokenmill.core.paths import atomic_write
from tokenmill.evals.divergence import Divergence, Original
from tokenmill.evals.model_card import Card
from tokenmill.formats.aside import move_into_place
from tokenmill.models.generation import generation_config
from tokenmill.models.load import Model
from tokenmill.quant.layers import LayerRecord
from tokenmill.quant.run import Quantised, quantise, refuse_unfit
from tokenmill.quant.save import check_folder, write_folder
from tokenmill.quant.settings import Settings
from tokenmill.text.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
DOCUMENT, PAGE = "quantization_report.json", "quantization_report.html"


@dataclass(frozen=True)
class Job:
    """What is quantised, with what, and where it goes."""

    source: str
    """The model's name, as the person gave it."""
    key: str
    """Names its very files, so that a working folder of other ones is not used."""
    settings: Settings
    documents: Sequence[Tensor]
    original: Original | None
    """To measure against; None where there is no text to measure on."""
    dtype: torch.dtype
    original_bytes: int = 0
    """Of the original's weights as files have them."""


@dataclass
class Result:
    """What came of a job."""

    settings: Settings
    seconds: float
    """Of quantising alone."""
    weight_bits: float
    """A weight of the layers that are quantised or kept by a budget, scales and zeros included."""
    nbytes: int
    """Of all weights as they are written."""
    layers: list[dict[str, Any]]
    divergence: Divergence | None = None
    speed: dict[str, float] = field(default_factory=dict)
    resumed: int = 0

    @property
    def kept(self) -> list[str]:
        """Layers that a budget keeps as they are."""
        return [layer["name"] for layer in self.layers if layer["kept"]]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        plain = [layer["name"] for layer in self.layers if "plainly" in layer["note"]]
        return {
            "method": self.settings.method,
            "bits": self.settings.bits,
            "bits_budget": self.settings.budget,
            "group_size": self.settings.group_size,
            "symmetric": self.settings.symmetric,
            "layout": self.settings.layout,
            "kv_cache": self.settings.kv_cache,
            "seconds": round(self.seconds, 3),
            "weight_bits": round(self.weight_bits, 4),
            "bytes": self.nbytes,
            "resumed_layers": self.resumed,
            "rounded_plainly": plain,
            "kept": self.kept,
            "divergence": None if self.divergence is None else self.divergence.asdict(),
            "speed": self.speed,
            "layers": self.layers,
        }


def run_job(job: Job, model: Model, work: Path, progress: Progress | None = None) -> tuple[Quantised, Result]:
    """Quantise a model in place and measure it; what is done of it stays in ``work`` until it is written."""
    refuse_unfit(model, job.settings)
    begun = time.perf_counter()
    quantised = quantise(
        model,
        job.settings,
        job.documents,
        work,
        source=job.key,
        dtype=job.dtype,
        progress=None if progress is None else lambda done, total: progress("layers", done, total),
    )
    seconds = time.perf_counter() - begun
    counted = [(record, _count(record.name, quantised)) for record in quantised.records]
    bits = sum(record.bits * count for record, count in counted)
    coded = sum(record.bits * count for record, count in counted if not record.kept)
    divergence = None
    if job.original is not None:
        divergence = job.original.compare(
            model.decoder, None if progress is None else lambda done, total: progress("comparison", done, total)
        )
    plain = sum(p.numel() for p in model.decoder.parameters()) + sum(
        bias.numel() for name, bias in model.decoder.named_buffers() if name.endswith(".bias")
    )
    nbytes = int(coded / 8 + plain * job.dtype.itemsize)
    records = [_layer(record, quantised) for record in quantised.records]
    return quantised, Result(
        job.settings,
        seconds,
        bits / sum(count for _, count in counted),
        nbytes,
        records,
        divergence,
        resumed=quantised.resumed,
    )


def _layer(record: LayerRecord, quantised: Quantised) -> dict[str, Any]:
    """A record for JSON, with what the layer was thought to lose where bits went by that."""
    if not quantised.losses:
        return record.asdict()
    name = record.name if record.name in quantised.losses else record.name.rpartition(".")[0]
    return record.asdict() | {"estimated_kl": quantised.losses[name]}


def _count(record: str, quantised: Quantised) -> int:
    """Weights of a layer, by the name of its record."""
    codes, (name, _, number) = quantised.codes.get(record), record.rpartition(".")
    if codes is None and name in quantised.codes:  # an expert
        experts = quantised.codes[name]
        assert isinstance(experts, list)
        codes = experts[int(number)]
    if codes is None:  # it is kept
        expert = number.isdigit()
        weight = quantised.model.decoder.get_parameter(f"{name if expert else record}.weight")
        return weight[int(number)].numel() if expert else weight.numel()
    assert not isinstance(codes, list)
    return codes.shape[0] * codes.shape[1]


def write_result(job: Job, quantised: Quantised, work: Path, tokenizer: Tokenizer) -> Path:
    """Build the folder aside and read it back; returns it, still in ``work``."""
    built = work / "model"
    shutil.rmtree(built, ignore_errors=True)
    model = quantised.model
    model.generation_config = generation_config(model.generation_config, tokenizer)
    write_folder(quantised, built, job.dtype)
    tokenizer.save(built)
    check_folder(built, quantised)
    return built


def finish(built: Path, work: Path, out: Path, document: dict[str, Any], page: str, card: Card) -> None:
    """Put reports, card and checksums into the folder, rename it into place, and remove the working folder."""
    write_report(built, document, page)
    card.figures[Path(DOCUMENT).stem.replace("_", " ")] = document
    (built / "README.md").write_text(card.text(), encoding="utf-8")
    write_sums(built)
    move_into_place(built, out)
    shutil.rmtree(work, ignore_errors=True)


def write_report(folder: Path, document: dict[str, Any], page: str) -> None:
    """The report as JSON and as a page."""
    with atomic_write(folder / DOCUMENT) as file:
        file.write((json.dumps(finite(document), indent=1, allow_nan=False) + "\n").encode())
    with atomic_write(folder / PAGE) as file:
        file.write(page.encode("utf-8", "replace"))


def folder_bytes(path: Path) -> int:
    """Of a model's weights: a GGUF file, or the safetensors of a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.safetensors"))
