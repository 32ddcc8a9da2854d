"""bench throughput --vs: peers are found, bound, asked for the same lengths, and read as they print.

The fakes print what the real programs printed (tests/data/peers), and write down how they were called.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.tiny_llm import tiny_folder
from tokenmill.cli.app import main
from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError
from tokenmill.core.threads import allowed_cores
from tokenmill.evals.cores import Cores
from tokenmill.evals.peers import VLLM, LlamaCpp, find_peer, peer_names
from tokenmill.evals.roof import roof_tok_s, stream_bandwidth, weight_bytes
from tokenmill.evals.throughput import Rates, Shape
from tokenmill.formats import open_tensors
from tokenmill.models import load_model

DATA = Path(__file__).parents[1] / "data" / "peers"
FAKE_TOOL = """#!{python}
import json, os, sys
from pathlib import Path
here, tool = Path({folder!r}), Path(__file__).name
call = {{"tool": tool, "words": sys.argv[1:], "cores": sorted(os.sched_getaffinity(0))}}
call["omp"] = os.environ.get("OMP_PLACES")
with open(here / "calls", "a") as log:
    print(json.dumps(call), file=log)
if "--version" in sys.argv:
    print((Path({data!r}) / "version.txt").read_text(), file=sys.stderr)
else:
    name = tool + ("-decode" if tool == "llama-bench" and sys.argv[sys.argv.index("-p") + 1] == "0" else "")
    print((Path({data!r}) / (name + ".txt")).read_text())
"""
FAKE_VLLM = """
import json, sys
folder, longest = sys.argv[-2:]
print(json.dumps({{"version": "0.0", "startup_s": 1.0}}), flush=True)
for line in sys.stdin:
    shape = json.loads(line)
    if shape["batch"] == 99:
        sys.exit("out of memory")
    steps = [(2.0, shape["batch"], shape["batch"], 0), (3.0, shape["batch"] + int(longest), shape["batch"], 1)]
    print(json.dumps({{"prefill_s": 0.5, "moments": steps}}), flush=True)
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A peer folder with llama.cpp's tools."""
    folder = tmp_path / "llama-bin"
    folder.mkdir()
    for tool in ("llama-bench", "llama-batched-bench"):
        text = FAKE_TOOL.format(python=sys.executable, folder=str(tmp_path), data=str(DATA))
        (folder / tool).write_text(text, encoding="utf-8")
        (folder / tool).chmod(0o755)
    return tmp_path


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    return path


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text(encoding="utf-8").splitlines()]


def flags(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_llama_cpp_is_asked_for_the_same(tools: Path, gguf: Path) -> None:
    cores = Cores(2, allowed_cores())
    rates = LlamaCpp(tools / "llama-bin", gguf, cores).measure(Shape(16, 32, 8))
    (call,) = calls(tools)
    asked = flags(call["words"])
    assert call["tool"] == "llama-batched-bench"
    assert (asked["-m"], asked["-t"]) == (str(gguf), "2")
    assert (asked["-npp"], asked["-ntg"], asked["-npl"], asked["-c"]) == ("32", "8", "16", str(16 * 40))
    printed = json.loads((DATA / "llama-batched-bench.txt").read_text(encoding="utf-8"))
    assert rates == Rates(printed["speed_pp"], printed["speed_tg"])


def test_batch_one_is_measured_by_both_tools(tools: Path, gguf: Path) -> None:
    """The better counts, and llama-bench decodes behind the prompt, not in an empty cache."""
    rates = LlamaCpp(tools / "llama-bin", gguf, Cores(1)).measure(Shape(1, 32, 8))
    batched, prefill, decode = calls(tools)
    assert flags(batched["words"])["-npl"] == "1"
    assert (flags(prefill["words"])["-p"], flags(prefill["words"])["-n"]) == ("32", "0")
    assert [flags(decode["words"])[flag] for flag in ("-p", "-n", "-d")] == ["0", "8", "32"]
    single = [json.loads((DATA / f"{name}.txt").read_text())[0] for name in ("llama-bench", "llama-bench-decode")]
    batch = json.loads((DATA / "llama-batched-bench.txt").read_text(encoding="utf-8"))
    assert rates.prefill_tok_s == max(batch["speed_pp"], single[0]["avg_ts"])
    assert rates.decode_tok_s == max(batch["speed_tg"], single[1]["avg_ts"])


@pytest.mark.skipif(sys.platform != "linux", reason="cores cannot be chosen on other systems")
def test_a_peer_may_use_all_cores_that_we_may(tools: Path, gguf: Path) -> None:
    """OpenMP binds our first thread to one core, and a child would inherit that."""
    cores = allowed_cores()
    os.sched_setaffinity(0, cores[:1])
    try:
        LlamaCpp(tools / "llama-bin", gguf, Cores(2, cores)).measure(Shape(2, 8, 4))
        assert os.sched_getaffinity(0) == set(cores[:1])
    finally:
        os.sched_setaffinity(0, cores)
    (call,) = calls(tools)
    assert call["cores"] == list(cores)
    assert flags(call["words"])["--cpu-mask"] == hex(sum(1 << core for core in cores[:2]))
    assert call["omp"] == ",".join(f"{{{core}}}" for core in cores[:2])


def test_the_version_is_read(tools: Path, gguf: Path) -> None:
    said = LlamaCpp(tools / "llama-bin", gguf, Cores(1)).document()
    assert said["version"] in (DATA / "version.txt").read_text(encoding="utf-8")
    assert said["version"] != "unknown"


def test_a_tool_that_fails_says_why(tools: Path, gguf: Path) -> None:
    tool = tools / "llama-bin" / "llama-batched-bench"
    tool.write_text("#!/bin/sh\necho the model is broken >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(TokenmillError, match="ended with 3: the model is broken"):
        LlamaCpp(tools / "llama-bin", gguf, Cores(1)).measure(Shape(2, 8, 4))
    tool.write_text("#!/bin/sh\nkill -ILL $$\n", encoding="utf-8")
    with pytest.raises(TokenmillError, match="SIGILL; it was built for instructions"):
        LlamaCpp(tools / "llama-bin", gguf, Cores(1)).measure(Shape(2, 8, 4))
    tool.write_text("#!/bin/sh\necho all well\n", encoding="utf-8")
    with pytest.raises(TokenmillError, match="0 results"):
        LlamaCpp(tools / "llama-bin", gguf, Cores(1)).measure(Shape(2, 8, 4))


def test_llama_cpp_takes_gguf_alone(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GGUF"):
        LlamaCpp(tools / "llama-bin", tiny_folder(tmp_path / "folder"), Cores(1))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Stands in for vLLM's Python: runs the fake instead of the driver."""
    (tmp_path / "fake.py").write_text(FAKE_VLLM.format(), encoding="utf-8")
    path = tmp_path / "vllm" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/fake.py "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def test_vllm_stays_for_all_shapes(python: Path) -> None:
    saved: list[Path] = []
    vllm = VLLM(python, saved.append, 40, Cores(1))
    assert vllm.measure(Shape(2, 8, 4)) == Rates(32.0, 40.0)
    assert vllm.measure(Shape(3, 8, 4)) == Rates(48.0, 40.0)
    assert vllm.document() == {"name": "vllm", "version": "0.0", "weights": "bfloat16", "startup_s": 1.0}
    scratch = saved[0].parent
    assert scratch.is_dir()
    vllm.close()
    assert not scratch.exists()


def test_vllm_that_ends_says_why(python: Path) -> None:
    vllm = VLLM(python, lambda _: None, 40, Cores(1))
    with pytest.raises(TokenmillError, match="out of memory"):
        vllm.measure(Shape(99, 8, 4))
    vllm.close()
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(TokenmillError, match="no such module"):
        VLLM(python, lambda _: None, 40, Cores(1))


def test_peers_are_found(tools: Path, python: Path, tmp_path: Path) -> None:
    assert find_peer("llama.cpp", tools, {}) == tools / "llama-bin"
    assert find_peer("llama.cpp", None, {"TOKENMILL_PEERS": str(tools)}) == tools / "llama-bin"
    assert find_peer("llama.cpp", None, {"PATH": str(tools / "llama-bin")}) == tools / "llama-bin"
    assert find_peer("vllm", tmp_path, {}) == python
    (python.parent / "vllm").touch(0o755)
    assert find_peer("vllm", None, {"PATH": str(python.parent)}) == python
    for name in ("llama.cpp", "vllm"):
        with pytest.raises(NotFoundError, match="--peer-dir"):
            find_peer(name, tmp_path / "nothing", {"PATH": ""})


def test_names_of_peers() -> None:
    assert peer_names("vllm, llama.cpp,vllm") == ["vllm", "llama.cpp"]
    assert peer_names("") == []
    with pytest.raises(UsageError, match=r"did you mean 'llama\.cpp'"):
        peer_names("llamacpp")


def test_the_roof(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tied")
    model, file = load_model(folder).decoder, open_tensors(folder)
    sizes = {name: info.nbytes for name, info in file.infos().items()}
    config = model.config
    lookup = 0 if config.tied_embeddings else sizes["model.embed_tokens.weight"]
    weights = weight_bytes(file, config)
    assert weights == sum(sizes.values()) - lookup
    empty = roof_tok_s(1e9, weights, config, 0)
    assert empty == pytest.approx(1e9 / weights)
    assert roof_tok_s(1e9, weights, config, 100) < empty
    assert 1e8 < stream_bandwidth(1 << 22) < 1e13


def test_the_command(tools: Path, default_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "throughput", "--model", str(default_gguf), "--batch", "1", "--prompt-len", "4", "--gen-len", "2"]
    assert main([*words, "--vs", "llama.cpp", "--peer-dir", str(tools), "--repeat", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["format"] == "Q4_1"
    theirs = json.loads((DATA / "llama-bench.txt").read_text(encoding="utf-8"))[0]["model_size"]  # of the same file
    assert document["roof"]["weight_mb"] == pytest.approx(theirs / 1e6)
    (row,) = document["results"]
    peer = row["peers"]["llama.cpp"]
    assert peer["decode_ratio"] == pytest.approx(row["decode_tok_s"] / peer["decode_tok_s"])
    assert row["share_of_roof"] == pytest.approx(row["decode_tok_s"] / row["roof_tok_s"])
    assert len(row["runs"]) == len(peer["runs"]) == 2
    assert str(tools) not in json.dumps(document["peers"])
    assert [call["tool"] for call in calls(tools)[:3]] == ["llama-batched-bench", "llama-bench", "llama-bench"]


def test_a_missing_peer_is_told_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "throughput", "--model", "no-such-model", "--vs", "llama.cpp", "--peer-dir", str(tmp_path)]
    assert main(words) == 1
    assert "llama-bench" in capsys.readouterr().err
