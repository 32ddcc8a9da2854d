"""``tokenmill export ollama``: a folder with a GGUF file, a Modelfile and checksums, for ``ollama create``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.export_gguf import Calibrate, Imatrix, Opened, Type, Wanted, export, human_lines
from tokenmill.cli.output import Json, PullProgress, emit, note

if TYPE_CHECKING:
    from tokenmill.store import ModelFiles
    from tokenmill.store.modelfile import Modelfile

EPILOG = """\b
Examples:
  tokenmill export ollama runs/latest/model --out for-ollama --type Q4_K_M
  tokenmill export ollama smollm2:135m --out for-ollama --create my-assistant
"""
GGUF_NAME, MODELFILE_NAME, CARD_NAME = "model.gguf", "Modelfile", "README.md"
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_SAMPLING |= {"repetition_penalty": "repeat_penalty"}


def ollama(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes; a new or empty folder.")],
    type: Type = None,
    imatrix: Imatrix = None,
    calibrate: Calibrate = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system text that it starts with.")] = None,
    create: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also make it a model of tokenmill's own store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what Ollama makes a model from: `ollama create NAME -f DIR/Modelfile`."""
    from tokenmill.core.checksums import SUMS, write_sums
    from tokenmill.formats import open_tensors
    from tokenmill.formats.aside import built_aside
    from tokenmill.store import Store

    store = Store()
    with built_aside(out) as folder:
        wanted = Wanted(folder / GGUF_NAME, type, imatrix, calibrate)
        wanted.check()
        with PullProgress() as progress:
            files = store.resolve(model, pull=True, progress=progress)
        opened = Opened(model, open_tensors(files.weights()))
        document = export(wanted, opened)
        text = _modelfile(opened, files, system)
        (folder / MODELFILE_NAME).write_text(text, encoding="utf-8")
        (folder / CARD_NAME).write_text(_card(opened, out, document), encoding="utf-8")
        sums = write_sums(folder)
    if create is not None:
        with PullProgress() as progress:
            store.create(create, text, out.resolve(), progress)
    document |= {"out": [str(out / name) for name in (*sums, SUMS)]}
    document |= {"sha256": sums, "modelfile": text, "created": create}
    emit(document, as_json, f"{human_lines(document)}\nollama create NAME -f {out / MODELFILE_NAME}")


def _card(opened: Opened, out: Path, document: dict[str, Any]) -> str:
    """The model's card, with what was written here."""
    from dataclasses import replace

    from tokenmill.evals import export_folder

    wanted = export_folder.Wanted(opened.name, Path(opened.file.path), out)
    figures = {GGUF_NAME: {"bits_per_weight": document["bits_per_weight"], **document["check"]}}
    card = export_folder.card_of(wanted, opened.file, opened.model, opened.tokenizer, figures)
    use = f"ollama create {card.title} -f {MODELFILE_NAME}"
    return replace(card, dtype=document["type"], library="gguf", use=use).text()


def _modelfile(opened: Opened, files: ModelFiles, system: str | None) -> str:
    """What the model brings, in Ollama's words; the parts that Ollama has no words for are named in a note."""
    from tokenmill.store.modelfile import Modelfile, write_modelfile
    from tokenmill.text.go_template import looks_like_go
    from tokenmill.text.ollama_template import go_template_of

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
