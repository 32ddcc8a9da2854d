"""``tokenmill show``: what a model is, in Ollama's tables, and one part of it alone for pipes.

Reads headers only: no weights, no model is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, emit, human_count, human_size, sections, summary, verb
from tokenmill.core.errors import UsageError
from tokenmill.store import ModelFiles, Store

if TYPE_CHECKING:
    from tokenmill.models.describe import Description

app = verb()

EPILOG = """\b
Examples:
  tokenmill show smollm2:135m
  tokenmill show smollm2:135m --license
  tokenmill show ./my-model.gguf --verbose
"""

PARTS = ("license", "modelfile", "parameters", "template", "system")


@app.command(epilog=EPILOG)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model in the store, a catalog alias or a path.")],
    license: Annotated[bool, typer.Option("--license", help="Print the licence.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print the Modelfile that makes this model.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Print the parameters.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the prompt template.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Print the system message.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Add the file's metadata and its tensors.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is. One of the flags prints that part alone."""
    wanted = [p for p, chosen in zip(PARTS, (license, modelfile, parameters, template, system), strict=True) if chosen]
    if len(wanted) > 1:
        raise UsageError(f"one part at a time: --{' and --'.join(wanted)} were given")
    files = Store().resolve(name)
    if wanted:
        text = show_text(wanted[0], files)
        emit({"name": files.name, wanted[0]: text}, as_json, text.rstrip("\n"))
    else:
        emit(document(files, verbose), as_json, show_text("verbose" if verbose else "info", files))


def show_text(what: str, files: ModelFiles) -> str:
    """One topic as text: info, verbose, license, modelfile, parameters, template or system."""
    if what == "license":
        return "\n\n".join(files.licenses)
    if what == "modelfile":
        return Store().modelfile(files.name)
    if what == "parameters":
        return "\n".join(f"{key:<30} {value}" for key, value in parameter_rows(files))
    if what == "system":
        return files.system or ""
    description = _describe(files)
    if what == "template":
        return files.template or description.template or ""
    return sections(_groups(files, description, verbose=what == "verbose"))


def parameter_rows(files: ModelFiles) -> list[tuple[str, str]]:
    """PARAMETERs one a row; a list, such as stop, has a row for each value."""
    rows: list[tuple[str, str]] = []
    for key, value in files.parameters.items():
        rows += [(key, f'"{item}"' if isinstance(item, str) else str(item)) for item in _as_list(value)]
    return rows


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _describe(files: ModelFiles) -> Description:
    from tokenmill.models.describe import describe

    return describe(files.path)


def _groups(files: ModelFiles, description: Description, verbose: bool) -> dict[str, list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [("architecture", description.architecture)]
    for label, value in (
        ("parameters", description.parameters and human_count(description.parameters)),
        ("context length", description.context_length),
        ("embedding length", description.embedding_length),
        ("quantization", description.quantization),
    ):
        if value:
            rows.append((label, str(value)))
    groups: dict[str, list[tuple[str, ...]]] = {
        "Model": rows,
        "Capabilities": [(capability,) for capability in description.capabilities],
        "Parameters": list(parameter_rows(files)),
        "Adapters": [(str(path),) for path in files.adapters],
        "System": [(line,) for line in (files.system or "").splitlines()[:2]],
        # as Ollama: the first lines say which licence it is
        "License": [(line.strip(),) for text in files.licenses for line in text.strip().splitlines()[:2]],
        "Origin": [
            ("source", files.source),
            ("file", str(files.path)),
            ("size", human_size(files.size)),
            *([("digest", files.digest)] if files.digest else []),
        ],
    }
    if verbose:
        groups["Metadata"] = [(key, _short(value)) for key, value in description.metadata.items()]
        groups["Tensors"] = [(t.name, t.type, str(list(t.shape))) for t in description.tensors]
    return groups


def _short(value: Any) -> str:
    """A metadata value on one line: a vocabulary is told by its length."""
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"[{', '.join(map(repr, value[:4]))}, … {len(value)} values]"
    text = repr(value) if not isinstance(value, str) else value
    text = text.replace("\n", "\\n")
    return text if len(text) <= 120 else f"{text[:117]}…"


def document(files: ModelFiles, verbose: bool) -> dict[str, Any]:
    """The JSON of ``show``: Ollama's details and capabilities, and where the model came from."""
    description = _describe(files)
    extra: dict[str, Any] = {}
    if verbose:
        extra["metadata"] = {key: _short(value) for key, value in description.metadata.items()}
        extra["tensors"] = [{"name": t.name, "type": t.type, "shape": list(t.shape)} for t in description.tensors]
    return {
        **summary(files),
        "details": {
            "format": description.format,
            "architecture": description.architecture,
            "parameters": description.parameters,
            "context_length": description.context_length,
            "embedding_length": description.embedding_length,
            "quantization": description.quantization,
        },
        "capabilities": list(description.capabilities),
        "parameters": files.parameters,
        "template": files.template or description.template,
        "system": files.system,
        "messages": files.messages,
        "licenses": files.licenses,
        "adapters": [str(path) for path in files.adapters],
        **extra,
    }
