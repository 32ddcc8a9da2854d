"""Recipes: composed by Hydra, checked whole, every value with its origin; sweeps; the size dial."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tokenmill.config import sizes
from tokenmill.config.compose import RECIPES, compose, known_keys, recipe_names
from tokenmill.config.recipe import AdapterConfig, CorruptConfig, DataConfig, Recipe, Shape, Source
from tokenmill.config.run_config import read_run_config, write_run_config
from tokenmill.config.sweep import grid, space
from tokenmill.core.errors import ConfigError, FormatError, NotFoundError, RecipeError, UsageError
from tokenmill.nn import cost

NEEDED = ["model=m", "data=x.jsonl"]


def problems(name: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(name, overrides)
    return str(caught.value)


# --- composing


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_composes_and_says_why(name: str) -> None:
    new = name in ("pretrain", "mlm", "span")
    rewarded = ["rewards=number"] if name in ("grpo", "rloo", "ppo") else []
    taught = ["distill.teacher=y"] if name == "distill" else []
    composed = compose(name, ["data=x"] if new else [*NEEDED, *rewarded, *taught])
    assert composed.recipe.recipe == name
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"#   tokenmill train {name} " in text, "a recipe's head shows how it is run"
    lr = [line for line in text.splitlines() if line.startswith("lr:")]
    assert all("#" in line for line in lr), "a value says why"


def test_the_recipes_that_were_promised_exist() -> None:
    promised = [
        "pretrain",
        "sft",
        "lora",
        "qlora",
        "dora",
        "prefix",
        "prompt",
        "ia3",
        "bottleneck",
        "mlm",
        "span",
        "dpo",
        "simpo",
        "orpo",
        "kto",
        "reward",
    ]
    assert set(promised) <= set(recipe_names())


def test_origins() -> None:
    composed = compose("qlora", [*NEEDED, "adapter.rank=4", "lr=1e-4"])
    assert composed.recipe.adapter is not None
    assert composed.recipe.adapter.rank == 4
    assert composed.recipe.quantize == "nf4"  # its own
    assert composed.recipe.lr == 1e-4
    assert composed.recipe.seq_len == 512  # from lora.yaml, by its defaults
    expected = {"adapter.rank": "override", "lr": "override", "quantize": "recipe", "seq_len": "recipe"}
    assert {key: composed.origins[key] for key in expected} == expected
    assert composed.origins["eps"] == "default"
    assert composed.origins["data.path"] == "override"
    derived = composed.derived({"steps": 7, "epochs": None}, {"steps": "7 rows / 1"})
    assert derived.recipe.steps == 7
    assert derived.origins["steps"] == "derived: 7 rows / 1"


def test_values_as_python_has_them() -> None:
    composed = compose("lora", values={"model": "m", "data": "x", "adapter": {"rank": 2}, "lr": 3e-4})
    assert composed.recipe.adapter is not None
    assert (composed.recipe.adapter.rank, composed.recipe.adapter.alpha, composed.recipe.lr) == (2, 32.0, 3e-4)
    assert composed.origins["adapter.rank"] == "override"
    assert composed.origins["adapter.alpha"] == "recipe"


def test_data_shorthand_keeps_the_recipes_other_data_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [sft, _self_]\ndata:\n  truncate: drop\n  path: other\nlr: 1e-3\n")
    composed = compose(file, ["model=m", "data=[a,b]"])
    assert (composed.recipe.data.path, composed.recipe.data.truncate) == (["a", "b"], "drop")
    assert composed.recipe.lr == 1e-3
    assert composed.recipe.recipe == "mine"


def test_a_file_with_odd_characters_in_its_name_needs_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "my, rows (1)='x'.jsonl"
    file.write_text("{}")
    assert compose("lora", ["model=m", f"data={file}"]).recipe.data.path == str(file)


def test_an_override_takes_the_place_of_what_says_the_same() -> None:
    recipe = compose("lora", [*NEEDED, "steps=5", "accumulate=2"]).recipe
    assert (recipe.steps, recipe.epochs, recipe.accumulate, recipe.batch_tokens) == (5, None, 2, None)
    assert "steps=5 and epochs=2.0" in problems("lora", *NEEDED, "steps=5", "epochs=2.0")


# --- one message for everything that is wrong


def test_all_problems_at_once() -> None:
    said = problems("lora", "modle=m", "rank=4", "lr=abc", "schedule=cosin", "adapter.knd=x", "steps=3", "epochs=1.0")
    for part in (
        "modle: no such key (did you mean 'model'?)",
        "rank: no such key (did you mean 'adapter.rank'?)",
        "adapter.knd: no such key (did you mean 'adapter.kind'?)",
        "lr: 'abc' should be a valid number",
        "schedule: 'cosin' is not one of constant, linear, cosine, wsd (did you mean 'cosine'?)",
        "no data: give data=FILE",
        "said only once",
    ):
        assert part in said
    assert "neither a model" not in said, "model was given, misspelt: that is the one mistake"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model=m", "size=tiny"], "give one of the two"),
        (["model=m", "adapter.kind=ia3", "adapter.rank=4"], "adapter.rank=4 means nothing to adapter.kind=ia3"),
        (["model=m", "momentum=0.5"], "momentum=0.5 has no effect here; it needs optimizer=muon"),
        (["model=m", "adapter=null", "quantize=nf4"], "needs an adapter"),
        (["model=m", "tokenizer=t"], "brings its own tokenizer"),
        (["model=m", "early_stop=2", "eval_every=0"], "early_stop needs evaluations"),
        (["model=m", "warmup=1.5"], "share of the run"),
        (["model=m", "data.path=[{path: a, wight: 2.0}]"], "data.path[…].wight: no such key (did you mean 'weight'?)"),
        (["model=m", "trackers=[wand]"], "did you mean 'wandb'?"),
        (["size=tiny", "adapter=null", "shape.family=bert"], "objective=sft trains llama or qwen3"),
        (["size=tiny", "adapter=null", "shape.hidden_size=100", "shape.num_heads=3"], "no multiple of 3 heads"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], part: str) -> None:
    assert part in problems("lora", "data=x", *overrides)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("lr", "is not key=value"),
        ("lr=1e-4,3e-4", "--sweep"),
        ("~lr=3", "nothing of a recipe can be deleted"),
        ("hydra.run.dir=x", "no meaning here"),
        ("data=a (b", "put quotes"),
    ],
)
def test_overrides_that_cannot_be_read(override: str, part: str) -> None:
    with pytest.raises(UsageError, match=part.replace("(", r"\(")):
        compose("lora", ["model=m", override])


def test_a_recipes_mistakes_are_wrong_usage() -> None:
    assert RecipeError.exit_status == 2
    with pytest.raises(RecipeError):
        compose("lora", ["modle=x"])


def test_unknown_recipes_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'lora'"):
        compose("lorra", NEEDED)
    for text in ("a: [", "- 1\n- 2\n", "defaults: [nowhere, _self_]\n", "lr: ${nothing}\n"):
        file = tmp_path / "broken.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"broken\.yaml"):
            compose(file, NEEDED)


def test_each_key_is_documented() -> None:
    for model in (Recipe, DataConfig, Shape, AdapterConfig, CorruptConfig, Source):
        assert [name for name, info in model.model_fields.items() if not info.description] == []
    assert "adapter.rank" in known_keys()


# --- Hydra is borrowed, not taken


def test_hydra_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        before = GlobalHydra.instance().hydra
        compose("lora", NEEDED)
        assert GlobalHydra.instance().hydra is before
        assert hydra_compose("theirs").a == 1
    assert not GlobalHydra.instance().is_initialized()
    compose("lora", NEEDED)
    compose("sft", NEEDED)
    assert not GlobalHydra.instance().is_initialized()


def test_nothing_is_left_in_a_fresh_process_wide_state() -> None:
    OmegaConf.clear_resolver("now")
    compose("lora", NEEDED)
    assert not OmegaConf.has_resolver("now")


def test_two_threads_compose_at_once() -> None:
    found: list[float | None] = []

    def one(rate: float) -> None:
        found.append(compose("lora", [*NEEDED, f"lr={rate}"]).recipe.lr)

    threads = [threading.Thread(target=one, args=(n / 1000,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(rate for rate in found if rate) == [0.001, 0.002, 0.003, 0.004]


# --- a run's config.yaml


def test_run_config_round_trips(tmp_path: Path) -> None:
    values = {"sample_prompts": ["a\nb: c", "#x  # override", "1e-3"], "lr": 1e-5, "data": "x: y  # recipe"}
    composed = compose("lora", ["model=m"], values=values).derived({"steps": 3, "epochs": None}, {"steps": "3  # 1"})
    write_run_config(composed, tmp_path)
    again = read_run_config(tmp_path)
    assert again.recipe == composed.recipe
    assert again.origins | {"steps": ""} == composed.origins | {"steps": ""}
    assert again.origins["steps"] == "derived: 3 # 1"
    assert compose(tmp_path / "config.yaml").recipe == composed.recipe, "a run's configuration is a recipe"


def test_spoilt_run_config_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run folder"):
        read_run_config(tmp_path)
    (tmp_path / "config.yaml").write_text("lr: [")
    with pytest.raises(FormatError, match=r"config\.yaml"):
        read_run_config(tmp_path)


# --- sweeps


def test_grid_is_every_combination() -> None:
    assert grid(["lr=1e-4,3e-4", "seed=range(0,2)"]) == [
        ["lr=0.0001", "seed=0"],
        ["lr=0.0001", "seed=1"],
        ["lr=0.0003", "seed=0"],
        ["lr=0.0003", "seed=1"],
    ]
    [[odd]] = grid(["model='it\\'s, here'"])
    assert compose("lora", ["data=x", odd]).recipe.model == "it's, here"
    assert [compose("lora", ["data=x", *run]).recipe.model for run in grid(["model=choice('a, b',c)"])] == ["a, b", "c"]


def test_space_of_a_search() -> None:
    rate, rank, kind = space(["lr=tag(log,interval(1e-5,1e-3))", "adapter.rank=interval(4,64)", "optimizer=adamw,muon"])
    assert (rate.kind, rate.low, rate.high, rate.log) == ("float", 1e-5, 1e-3, True)
    assert (rank.kind, rank.low, rank.high) == ("int", 4, 64)
    assert kind.choices == ("adamw", "muon")
    assert kind.override("muon") == "optimizer='muon'"


@pytest.mark.parametrize(
    ("function", "text", "part"),
    [
        (grid, "lrr=1,2", "did you mean 'lr'"),
        (grid, "lr=interval(1,2)", "no steps"),
        (space, "lr=3e-4", "nothing to search"),
        (space, "lr=interval(2,1)", "smaller to the larger"),
        (space, "lr=tag(log,interval(0,1))", "above 0"),
    ],
)
def test_sweeps_that_mean_nothing(function, text: str, part: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=part):
        function([text])


# --- the dial


@given(st.integers(300_000, 3_000_000_000))
@settings(max_examples=25, deadline=None)
def test_a_size_gives_a_model_of_that_size(parameters: int) -> None:
    vocab = sizes.vocabulary(parameters, None).value
    shape = sizes.dimensions(parameters, vocab).value
    assert shape.hidden_size == shape.num_heads * sizes.HEAD_DIM
    assert shape.num_heads % shape.num_kv_heads == 0
    if parameters > 2_000_000:
        assert abs(sizes.decoder_parameters(shape, vocab) / parameters - 1) < 0.2


def test_counted_parameters_are_those_of_the_model() -> None:
    from tokenmill.models.load import read_config
    from tokenmill.train.new_model import model_config

    shape = sizes.dimensions(10_000_000, 8192).value
    filled = Shape(vocab_size=8192, max_position=1024, **shape.__dict__)

    class NoTokens:
        bos_token_id = eos_token_id = pad_token_id = None

    _, decoder = read_config(model_config(filled, NoTokens()), "new")  # type: ignore[arg-type]
    assert cost.parameters(decoder) == sizes.decoder_parameters(shape, 8192)


def test_laws() -> None:
    assert sizes.target_parameters("10M") == 10_000_000
    assert sizes.target_parameters("1.5b") == 1_500_000_000
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        sizes.target_parameters("tinny")
    assert sizes.horizon("medium", 110_000_000, 10**12).value == 2_200_000_000
    assert sizes.horizon("medium", 110_000_000, 1_000_000).value == 4_000_000
    # DeepSeek LLM, figure 3: at 1e20 operations a rate near 1e-3 and batches near a million tokens
    assert 0.0009 < sizes.learning_rate(10**9, 10**20 // (6 * 10**9)).value < 0.0011
    assert 0.5e6 < sizes.batch_tokens(10**9, 10**20 // (6 * 10**9), 2048).value < 2e6
