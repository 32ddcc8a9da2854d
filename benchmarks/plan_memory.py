"""What ``plan memory --processor`` predicts, beside what this process really holds: resident memory, measured here.

The default model and three shapes with random weights (grouped queries; sliding windows; experts), served at several
contexts and trained in full, with LoRA and with QLoRA. Each case is a process of its own. Memory depends little on how
busy the machine is. ``python benchmarks/plan_memory.py [--quick] [--only serve|train]`` prints a table and, last, one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEFAULT = "smollm2:135m"
COMMON = {
    "vocab_size": 49152,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "dtype": "bfloat16", **COMMON,
    },
    "windows": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 128, "sliding_window": 512, "sliding_window_pattern": 6, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "dtype": "float32", **COMMON,
    },
    "experts": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 768,
        "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4,
        "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_experts": 16, "num_experts_per_tok": 2,
        "moe_intermediate_size": 512, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "tie_word_embeddings": False, "hidden_act": "silu", "dtype": "bfloat16", **COMMON,
    },
}  # fmt: skip
CONTEXTS = (512, 2048, 8192)
TRAINING = (  # method, rows, length, dtype
    ("full", 1, 128, "float32"),
    ("full", 1, 512, "float32"),
    ("full", 1, 512, "bfloat16"),
    ("lora", 1, 512, "float32"),
    ("lora", 2, 512, "float32"),
    ("qlora", 1, 512, "float32"),
)
QUICK = (("full", 1, 128, "float32"), ("lora", 1, 128, "float32"))


def write_shapes(folder: Path) -> None:
    """A Hugging Face folder each, with random weights and the default model's tokenizer."""
    import torch

    from tokenmill import load_tokenizer
    from tokenmill.formats.hf_folder import write_hf_folder
    from tokenmill.models import read_any_config
    from tokenmill.models.load import build
    from tokenmill.models.weights import file_tensors

    tokenizer = load_tokenizer(DEFAULT)
    for name, config in SHAPES.items():
        family, ours = read_any_config(config, name)
        network = build(ours).to_empty(device="cpu")
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.02)
        path = folder / name.replace(" ", "-")
        write_hf_folder(path, config, file_tensors(network.to(getattr(torch, config["dtype"])), family.weights))
        tokenizer.save(path)


def serve(model: str, contexts: list[int]) -> dict[str, int]:
    """In a process of its own: resident bytes after answers that filled each context."""
    from tokenmill import LLM
    from tokenmill.core.machine import process_memory
    from tokenmill.engine.request import Request
    from tokenmill.engine.sampling_params import SamplingParams

    llm = LLM(model)
    held = {}
    for context in contexts:
        prompt = [(i * 7919 + 13) % (llm.model.config.vocab_size - 1) for i in range(context - 16)]
        list(llm.engine.run([Request(prompt, SamplingParams(temperature=0.0, max_tokens=16))]))
        held[str(context)] = process_memory()[0]
    return held


def train(model: str, method: str, rows: int, length: int, dtype: str) -> dict[str, int]:
    """In a process of its own: the peak of two steps."""
    import torch

    from tokenmill.adapt import adapt
    from tokenmill.config.compose import compose
    from tokenmill.config.parts import AdapterConfig
    from tokenmill.core.machine import process_memory
    from tokenmill.evals.train_driver import Same, same_batch
    from tokenmill.models import load_model
    from tokenmill.quant.nf4 import quantize_linears
    from tokenmill.train.loop import Loop, Settings
    from tokenmill.train.objectives.next_token import NextToken
    from tokenmill.train.optim import build_optimizer
    from tokenmill.train.schedules import Schedule

    loaded = load_model(model, dtype=dtype)
    if method == "qlora":
        quantize_linears(loaded.network, double=True)
    if method == "full":
        loaded.decoder.requires_grad_(True)
    else:
        adapt(loaded, AdapterConfig(rank=16, alpha=32.0))
    recipe = compose("sft", ["model=given", "data=given"]).recipe
    scratch = Path(tempfile.mkdtemp())
    optimizer = build_optimizer(loaded.decoder, recipe, scratch)
    batch = same_batch(loaded.decoder.config.vocab_size, rows, length)
    with open("/proc/self/clear_refs", "w") as file:  # the peak from here on: loading has one of its own
        file.write("5")
    schedule = Schedule("constant", peak=1e-5, total=10**9)
    parts = (loaded.decoder, NextToken(), Same(batch), optimizer, schedule)
    Loop(*parts, folder=scratch, settings=Settings(), device=torch.device("cpu")).time_steps(2)
    return {"peak": process_memory()[1]}


def in_process(*words: str) -> dict[str, int] | None:
    """Run this file with ``words``; what it said last, or None if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{' '.join(words)} failed: {done.stderr[-300:]}", file=sys.stderr)
        return None
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, *, quick: bool, only: str | None) -> list[dict[str, Any]]:
    """All cases, predicted and measured."""
    from tokenmill.plan.headers import local_shape
    from tokenmill.plan.memory import Setup, need
    from tokenmill.store import Store

    default = Store().resolve(DEFAULT, pull=True).path
    rows: list[dict[str, Any]] = []

    def add(name: str, what: str, setup: Setup, method: Any, path: Path, measured: int) -> None:
        predicted = need(local_shape(path), setup, method)
        row = {"model": name, "case": what, "measured_mib": measured / 2**20, "predicted_mib": predicted.total / 2**20,
               "difference": predicted.total / measured - 1,
               "terms_mib": {key: size / 2**20 for key, size in predicted.terms.items()}}  # fmt: skip
        rows.append(row)
        print(f"{name:16} {what:28} {row['measured_mib']:8.0f} MiB measured {row['predicted_mib']:8.0f} predicted "
              f"{100 * row['difference']:+5.1f} %", flush=True)  # fmt: skip

    for name, path in {"default": default, **{n: folder / n.replace(" ", "-") for n in SHAPES}}.items():
        if only != "train":
            contexts = [c for c in CONTEXTS if not quick or c == CONTEXTS[0]]
            in_process("serve", str(path), "32")  # the first start packs the weights, later ones map what it wrote
            held = in_process("serve", str(path), ",".join(map(str, contexts))) or {}
            for context in contexts:
                if str(context) in held:
                    setup = Setup(context=context, processor=True)
                    add(name, f"served, {context} tokens", setup, "inference", path, held[str(context)])
        for method, count, length, dtype in () if only == "serve" else QUICK if quick else TRAINING:
            found = in_process("train", str(path), method, str(count), str(length), dtype)
            if found is not None:
                bits = 32 if dtype == "float32" else 16
                setup = Setup(context=length, batch=count, dtype_bits=bits, processor=True)
                add(name, f"{method}, {count} x {length}, {dtype}", setup, method, path, found["peak"])
    return rows


def main() -> None:
    """As the module's docstring says; with ``serve`` or ``train`` first, one measurement."""
    if sys.argv[1:2] == ["serve"]:
        print(json.dumps(serve(sys.argv[2], [int(n) for n in sys.argv[3].split(",")])))
        return
    if sys.argv[1:2] == ["train"]:
        model, method, rows, length, dtype = sys.argv[2:]
        print(json.dumps(train(model, method, int(rows), int(length), dtype)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="One context and two trainings a model.")
    parser.add_argument("--only", choices=("serve", "train"))
    parser.add_argument("--folder", type=Path, help="Keep the models here.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not all((folder / name.replace(" ", "-")).exists() for name in SHAPES):
            write_shapes(folder)
        rows = compare(folder, quick=given.quick, only=given.only)
    worst = max((abs(row["difference"]) for row in rows), default=0.0)
    print(json.dumps({"cases": rows, "worst": worst}))


if __name__ == "__main__":
    main()
