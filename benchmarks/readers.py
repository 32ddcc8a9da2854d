"""Who reads what we write, and whether they then say the same: greedy tokens and log-probabilities beside our engine's.

    python benchmarks/readers.py --work build/readers --vllm PYTHON --transformers PYTHON --llama DIR

Each case is written by our own command, unless it lies in the work folder already: the default model with a LoRA
adapter merged in, quantised by GPTQ, AWQ, W8A8 and FP8 in the layouts that vLLM reads, in NF4 and INT8 for transformers
with bitsandbytes, and as GGUF files. Our engine goes on with a few prompts; the other program does the same, and is
then asked how likely our tokens are, one after the other. Shown: the share of tokens before the first that differs, the
share of places where our token is its likeliest too, and how far the log-probabilities of our tokens are apart. Peers
compute in bfloat16 (llama.cpp in its own mix; vLLM's kernels for 4 bits would round inputs to 8 bits where the machine
has AMX, and are told not to), so differences of some hundredths of a nat are the format's, and where two tokens are
that close either may come first. A folder that a peer's build does not read is noted with its words.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "readers.json"
DATA = Path(__file__).parent.parent / "examples" / "texts" / "devils-dictionary.txt"
NEW = 24
"""Tokens of every continuation."""
PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "To make a cup of tea, first",
    "The Second World War ended in",
    "A list of European countries: Germany,",
)
LOOKED_AT = ["--data", str(DATA), "--samples", "8"]
CALIBRATED = ["--group-size", "32", *LOOKED_AT]


Job = tuple[Path, dict[str, Any]]
"""A folder or file, and what our engine makes of it."""


class Case(NamedTuple):
    """What is written, and for whom."""

    reader: str
    words: Sequence[str]
    """Our command line, less ``--out``."""


def _quantize(method: str, *more: str) -> list[str]:
    return ["quantize", MODEL, "--method", method, "--dtype", "bfloat16", *more]


CASES = {
    "merged": Case("vllm", ["export", "vllm", MODEL, "--dtype", "bfloat16"]),
    "gptq-ct": Case("vllm", _quantize("gptq", *CALIBRATED)),
    "gptq-gptq": Case("vllm", _quantize("gptq", "--layout", "gptq", *CALIBRATED)),
    "awq-ct": Case("vllm", _quantize("awq", *CALIBRATED)),
    "awq-awq": Case("vllm", _quantize("awq", "--layout", "awq", *CALIBRATED)),
    "w8a8": Case("vllm", _quantize("w8a8", *LOOKED_AT)),
    "fp8": Case("vllm", _quantize("fp8")),
    "nf4": Case("transformers", _quantize("nf4")),
    "int8": Case("transformers", _quantize("llm-int8", *LOOKED_AT)),
    "q8.gguf": Case("llama.cpp", ["export", "gguf", MODEL, "--type", "Q8_0"]),
    "q4_k_m.gguf": Case("llama.cpp", ["export", "gguf", MODEL, "--type", "Q4_K_M"]),
}
VLLM = """
import gc, json, os, sys, traceback
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR",
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_INT4_W4A8="0", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind")
from vllm import LLM, SamplingParams
def read(folder, asked, out):
    asked, new = json.load(open(asked)), NEW
    llm = LLM(folder, dtype="bfloat16", enforce_eager=True, max_model_len=256, enable_prefix_caching=False,
              skip_tokenizer_init=True)
    def run(ids, **how):
        return llm.generate([{"prompt_token_ids": one} for one in ids],
                            SamplingParams(temperature=0, detokenize=False, **how), use_tqdm=False)
    greedy = [list(o.outputs[0].token_ids) for o in run(asked["prompts"], max_tokens=new, ignore_eos=True)]
    both = [p + o for p, o in zip(asked["prompts"], asked["ours"])]
    scored = [[(d[i].logprob, d[i].rank == 1) for i, d in zip(ids[len(p):], o.prompt_logprobs[len(p):])]
              for p, ids, o in zip(asked["prompts"], both, run(both, max_tokens=1, prompt_logprobs=1))]
    import vllm
    json.dump({"greedy": greedy, "scored": scored, "version": vllm.__version__}, open(out, "w"))
def main(jobs):
    from vllm.distributed import cleanup_dist_env_and_memory
    for job in zip(jobs[::3], jobs[1::3], jobs[2::3]):
        try:
            read(*job)
        except Exception as error:
            traceback.print_exc()
            json.dump({"refused": f"{type(error).__name__}: {error}"[:400]}, open(job[2], "w"))
        gc.collect()
        cleanup_dist_env_and_memory()
if __name__ == "__main__":
    main(sys.argv[1:])
""".replace("NEW", str(NEW))
TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
jobs = sys.argv[1:]
for folder, asked, out in zip(jobs[::3], jobs[1::3], jobs[2::3]):
    asked = json.load(open(asked))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    greedy, scored = [], []
    with torch.no_grad():
        for prompt, ours in zip(asked["prompts"], asked["ours"]):
            said = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
            greedy.append(said[0, len(prompt):].tolist())
            logps = model(torch.tensor([prompt + ours])).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
            scored.append([(float(row[i]), bool(row.argmax() == i)) for i, row in zip(ours, logps)])
    json.dump({"greedy": greedy, "scored": scored, "version": transformers.__version__}, open(out, "w"))
""".replace("NEW", str(NEW))


def write(name: str, case: Case, work: Path) -> Path:
    """The case's folder or file, written unless it is there."""
    out = work / name
    if not out.exists():
        words = [*case.words, "--adapter", str(adapter(work))] if name == "merged" else list(case.words)
        subprocess.run([sys.executable, "-m", "tokenmill", *words, "--out", str(out)], check=True)
    return out


def adapter(work: Path) -> Path:
    """A LoRA adapter of the default model, trained for some steps at a high rate, so that it tells."""
    out = work / "runs" / "latest" / "model"
    if not out.exists():
        words = ["train", "pretrain", f"model={MODEL}", "size=null", f"data={DATA}", "adapter.kind=lora", "epochs=null",
                 "steps=4", "lr=2e-3", "warmup=0", "seq_len=128", "micro_batch=2", "batch_tokens=256", "eval_batches=1",
                 "sample_tokens=0", "trackers=[]", f"out={work / 'runs'}"]  # fmt: skip
        subprocess.run([sys.executable, "-m", "tokenmill", *words], check=True)
    return out


def ours(path: Path) -> dict[str, Any]:
    """What our engine makes of it: prompts and continuations as ids, and log-probabilities of the latter."""
    from tokenmill import LLM, SamplingParams

    llm = LLM(path)
    prompts = [llm.tokenizer.encode(text) for text in PROMPTS]
    how = SamplingParams(temperature=0, max_tokens=NEW, logprobs=0, ignore_eos=True)
    choices = [llm.complete([prompt], how)[0].choices[0] for prompt in prompts]
    logprobs = [[score.logprob for score in choice.logprobs or ()] for choice in choices]
    return {"prompts": prompts, "ours": [list(choice.token_ids) for choice in choices], "logprobs": logprobs}


# --- the peers


def by_program(python: str, program: str, jobs: Sequence[Job], work: Path) -> list[dict[str, Any]]:
    """What a library makes of some folders, in one process under its own interpreter."""
    script, words = work / "reader.py", list[str]()
    script.write_text(program)
    outs = [work / f"{path.name}.said.json" for path, _ in jobs]
    for (path, said), out in zip(jobs, outs, strict=True):
        asked = work / f"{path.name}.asked.json"
        asked.write_text(json.dumps(said))
        out.unlink(missing_ok=True)
        words += [str(path), str(asked), str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, str(script), *words], capture_output=True, text=True, env=environment, check=False)
    (work / "reader.log").write_text(done.stderr)
    lost = {"refused": (done.stderr.splitlines() or [f"exit {done.returncode}"])[-1][-400:]}
    return [json.loads(out.read_text()) if out.exists() else lost for out in outs]


def by_llama(tools: Path, path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp's server makes of it: greedy, then token by token behind ours."""
    with llama_server(tools, path) as ask:
        greedy, scored = [], []
        for prompt, mine in zip(said["prompts"], said["ours"], strict=True):
            written = ask(prompt, NEW)
            greedy.append([one["id"] for one in written])
            scored.append([scored_token(ask([*prompt, *mine[:n]], 1)[0], mine[n]) for n in range(len(mine))])
    version = subprocess.run([tools / "llama-server", "--version"], capture_output=True, text=True, check=True)
    told = next((line for line in (version.stdout + version.stderr).splitlines() if line.startswith("version")), "")
    return {"greedy": greedy, "scored": scored, "version": told.removeprefix("version: ")}


def scored_token(place: dict[str, Any], token: int) -> tuple[float | None, bool]:
    """A token's log-probability at a place (None where it is none of the likeliest), and whether it is the first."""
    tops = {one["id"]: one["logprob"] for one in place["top_logprobs"]}
    return tops.get(token), place["top_logprobs"][0]["id"] == token


@contextmanager
def llama_server(tools: Path, path: Path) -> Iterator[Callable[[list[int], int], list[dict[str, Any]]]]:
    """A running server; gives (ids, count) → what follows, with log-probabilities."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(tools / "llama-server"), "-m", str(path), "--port", str(port), "-c", "512", "-np", "1", "-t", "1"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(ids: list[int], count: int) -> list[dict[str, Any]]:
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": 20, "ignore_eos": True}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=300) as reply:
            found: list[dict[str, Any]] = json.load(reply)["completion_probabilities"]
        return found

    try:
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield ask
    finally:
        server.terminate()
        server.wait()


# --- the comparison


def compared(said: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How near they are."""
    pairs = list(zip(said["ours"], theirs["greedy"], strict=True))
    before = [next((n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), len(x)) for x, y in pairs]
    places = [one for row in theirs["scored"] for one in row]
    known = zip((v for row in said["logprobs"] for v in row), places, strict=True)
    apart = [abs(mine - their) for mine, (their, _) in known if their is not None]
    return {
        "tokens": len(places),
        "greedy_share": sum(before) / len(places),
        "agreement": sum(top for _, top in places) / len(places),
        "largest": max(apart),
        "mean": sum(apart) / len(apart),
        "version": theirs["version"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm", help="an interpreter that has vLLM")
    parser.add_argument("--transformers", help="one that has transformers and bitsandbytes")
    parser.add_argument("--llama", type=Path, help="the folder of llama-server")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    peers: dict[str, Callable[[Sequence[Job]], list[dict[str, Any]]]] = {}
    if given.vllm:
        peers["vllm"] = lambda jobs: by_program(given.vllm, VLLM, jobs, work)
    if given.transformers:
        peers["transformers"] = lambda jobs: by_program(given.transformers, TRANSFORMERS, jobs, work)
    if given.llama:
        peers["llama.cpp"] = lambda jobs: [by_llama(given.llama, *job) for job in jobs]
    rows: dict[str, Any] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    for reader, ask in peers.items():
        names = [name for name in given.only if CASES[name].reader == reader]
        paths = [write(name, CASES[name], work) for name in names]
        jobs = [(path, ours(path)) for path in paths]
        for name, (_, said), theirs in zip(names, jobs, ask(jobs) if jobs else [], strict=True):
            rows[name] = {"reader": reader, **(theirs if "refused" in theirs else compared(said, theirs))}
            print(name, json.dumps(rows[name]), flush=True)
        document = {"model": MODEL, "prompts": len(PROMPTS), "new_tokens": NEW, "rows": rows}
        RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
