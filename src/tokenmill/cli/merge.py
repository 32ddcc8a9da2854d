"""``tokenmill merge``: adapters folded into their model, or several models made into one, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.output import Json, PullProgress, emit, step_progress, verb
from tokenmill.core.errors import MissingFileError, UsageError
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill merge smollm2:135m runs/latest/model --out merged
  tokenmill merge ./chat ./code --method slerp --weights 0.6,0.4 --out both
  tokenmill merge ./chat ./code --method ties --base smollm2:135m --density 0.3 --out both
"""


@app.command(epilog=EPILOG)
def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; of several, the first.")],
    others: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="PEFT folders or GGUF adapters; with --method, further models."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the merged model goes; a new or empty folder.")],
    method: Annotated[
        str | None, typer.Option(help="Models: linear, slerp, ties, dare, dare-ties, task-arithmetic.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="W,W…", help="Models: one each; all alike by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Models: what they were trained from (ties, dare, task).")] = None,
    density: Annotated[
        float | None, typer.Option(help="ties, dare: share of each difference that stays. [0.5]")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="ties, dare, task: of what is added to the base. [1.0]")] = None,
    seed: Annotated[int | None, typer.Option(help="dare: of what stays. [0]")] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, bfloat16, float16; the model's own by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fold adapters into a model, or make one model of several.

    What was trained over NF4 weights is folded into these, dequantised. Prompts, prefixes and bottleneck adapters are
    refused: no weight can say what they do. Models of different shapes or tokenizers are refused by name.
    """
    from tokenmill.formats.aside import refuse_taken

    refuse_taken(out)
    given = {"weights": weights, "base": base, "density": density, "scale": scale, "seed": seed}
    if method is None:
        if odd := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"--{odd[0]} is for merging models: give --method too")
        _fold(model, [Path(other) for other in others], out, dtype, as_json)
    else:
        _blend([model, *others], out, method, given, dtype, as_json)


def _fold(model: str, adapter: list[Path], out: Path, dtype: str | None, as_json: bool) -> None:
    if missing := [str(path) for path in adapter if not path.exists()]:
        raise MissingFileError(f"adapter {', '.join(missing)}: no such file or folder")

    from tokenmill.adapt import check_kinds
    from tokenmill.formats import open_tensors
    from tokenmill.formats.aside import built_aside
    from tokenmill.llm import put_adapters, tokenizer_with_adapters
    from tokenmill.models.generation import generation_config
    from tokenmill.models.load import model_from_file

    check_kinds(adapter)
    with PullProgress() as progress:
        files = Store().resolve(model, pull=True, progress=progress)
    adapter = [*files.adapters, *adapter]
    file = open_tensors(files.path)
    merged = model_from_file(file, device="cpu", dtype=dtype or "auto")
    put_adapters(merged, adapter)
    with built_aside(out) as folder:
        tokenizer = tokenizer_with_adapters(file, adapter)
        merged.generation_config = generation_config(merged.generation_config, tokenizer)
        merged.save(folder)
        tokenizer.save(folder)
    stored = str(merged.network.dtype).removeprefix("torch.")
    document = {"model": model, "adapters": [str(path) for path in adapter], "out": str(out), "dtype": stored}
    emit(document, as_json, f"merged {', '.join(map(str, adapter))} into {model}: {out} ({stored})")


def _blend(names: list[str], out: Path, method: str, given: dict[str, Any], dtype: str | None, as_json: bool) -> None:
    from tokenmill.formats.aside import built_aside
    from tokenmill.formats.hf_folder import write_hf_folder
    from tokenmill.models.blend import Member, Recipe, blended, check_flags
    from tokenmill.models.generation import generation_config
    from tokenmill.models.load import tokenizer_from_file

    check_flags(method, given)
    kept = {name: given[name] for name in ("density", "scale", "seed") if given[name] is not None}
    recipe = Recipe(method, _weights(given["weights"]), **kept)  # type: ignore[arg-type]
    recipe.check(len(names), given["base"] is not None)
    number_format = _dtype(dtype)
    store = Store()
    with PullProgress() as pulled:
        paths = [store.resolve(name, pull=True, progress=pulled).weights() for name in [*names, given["base"]] if name]
    members = [Member(name, path) for name, path in zip([*names, given["base"]], paths, strict=False)]
    base = members.pop() if given["base"] is not None else None
    with built_aside(out) as folder, step_progress("tensors") as progress:
        tensors = blended(members, recipe, base, dtype=number_format, progress=progress)
        first = members[0]
        stored = str(number_format or first.dtype).removeprefix("torch.")
        config = {key: value for key, value in first.config.items() if key != "torch_dtype"} | {"dtype": stored}
        tokenizer = tokenizer_from_file(first.file)
        ends = generation_config(first.generation_config, tokenizer)
        write_hf_folder(folder, config, tensors, generation_config=ends)
        tokenizer.save(folder)
    document = {"models": names, "base": given["base"], "method": method, "out": str(out), "dtype": stored}
    emit(document, as_json, f"merged {', '.join(names)} by {method}: {out} ({stored})")


def _weights(text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--weights {text!r}: give numbers with commas between them, one for each model") from None


def _dtype(name: str | None) -> Any:
    import torch

    from tokenmill.core.device import pick_dtype

    return None if name is None else pick_dtype(name, torch.device("cpu"), None, 0)
