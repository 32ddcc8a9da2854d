"""How near the CPU kernels come to float32: perplexity and single steps, for each quantised type and instruction set.

Every type's float32 figure is computed with the very same weights, unpacked, on torch; so what is shown is what the
kernels' own rounding of inputs and caches costs, not what the type costs. Matrices whose rows do not fit a type's
blocks are taken in Q8_0, as in files. `pass`: windows as `tokenmill eval ppl` takes them; `token`: a text one token at
a time through the recorded pass and its paged cache, the way that answers are made.

    python benchmarks/accuracy.py --model smollm2:135m --text book.txt --windows 4 --steps 256
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from tokenmill import LLM
from tokenmill.engine.engine import CACHE_DTYPES, cache_dtype_of
from tokenmill.engine.native_pass import BLOCK_SIZE, NativePass
from tokenmill.evals.perplexity import perplexity
from tokenmill.formats.gguf import WRITABLE, quantize
from tokenmill.nn.context import Packed as PackedContext
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.packed import PackedLinear
from tokenmill.ops.native import native, why_not
from tokenmill.ops.packed import QUANTISED, Packed
from tokenmill.ops.registry import use_backend

FILE = "file"  # the types that the model's own file has


@contextmanager
def instruction_set(name: str) -> Iterator[bool]:
    """Whether this machine has it; kernels are chosen anew."""
    before = os.environ.get("TOKENMILL_ISA", "")
    os.environ["TOKENMILL_ISA"] = name
    native.cache_clear(), why_not.cache_clear()
    try:
        native()
        yield True
    except Exception as error:  # a set that is not here, or not built
        if "TOKENMILL_ISA" not in str(error):
            raise
        yield False
    finally:
        os.environ["TOKENMILL_ISA"] = before
        native.cache_clear(), why_not.cache_clear()


def retyped(model: Decoder, kind: str) -> None:
    """Every matrix of a packed model in another type; the embedding stays."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            rows, columns = module.packed.shape
            fits = kind if columns % (256 if kind.endswith("_K") else 32) == 0 else "Q8_0"
            module.packed = Packed.from_blocks(fits, columns, quantize(module.packed.dense().view(rows, columns), fits))


def window_perplexity(model: Decoder, ids: list[int], ctx: int = 512) -> float:
    """As ``tokenmill eval ppl`` computes it."""
    return perplexity(model, ids, ctx, byte_lengths=[1] * len(ids)).ppl


@torch.inference_mode()
def one_by_one(model: Decoder, ids: list[int], cache: str = "auto") -> torch.Tensor:
    """Log-probabilities of each next token, by single steps over the paged cache."""
    blocks = list(range(-(-len(ids) // BLOCK_SIZE)))
    passes = NativePass(model, len(blocks), BLOCK_SIZE, cache=cache_dtype_of(cache))
    sequence = SimpleNamespace(tokens=lambda start, end: ids[start:end], blocks=blocks)
    found = []
    for at in range(len(ids) - 1):
        hidden = passes.hidden([SimpleNamespace(sequence=sequence, start=at, count=1)])  # type: ignore[list-item]
        found.append(torch.log_softmax(model.logits(hidden).float(), -1)[0, ids[at + 1]])
    return torch.stack(found)


@torch.inference_mode()
def at_once(model: Decoder, ids: list[int]) -> torch.Tensor:
    """The same log-probabilities by one pass."""
    tokens_T = torch.tensor(ids)
    log_p_TV = torch.log_softmax(model(tokens_T, PackedContext([len(ids)])).float(), -1)
    return log_p_TV[:-1].gather(1, tokens_T[1:, None])[:, 0]


def measure(model: Decoder, kind: str, ids: list[int], given: argparse.Namespace) -> None:
    """Print a line for each instruction set."""
    windows, steps = ids[: 512 * given.windows], given.steps
    with use_backend(packed_linear="reference"):
        plain = window_perplexity(model, windows) if windows else math.nan
        exact = at_once(model, ids[:steps]) if steps else torch.zeros(1)
    for name in given.isas.split(","):
        with instruction_set(name) as here:
            if not here:
                continue
            line = f"{kind:7} {name:7}"
            if windows:
                near = window_perplexity(model, windows)
                line += f" pass {plain:9.4f} {near:9.4f} {100 * (near / plain - 1):+.3f} %"
            if steps:
                got = one_by_one(model, ids[:steps], given.kv_cache_dtype)
                off = (got - exact).abs().mean().item()
                change = math.exp((exact - got).mean().item()) - 1
                line += f"   token {100 * change:+.3f} % (mean |d log p| {off:.5f})"
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--kinds", default=FILE, help="comma-separated GGUF types, or 'file' for the model's own")
    parser.add_argument("--isas", default="avx2,avx512,amx,neon")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens")
    parser.add_argument("--steps", type=int, default=256, help="tokens that are computed one by one")
    parser.add_argument("--kv-cache-dtype", choices=list(CACHE_DTYPES), default="auto", help="of the single steps")
    given = parser.parse_args()
    known = [kind for kind in QUANTISED if kind in WRITABLE]
    kinds = given.kinds.split(",")
    if wrong := [kind for kind in kinds if kind not in (FILE, *known)]:
        parser.error(f"--kinds {','.join(wrong)}: known are {FILE}, {', '.join(known)}")
    llm = LLM(given.model)
    ids = llm.tokenizer.encode(given.text.read_text(encoding="utf-8"), parse_special=False)
    for kind in kinds:
        model = LLM(given.model).model
        if kind != FILE:
            retyped(model, kind)
        measure(model, kind, ids, given)


if __name__ == "__main__":
    main()
