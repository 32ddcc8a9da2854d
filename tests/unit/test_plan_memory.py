"""Memory plans: the arithmetic against what is known, built and measured by others; refusals with a way out."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import ConfigError, NotFoundError, UsageError
from tokenmill.plan import catalog, formulas, memory, shape
from tokenmill.plan.catalog import GIB
from tokenmill.plan.memory import Setup, need
from tokenmill.plan.shape import Shape

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "hub_configs.json").read_text(encoding="utf-8")
)


def model(name: str) -> Shape:
    return shape.from_catalog(catalog.models().find(name))


# --- catalogs


def test_every_model_of_the_catalog_has_as_many_weights_as_its_dimensions_give() -> None:
    for entry in catalog.models().entries.values():
        assert shape.counted(entry)[0] == pytest.approx(entry.parameters, rel=2e-3), entry.name
        if entry.active_parameters:  # makers round, and leave out embeddings or not
            assert shape.counted(entry)[1] == pytest.approx(entry.active_parameters, rel=0.17), entry.name


@pytest.mark.parametrize(
    ("hub", "name"),
    [("Llama-3.1-8B", "llama-3.1-8b"), ("gemma-2-2b", "gemma-2-2b"), ("gemma-3-1b-it", "gemma-3-1b"),
     ("Mixtral-8x7B", "mixtral-8x7b"), ("phi-4", "phi-4"), ("Qwen2.5-0.5B", "qwen2.5-0.5b"),
     ("SmolLM2-135M", "smollm2-135m"), ("starcoder2-3b", "starcoder2-3b")],
)  # fmt: skip
def test_an_entry_is_what_the_hub_s_configuration_says(hub: str, name: str) -> None:
    read, entry = shape.from_config(CONFIGS[hub], hub), model(name)
    for figure in ("parameters", "expert_parameters", "table", "query", "key", "mlp", "layers", "heads", "kv_heads",
                   "full_values", "windowed_values", "context", "adapted"):  # fmt: skip
        assert getattr(read, figure) == pytest.approx(getattr(entry, figure)) if figure != "adapted" else True, figure
    assert read.adapted == entry.adapted


def test_figures_have_sources_and_grow_old() -> None:
    gpus = catalog.gpus()
    h100 = gpus.find("H100")
    assert gpus.source_of(h100, "bandwidth_gb_s").url.endswith("/h100/")
    assert gpus.source_of(h100, "price_usd").title.startswith("LLMs & AI Infrastructure")
    assert gpus.stale(h100, ["price_usd", "bandwidth_gb_s"], date(2026, 3, 1)) == []
    (told,) = gpus.stale(h100, ["price_usd", "bandwidth_gb_s"], date(2027, 3, 1))
    assert "price_usd of h100-sxm was read on 2026-02-23" in told


def test_a_person_s_own_entries_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path))
    own = tmp_path / "plan" / "gpus.yaml"
    own.parent.mkdir()
    own.write_text(
        "sources: {quote: {title: our dealer, url: 'https://example.org', date: 2026-11-01}}\n"
        "entries:\n  h100-sxm: {price_usd: [20000, 21000], sources: {price_usd: quote}}\n"
    )
    found = catalog.gpus()
    assert found.find("h100").price_usd == (20000, 21000)
    assert found.find("h100").bandwidth_gb_s == 3350
    assert found.source_of(found.find("h100"), "price_usd").title == "our dealer"
    own.write_text("entries:\n  h100-sxm: {prise_usd: 3}\n  mine: {vendor: nvidia, source: nowhere}\n")
    with pytest.raises(ConfigError, match=r"prise_usd.*did you mean 'price_usd'[\s\S]*'mine': memory_gib"):
        catalog.gpus()


def test_unknown_names_get_the_nearest_as_the_catalog_writes_it() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'rtx-4090'"):
        catalog.gpus().find("RTX 4091")
    with pytest.raises(NotFoundError, match="did you mean 'awq'"):
        catalog.quantisations().find("awk")


# --- formulas


def test_grouped_queries_divide_the_cache() -> None:
    """The lesson's formula has all heads: eight times too much for Llama 3.3 70B."""
    lesson = formulas.grouped_values(80, 64, 128)
    assert lesson / model("llama-3.3-70b").full_values == 8
    assert model("llama-3.3-70b").full_values * 8192 * 2 == pytest.approx(2.68e9, rel=1e-2)  # the lesson says 2.8 GB


def test_caches_of_other_kinds() -> None:
    assert model("deepseek-v3").full_values * 2 == 70_272  # bytes a token: DeepSeek-V2's paper, table 1, for this size
    gemma = model("gemma-3-27b")
    at = [
        formulas.sequence_values(gemma.full_values, gemma.windowed_values, gemma.window, 0, n)
        for n in (1024, 1025, 131072)
    ]
    assert at[1] - at[0] == gemma.full_values
    assert at[2] < at[0] * 131072 / 1024 / 4
    coder = model("qwen3-coder-next")
    assert coder.full_values == 2 * 12 * 2 * 256
    assert coder.state_values == 36 * 557_056
    assert formulas.cache_bytes(1000, 2, 4.5) == 1125
    assert formulas.cache_share(8, 16, 0) == 1 / 8
    assert formulas.cache_share(8, 4, 0) == 1 / 4
    assert formulas.cache_share(128, 8, 1) == 1.0


def test_parallel_splits_divide_what_they_divide() -> None:
    llama, setup = model("llama-3.3-70b"), Setup(context=8192, quantisation=catalog.quantisations().find("awq"))
    alone = need(llama, setup, "inference").terms
    two = need(llama, replace(setup, tensor=2), "inference").terms
    assert two["weights"] == alone["weights"] / 2
    assert two["cache"] == alone["cache"] / 2
    staged = need(llama, replace(setup, pipeline=4), "inference").terms
    assert staged["weights"] == alone["weights"] / 4
    shared = need(llama, Setup(data=8, sharded=True), "full").terms
    whole = need(llama, Setup(data=8), "full").terms
    for term in ("weights", "gradients", "optimizer"):
        assert shared[term] == whole[term] / 8
    assert shared["activations"] == whole["activations"]


def test_checkpointing_keeps_the_inputs_of_layers() -> None:
    llama = model("llama-3.1-8b")
    kept, again = (need(llama, Setup(checkpointing=c), "full").terms["activations"] for c in (False, True))
    assert again == pytest.approx(kept / 32 + 4096 * 32 * 4096 * 2)


# --- published figures, within a tenth (notes on training, section 2)


@pytest.mark.parametrize(
    ("method", "rank", "gb"), [("full", 32, 38.87), ("lora", 32, 22.29), ("lora", 64, 21.0 * GIB / 1e9)]
)
def test_peft_s_comparison_of_methods(method: Any, rank: int, gb: float) -> None:
    """Llama-3.2-3B, 4 rows of up to 768 tokens, bfloat16, LoRA on q and v (PEFT's MetaMathQA comparison)."""
    setup = Setup(context=768, batch=4, program="ordinary", rank=rank, targets=("q", "v"))
    found = need(model("llama-3.2-3b"), setup, method)
    assert found.total / 1e9 == pytest.approx(gb, rel=0.1)
    if method == "lora":
        assert found.trained == 9_175_040 * rank / 32  # as PEFT counts them


LITGPT = [
    ("llama-2-7b", 1, 16, 21.30), ("llama-2-7b", 2, 16, 29.07), ("llama-2-7b", 1, 4.5, 14.14),
    ("llama-2-7b", 1, 4.127, 13.84), ("llama-2-13b", 1, 16, 38.12), ("llama-2-13b", 1, 4.5, 23.14),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "bits", "gb"), LITGPT)
def test_litgpt_s_lora(name: str, rows: int, bits: float, gb: float) -> None:
    """Rank 8 on q and v, 1,304 tokens, adapters in bfloat16 behind dropout (a copy and a mask), queries, keys and
    values one matrix that the values keep alive; bitsandbytes 0.41 keeps every layer's input."""
    llama, tokens = model(name), 1304 * rows
    weights = formulas.weight_bytes(llama.parameters, llama.table / 2, bits, 16)
    packed = bits < 16
    kept = formulas.kept_bytes(
        tokens, llama.layers, llama.hidden, llama.query, llama.key, llama.mlp, 4, float(packed), llama.hidden, 3, 16
    ) + tokens * llama.layers * 2 * (llama.query + llama.key)
    scores = formulas.scores_bytes(tokens, llama.vocab, 1, 16) + formulas.scores_bytes(tokens, llama.vocab, 1, 32)
    adapters = llama.layers * formulas.lora_parameters(8, 2 * llama.hidden, 2 * llama.hidden) * (2 + 2 + 4)
    head = 2 * 2 * llama.vocab * llama.hidden if packed else 0  # in 16 bits while it is multiplied, and rounded
    assert (weights + kept + scores + adapters + head) / 1e9 == pytest.approx(gb, rel=0.1)


@pytest.mark.parametrize(
    ("bits", "table_bits", "gb"), [(32, 32, 28.95), (16, 16, 14.50), (4.5, 16, 5.72), (4.127, 16, 5.38), (8, 16, 8.70)]
)
def test_litgpt_s_inference(bits: float, table_bits: float, gb: float) -> None:
    """Falcon-7B, whose output layer litgpt holds beside the embeddings; packed, two tables more exist in 16 bits."""
    falcon = model("falcon-7b")
    table = falcon.vocab * falcon.hidden
    more = 2 * table * 2 if bits < 16 else 0
    cache = formulas.cache_bytes(falcon.full_values * 300, 1, table_bits)
    total = formulas.weight_bytes(falcon.parameters + table, table, bits, table_bits) + cache + more
    assert total / 1e9 == pytest.approx(gb, rel=0.02)


def test_qlora_s_claim() -> None:
    """arXiv 2305.14314: 65B in more than 780 GB in full, in 48 GB with QLoRA, paged AdamW and checkpointing."""
    config = {**CONFIGS["Llama-2-7b-hf"], "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
              "num_key_value_heads": 64, "intermediate_size": 22016}  # fmt: skip
    llama = shape.from_config(config, "llama-65b")
    assert llama.parameters == pytest.approx(65.3e9, rel=0.01)
    assert llama.parameters * 12 > 780e9  # weights and gradients in 16 bits, two float32 moments
    setup = Setup(context=512, batch=1, checkpointing=True, rank=64, program="ordinary", optimizer="paged_adamw_8bit")
    assert 36e9 < need(llama, setup, "qlora").total < 48e9


# --- the lesson's first exercise


@pytest.mark.parametrize(
    ("name", "quant", "fitting"),
    [("yi-coder-9b", None, (True, True, True)), ("qwen2.5-coder-32b", "awq", (True, True, True)),
     ("llama-3.3-70b", "awq", (False, True, True))],
)  # fmt: skip
def test_the_compatibility_table(name: str, quant: str | None, fitting: tuple[bool, ...]) -> None:
    setup = Setup(context=8192, quantisation=catalog.quantisations().find(quant) if quant else None)
    places = (("rtx-4090", 1), ("rtx-5090", 2), ("h100-sxm", 1))
    found = tuple(
        memory.fits(need(model(name), replace(setup, tensor=count), "inference").total, catalog.gpus().find(gpu))
        for gpu, count in places
    )
    assert found == fitting


# --- what follows


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["smollm2-135m", "llama-3.1-8b", "gemma-3-27b", "deepseek-v3", "qwen3-coder-next"]),
    room=st.floats(1e9, 2e12),
    method=st.sampled_from(memory.METHODS),
)
def test_the_largest_fits_and_one_more_does_not(name: str, room: float, method: Any) -> None:
    found, setup = model(name), Setup(context=128)
    batch = memory.largest_batch(found, setup, method, room)
    if batch:
        assert need(found, replace(setup, batch=batch), method).total <= room
    if batch < memory.MOST_BATCH:
        assert need(found, replace(setup, batch=batch + 1), method).total > room
    context = memory.largest_context(found, setup, method, room)
    assert 0 <= context <= found.context
    if context:
        assert need(found, replace(setup, context=context), method).total <= room
    if context < found.context:
        assert need(found, replace(setup, context=context + 1), method).total > room


def test_the_smallest_gpu_and_the_best_format() -> None:
    llama, setup = model("llama-3.3-70b"), Setup(context=8192)
    gpus = catalog.gpus().entries.values()
    for gpu, count in memory.smallest_gpus(llama, setup, "inference", gpus):
        split = replace(setup, tensor=count)
        assert memory.fits(need(llama, split, "inference").total, gpu)
        if count > 1:
            fewer = replace(setup, tensor=count // 2)
            assert not memory.fits(need(llama, fewer, "inference").total, gpu)
    room = catalog.gpus().find("h100").memory * 0.95
    found = memory.fitting_quantisations(llama, setup, "inference", catalog.quantisations().entries.values(), room)
    names = [q.name for q, _ in found]
    assert names[0] == "fp8" or names[0] == "q8_0" or names[0] == "int8"
    assert "bf16" not in names
    assert [q.bits for q, _ in found] == sorted((q.bits for q, _ in found), reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 200_000}, "131,072"),
        ({"tensor": 3}, "2 can"),
        ({"pipeline": 33}, "32 is the most"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"targets": ("gates",)}, "did you mean 'gate'"),
        ({"processor": True, "tensor": 2}, "leave them at 1"),
    ],
)
def test_the_impossible_is_refused_with_the_nearest_possible(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        need(model("llama-3.1-8b"), Setup(**change), "lora")


def test_given_dimensions_must_go_together() -> None:
    with pytest.raises(UsageError, match="5 do"):
        shape.given(hidden_size=100, num_layers=2, num_heads=7, vocab_size=100)
    with pytest.raises(UsageError, match="4 can be shared"):
        shape.given(hidden_size=96, num_layers=2, num_heads=12, num_kv_heads=5, vocab_size=100)


# --- measured here


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_what_is_predicted_is_what_the_engine_holds(
    default_gguf: Path, model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One case of benchmarks/plan_memory.py, which has the others."""
    script = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("TOKENMILL_HOME", str(model_home))
    held = module.in_process("serve", str(default_gguf), "64")["64"]
    from tokenmill.plan.headers import local_shape

    found = local_shape(default_gguf)
    predicted = need(found, Setup(context=64, processor=True), "inference").total
    assert found.file_bytes is not None
    # a start that packs the weights holds the file too; which this one is depends on what ran before
    nearest = min((predicted, predicted + found.file_bytes), key=lambda total: abs(total - held))
    assert nearest == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("hub", ["Llama-3.1-8B", "SmolLM2-135M", "gemma-2-2b", "starcoder2-3b"])
@pytest.mark.parametrize("how", [["sft"], ["sft", "checkpointing=true"], ["lora"], ["lora", "adapter.rank=8"]])
def test_a_dry_run_says_what_the_plan_says(hub: str, how: list[str]) -> None:
    """`train --dry-run` and `plan memory` have a formula each, in layers that cannot share one."""
    from tokenmill.config.compose import compose
    from tokenmill.models.load import read_config
    from tokenmill.train.memory import memory_needed

    _, decoder = read_config(CONFIGS[hub], hub)
    words = ["model=given", "data=given", "dtype=bfloat16", "seq_len=512", "micro_batch=4"]
    recipe = compose(how[0], [*words, *how[1:]]).recipe
    planned = shape.from_config(CONFIGS[hub], hub)
    setup = Setup(context=512, batch=4, checkpointing=recipe.checkpointing, rank=getattr(recipe.adapter, "rank", 16))
    method = "full" if recipe.adapter is None else "lora"
    terms = memory._training(planned, setup, method)  # type: ignore[arg-type]
    said = memory_needed(recipe, decoder, int(planned.parameters))
    for name, size in said.items():
        assert size == pytest.approx(terms[name], rel=0.01), name


def test_a_policy_run_is_counted_by_what_it_holds() -> None:
    """Rows as long as its longest conversation and no longer, the engine's cache of a rollout; a second model only
    where the reference cannot be the adapter switched off."""
    from tokenmill.config.compose import compose
    from tokenmill.models.load import read_config
    from tokenmill.nn.cost import kv_bytes_per_token
    from tokenmill.train.memory import memory_needed

    _, decoder = read_config(CONFIGS["SmolLM2-135M"], "SmolLM2-135M")
    words = ["model=given", "data=given", "rewards=number", "device=cpu", "dtype=float32", "policy.beta=0.1"]

    def of(recipe: str, *more: str, longest: int = 100) -> dict[str, int]:
        return memory_needed(compose(recipe, [*words, *more]).recipe, decoder, 1000, longest=longest)

    short, twice = of("grpo"), of("grpo", longest=200)
    assert short["activations"] * 2 == twice["activations"]
    assert of("grpo", "micro_batch=4")["activations"] * 2 == short["activations"]
    assert short["rollout cache"] == 64 * 100 * kv_bytes_per_token(decoder, 4)
    assert of("grpo", "policy.rollout_cache=bf16")["rollout cache"] * 2 == short["rollout cache"]
    assert "reference" not in short
    assert of("grpo", "adapter=null")["reference"] == 4000
    assert "critic" not in of("ppo")
    assert of("ppo", "ppo.critic=own")["critic"] == 1000 * (8 + 8)
