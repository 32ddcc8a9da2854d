"""Every family against transformers, float32 on the CPU: both directions of conversion, packed batches, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.models import load_model
from tokenmill.nn.context import Cached, Packed, SequenceCache
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.registry import use_backend

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-4


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def hf_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]


def packed_logits(decoder: Decoder, prompts: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        lengths = [len(prompt) for prompt in prompts]
        return list(decoder(tiny.packed(prompts), Packed(lengths)).split(lengths))


def cached_logits(decoder: Decoder, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """All prompts side by side through caches, ``chunk`` tokens of each a pass; short ones drop out."""
    caches = [SequenceCache(decoder.config.num_layers) for _ in prompts]
    rows: list[list[torch.Tensor]] = [[] for _ in prompts]
    with torch.inference_mode():
        for start in range(0, max(map(len, prompts)), chunk):
            now = [i for i, prompt in enumerate(prompts) if start < len(prompt)]
            parts = [prompts[i][start : start + chunk] for i in now]
            context = Cached([caches[i] for i in now], [len(part) for part in parts])
            logits = decoder(tiny.packed(parts), context)
            context.advance()
            for i, part in zip(now, logits.split([len(part) for part in parts]), strict=True):
                rows[i].append(part)
    return [torch.cat(row) for row in rows]


def load_hf(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A family, its folder as we write it, and transformers' model loaded from that folder."""
    folder = tiny.write(tiny.FAMILIES[request.param], tmp_path_factory.mktemp(request.param))
    return request.param, folder, load_hf(folder)


def test_what_we_write_transformers_computes_the_same(pair: tuple[str, Path, Any]) -> None:
    _, folder, theirs = pair
    ours = load_model(folder, dtype="float32").decoder
    for got, prompt in zip(packed_logits(ours, tiny.PROMPTS), tiny.PROMPTS, strict=True):
        assert relative_error(got, hf_logits(theirs, prompt)) < TOLERANCE


def test_what_transformers_writes_we_compute_the_same(pair: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, _, theirs = pair
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype="float32").decoder
    for got, prompt in zip(packed_logits(ours, tiny.PROMPTS), tiny.PROMPTS, strict=True):
        assert relative_error(got, hf_logits(theirs, prompt)) < TOLERANCE


def test_loading_and_saving_gives_the_same_tensors(pair: tuple[str, Path, Any], tmp_path: Path) -> None:
    from tokenmill.formats import open_tensors

    _, folder, _ = pair
    load_model(folder, dtype="float32").save(tmp_path)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.infos().keys() == after.infos().keys()
    for name in before.infos():
        assert torch.equal(before.load(name), after.load(name)), name


@pytest.mark.parametrize("chunk", [1, 5])
def test_cached_equals_whole(pair: tuple[str, Path, Any], chunk: int) -> None:
    name, folder, theirs = pair
    ours = load_model(folder, dtype="float32").decoder
    # longrope changes its table when a sequence grows past the trained length, and what is cached keeps the old angles:
    # like transformers, so only prompts within that length can equal the whole pass
    prompts = [p for p in tiny.PROMPTS if name != "phi3" or len(p) <= 32]
    for got, prompt in zip(cached_logits(ours, prompts, chunk), prompts, strict=True):
        assert relative_error(got, hf_logits(theirs, prompt)) < TOLERANCE


def test_reference_backends_agree(pair: tuple[str, Path, Any]) -> None:
    _, folder, theirs = pair
    ours = load_model(folder, dtype="float32").decoder
    with use_backend("reference"):
        got = packed_logits(ours, tiny.PROMPTS)
    for row, prompt in zip(got, tiny.PROMPTS, strict=True):
        assert relative_error(row, hf_logits(theirs, prompt)) < TOLERANCE


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("name", list(tiny.ROPES))
def test_rope_scalings(name: str, spelling: str, tmp_path: Path) -> None:
    config = {**tiny.FAMILIES["llama"], **tiny.ROPES[name]}
    theirs = load_hf(tiny.write(config, tmp_path / "old"))
    folder = tmp_path / "old"
    if spelling == "new":  # as transformers 5 writes it: rope_parameters
        folder = tmp_path / "new"
        theirs.save_pretrained(folder)
    ours = load_model(folder, dtype="float32").decoder
    for got, prompt in zip(packed_logits(ours, tiny.PROMPTS), tiny.PROMPTS, strict=True):
        fresh = load_hf(folder)  # dynamic scaling leaves state behind in transformers' modules
        assert relative_error(got, hf_logits(fresh, prompt)) < TOLERANCE


def test_a_sequence_is_blind_to_its_neighbours(pair: tuple[str, Path, Any]) -> None:
    _, folder, _ = pair
    ours = load_model(folder, dtype="float32").decoder
    alone = packed_logits(ours, [tiny.PROMPTS[0]])[0]
    together = packed_logits(ours, [tiny.PROMPTS[3], tiny.PROMPTS[0], tiny.PROMPTS[2]])[1]
    assert relative_error(together, alone) < 1e-5


@pytest.mark.parametrize("length", [31, 32, 33])
def test_longrope_changes_its_table_beyond_the_trained_length(length: int, tmp_path: Path) -> None:
    folder = tiny.write(tiny.FAMILIES["phi3"], tmp_path)
    prompt = list(range(20, 20 + length))
    got = packed_logits(load_model(folder, dtype="float32").decoder, [prompt])[0]
    assert relative_error(got, hf_logits(load_hf(folder), prompt)) < TOLERANCE
