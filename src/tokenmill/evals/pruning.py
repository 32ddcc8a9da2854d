"""A model pruned, measured beside the original, and reported on: the whole of ``tokenmill prune`` but its flags."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from torch import Tensor

from tokenmill.core.html import Series, line_chart, render_page
from tokenmill.evals.divergence import Divergence, Original
from tokenmill.models.load import Model
from tokenmill.nn.cost import parameters
from tokenmill.prune.depth import Rule, keep_layers, layers_to_keep
from tokenmill.prune.run import MatrixRecord, prune_weights
from tokenmill.prune.weights import Method, Sparsity
from tokenmill.prune.width import narrow

REPORT, PAGE = "pruning_report.json", "pruning_report.html"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What is taken out: weights (``method`` and ``sparsity``), layers (``layers``, ``rule``) or widths."""

    method: str
    sparsity: Sparsity | None = None
    layers: int | None = None
    rule: Rule = "influence"
    mlp_size: int | None = None
    kv_heads: int | None = None


@dataclass
class Result:
    """What came of it."""

    model: Model
    job: Job
    parameters: int
    original_parameters: int
    seconds: float = 0.0
    """Of pruning alone."""
    records: list[MatrixRecord] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Numbers of the layers that stayed, of a job that takes out layers."""
    scores: list[float] = field(default_factory=list)
    """By the job's rule."""
    divergence: Divergence | None = None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        zeros = sum(record.zeros for record in self.records) / len(self.records) if self.records else None
        return {
            "method": self.job.method,
            "parameters": self.parameters,
            "original_parameters": self.original_parameters,
            "seconds": self.seconds,
            "zeros": zeros,
            "kept_layers": self.kept or None,
            "scores": self.scores or None,
            "measured": None if self.divergence is None else self.divergence.asdict(),
            "matrices": [asdict(record) for record in self.records],
        }


def run_job(
    job: Job, model: Model, documents: Sequence[Tensor], held_out: Sequence[Tensor], progress: Progress | None = None
) -> Result:
    """Prune a model (weights in place; layers and widths give a new one) and measure it on the held-out documents."""
    count = parameters(model.decoder.config)
    result = Result(model, job, count, count)
    original = Original(model.decoder, held_out) if any(len(one) >= 4 for one in held_out) else None
    began = time.perf_counter()
    if job.method == "depth":
        assert job.layers is not None
        result.kept, result.scores = layers_to_keep(model, job.layers, job.rule, documents, progress)
        result.model = keep_layers(model, result.kept)
    elif job.method == "width":
        sizes: dict[str, int | None] = {"mlp_size": job.mlp_size, "kv_heads": job.kv_heads}
        result.model = narrow(model, documents, **sizes, progress=progress)
    else:
        assert job.sparsity is not None
        method: Method = job.method  # type: ignore[assignment]
        result.records = prune_weights(model, method, job.sparsity, documents, progress=progress)
    result.seconds = time.perf_counter() - began
    result.parameters = parameters(result.model.decoder.config)
    if original is not None:
        result.divergence = original.compare(result.model.decoder)
    return result


def page(source: str, result: Result, command: str) -> str:
    """The report as one page."""
    tiles = [("parameters", f"{result.parameters / 1e6:.1f} M of {result.original_parameters / 1e6:.1f} M")]
    if result.records:
        share = sum(record.zeros for record in result.records) / len(result.records)
        tiles.append(("zeros in pruned matrices", f"{share:.1%}"))
    if (found := result.divergence) is not None:
        tiles += [
            ("perplexity", f"{found.ppl:.3f}"),
            ("original's perplexity", f"{found.original_ppl:.3f}"),
            ("KL divergence", f"{found.kl:.4f}"),
            ("same top token", f"{found.agreement:.1%}"),
        ]
    about = {"depth": f"layers {', '.join(map(str, result.kept))} are kept", "width": "narrower layers"}
    rows = [(r.name, f"{r.zeros:.3f}", "" if r.error is None else f"{r.error:.3g}", r.problem) for r in result.records]
    template = (resources.files("tokenmill.evals") / "pruning.html.jinja").read_text(encoding="utf-8")
    return render_page(
        template,
        title=f"{source} pruned: {result.job.method}",
        about=about.get(result.job.method, "zeros are stored as zeros, so files are as large as before"),
        tiles=tiles,
        charts=[_chart(result)],
        header=("matrix", "zeros", "error", "note"),
        rows=rows,
        command=command,
    )


def _chart(result: Result) -> Any:
    """The scores of layers, or the error of every kind of matrix over the depth."""
    if result.scores:
        points = [(float(i), score) for i, score in enumerate(result.scores)]
        return line_chart(f"Layers by {result.job.rule}", [Series(result.job.rule, points)], x_label="layer")
    kinds: dict[str, list[tuple[float, float]]] = {}
    for record in result.records:
        _, number, kind = record.name.split(".", 2)
        if record.error is not None and not kind.rpartition(".")[2].isdigit():  # experts are too many for a chart
            kinds.setdefault(kind, []).append((float(number), record.error))
    return line_chart("Error by layer", [Series(*one) for one in kinds.items()], x_label="layer", log=True)
