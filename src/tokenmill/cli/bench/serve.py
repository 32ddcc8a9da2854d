"""``tokenmill bench serve``: a server under load. Our own, started for it on a free port, or any at ``--url``.

The server is a process of its own, as it is for people; what this client needs of the processor is part of the figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from tokenmill.cli.bench.latency import latency_table
from tokenmill.cli.output import Json, columns, emit, step_progress
from tokenmill.core.errors import TokenmillError, UsageError

EPILOG = """\b
Examples:
  tokenmill bench serve --model smollm2:135m --num-prompts 32 --max-concurrency 16
  tokenmill bench serve --model smollm2:135m --dataset sharegpt --request-rate 0.5,1,2 --goodput ttft:2000
  tokenmill bench serve --model my-model --url http://localhost:8000 --endpoint chat
"""
CONTEXT = 2048  # what ShareGPT-like requests of a foreign server are kept within


def serve(
    model: Annotated[str, typer.Option(help="The model, by its name at --url if that is given.")],
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A running server (address without /v1); else ours is started.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="completions (token ids) or chat (words).")] = "completions",
    api_key: Annotated[
        str | None, typer.Option(envvar="TOKENMILL_API_KEY", help="The key of the server at --url.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests of each load.")] = 100,
    request_rate: Annotated[
        str, typer.Option(metavar="R,R,…", help="Requests a second, one load each; inf sends all at once.")
    ] = "inf",
    burstiness: Annotated[float, typer.Option(help="1: Poisson arrivals; less: bursts; more: even gaps.")] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Requests open at a time, at most.")] = None,
    dataset: Annotated[str, typer.Option(help="fixed, sharegpt (drawn lengths) or prefix (a shared beginning).")] = (
        "fixed"
    ),
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt (fixed, prefix).")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="New tokens of each answer (fixed, prefix).")] = 64,
    prefix_len: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with (prefix).")] = 0,
    vocab_size: Annotated[int, typer.Option(min=2, help="Prompts' token ids stay below it.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of lengths, prompts and arrivals.")] = 0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--stop-at-eos", help="Answers have full length; OpenAI itself refuses that.")
    ] = True,
    goodput: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC:MS", help="Count requests within it: ttft, tpot or e2el; may be repeated."),
    ] = None,
    ctx_size: Annotated[int | None, typer.Option(min=1, help="Context of the server that is started.")] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, help="Queue of the server that is started.")] = None,
    as_json: Json = False,
) -> None:
    """Latencies and tokens a second of a server, at given request rates. Failures are counted by reason."""
    from tokenmill.evals.load import Target, parse_slo, run_load
    from tokenmill.evals.workload import Workload

    rates, slo = _rates(request_rate), parse_slo(goodput or ())
    load = Workload(
        dataset=dataset,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        prefix_len=prefix_len,
        max_len=ctx_size or (CONTEXT if dataset == "sharegpt" else 0),
        vocab_size=vocab_size,
        seed=seed,
    )
    plans = [(rate, load.asks(rate, burstiness)) for rate in rates]
    target = Target(url or "http://localhost", model, endpoint=endpoint, ignore_eos=ignore_eos)
    rows = []
    with _server(model, url, api_key, {"--ctx-size": ctx_size, "--max-queue": max_queue}) as server:
        target = replace(target, url=server.url, model=server.model, api_key=server.api_key)
        for rate, asks in plans:
            with step_progress("requests") as progress:
                result = asyncio.run(
                    run_load(target, asks, max_concurrency=max_concurrency, slo=slo, progress=progress)
                )
            rows.append({"request_rate": "inf" if math.isinf(rate) else rate, **result.document()})
    document = {
        "model": model,
        "endpoint": endpoint,
        "dataset": dataset,
        "num_prompts": num_prompts,
        "max_concurrency": max_concurrency,
        "burstiness": burstiness,
        "seed": seed,
        "goodput": slo,
        "results": rows,
    }
    emit(document, as_json, _table(rows))
    if not any(row["completed"] for row in rows):
        raise TokenmillError(f"no request was answered: {'; '.join(rows[0]['errors'])}")


def _rates(given: str) -> list[float]:
    try:
        return [float(rate) for rate in given.split(",")]
    except ValueError:
        raise UsageError(f"--request-rate takes numbers or inf with commas between, not {given!r}") from None


@dataclass(frozen=True)
class Running:
    """A server that answers: its address, the model's name there, the key that opens it, its process if it is ours."""

    url: str
    model: str
    api_key: str | None
    pid: int | None = None


@contextmanager
def _server(model: str, url: str | None, api_key: str | None, settings: dict[str, int | None]) -> Iterator[Running]:
    """The server that is meant."""
    flags = [word for flag, value in settings.items() if value is not None for word in (flag, str(value))]
    if url is None:
        with own_server(model, *flags) as found:
            yield found
    elif flags:
        raise UsageError(f"{flags[0]} is for the server that is started here; the one at --url has its own settings")
    else:
        yield Running(url.rstrip("/").removesuffix("/v1"), model, api_key)


@contextmanager
def own_server(model: str, *flags: str) -> Iterator[Running]:
    """``tokenmill serve`` on a free port with ``model`` loaded, until the block ends.

    A key is made for it, since the keys that are stored on this machine guard this server as well.
    """
    import httpx

    command = [sys.executable, "-m", "tokenmill", "serve", model, "--port", "0", "--keep-alive", "-1", "--json", *flags]
    key = secrets.token_hex(16)
    environment = {"TOKENMILL_LOG": "warning", **os.environ, "TOKENMILL_API_KEY": key}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise TokenmillError(f"the server did not start (status {process.wait()}); its reason is above")
            url = json.loads(line)["url"]
            loaded = httpx.get(f"{url}/api/ps", headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60)
            yield Running(url, loaded.json()["models"][0]["name"], key, process.pid)
        finally:
            process.terminate()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Totals, a line a request rate; then the latencies; then what failed."""
    header = ("RATE", "ANSWERED", "FAILED", "SECONDS", "REQ/S", "GOOD/S", "OUTPUT TOK/S", "TOTAL TOK/S", "PEAK OPEN")
    totals = []
    for row in rows:
        good = row["request_goodput"]
        totals.append(
            (
                str(row["request_rate"]),
                str(row["completed"]),
                str(row["failed"]),
                f"{row['duration']:.1f}",
                f"{row['request_throughput']:.2f}",
                "-" if good is None else f"{good:.2f}",
                f"{row['output_throughput']:.1f}",
                f"{row['total_token_throughput']:.1f}",
                str(row["max_concurrent_requests"]),
            )
        )
    rates = [str(row["request_rate"]) for row in rows]
    parts = [columns(header, totals, gap=2), latency_table("RATE", rates, rows)]
    failures = [(rate, str(n), why) for rate, row in zip(rates, rows, strict=True) for why, n in row["errors"].items()]
    if failures:
        parts.append(columns(("RATE", "FAILED", "REASON"), failures, gap=2))
    return "\n\n".join(parts)
