"""``tokenmill export hf`` and ``export vllm``: a model as a folder with card and checksums, read back at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.output import Json, PullProgress, emit, human_size
from tokenmill.core.errors import MissingFileError
from tokenmill.store import Store

HF_EPILOG = """\b
Examples:
  tokenmill export hf runs/latest/model --license apache-2.0 --results ppl.json --out my-model
  tokenmill export hf smollm2:135m --adapter runs/latest/model --dtype bfloat16 --out my-model
"""
VLLM_EPILOG = """\b
Example:
  tokenmill export vllm runs/latest/model --out my-model && vllm serve ./my-model
"""
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")]
Adapter = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="An adapter to fold in, PEFT or GGUF; may be repeated.")
]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="float32, bfloat16, float16; the file's by default.")]
License = Annotated[str | None, typer.Option(metavar="ID", help="For the card; the source's own by default.")]
Results = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="JSON of a measurement for the card; may be repeated.")
]


def hf(
    model: Model,
    out: Out,
    adapter: Adapter = None,
    dtype: Dtype = None,
    license: License = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, chat template, card, checksums."""
    _export(model, out, adapter or [], dtype, license, results or [], as_json, vllm=False)


def vllm(
    model: Model,
    out: Out,
    adapter: Adapter = None,
    dtype: Dtype = None,
    license: License = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """The same, checked for what vLLM would refuse, with the command that serves it."""
    _export(model, out, adapter or [], dtype, license, results or [], as_json, vllm=True)


def _export(
    model: str,
    out: Path,
    adapters: list[Path],
    dtype: str | None,
    license: str | None,
    results: list[Path],
    as_json: bool,
    *,
    vllm: bool,
) -> None:
    if missing := [str(path) for path in [*adapters, *results] if not path.exists()]:
        raise MissingFileError(f"{', '.join(missing)}: no such file or folder")

    from tokenmill.adapt import check_kinds
    from tokenmill.evals.export_folder import Wanted, dtype_of, export_folder
    from tokenmill.formats import open_tensors
    from tokenmill.formats.aside import refuse_taken
    from tokenmill.llm import put_adapters, tokenizer_with_adapters
    from tokenmill.models.load import model_from_file

    refuse_taken(out)
    with PullProgress() as progress:
        files = Store().resolve(model, pull=True, progress=progress)
    adapters = [*files.adapters, *adapters]
    wanted, file = Wanted(model, files.path, out, adapters, dtype, license, results, vllm), open_tensors(files.path)
    check_kinds(adapters)
    loaded = model_from_file(file, device="cpu", dtype=dtype_of(wanted, file))
    put_adapters(loaded, adapters)
    document = export_folder(wanted, file, loaded, tokenizer_with_adapters(file, adapters))
    emit(document, as_json, _text(document))


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"exported   {document['model']}: {document['out']} ({human_size(document['size'])}, {document['dtype']})",
        f"checked    read back; KL divergence from the original {document['check_kl']:.2g} nats a token",
    ]
    if document["license"] is None:
        lines.append("licence    not known: say it with --license")
    if "serve" in document:
        lines.append(f"serve      {document['serve']}")
    return "\n".join(lines)
