"""``tokenmill merge``: adapters folded into their model, as a Hugging Face folder that any program loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.cli.output import Json, PullProgress, emit, verb
from tokenmill.core.errors import NotFoundError, UsageError
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Example:
  tokenmill merge smollm2:135m runs/latest/model --out merged
"""


@app.command(epilog=EPILOG)
def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that the adapter was trained on.")],
    adapter: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="PEFT folders or GGUF adapters.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the merged model goes; a new or empty folder.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, bfloat16, float16; the model's own by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fold adapters into a model. What was trained over NF4 weights is folded into these, dequantised.

    Prompts, prefixes and bottleneck adapters are refused: no weight can say what they do.
    """
    if missing := [str(path) for path in adapter if not path.exists()]:
        raise NotFoundError(f"adapter {', '.join(missing)}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already; give a new or empty folder")

    from tokenmill.adapt import check_kinds
    from tokenmill.formats import open_tensors
    from tokenmill.llm import put_adapters, tokenizer_with_adapters
    from tokenmill.models.load import model_from_file

    check_kinds(adapter)
    with PullProgress() as progress:
        file = open_tensors(Store().resolve(model, pull=True, progress=progress).path)
    merged = model_from_file(file, device="cpu", dtype=dtype or "auto")
    put_adapters(merged, adapter)
    merged.save(out)
    tokenizer_with_adapters(file, adapter).save(out)
    stored = str(merged.network.dtype).removeprefix("torch.")
    document = {"model": model, "adapters": [str(path) for path in adapter], "out": str(out), "dtype": stored}
    emit(document, as_json, f"merged {', '.join(map(str, adapter))} into {model}: {out} ({stored})")
