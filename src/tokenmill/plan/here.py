"""This machine's processor as a device of the catalog: measured in a few seconds, without the model in question.

Two small models with random weights, of different sizes and in the number format of the file, write some tokens
through the engine; the memory's bandwidth is measured beside them (``evals/roof.py``). A straight line through the two
steps gives what a step costs that no byte explains, and the share of the bandwidth that the kernels of this format
reach. With these the formulas of ``plan/rates.py`` predict any model's rate; ``measure_here`` then measures the one
that was asked for, in turns with the probes, so that a prediction can be held against the truth of the same minute.

A quantised weight is unpacked before it is multiplied, so on processors the share is of computing as much as of
reading: it holds for one sequence at a time, and that is what is predicted here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import UsageError
from tokenmill.plan.serve import Hardware, Subject, step_seconds
from tokenmill.plan.shape import from_decoder
from tokenmill.plan.subject import subject_of_bytes

if TYPE_CHECKING:
    from tokenmill.formats import TensorFile
    from tokenmill.nn.decoder import Decoder

ROUNDS = 5
PROBE_PROMPT, PROBE_TOKENS = 128, 24
SMALL = {"hidden": 512, "layers": 2, "heads": 8, "kv": 4, "mlp": 1536, "vocab": 2048}
LARGE = {"hidden": 768, "layers": 14, "heads": 12, "kv": 4, "mlp": 2048, "vocab": 16384}
NEAREST = {"Q4_K": "Q4_1", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0", "IQ4_NL": "Q4_0"}
"""Formats that tokenmill reads and does not write, and the one whose kernel is most like theirs."""
CACHE_BITS = 32
"""The engine keeps keys and values in what it computes in on processors."""


@dataclass(frozen=True)
class Here:
    """What was predicted, and what was measured."""

    subject: Subject
    hardware: Hardware
    number_format: str
    predicted_tok_s: float
    measured_tok_s: float

    @property
    def error(self) -> float:
        """How far the prediction lies above (+) or below (-) the measurement, as a share of it."""
        return self.predicted_tok_s / self.measured_tok_s - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        own = {k: v for k, v in asdict(self).items() if k not in ("subject", "hardware")}
        return own | {"error": self.error}


def measure_here(model: str, prompt_tokens: int, output_tokens: int) -> Here:
    """Predict a model's rate on this processor and measure it, in turns.

    Raises:
        UsageError: a context beyond the model.
        NotFoundError: no such model in the store, and no such file.
    """
    from tokenmill.evals.roof import weight_bytes
    from tokenmill.formats import open_tensors
    from tokenmill.nn.config import MoEConfig
    from tokenmill.store import Store

    file = open_tensors(Store().resolve(model).path)
    loaded = _served(file)
    if any(isinstance(layer.mlp, MoEConfig) for layer in loaded.config.layers):
        raise UsageError(f"{model} has experts: which of them a token meets is not known here; plan it for a --gpu")
    sizes: dict[str, int] = {}
    for info in file.infos().values():
        sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    kind = max(sizes, key=lambda name: sizes[name])
    kind = NEAREST.get(kind, kind)
    shape = from_decoder(loaded.config, model, "its file")
    asked = subject_of_bytes(
        shape,
        weight_bytes=float(sum(sizes.values())),
        read_bytes=float(weight_bytes(file, loaded.config)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cache_bits=CACHE_BITS,
    )
    with tempfile.TemporaryDirectory(prefix="tokenmill-probe-") as folder:
        probes = [probe(Path(folder) / f"{n}.gguf", kind, n, dims) for n, dims in enumerate((SMALL, LARGE))]
        device, step = _rounds(probes, loaded, asked)
    return Here(asked, device, kind, 1 / step_seconds(asked, device, 1), 1 / step)


@dataclass(frozen=True)
class Round:
    """What was measured one after the other: bytes a second, and seconds."""

    bandwidth: float
    small_s: float
    large_s: float
    """Steps of the probes."""
    prompt_s: float
    """Of the larger probe."""
    own_s: float
    """The step of the model that was asked for."""


def device_of(measured: Round, small_bytes: float, large_bytes: float, prompt_flops: float, memory: float) -> Hardware:
    """The processor as a device: the line through both probes' steps, over the bytes that they read."""
    a_byte = (measured.large_s - measured.small_s) / (large_bytes - small_bytes)
    # where the larger probe is hardly slower, another program was on the cores meanwhile; then all counts as reading
    a_byte = max(a_byte, 0.5 * measured.large_s / large_bytes)
    return Hardware(
        name="this processor",
        gpus=1,
        memory=memory,
        bandwidth=measured.bandwidth,
        # what the kernels reach on a prompt stands for the peak: nobody knows a processor's otherwise
        peak_flops=prompt_flops / measured.prompt_s,
        link=0.0,
        link_latency_s=0.0,
        bandwidth_efficiency=1 / (a_byte * measured.bandwidth),
        flops_efficiency=1.0,
        overhead_s=max(0.0, measured.small_s - small_bytes * a_byte),
    )


def _rounds(probes: list[tuple[Decoder, float]], model: Decoder, asked: Subject) -> tuple[Hardware, float]:
    """The device and the model's step of one of several rounds: that whose error is in the middle of all.

    Within a round everything is measured in one breath, so that a busy neighbour slows prediction and truth alike.
    """
    from tokenmill.core.machine import probe_machine
    from tokenmill.evals.roof import stream_bandwidth
    from tokenmill.nn.cost import flops_per_token

    (small, few), (large, many) = probes
    memory = float(probe_machine().memory_total or 0)
    flops = PROBE_PROMPT * flops_per_token(large.config, PROBE_PROMPT // 2)
    found: list[tuple[float, Hardware, float]] = []
    for _ in range(ROUNDS):
        bandwidth = stream_bandwidth(int(asked.read_bytes), passes=4)
        small_s = _times(small, PROBE_PROMPT, PROBE_TOKENS)[1]
        prompt_s, large_s = _times(large, PROBE_PROMPT, PROBE_TOKENS)
        own_s = _times(model, asked.prompt_tokens, asked.output_tokens)[1]
        device = device_of(Round(bandwidth, small_s, large_s, prompt_s, own_s), few, many, flops, memory)
        found.append((own_s / step_seconds(asked, device, 1), device, own_s))
    found.sort(key=lambda one: one[0])
    return found[ROUNDS // 2][1:]


def _times(decoder: Decoder, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of one sequence, and from token to token when nobody else wants the cores: of the
    times between its tokens the one that a tenth stays below."""
    import time
    from itertools import pairwise

    from tokenmill.evals.throughput import Shape, start

    engine, requests = start(decoder, Shape(1, prompt, tokens), 0)
    times = [time.perf_counter()]
    for _ in engine.run(requests):
        times.append(time.perf_counter())
    gaps = sorted(after - before for before, after in pairwise(times[1:]))
    return times[1] - times[0], gaps[len(gaps) // 10]


def probe(path: Path, kind: str, seed: int, dims: dict[str, int]) -> tuple[Decoder, float]:
    """A llama with random weights in a number format, as the engine serves it, and the bytes that a token reads."""
    from tokenmill.evals.roof import weight_bytes
    from tokenmill.formats import open_tensors, write_gguf

    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": dims["hidden"],
        "llama.block_count": dims["layers"],
        "llama.feed_forward_length": dims["mlp"],
        "llama.attention.head_count": dims["heads"],
        "llama.attention.head_count_kv": dims["kv"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": dims["vocab"],
    }
    write_gguf(path, metadata, _tensors(kind, seed, dims))
    file = open_tensors(path)
    network = _served(file)
    return network, float(weight_bytes(file, network.config))


def _served(file: TensorFile) -> Decoder:
    """As the server loads it. UsageError for what is no decoder."""
    from tokenmill.models.load import model_from_file
    from tokenmill.nn.decoder import Decoder

    network = model_from_file(file, pack=True).network
    if not isinstance(network, Decoder):
        raise UsageError(f"{file.path.name} is no decoder: it writes no text, so there is no rate to plan")
    return network


def _tensors(kind: str, seed: int, dims: dict[str, int]) -> Iterator[tuple[str, Any, str]]:
    import torch

    draw = torch.Generator().manual_seed(seed)
    hidden, mlp = dims["hidden"], dims["mlp"]
    key = hidden * dims["kv"] // dims["heads"]

    def matrix(rows: int, columns: int) -> Any:
        return 0.02 * torch.randn(rows, columns, generator=draw)

    yield "token_embd.weight", matrix(dims["vocab"], hidden), kind
    yield "output_norm.weight", torch.ones(hidden), "F32"
    for layer in range(dims["layers"]):
        name = f"blk.{layer}"
        yield f"{name}.attn_norm.weight", torch.ones(hidden), "F32"
        yield f"{name}.ffn_norm.weight", torch.ones(hidden), "F32"
        for part, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", key, hidden),
            ("attn_v", key, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", mlp, hidden),
            ("ffn_up", mlp, hidden),
            ("ffn_down", hidden, mlp),
        ):
            yield f"{name}.{part}.weight", matrix(rows, columns), kind
