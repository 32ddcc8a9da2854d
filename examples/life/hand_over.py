"""The tuned model is measured beside the first, made small in three ways, and served from the smallest."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from life.stage import HERE, MODEL, QUICK, TEXT, Stage, StageFailedError
from life.tune import DEFINE, DEFINITIONS, FORM

SMALL = "demo-small"


def compare(stage: Stage) -> str:
    """The adapter folded in, beside the model it was trained from: what did it cost elsewhere?"""
    tuned = stage.folder / "tuned"
    stage.tokenmill("merge", MODEL, stage.known["adapter"], "--out", tuned)
    stage.known["tuned"] = str(tuned)
    limit = "6" if QUICK else "20"
    words = ["--tasks", "reading,arithmetic", "--limit", limit, "--fast", "--out", stage.folder / "compared"]
    found = stage.tokenmill("eval", "compare", MODEL, tuned, *words)
    stage.links.append(("row by row", "compared/report.html"))
    rows = [row for row in found["tuned"][0]["differences"] if row["main"] and not row.get("category")]
    for row in rows:
        change = f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        stage.figure(f"{row['task']}, {row['metric']}", f"{row['first']:.2f} to {row['second']:.2f}, {change}")
    worse = f"{len(found['regressions'])} of them certainly worse"
    return f"{len(rows)} tasks of {rows[0]['rows']} rows, {worse}"


def compress(stage: Stage) -> str:
    """GPTQ to 4 bits for other servers, GGUF for llama.cpp and Ollama: bytes, and perplexity of the same text."""
    tuned = Path(stage.known["tuned"])
    gptq, gguf = stage.folder / "gptq", stage.folder / "tuned-q4_k_m.gguf"
    samples = ["--samples", "40" if QUICK else "96", "--seq-len", "128"]
    stage.tokenmill(
        "quantize", tuned, "--method", "gptq", "--data", DEFINITIONS, *samples, "--text", TEXT, "--out", gptq
    )
    stage.links.append(("what quantising did, layer by layer", "gptq/report.html"))
    stage.tokenmill("export", "gguf", tuned, "--type", "Q4_K_M", "--out", gguf)
    stage.known["small"] = str(gguf)
    found = {}
    for name, path in (("as trained", tuned), ("GPTQ, 4 bits", gptq), ("GGUF, Q4_K_M", gguf)):
        ppl = stage.tokenmill("eval", "ppl", "--model", path, "--text", TEXT, "--ctx", "256")["ppl"]
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.safetensors"))
        stage.figure(name, f"{size / 1e6:.0f} MB, perplexity {ppl:.2f}")
        found[name] = size, ppl
    whole, small = found["as trained"], found["GGUF, Q4_K_M"]
    if small[0] > whole[0] / 2 or max(ppl for _, ppl in found.values()) > 1.5 * whole[1]:
        raise StageFailedError(f"too large, or too much was lost: {found}")
    return f"{whole[0] / 1e6:.0f} MB became {small[0] / 1e6:.0f}; perplexity {whole[1]:.2f} became {small[1]:.2f}"


def serve_it(stage: Stage) -> str:
    """The small file under a name of its own, served and asked through HTTP as any OpenAI client would."""
    modelfile = stage.folder / "Modelfile"
    modelfile.write_text(f"FROM {stage.known['small']}\n", encoding="utf-8")
    stage.tokenmill("create", SMALL, "-f", modelfile)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", SMALL, "--port", str(port)]
    stage.commands.append("tokenmill " + shlex.join(words))
    with subprocess.Popen([sys.executable, "-m", "tokenmill", *words], cwd=HERE, stdout=subprocess.DEVNULL) as server:
        try:
            return _ask_over_http(stage, server, f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def _ask_over_http(stage: Stage, server: subprocess.Popen[bytes], base: str) -> str:
    import httpx

    begin = time.perf_counter()
    while True:
        try:
            httpx.get(f"{base}/health", timeout=5).raise_for_status()
            break
        except httpx.HTTPError as error:
            if server.poll() is not None or time.perf_counter() - begin > 120:
                raise StageFailedError(f"the server does not answer: {error}") from error
            time.sleep(0.2)
    stage.figure("ready after", f"{time.perf_counter() - begin:.1f} s")
    body = {"model": SMALL, "messages": [{"role": "user", "content": DEFINE}], "temperature": 0, "max_tokens": 64}
    stage.commands.append(f"curl {base}/v1/chat/completions -d {shlex.quote(json.dumps(body))}")
    answered = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=120)
    if answered.status_code != 200:
        raise StageFailedError(f"the server answered {answered.status_code}: {answered.text[:200]}")
    stage.quote = answered.json()["choices"][0]["message"]["content"]
    stage.figure("tokens", str(answered.json()["usage"]["total_tokens"]))
    if not re.match(FORM.pattern, stage.quote, re.IGNORECASE):  # four bits and few steps may cost the capitals
        raise StageFailedError(f"the small model has lost the book's form: {stage.quote!r}")
    return f"{stage.quote.split('. ')[0]}., over HTTP"
