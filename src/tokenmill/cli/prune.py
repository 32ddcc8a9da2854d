"""``tokenmill prune``: weights, layers or widths taken out of a model, as a Hugging Face folder with a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.inputs import calibration_size
from tokenmill.cli.output import Json, PullProgress, command_line, emit, human_count, step_progress, verb
from tokenmill.core.errors import MissingFileError, UsageError, did_you_mean
from tokenmill.core.finite import finite
from tokenmill.store import Store

if TYPE_CHECKING:
    from tokenmill.evals.export_folder import Wanted
    from tokenmill.evals.pruning import Job, Result
    from tokenmill.formats import TensorFile
    from tokenmill.text.tokenizer import Tokenizer

app = verb()

METHODS = ("magnitude", "wanda", "sparsegpt", "depth", "width")
OWN = {
    "sparsity": METHODS[:3],
    "layers": ("depth",),
    "rule": ("depth",),
    "mlp_size": ("width",),
    "kv_heads": ("width",),
}
"""Which methods each flag belongs to."""
EPILOG = """\b
Examples:
  tokenmill prune smollm2:135m --method wanda --sparsity 0.5 --data texts.jsonl --out sparse
  tokenmill prune smollm2:135m --method sparsegpt --sparsity 2:4 --data texts.jsonl --out sparse
  tokenmill prune smollm2:135m --method depth --layers 15 --data texts.jsonl --out half
"""


@app.command(epilog=EPILOG)
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")],
    method: Annotated[
        str, typer.Option(help="magnitude, wanda, sparsegpt: weights; depth: layers; width: both widths.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pruned model goes; a new or empty folder.")],
    sparsity: Annotated[str | None, typer.Option(help="Share of weights, or n:m kept of m neighbours. [0.5]")] = None,
    layers: Annotated[int | None, typer.Option(help="depth: how many layers stay.")] = None,
    rule: Annotated[str | None, typer.Option(help="depth: influence, angular, even. [influence]")] = None,
    mlp_size: Annotated[int | None, typer.Option(help="width: neurons of the feed-forward part that stay.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="width: key/value heads that stay, with their queries.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Calibration data, as for training; 5 % of it is measured on.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Documents of it that are looked at. [default: 128]")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=4, help="Tokens of a document at most. [default: 512]")] = None,
    as_json: Json = False,
) -> None:
    """Prune a model: zero weights, or take out layers, neurons and heads."""
    given = {"sparsity": sparsity, "layers": layers, "rule": rule, "mlp_size": mlp_size, "kv_heads": kv_heads}
    _check(method, given, data)
    documents, tokens = calibration_size(samples, seq_len, data)

    import torch

    from tokenmill.data.calibration import Calibration, calibration
    from tokenmill.evals.export_folder import Wanted
    from tokenmill.evals.pruning import run_job
    from tokenmill.formats import open_tensors
    from tokenmill.formats.aside import refuse_taken
    from tokenmill.models.load import model_from_file, stored_dtype, tokenizer_from_file

    job = _job(method, given)
    refuse_taken(out)
    with PullProgress() as pulled:
        file = open_tensors(Store().resolve(model, pull=True, progress=pulled).weights())
    tokenizer = tokenizer_from_file(file)
    known = Calibration([], [])
    if data is not None:
        known = calibration(_data(data), tokenizer, samples=documents, seq_len=tokens)
    original = model_from_file(file, device="cpu", dtype="float32")
    with step_progress("layers") as progress:
        result = run_job(job, original, known.documents, known.held_out, progress)
    document = {"model": model, "out": str(out), "data": None if data is None else str(data), **result.document()}
    result.model.network.to(stored_dtype(file) or torch.float32)  # measured in float32, kept as the original is
    _write(Wanted(model, Path(file.path), out), file, tokenizer, result, document)
    emit(document, as_json, _text(out, result))


def _check(method: str, given: dict[str, Any], data: Path | None) -> None:
    if method not in METHODS:
        raise UsageError(f"--method {method!r}{did_you_mean(method, METHODS)}: known are {', '.join(METHODS)}")
    for name, value in given.items():
        if value is not None and method not in OWN[name]:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to --method {method}")
    if method == "depth" and given["layers"] is None:
        raise UsageError("--method depth: say how many layers stay (--layers)")
    needs_data = method in ("wanda", "sparsegpt", "width") or (method == "depth" and given["rule"] != "even")
    if needs_data and data is None:
        raise UsageError(f"--method {method} looks at the model at work: give it texts with --data")
    if data is not None and not data.exists():
        raise MissingFileError(f"--data {data}: no such file or folder")


def _job(method: str, given: dict[str, Any]) -> Job:
    from tokenmill.evals.pruning import Job
    from tokenmill.prune.depth import check_rule
    from tokenmill.prune.weights import Sparsity

    sparsity = Sparsity.of(given["sparsity"] or "0.5") if method in OWN["sparsity"] else None
    rule: Any = given["rule"] or "influence"
    check_rule(rule)
    return Job(method, sparsity, given["layers"], rule, given["mlp_size"], given["kv_heads"])


def _data(path: Path) -> Any:
    from tokenmill.config.parts import DataConfig

    return DataConfig(path=str(path))


def _write(wanted: Wanted, file: TensorFile, tokenizer: Tokenizer, result: Result, document: dict[str, Any]) -> None:
    from tokenmill.core.checksums import write_sums
    from tokenmill.core.html import write_page
    from tokenmill.evals.export_folder import card_of
    from tokenmill.evals.pruning import PAGE, REPORT, page
    from tokenmill.formats.aside import built_aside
    from tokenmill.models.generation import generation_config

    with built_aside(wanted.out) as folder:
        result.model.generation_config = generation_config(result.model.generation_config, tokenizer)
        result.model.save(folder)
        tokenizer.save(folder)
        (folder / REPORT).write_text(json.dumps(finite(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_page(folder / PAGE, page(wanted.name, result, command_line()))
        card = card_of(wanted, file, result.model, tokenizer, {"pruning report": document})
        (folder / "README.md").write_text(card.text(), encoding="utf-8")
        write_sums(folder)


def _text(out: Path, result: Result) -> str:
    of = f"{human_count(result.parameters)} of {human_count(result.original_parameters)} parameters"
    lines = [f"pruned     {of}, in {result.seconds:.1f} s: {out}"]
    if result.records:
        zeros = sum(record.zeros for record in result.records) / len(result.records)
        lines.append(f"zeros      {zeros:.1%} of the weights of {len(result.records)} matrices")
        lines += [f"note       {record.name}: {record.problem}" for record in result.records if record.problem]
    if result.kept:
        lines.append(f"layers     {', '.join(map(str, result.kept))} are kept")
    if (found := result.divergence) is not None:
        lines.append(
            f"held out   perplexity {found.original_ppl:.3f} to {found.ppl:.3f}, KL divergence {found.kl:.4f}, "
            f"same top token {found.agreement:.1%} (of {found.tokens:,} tokens)"
        )
    return "\n".join(lines)
