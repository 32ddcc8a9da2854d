"""``tokenmill bench throughput``: tokens a second by batch size and length, alone or beside peers.

With ``--vs`` ours and the peers are measured in turn, ``--repeat`` rounds of it, with the roof that memory sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.bench.shapes import Batch, DType, GenLen, Model, PromptLen, shapes, software_and_machine
from tokenmill.cli.output import Json, PullProgress, columns, emit, note, step_progress
from tokenmill.core.threads import allowed_cores

if TYPE_CHECKING:
    from tokenmill import LLM
    from tokenmill.evals.cores import Cores
    from tokenmill.evals.peers import Peer
    from tokenmill.evals.throughput import Shape

EPILOG = """\b
Examples:
  tokenmill bench throughput --model smollm2:135m --batch 1,8 --prompt-len 128 --gen-len 64
  tokenmill bench throughput --model model.gguf --vs llama.cpp --peer-dir ~/peers --repeat 3
"""


def throughput(
    model: Model,
    batch: Batch = "1,8",
    prompt_len: PromptLen = "128",
    gen_len: GenLen = "64",
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 1,
    vs: Annotated[str, typer.Option(metavar="PEER,…", help="Measure llama.cpp, vllm in turn with ours.")] = "",
    peer_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Has llama-bin/ or vllm/bin/python; else TOKENMILL_PEERS, PATH.")
    ] = None,
    dtype: DType = "auto",
    as_json: Json = False,
) -> None:
    """Tokens a second, reading prompts and writing answers, by batch size. Quiet machines give true figures."""
    started = time.perf_counter()
    cores = allowed_cores()  # before torch is imported, which may bind this thread to one
    from tokenmill.evals.cores import Cores
    from tokenmill.evals.peers import find_peer, peer_names

    found = {name: find_peer(name, peer_dir) for name in peer_names(vs)}  # before the time that loading takes

    import torch

    from tokenmill import LLM
    from tokenmill.evals.throughput import check_shapes
    from tokenmill.evals.turns import compare

    asked = shapes(batch, prompt_len, gen_len)
    with PullProgress() as pulled:
        llm = LLM(model, dtype=dtype, progress=pulled)
    startup_s = time.perf_counter() - started
    check_shapes(llm.model, asked)
    threads = torch.get_num_threads()
    with (
        _peers(found, llm, asked, Cores(threads, cores)) as peers,
        step_progress("measurements") as progress,
    ):
        results = compare(llm.model, asked, peers, repeat=repeat, progress=progress)
        described = [peer.document() for peer in peers]
    rows = [result.document() for result in results]
    roof = _roof(llm, rows) if found else None
    document = {
        "model": model,
        "format": _format(llm),
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "startup_s": startup_s,
        "threads": threads,
        "repeat": repeat,
        "machine": software_and_machine(cores),
        **({"peers": described, "roof": roof} if found else {}),
        "results": rows,
    }
    emit(document, as_json, _table(rows))


@contextmanager
def _peers(found: dict[str, Path], llm: LLM, asked: Sequence[Shape], cores: Cores) -> Iterator[list[Peer]]:
    """The peers, ready to measure; they end with the block."""
    from tokenmill.evals.peers import VLLM, LlamaCpp

    peers: list[Peer] = []
    try:
        if "llama.cpp" in found:
            peers.append(LlamaCpp(found["llama.cpp"], llm.files.path, cores))
        if "vllm" in found:
            note("vLLM is starting; that takes a minute or two")
            longest = max(shape.prompt_len + shape.gen_len for shape in asked)
            peers.append(VLLM(found["vllm"], lambda folder: _save_bfloat16(llm, folder), longest, cores))
        yield peers
    finally:
        for peer in peers:
            peer.close()


def _save_bfloat16(llm: LLM, folder: Path) -> None:
    from tokenmill import load_model

    load_model(llm.files.weights(), dtype="bfloat16").save(folder)


def _format(llm: LLM) -> str:
    """The number format of most of the file's bytes, as the file names it: Q4_1, BF16."""
    from tokenmill.formats import open_tensors

    sizes: dict[str, int] = {}
    for info in open_tensors(llm.files.path).infos().values():
        sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    return max(sizes, key=lambda kind: sizes[kind])


def _roof(llm: LLM, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Measures memory now, and adds to the rows of batch 1 which share of what it allows was reached."""
    from tokenmill.evals.roof import roof_tok_s, stream_bandwidth, weight_bytes
    from tokenmill.formats import open_tensors

    config = llm.model.config
    weights = weight_bytes(open_tensors(llm.files.path), config)
    bandwidth = stream_bandwidth(weights)
    for row in rows:
        if row["batch"] == 1:
            roof = roof_tok_s(bandwidth, weights, config, row["prompt_len"] + row["gen_len"] / 2)
            row["roof_tok_s"] = roof
            for figures in (row, *row["peers"].values()):
                figures["share_of_roof"] = figures["decode_tok_s"] / roof
    return {"bandwidth_gb_s": bandwidth / 1e9, "weight_mb": weights / 1e6}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Ours, and below it each peer with the ratio of ours to it."""
    lines = []
    for row in rows:
        size = (str(row["batch"]), str(row["prompt_len"]), str(row["gen_len"]))
        ours = (f"{row['prefill_tok_s']:.0f}", f"{row['decode_tok_s']:.1f}", f"{row['peak_rss_mb']:.0f} MB")
        lines.append((*size, "tokenmill", *ours, "", "", _percent(row)))
        for name, peer in row.get("peers", {}).items():
            figures = (f"{peer['prefill_tok_s']:.0f}", f"{peer['decode_tok_s']:.1f}", "")
            ratios = (f"{peer['prefill_ratio']:.2f}", f"{peer['decode_ratio']:.2f}")
            lines.append((*size, name, *figures, *ratios, _percent(peer)))
    header = ("BATCH", "PROMPT", "NEW", "PROGRAM", "PREFILL TOK/S", "DECODE TOK/S", "PEAK MEMORY")
    compared = "peers" in rows[0]
    more = ("OURS/ITS PREFILL", "OURS/ITS DECODE", "OF ROOF")
    width = len(header) + (len(more) if compared else 0)
    return columns((*header, *more)[:width], [line[:width] for line in lines], gap=2)


def _percent(figures: dict[str, Any]) -> str:
    return f"{100 * figures['share_of_roof']:.0f} %" if "share_of_roof" in figures else ""
