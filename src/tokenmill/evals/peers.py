"""llama.cpp and vLLM, measured beside ours: same weights, same cores, same prompt and answer lengths, in turn.

A peer is found below a folder (as `llama-bin/` and `vllm/bin/python`), below ``TOKENMILL_PEERS``, or on PATH. Each
is bound to the same cores as our threads are: on some kernels the free threads of one process share a core, and a
comparison with a peer that suffers from it would flatter us.

llama.cpp reads the very GGUF file; at batch 1 the better of llama-bench and llama-batched-bench counts. vLLM's build
for the CPU reads no GGUF; it gets the same weights in bfloat16, stays in memory, and idles while others are measured.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError, did_you_mean
from tokenmill.evals.cores import Cores
from tokenmill.evals.driver import Driver
from tokenmill.evals.throughput import Moment, Rates, Shape, decode_rate

ENVIRONMENT = "TOKENMILL_PEERS"
LLAMA_TOOLS = ("llama-bench", "llama-batched-bench")
TIMEOUT_S = 1800.0


class Peer(Protocol):
    """Another program that runs the same model."""

    name: str

    def measure(self, shape: Shape) -> Rates:
        """One repetition."""
        ...

    def document(self) -> dict[str, Any]:
        """Which program it is and what weights it reads."""
        ...

    def close(self) -> None: ...


class LlamaCpp:
    """llama.cpp's benchmark tools on a GGUF file, a process a measurement."""

    name = "llama.cpp"

    def __init__(self, folder: Path, file: Path, cores: Cores) -> None:
        if file.is_dir() or file.read_bytes()[:4] != b"GGUF":
            raise UsageError(f"llama.cpp reads GGUF files, and {file.name} is none; leave it out of --vs")
        self.folder, self.file, self.cores = folder, file, cores

    def measure(self, shape: Shape) -> Rates:
        runs = [self._batched(shape)]
        if shape.batch == 1:
            runs.append(self._single(shape))
        return Rates(max(run.prefill_tok_s for run in runs), max(run.decode_tok_s for run in runs))

    def document(self) -> dict[str, Any]:
        known = re.search(r"version: (.+)", self._call("llama-batched-bench", ["--version"]))
        return {"name": self.name, "version": known[1] if known else "unknown", "weights": "the same file"}

    def close(self) -> None: ...

    def _batched(self, shape: Shape) -> Rates:
        size = shape.batch * (shape.prompt_len + shape.gen_len)
        lengths = {"-npp": shape.prompt_len, "-ntg": shape.gen_len, "-npl": shape.batch, "-c": size}
        text = self._run("llama-batched-bench", {**lengths, "--output-format": "jsonl"})
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        if len(rows) != 1:
            raise TokenmillError(f"llama-batched-bench printed {len(rows)} results for {shape}: {text[-300:]!r}")
        return Rates(float(rows[0]["speed_pp"]), float(rows[0]["speed_tg"]))

    def _single(self, shape: Shape) -> Rates:
        """llama-bench counts the answer's tokens with the prompt in the cache when it is given a depth."""
        prefill = self._bench({"-p": shape.prompt_len, "-n": 0})
        decode = self._bench({"-p": 0, "-n": shape.gen_len, "-d": shape.prompt_len})
        return Rates(prefill, decode)

    def _bench(self, lengths: Mapping[str, int]) -> float:
        text = self._run("llama-bench", {**lengths, "-r": 1, "-o": "json"})
        try:
            return float(json.loads(text)[0]["avg_ts"])
        except (ValueError, LookupError, TypeError):
            raise TokenmillError(f"llama-bench printed no result that is understood: {text[-300:]!r}") from None

    def _run(self, tool: str, flags: Mapping[str, str | int]) -> str:
        """What the tool prints on standard output for the model."""
        flags = {"-m": str(self.file), "-t": self.cores.threads, **flags}
        if used := self.cores.used:
            flags |= {"--cpu-mask": hex(sum(1 << core for core in used)), "--cpu-strict": 1}
        return self._call(tool, [str(word) for pair in flags.items() for word in pair])

    def _call(self, tool: str, arguments: Sequence[str]) -> str:
        command = [str(self.folder / tool), *arguments]
        with self.cores.all():
            done = subprocess.run(
                command, env=_environment(self.cores), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
            )
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            hint = "; it was built for instructions that do not work here" if name == "SIGILL" else ""
            raise TokenmillError(f"{tool} was ended by {name}{hint}")
        if done.returncode:
            raise TokenmillError(f"{tool} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout if done.stdout.strip() else done.stderr


class VLLM:
    """vLLM in a process of its own Python, which answers a line of JSON to each shape it is sent."""

    name = "vllm"

    def __init__(self, python: Path, save: Callable[[Path], None], max_len: int, cores: Cores) -> None:
        """``save`` writes the model as a Hugging Face folder in bfloat16."""
        self._scratch = tempfile.TemporaryDirectory(prefix="tokenmill-vllm-")
        folder = Path(self._scratch.name) / "model"
        script = Path(__file__).with_name("vllm_driver.py")
        environment = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, used))} if (used := cores.used) else {}
        try:
            save(folder)
            command = [str(python), "-I", str(script), str(folder), str(max_len)]
            self._driver = Driver("vLLM", command, environment, cores)
        except BaseException:
            self._scratch.cleanup()
            raise

    def measure(self, shape: Shape) -> Rates:
        row = self._driver.ask(json.dumps(shape.document()))
        moments = [Moment(*one) for one in row["moments"]]
        return Rates(shape.batch * shape.prompt_len / row["prefill_s"], decode_rate(moments))

    def document(self) -> dict[str, Any]:
        hello = self._driver.hello
        return {"name": self.name, "version": hello["version"], "weights": "bfloat16", "startup_s": hello["startup_s"]}

    def close(self) -> None:
        self._driver.close()
        self._scratch.cleanup()


PEERS = ("llama.cpp", "vllm")


def peer_names(given: str) -> list[str]:
    """``llama.cpp,vllm`` as a list. UsageError for a name that is no peer."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PEERS]:
        raise UsageError(f"no peer {unknown[0]!r}{did_you_mean(unknown[0], PEERS)}; use {', '.join(PEERS)}")
    return list(dict.fromkeys(names))


def find_peer(name: str, folder: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where a peer is: llama.cpp's folder of tools, or the Python that has vLLM. NotFoundError says what to do."""
    below = [Path(place) for place in (folder, environment.get(ENVIRONMENT)) if place]
    path = environment.get("PATH", "")
    if name == "llama.cpp":
        places = [root / inner for root in below for inner in ("llama-bin", "bin", ".")]
        if on_path := shutil.which(LLAMA_TOOLS[0], path=path):
            places.append(Path(on_path).parent)
        what, found = (
            " and ".join(LLAMA_TOOLS),
            [p for p in places if all((p / tool).is_file() for tool in LLAMA_TOOLS)],
        )
    else:
        places = [root / inner / "python" for root in below for inner in ("vllm/bin", "bin")]
        if on_path := shutil.which("vllm", path=path):
            places.append(Path(on_path).with_name("python"))
        what, found = "vllm/bin/python", [place for place in places if place.is_file()]
    if not found:
        raise NotFoundError(
            f"{name} is not here: give --peer-dir or {ENVIRONMENT} a folder that has {what}, or put it on PATH"
        )
    return found[0]


def _environment(cores: Cores) -> dict[str, str]:
    """One OpenMP thread bound to each core that is used."""
    bound = {"OMP_NUM_THREADS": str(cores.threads)}
    if cores.used:
        bound |= {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in cores.used)}
    return {**os.environ, **bound}
