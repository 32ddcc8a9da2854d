"""``tokenmill export ollama``: a folder with a GGUF file, a Modelfile and checksums, for ``ollama create``."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.export_gguf import Opened, Wanted, export, human_lines
from tokenmill.cli.output import Json, PullProgress, emit, note
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.store import ModelFiles
    from tokenmill.store.modelfile import Modelfile

EPILOG = """\b
Examples:
  tokenmill export ollama runs/latest/model --out for-ollama --type Q4_K_M
  tokenmill export ollama smollm2:135m --out for-ollama --create my-assistant
"""
GGUF_NAME, MODELFILE_NAME, SUMS_NAME = "model.gguf", "Modelfile", "SHA256SUMS"
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_SAMPLING |= {"repetition_penalty": "repeat_penalty"}


def ollama(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes; a new or empty folder.")],
    type: Annotated[str, typer.Option(metavar="TYPE", help="As for export gguf.")] = "Q4_K_M",
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An importance matrix, of ours or of llama.cpp.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8 text to collect an importance matrix on.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system text that it starts with.")] = None,
    create: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also make it a model of tokenmill's own store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what Ollama makes a model from: `ollama create NAME -f DIR/Modelfile`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already; give a new or empty folder")

    from tokenmill.store import Store

    store = Store()
    with PullProgress() as progress:
        files = store.resolve(model, pull=True, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        folder = Path(aside) / out.name
        folder.mkdir()
        document = export(Wanted(model, folder / GGUF_NAME, type, imatrix, calibrate))
        text = _modelfile(files, system)
        (folder / MODELFILE_NAME).write_text(text, encoding="utf-8")
        sums = {name: _digest(folder / name) for name in (GGUF_NAME, MODELFILE_NAME)}
        listed = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        (folder / SUMS_NAME).write_text(listed, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    if create is not None:
        with PullProgress() as progress:
            store.create(create, text, out.resolve(), progress)
    document |= {"out": [str(out / name) for name in (GGUF_NAME, MODELFILE_NAME, SUMS_NAME)]}
    document |= {"sha256": sums, "modelfile": text, "created": create}
    emit(document, as_json, f"{human_lines(document)}\nollama create NAME -f {out / MODELFILE_NAME}")


def _modelfile(files: ModelFiles, system: str | None) -> str:
    """What the model brings, in Ollama's words; the parts that Ollama has no words for are named in a note."""
    from tokenmill.formats import open_tensors
    from tokenmill.store.modelfile import Modelfile, write_modelfile
    from tokenmill.text.go_template import looks_like_go
    from tokenmill.text.ollama_template import go_template_of

    opened = Opened(files.name, open_tensors(files.path))
    template = files.template if files.template and looks_like_go(files.template) else None
    template = template or go_template_of(opened.tokenizer)
    if template is None and opened.tokenizer.chat_template is not None:
        note("no TEMPLATE is written: Ollama's language has no form that renders as this model's; it will guess one")
    found: Modelfile = Modelfile(
        base=f"./{GGUF_NAME}",
        parameters=_parameters(opened, files),
        template=template,
        system=system if system is not None else files.system,
        licenses=list(files.licenses),
        messages=list(files.messages),
    )
    return write_modelfile(found)


def _parameters(opened: Opened, files: ModelFiles) -> dict[str, Any]:
    """Sampling as the model asks for it, and the texts that end an answer; what the store says goes first."""
    from tokenmill.models.load import config_of

    tokenizer = opened.tokenizer
    generation = config_of(opened.file)[1]
    asked = {ollama: generation[hub] for hub, ollama in _SAMPLING.items() if generation.get(hub) is not None}
    stops = [tokenizer.id_to_token(number) for number in sorted(tokenizer.eos_token_ids)]
    return {**asked, "stop": [stop for stop in stops if stop], **files.parameters}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
