"""``tokenmill quantize``: a model made small, measured beside the original, in a folder that other programs load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.inputs import calibration_size, text_of
from tokenmill.cli.output import (
    Json,
    PullProgress,
    columns,
    command_line,
    emit,
    human_duration,
    human_size,
    note,
    step_meter,
    verb,
)
from tokenmill.cli.quantize_options import (
    COMPARED,
    ActOrder,
    Bits,
    BitsBudget,
    Clip,
    Compare,
    Damping,
    GroupSize,
    KvCache,
    Layout,
    Method,
    Samples,
    SeqLen,
    Smooth,
    Symmetric,
)
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenmill.data.calibration import Calibration
    from tokenmill.evals.model_card import Card
    from tokenmill.evals.quantisation import Job, Result
    from tokenmill.formats import TensorFile
    from tokenmill.models.load import Model
    from tokenmill.quant.settings import Settings
    from tokenmill.text.tokenizer import Tokenizer

app = verb()
CTX = 512

EPILOG = """\b
Examples:
  tokenmill quantize smollm2:135m --method gptq --data chats.jsonl --out small
  tokenmill quantize smollm2:135m --method awq --group-size 32 --data chats.jsonl --text book.txt --out small
  tokenmill quantize smollm2:135m --compare rtn:4,gptq:4:32,w8a8 --data chats.jsonl --out compared
"""


@app.command(epilog=EPILOG)
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes, with its report; a new or empty folder.")],
    method: Method = None,
    bits: Bits = None,
    bits_budget: BitsBudget = None,
    group_size: GroupSize = None,
    symmetric: Symmetric = None,
    layout: Layout = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Calibration data of any kind that training takes; may be repeated."),
    ] = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="UTF-8 text to measure on. [default: a part of the data that is held out]"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of what stays unquantised: float16, bfloat16, float32.")
    ] = "auto",
    damping: Damping = None,
    act_order: ActOrder = None,
    clip: Clip = None,
    smooth: Smooth = None,
    kv_cache: KvCache = None,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Quantise a model. A run that was stopped goes on where it was when the same command is given again."""
    from tokenmill.formats.aside import held, refuse_taken
    from tokenmill.quant.settings import settings

    choices: dict[str, Any] = {
        "budget": bits_budget,
        "damping": damping,
        "act_order": act_order,
        "clip": clip,
        "smooth": smooth,
    }
    choices |= {"symmetric": symmetric, "layout": layout, "kv_cache": kv_cache}
    given = {"bits": bits, "group_size": group_size, **choices}
    if compare is not None and any(value is not None for value in (method, *given.values())):
        raise UsageError("--compare names methods, bits and groups itself; leave the other choices out")
    method = method or "gptq"
    wanted = _compared(compare) if compare is not None else {method: settings(method, **given)}
    refuse_taken(out)
    _refuse_uncalibrated(wanted, data)
    size = calibration_size(samples, seq_len, data)
    with held(_work(out), out):
        prepared = _prepare(model, wanted, data or [], size, text, dtype)
        try:
            if compare is not None:
                _compare(prepared, wanted, out, as_json)
            else:
                _quantise(prepared, wanted[method], out, as_json)
        except KeyboardInterrupt:
            note(f"stopped: the same command goes on from here; {_work(out)} has what is done")
            raise


def _refuse_uncalibrated(wanted: dict[str, Settings], data: list[str] | None) -> None:
    """UsageError where a method looks at data and there is none."""
    from tokenmill.quant.settings import METHODS, settings

    if data or not (needing := [(name, one) for name, one in wanted.items() if one.calibrated]):
        return
    free = [name for name in METHODS if not settings(name).calibrated]
    name, one = needing[0]
    if one.method in free:
        name += " with scales of a cache" if one.kv_cache is not None else " with a budget of bits"
    raise UsageError(f"{name}: calibration data is needed: --data FILE; {', '.join(free)} alone do without")


def _work(out: Path) -> Path:
    """The folder of what is not finished."""
    return out.parent / f".{out.name}.quantising"


def _compared(words: str) -> dict[str, Settings]:
    from tokenmill.quant.settings import settings

    found = {}
    for word in (COMPARED if words == "all" else words).split(","):
        name, _, numbers = word.strip().partition(":")
        bits, _, group = numbers.partition(":")
        try:
            sizes: dict[str, Any] = {"group_size": int(group)} if group else {}
            if bits:
                sizes |= {"budget": float(bits)} if "." in bits else {"bits": int(bits)}
        except ValueError:
            raise UsageError(f"--compare {word!r}: METHOD, METHOD:BITS or METHOD:BITS:GROUP") from None
        found[word.strip()] = settings(name, **sizes)
    return found


@dataclass
class _Prepared:
    """The model's files, its calibration, and the original's answers."""

    name: str
    file: TensorFile
    tokenizer: Tokenizer
    job: Callable[[Settings], Job]
    original_bytes: int


def _prepare(
    name: str,
    wanted: dict[str, Settings],
    data: list[str],
    size: tuple[int, int],
    text: Path | None,
    dtype: str,
) -> _Prepared:
    import torch

    from tokenmill.core.device import pick_dtype
    from tokenmill.evals.divergence import Original
    from tokenmill.evals.quantisation import Job, folder_bytes
    from tokenmill.formats import open_tensors
    from tokenmill.models.load import model_from_file, stored_dtype, tokenizer_from_file
    from tokenmill.store import Store
    from tokenmill.store.derived import state

    with PullProgress() as progress:
        files = Store().resolve(name, pull=True, progress=progress)
    file = open_tensors(files.weights())
    tokenizer = tokenizer_from_file(file)
    found = _calibration(tokenizer, data, *size)
    windows = _windows(tokenizer, text, found)
    kept = torch.bfloat16 if stored_dtype(file) == torch.bfloat16 else torch.float16
    if dtype != "auto":
        kept = pick_dtype(dtype, torch.device("cpu"), None, 0)
    original = None
    if windows:
        model = model_from_file(file, dtype="float32")
        with step_meter() as meter:
            original = Original(model.decoder, windows, lambda done, total: meter("original", done, total))
        del model
    else:
        note("nothing to measure on: give --text FILE, or more --data")
    key = str(
        [state(path) for path in sorted(files.path.glob("*.safetensors"))] if files.path.is_dir() else state(files.path)
    )
    documents = found.documents if found is not None else []
    weighs = folder_bytes(files.path)
    return _Prepared(
        name, file, tokenizer, lambda settings: Job(name, key, settings, documents, original, kept, weighs), weighs
    )


def _calibration(tokenizer: Tokenizer, data: list[str], samples: int, seq_len: int) -> Calibration | None:
    from tokenmill.config.parts import DataConfig
    from tokenmill.data.calibration import calibration

    if not data:
        return None
    config = DataConfig(path=list(data), duplicates="drop")
    return calibration(config, tokenizer, samples=samples, seq_len=seq_len)


def _windows(tokenizer: Tokenizer, text: Path | None, found: Calibration | None) -> list[Tensor]:
    from tokenmill.evals.divergence import windows_of

    if text is None:
        return found.held_out if found is not None else []
    ids = tokenizer.encode(text_of("--text", text), parse_special=False)
    bos = ids[0] if ids[:1] == [tokenizer.bos_token_id] else None
    if not (windows := windows_of(ids, CTX, bos)):
        raise UsageError(f"--text {text} has {len(ids)} tokens, fewer than one window of {CTX}")
    return windows


def _quantise(prepared: _Prepared, settings: Settings, out: Path, as_json: bool) -> None:
    from tokenmill.evals.quantisation import finish, run_job, write_result
    from tokenmill.evals.quantisation_page import result_page
    from tokenmill.models.load import model_from_file

    work = _work(out)
    job = prepared.job(settings)
    model = model_from_file(prepared.file, dtype="float32")
    with step_meter() as meter:
        quantised, result = run_job(job, model, work, meter)
    _say_smaller_groups(result)
    built = write_result(job, quantised, work, prepared.tokenizer)
    card = _card(prepared, model, result, out)
    del quantised, model
    result.speed = {"speed here": _speed(built), "the original's": _speed(Path(prepared.file.path))}
    result.nbytes = sum(f.stat().st_size for f in built.glob("*.safetensors"))
    document = {"model": prepared.name, "out": str(out), "original_bytes": prepared.original_bytes, **result.document()}
    page = result_page(prepared.name, result, prepared.original_bytes, command_line())
    finish(built, work, out, document, page, card)
    emit(document, as_json, _table(prepared.name, result, prepared.original_bytes, out))


def _card(prepared: _Prepared, model: Model, result: Result, out: Path) -> Card:
    """The folder's card, without the figures."""
    from dataclasses import replace

    from tokenmill.evals.export_folder import Wanted, card_of

    wanted = Wanted(prepared.name, Path(prepared.file.path), out)
    card = card_of(wanted, prepared.file, model, prepared.tokenizer, {})
    settings = result.settings
    return replace(card, dtype=f"{result.weight_bits:.3g} bits a weight by {settings.method} ({settings.layout})")


def _say_smaller_groups(result: Result) -> None:
    wanted, sizes = result.settings.group_size, [layer["group_size"] for layer in result.layers]
    if wanted <= 0:  # whole rows, or the blocks of a format
        return
    for size in sorted(set(sizes) - {wanted, -1}):
        alike = f"{sizes.count(size)} of {len(sizes)} layers"
        note(f"warning: groups of {wanted} do not divide the rows of {alike}: these have groups of {size}")


def _speed(path: Path) -> float:
    """Tokens a second that this machine decodes, greedily, one answer at a time."""
    from tokenmill import LLM
    from tokenmill.engine.sampling_params import SamplingParams

    llm = LLM(str(path.absolute()))
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    llm.generate("Once upon a time", params)
    stats = llm.generate("It was the best of times", params).stats
    return (stats.completion_tokens - 1) / max(stats.decode_s, 1e-9)


def _compare(prepared: _Prepared, wanted: dict[str, Settings], out: Path, as_json: bool) -> None:
    import shutil

    from tokenmill.evals.quantisation import PAGE, run_job, write_report
    from tokenmill.evals.quantisation_page import comparison_page, frontier
    from tokenmill.models.load import model_from_file

    results: list[tuple[str, Result]] = []
    work = _work(out)
    for number, (name, settings) in enumerate(wanted.items()):
        model = model_from_file(prepared.file, dtype="float32")
        note(name)
        with step_meter() as meter:
            results.append((name, run_job(prepared.job(settings), model, work / str(number), meter)[1]))
        _say_smaller_groups(results[-1][1])
    best = frontier([(name, result) for name, result in results if result.divergence is not None])
    document: dict[str, Any] = {
        "model": prepared.name,
        "original_bytes": prepared.original_bytes,
        "frontier": best,
        "results": {name: result.document() for name, result in results},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, document, comparison_page(prepared.name, results, prepared.original_bytes, command_line()))
    shutil.rmtree(work, ignore_errors=True)
    rows = [(name, *_figures(result), "on the frontier" if name in best else "") for name, result in results]
    table = columns(("METHOD", "SIZE", "BITS", "PPL", "KL", "SAME TOP", "TIME", ""), rows)
    emit(document, as_json, f"{table}\n\n{out / PAGE}")


def _figures(result: Result) -> tuple[str, ...]:
    found = result.divergence
    measured = ("-",) * 3 if found is None else (f"{found.ppl:.3f}", f"{found.kl:.4f}", f"{found.agreement:.1%}")
    return human_size(result.nbytes), f"{result.weight_bits:.3f}", *measured, human_duration(result.seconds)


def _table(name: str, result: Result, original_bytes: int, out: Path) -> str:
    lines = [
        f"size            {human_size(result.nbytes)} (the original: {human_size(original_bytes)})",
        f"bits a weight   {result.weight_bits:.3f} in the quantised layers",
    ]
    if result.divergence is not None:
        found = result.divergence
        lines += [
            f"perplexity      {found.ppl:.4f} (the original: {found.original_ppl:.4f})",
            f"KL divergence   {found.kl:.5f} ± {found.kl_stderr:.5f} nats a token",
            f"same top token  {found.agreement:.2%} of {found.tokens}",
        ]
    lines += [f"{label:15} {value:.1f} tokens/s" for label, value in result.speed.items()]
    if kept := result.kept:
        bits = result.layers[[layer["name"] for layer in result.layers].index(kept[0])]["bits"]
        kinds = Counter(name.rpartition(".")[2] for name in kept if not name.rpartition(".")[2].isdigit())
        each = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"kept in {bits} bits {len(kept)} of {len(result.layers)} layers{': ' + each if each else ''}")
    if plain := [layer["name"] for layer in result.layers if "plainly" in layer["note"]]:
        lines.append(f"rounded plainly {len(plain)} layers, the first: {plain[0]}")
    if result.resumed:
        lines.append(f"resumed         {result.resumed} layers were there already")
    return "\n".join([f"quantised {name} in {human_duration(result.seconds)}: {out}", *lines])
