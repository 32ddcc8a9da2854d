"""Quantisers against slow references, folders of every layout read back, killed runs, and what is refused."""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from tokenmill.core.errors import ConfigError, FormatError, UsageError
from tokenmill.evals.divergence import Original
from tokenmill.evals.perplexity import perplexity
from tokenmill.formats import open_tensors
from tokenmill.formats.awq import AWQ
from tokenmill.formats.codes import Codes, pack_words, unpack_words
from tokenmill.formats.compressed_tensors import CompressedTensors, Weights
from tokenmill.formats.gptq import GPTQ
from tokenmill.formats.hf_folder import HFFolder
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.models import load_model
from tokenmill.models.load import model_from_file
from tokenmill.models.packing import packed_codes, replace
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.nn.packed import PackedLinear
from tokenmill.nn.quantised import QuantisedLinear
from tokenmill.ops.native import native
from tokenmill.quant.codebook import codebook, fit_levels, nearest, plain_codebook
from tokenmill.quant.gptq import gptq
from tokenmill.quant.grid import Grid, round_to_nearest
from tokenmill.quant.mixed import Unit, choose, measure
from tokenmill.quant.rescale import best_clips, rescale, sources
from tokenmill.quant.run import quantise, refuse_unfit
from tokenmill.quant.save import check_folder, write_folder
from tokenmill.quant.settings import KEPT, MIXED, W8A8_BUDGET, Settings, settings
from tokenmill.quant.statistics import InputStatistics


def config(family: str, **special: Any) -> dict[str, Any]:
    """A tiny model whose rows are groups of 32."""
    wide = {**tiny.FAMILIES[family], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, **special}
    if family == "qwen3_moe":
        wide |= {"moe_intermediate_size": 64, "num_hidden_layers": 1, "mlp_only_layers": []}
    if family == "phi3":
        wide["rope_scaling"] = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    return wide


def documents(count: int = 12, length: int = 100, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (length,), generator=generator) for _ in range(count)]


def correlated(columns: int, seed: int = 0) -> Tensor:
    """Inputs as models have them: columns that go together."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) * 0.3 + torch.eye(columns)
    return torch.randn(4 * columns, columns, generator=generator) @ mixed


def run(source: Path, how: Settings, work: Path, **options: Any) -> Any:
    return quantise(load_model(source, dtype="float32"), how, documents(), work, source="tiny", **options)


def logits(model: Any) -> Tensor:
    return model.decoder(documents()[0], Packed([100])).detach()


# --- numbers


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_words_hold_numbers_one_behind_the_other(bits: int) -> None:
    values = torch.randint(0, 2**bits, (5, 40), generator=torch.Generator().manual_seed(bits))
    words = pack_words(values, bits)
    whole = [sum(int(v) << (bits * n) for n, v in enumerate(row)) for row in values]
    stored = [sum((int(w) & 0xFFFFFFFF) << (32 * n) for n, w in enumerate(row)) for row in words]
    assert stored == whole
    assert torch.equal(unpack_words(words, bits, 40).long(), values)


def slow_gptq(weight: Tensor, hessian: Tensor, grid: Grid, order: list[int]) -> Tensor:
    """Optimal brain quantisation as it is derived: a new inverse for the columns that are left, after each."""
    scales, zeros = (part.expand_as(weight) for part in _scales(weight, grid))
    weight, left = weight.double().clone(), list(order)
    hessian = hessian.double()
    while left:
        inverse = torch.linalg.inv(hessian[left][:, left])
        first = left[0]
        low, high = -zeros[:, first], 2**grid.bits - 1 - zeros[:, first]
        steps = (weight[:, first].float() / scales[:, first]).round().clamp(low, high)
        error = (weight[:, first] - (steps * scales[:, first]).double()) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return weight.float()


def _scales(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    codes = round_to_nearest(weight, grid)
    zeros = torch.full_like(codes.scales_OG.float(), 8) if codes.zeros_OG is None else codes.zeros_OG.float()
    return tuple(part.float().repeat_interleave(codes.group_size, 1) for part in (codes.scales_OG, zeros))  # type: ignore[return-value]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_what_optimal_brain_quantisation_derives(symmetric: bool, act_order: bool) -> None:
    weight, x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)) * 0.1, correlated(64)
    hessian = x.T @ x / len(x)
    grid = Grid(4, 32, symmetric)
    found = gptq(weight, hessian, grid, act_order=act_order)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    order = torch.argsort(hessian.diagonal(), descending=True).tolist() if act_order else list(range(64))
    expected = slow_gptq(weight, damped, grid, order)
    assert (found.codes.dense() - expected).abs().max() < 1e-4
    plain = round_to_nearest(weight, grid).dense() - weight
    ours = found.codes.dense() - weight
    assert ((ours @ hessian) * ours).sum() < 0.7 * ((plain @ hessian) * plain).sum()


def test_unusable_hessians_are_handled_and_told() -> None:
    weight, grid = torch.randn(4, 64, generator=torch.Generator().manual_seed(2)), Grid(4, 32)
    x = correlated(64)
    x[:, 7] = 0  # an input that never fires
    found = gptq(weight, x.T @ x, grid)
    assert not found.problem
    plain = round_to_nearest(weight, grid)
    assert torch.equal(found.codes.codes_OI[:, 7], plain.codes_OI[:, 7])
    rank_one = torch.ones(64, 64)
    assert gptq(weight, rank_one, grid, damping=0.0).damping > 0
    for broken in (torch.full((64, 64), float("nan")), -torch.eye(64) - rank_one):
        found = gptq(weight, broken, grid)
        assert found.problem
        assert torch.equal(found.codes.codes_OI, plain.codes_OI)


def test_clipping_never_hurts_and_helps_outliers() -> None:
    weight, x = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)), correlated(64)
    weight[:, 5] *= 12
    x[:, 5] *= 0.01
    hessian, grid = x.T @ x / len(x), Grid(4, 32, symmetric=False)
    clip = best_clips(weight, grid, hessian)

    def errors(clip_OG: Tensor | None) -> Tensor:
        off = (round_to_nearest(weight, grid, clip_OG).dense() - weight).view(16, 2, 32)
        blocks = torch.stack([hessian[:32, :32], hessian[32:, 32:]])
        return torch.einsum("ogs,gst,ogt->og", off, blocks, off)

    assert (errors(clip) <= errors(None) * 1.0001).all()
    assert errors(clip).sum() < 0.8 * errors(None).sum()


@pytest.mark.parametrize("family", ["llama", "gemma3", "starcoder2", "gpt2"])
def test_rescaling_changes_no_output(family: str, tmp_path: Path) -> None:
    wide = tiny.FAMILIES[family] if family == "gpt2" else config(family)
    model = load_model(tiny.write(wide, tmp_path), dtype="float32")
    before = logits(model)
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for block in model.decoder.layers:
        assert isinstance(block, Block)
        for source in sources(block):
            columns = block.get_parameter(f"{source.fed[0]}.weight").shape[1]
            rescale(block, source, source.shared(torch.rand(columns, generator=generator) + 0.5))
            moved += 1
    assert moved >= 4
    assert (logits(model) - before).abs().max() < 2e-4 * before.abs().max()


def test_levels_are_those_of_the_best_partition() -> None:
    """k-means in one dimension against all partitions of a row, and weights that count numbers several times."""
    row = torch.tensor([[-3.0, -2.8, -2.9, 0.1, 0.0, 4.0, 4.2, 9.0]])
    importance = torch.tensor([1.0, 1, 2, 1, 3, 1, 1, 1])
    found = fit_levels(row, importance, 2)
    repeated = row[0].repeat_interleave(importance.long()).sort().values.tolist()

    def cost(cuts: tuple[int, ...]) -> float:
        parts = [repeated[a:b] for a, b in pairwise((0, *cuts, len(repeated)))]
        return sum(sum((v - sum(p) / len(p)) ** 2 for v in p) for p in parts)

    best = min(cost(cuts) for cuts in combinations(range(1, len(repeated)), 3))
    nearest_OI = found.gather(1, nearest(row, found))
    assert ((row - nearest_OI).square() * importance).sum().item() == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("method", ["w8a8", "llm-int8"])
def test_outliers_are_moved_out_of_the_inputs(method: str, tmp_path: Path) -> None:
    """Columns of huge inputs and tiny weights, which change nothing of what the model says."""
    source = tiny.write(config("llama"), tmp_path / "source")
    found = []
    for smooth in (0.0, None):
        model = load_model(source, dtype="float32")
        for block in model.decoder.layers:
            assert isinstance(block, Block)
            for one in sources(block):
                columns = block.get_parameter(f"{one.fed[0]}.weight").shape[1]
                outliers = torch.ones(columns)
                outliers[::9] = 0.02
                rescale(block, one, one.shared(outliers))
        original = Original(model.decoder, documents(20, 64))
        quantise(model, settings(method, smooth=smooth), documents(), tmp_path / str(smooth), source="tiny")
        found.append(original.compare(model.decoder).kl)
    assert found[1] < 0.2 * found[0]


@pytest.mark.parametrize("bits", [2, 3])
def test_levels_of_its_own_beat_even_steps(bits: int) -> None:
    weight, x = torch.randn(16, 128, generator=torch.Generator().manual_seed(5)) * 0.1, correlated(128)
    hessian = x.T @ x / len(x)

    def error(codes: Codes) -> float:
        off = codes.dense() - weight
        return float(((off @ hessian) * off).sum())

    found = codebook(weight, hessian, bits, torch.float16).codes
    assert error(found) < 0.8 * error(gptq(weight, hessian, Grid(bits, 64)).codes)
    assert error(found) < 0.8 * error(plain_codebook(weight, bits, torch.float16))
    assert found.levels_OK is not None
    assert bool((found.levels_OK.diff(dim=1) >= 0).all())


def test_a_budget_is_kept_and_spent_where_it_counts() -> None:
    """Beside all choices there are; a unit that nothing depends on gets least."""
    generator = torch.Generator().manual_seed(1)
    units, choices = [], MIXED["gptq"]
    for n in range(4):
        size, weight = 100 * (n + 1), 0.0 if n == 2 else float(torch.rand((), generator=generator)) + 0.1
        costs = {bits: size * (bits + 0.5) for bits in choices}
        units.append(Unit((f"layers.{n}",), costs, {bits: weight * 4.0**-bits for bits in choices}))
    everything = [dict(zip(range(4), bits, strict=True)) for bits in product(choices, repeat=4)]
    for budget in (2.5, 3.2, 4.0, 5.5, 8.5):
        bits = choose(units, 1000, budget, 2)
        cost = sum(unit.cost[bits[unit.layers[0]]] for unit in units)
        loss = sum(unit.loss[bits[unit.layers[0]]] for unit in units)
        fitting = [one for one in everything if sum(units[n].cost[b] for n, b in one.items()) <= 1000 * budget]
        best = min(sum(units[n].loss[b] for n, b in one.items()) for one in fitting)
        assert cost <= 1000 * budget
        assert loss <= 1.5 * best + 1e-9
        assert bits["layers.2"] == 2
    with pytest.raises(UsageError, match="too small"):
        choose(units, 1000, 2.4, 2)


def test_sensitivity_foretells_divergence(tmp_path: Path) -> None:
    """The estimate from gradients beside the KL divergence that is measured with just this layer rounded."""
    model = load_model(tiny.write(config("llama"), tmp_path), dtype="float32")
    texts = documents(40, 64)
    units = measure(model.decoder, texts, settings("rtn", group_size=32))
    original = Original(model.decoder, [text[:64] for text in texts])
    for unit in units[:2]:
        kept = {name: model.decoder.get_parameter(f"{name}.weight").data.clone() for name in unit.layers}
        for name, weight in kept.items():
            rounded = round_to_nearest(weight, Grid(4, 32)).dense()
            model.decoder.get_parameter(f"{name}.weight").data = rounded
        found = original.compare(model.decoder).kl
        for name, weight in kept.items():
            model.decoder.get_parameter(f"{name}.weight").data = weight
        assert 0.4 * found < unit.loss[4] < 2.5 * found


def test_sensitivity_counts_rounded_inputs(tmp_path: Path) -> None:
    """8 bits of weights and of inputs with outliers, both beside what is measured with just this layer rounded."""
    model = load_model(tiny.write(config("llama"), tmp_path), dtype="float32")
    block = model.decoder.layers[0]
    assert isinstance(block, Block)
    block.mlp_norm.weight.data[7] = 40.0
    texts = documents(40, 64)
    losses = []
    for smooth in (0.0, None):
        units = {unit.layers[0]: unit for unit in measure(model.decoder, texts, settings("w8a8", smooth=smooth))}
        losses.append(units["layers.0.mlp.gate"].loss)
    assert set(losses[0]) == {8, KEPT}
    assert losses[0][KEPT] == 0
    assert losses[1][8] < 0.5 * losses[0][8], "outliers are moved before it is looked at"
    original = Original(model.decoder, texts)
    for name in ("gate", "up"):
        plain = block.mlp.get_submodule(name)
        assert isinstance(plain, Linear)
        replace(block.mlp, name, QuantisedLinear(round_to_nearest(plain.weight, Grid(8, -1)), plain.bias, "int8"))
    assert 0.4 < losses[0][8] / original.compare(model.decoder).kl < 2.5


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe"])
def test_what_loses_most_is_kept(family: str, tmp_path: Path) -> None:
    """W8A8 keeps layers as they are: to the bit in the file, named in ``ignore``, and a run goes on with them."""
    source = tiny.write(config(family), tmp_path / "source")
    assert settings("w8a8").budget == W8A8_BUDGET
    assert settings("w8a8", bits=8).budget is settings("w8a8", smooth=0).budget is None
    done = run(source, settings("w8a8", budget=10.5), tmp_path / "work", dtype=torch.float32)
    kept = {record.name for record in done.records if record.kept}
    assert 0 < len(kept) < len(done.records)
    assert {record.bits for record in done.records if record.kept} == {32.0}
    layout = write_folder(done, tmp_path / "out", torch.float32)
    check_folder(tmp_path / "out", done)
    before, after = HFFolder(source), HFFolder(tmp_path / "out")
    plain = [name for name in after.infos() if name.endswith("proj.weight") and f"{name}_scale" not in after.infos()]
    assert plain
    ignored = [re.escape(one) if one[:3] != "re:" else one[3:] for one in layout.config()["ignore"]]
    for name in before.infos():
        if name.endswith("proj.weight"):
            told = any(re.fullmatch(one, name.removesuffix(".weight")) for one in ignored)
            assert told == (name in plain), name
    changed = [name for name in plain if not torch.equal(before.load(name), after.load(name))]
    assert all(re.search("v_proj|qkv_proj|up_proj", name) for name in changed), "only what outliers are moved into"
    again = run(source, settings("w8a8", budget=10.5), tmp_path / "work", dtype=torch.float32)
    assert again.resumed == done.model.decoder.config.num_layers
    torch.testing.assert_close(logits(again.model), logits(done.model))
    read = logits(load_model(tmp_path / "out", dtype="float32"))
    assert (read - logits(done.model)).abs().mean() < 0.05 * read.abs().mean()


def test_statistics_do_not_depend_on_batches() -> None:
    x = correlated(32)
    once, parts = (InputStatistics.empty(32, x.device) for _ in range(2))
    once.add(x)
    for part in x.split(13):
        parts.add(part)
    assert torch.allclose(once.hessian(), parts.hessian(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(once.largest_I, parts.largest_I)
    assert torch.allclose(once.scaled(torch.full((32,), 2.0)).hessian(), 4 * once.hessian())


# --- layouts


def test_layouts_are_those_of_the_programs_that_read_them() -> None:
    """Single words by hand: element 0 in the lowest bits; AWQ's order; GPTQ version 1 stores zeros minus one."""
    codes = Codes(torch.arange(64, dtype=torch.uint8).view(8, 8) % 16, torch.ones(8, 1), torch.full((8, 1), 3))
    gptq_parts = GPTQ(4, -1, False).write("m", codes)
    assert gptq_parts["m.qweight"][0, 0].item() == 0x76543210
    assert int(gptq_parts["m.qzeros"][0, 0]) & 0xFFFFFFFF == 0x22222222
    assert GPTQ(4, -1, False, version=2).write("m", codes)["m.qzeros"][0, 0].item() == 0x33333333
    column = Codes(torch.arange(8, dtype=torch.uint8)[:, None].expand(8, 8), codes.scales_OG, codes.zeros_OG)
    assert AWQ(-1).write("m", column)["m.qweight"][0, 0].item() == 0x75316420


CASES = [
    ("rtn", {"bits": 3}, "phi3"),
    ("gptq", {"group_size": 32}, "phi3"),
    ("gptq", {"group_size": 32, "layout": "gptq"}, "gemma3"),
    ("awq", {"group_size": 32, "layout": "awq"}, "llama"),
    ("gptq", {"group_size": 32}, "qwen3_moe"),
    ("w8a8", {"smooth": 0.5}, "llama"),
    ("fp8", {"group_size": 0}, "llama"),
    ("llm-int8", {}, "llama"),
    ("nf4", {}, "llama"),
    ("codebook", {"bits": 3}, "phi3"),
    ("gptq", {"budget": 4.2, "group_size": 32}, "llama"),
]


@pytest.mark.parametrize(("method", "how", "family"), CASES)
def test_a_folder_reads_back_as_it_was_quantised(method: str, how: dict[str, Any], family: str, tmp_path: Path) -> None:
    source = tiny.write(config(family), tmp_path / "source")
    wanted = settings(method, **how)
    done = run(source, wanted, tmp_path / "work", dtype=torch.float32)
    write_folder(done, tmp_path / "out", torch.float32)
    check_folder(tmp_path / "out", done)
    file = open_tensors(tmp_path / "out")
    assert isinstance(file, QuantisedFolder)
    assert load_model(tmp_path / "out").network is not None  # as numbers
    quantised = logits(done.model)
    if family != "qwen3_moe" and wanted.inputs is None:
        plain = logits(load_model(tmp_path / "out", dtype="float32"))
        torch.testing.assert_close(plain, quantised, rtol=1e-3, atol=2e-2)
    if native() is not None and family != "qwen3_moe":
        served = model_from_file(file, pack=True)
        assert isinstance(served.decoder.get_submodule("layers.0.mlp.down"), PackedLinear)
        assert (logits(served) - quantised).abs().mean() < 0.05 * quantised.abs().mean() + 0.05
    if wanted.calibrated:
        assert all(record.heard for record in done.records if "experts" not in record.name)


@pytest.mark.skipif(native() is None, reason="no native kernels")
@pytest.mark.parametrize(("bits", "group", "columns"), [(3, -1, 48), (4, -1, 36), (3, 16, 48), (4, 32, 96)])
def test_half_empty_words_are_no_columns(bits: int, group: int, columns: int) -> None:
    """The last word of a row may hold less than it could: its numbers are not counted."""
    weights = Weights(bits, group, symmetric=True)
    layout = CompressedTensors("pack-quantized", (weights,))
    scales_OG = torch.ones(4, 1 if group < 0 else columns // group)
    codes = Codes(torch.randint(1 << bits, (4, columns), dtype=torch.uint8), scales_OG, None, bits)
    parts = {name.removeprefix("x"): part for name, part in layout.write("x", codes).items()}
    told = layout.shape("x", {name: tuple(part.shape) for name, part in parts.items()})
    assert told == ((4, columns) if group > 0 else None)  # None: the layer is read
    assert layout.read("x", parts).shape == (4, columns)
    assert torch.equal(layout.read("x", parts).codes_OI, codes.codes_OI)


def test_codes_that_kernels_do_not_know_become_floats() -> None:
    scattered = torch.tensor([0, 1] * 32, dtype=torch.int32)
    codes = Codes(torch.randint(0, 16, (16, 64), dtype=torch.uint8), torch.rand(16, 2), None, 4, scattered)
    assert packed_codes(codes).kind == "BF16"
    assert (packed_codes(codes).dense() - codes.dense()).abs().max() < 0.05
    plain = Codes(codes.codes_OI, codes.scales_OG, None, 4)
    assert packed_codes(plain).kind == "Q4_1"
    assert (packed_codes(plain).dense() - plain.dense()).abs().max() < 0.01


def test_broken_and_unknown_folders_are_refused(tmp_path: Path) -> None:
    done = run(tiny.write(config("llama"), tmp_path / "source"), settings("rtn"), tmp_path / "work")
    out = tmp_path / "out"
    write_folder(done, out, torch.float16)
    text = (out / "config.json").read_text()

    def changed(**changes: Any) -> None:
        whole = json.loads(text)
        whole["quantization_config"] |= changes
        (out / "config.json").write_text(json.dumps(whole))

    changed(quant_method="gtpq")
    with pytest.raises(ConfigError, match="did you mean 'gptq'"):
        open_tensors(out)
    changed(format="nvfp4-pack-quantized")
    with pytest.raises(ConfigError, match="nvfp4"):
        open_tensors(out)
    changed(config_groups={"g": {"targets": ["re:.*nothing$"], "weights": {"num_bits": 4, "strategy": "channel"}}})
    with pytest.raises(ConfigError, match="no group"):
        open_tensors(out)
    (out / "config.json").write_text(text)
    stored = done.codes["layers.0.attn.q"]
    done.codes["layers.0.attn.q"] = Codes(stored.codes_OI ^ 1, stored.scales_OG, None, 4)
    with pytest.raises(FormatError, match=r"q_proj.*something else"):
        check_folder(out, done)


# --- runs


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    source = tiny.write(config("llama", num_hidden_layers=3), tmp_path / "source")
    whole = run(source, settings("awq", group_size=32), tmp_path / "whole")
    write_folder(whole, tmp_path / "a", torch.float16)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(source, settings("awq", group_size=32), tmp_path / "work", progress=kill)
    again = run(source, settings("awq", group_size=32), tmp_path / "work")
    assert again.resumed == 2
    write_folder(again, tmp_path / "b", torch.float16)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert [r.asdict() for r in whole.records] == [r.asdict() for r in again.records]
    assert run(source, settings("awq", group_size=64), tmp_path / "work").resumed == 0
    (tmp_path / "work" / "run.json").unlink()  # layers that nobody knows the run of
    assert run(source, settings("awq", group_size=64), tmp_path / "work").resumed == 0


def test_unfit_calibration_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny.write(config("llama"), tmp_path / "source"), dtype="float32")
    for given, why in (
        ([], "empty"),
        ([torch.arange(3, 90)], "too short: 87 tokens, and the widest layer has 128 inputs"),
        ([*documents(), torch.tensor([500])], "another tokenizer"),
    ):
        with pytest.raises(ConfigError, match=why):
            quantise(model, settings("gptq", group_size=32), given, tmp_path / "work", source="tiny")


def test_a_silent_expert_is_rounded_plainly_and_told(tmp_path: Path) -> None:
    source = tiny.write(config("qwen3_moe"), tmp_path / "source")
    model = load_model(source, dtype="float32")
    model.decoder.get_parameter("layers.0.mlp.router.weight").data[0] = 0  # beaten by three others nearly always
    one = [torch.full((100,), 5), torch.full((100,), 5)]
    done = quantise(model, settings("gptq", group_size=32), one, tmp_path / "work", source="tiny")
    notes = {record.name: record.note for record in done.records}
    silent = [name for name, note in notes.items() if "rounded plainly: 0 calibration tokens" in note]
    assert silent
    assert all("experts" in name for name in silent)
    assert "layers.0.mlp.router" not in notes


def test_programs_are_told_that_routers_are_plain(tmp_path: Path) -> None:
    """vLLM takes every linear layer that ``ignore`` does not name for a quantised one, Qwen's routers included; and no
    pattern for experts may reach a dense layer beside them."""
    wide = config("qwen3_moe") | {"num_hidden_layers": 2, "mlp_only_layers": [1], "moe_intermediate_size": 96}
    source = tiny.write(wide, tmp_path / "source")
    done = run(source, settings("rtn", group_size=64), tmp_path / "work")
    layout = write_folder(done, tmp_path / "out", torch.float16)
    names = [name.removesuffix(".weight_packed") for name in HFFolder(tmp_path / "out").infos() if "packed" in name]
    ignored = [target.removeprefix("re:") for target in layout.config()["ignore"]]
    assert any(re.match(target, "model.layers.0.mlp.gate") for target in ignored)
    assert not any(re.match(target, name) for target in ignored for name in names)
    targets = [weights.targets for weights in layout.groups]
    assert len(targets) == 2
    for name in names:
        assert sum(any(re.match(target[3:], name) for target in group) for group in targets) == 1, name
    check_folder(tmp_path / "out", done)


@pytest.mark.parametrize(
    ("method", "how", "why"),
    [
        ("gtpq", {}, "did you mean 'gptq'"),
        ("gptq", {"bits": 5}, "4, 3, 2, 8"),
        ("gptq", {"layout": "awq"}, "compressed-tensors, gptq"),
        ("rtn", {"layout": "awq"}, "asymmetric"),
        ("awq", {"damping": 0.1}, "damping belongs to gptq"),
        ("w8a8", {"group_size": 64}, "no group size"),
        ("gptq", {"group_size": 48}, "group size 48"),
        ("gptq", {"budget": 4.2, "layout": "gptq"}, "layout compressed-tensors"),
        ("codebook", {"budget": 3.0}, "for rtn, gptq, awq, w8a8"),
        ("fp8", {"group_size": 64}, "fp8 has a scale"),
        ("w8a8", {"smooth": 0.0, "act_order": False}, "rounds plainly"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(method: str, how: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        settings(method, **how)


def test_groups_that_do_not_divide_rows(tmp_path: Path) -> None:
    """Halved for these layers, and told apart in the configuration; layouts with one size for all say what to do."""
    source = tiny.write(config("llama"), tmp_path / "source")
    done = run(source, settings("rtn"), tmp_path / "work")
    layout = write_folder(done, tmp_path / "out", torch.float16)
    sizes = {
        tuple(group["targets"]): group["weights"]["group_size"] for group in layout.config()["config_groups"].values()
    }
    assert sizes[("re:.*mlp.down_proj$",)] == 128
    check_folder(tmp_path / "out", done)
    with pytest.raises(UsageError, match="take --group-size 64"):  # before the work, not after it
        refuse_unfit(load_model(source), settings("rtn", layout="gptq"))


def test_divergence_from_itself_is_nothing_and_perplexities_compare(tmp_path: Path) -> None:
    model = load_model(tiny.write(config("llama"), tmp_path / "source"), dtype="float32")
    windows = documents(3, 64)
    original = Original(model.decoder, windows)
    same = original.compare(model.decoder)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.agreement == 1
    ids = torch.cat(windows).tolist()
    assert same.ppl == pytest.approx(perplexity(model.decoder, ids, 64, byte_lengths=[1] * len(ids)).ppl, rel=1e-5)
    layer = model.decoder.get_parameter("layers.0.mlp.down.weight")
    layer.data *= 1.5
    other = original.compare(model.decoder)
    assert other.kl > 0.01
    assert other.original_ppl == pytest.approx(same.ppl)
