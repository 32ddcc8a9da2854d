"""A model as a folder for other programs: weights, tokenizer, generation settings, card, checksums, all checked again.

The folder is built aside. Before it gets its name it is read back: checksums, configuration, tokenizer, and the scores
of a short text, which have to be the original's (exactly where the numbers are kept, within rounding where another
dtype was asked for). A quantised folder's weights are copied as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.checksums import check_sums, sha256_of, write_sums
from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.evals.handover import agree, check, next_tokens, probe
from tokenmill.evals.model_card import REPORTS, Card, last_evaluation, read_result, run_of
from tokenmill.formats import QuantisedFolder, TensorFile, open_tensors
from tokenmill.formats.aside import built_aside
from tokenmill.formats.gguf import GGUFFile
from tokenmill.models.describe import describe
from tokenmill.models.generation import generation_config
from tokenmill.models.load import Model, load_model, stored_dtype, tokenizer_from_file
from tokenmill.nn.cost import parameters
from tokenmill.quant.ggml_card import general_keys
from tokenmill.text.tokenizer import Tokenizer

MOST_KL = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""Nats a token that rounding to a dtype may cost before the folder is held to be broken."""


@dataclass(frozen=True)
class Wanted:
    """What is exported, and what its card says."""

    name: str
    """As the person gave it."""
    path: Path
    out: Path
    adapters: Sequence[Path] = ()
    dtype: str | None = None
    license: str | None = None
    results: Sequence[Path] = ()
    vllm: bool = False


def dtype_of(wanted: Wanted, file: TensorFile) -> str | torch.dtype | None:
    """What the model is to be loaded in: as asked, else as its file keeps it, not as this machine is fast at it.

    ConfigError for a quantised folder that is to be changed.
    """
    if isinstance(file, QuantisedFolder):
        if wanted.adapters or wanted.dtype:
            raise ConfigError(f"{wanted.name} is quantised: its weights are copied as they are, without adapters or "
                              "another dtype")  # fmt: skip
        return None
    return wanted.dtype or (None if isinstance(file, GGUFFile) else stored_dtype(file))


def export_folder(wanted: Wanted, file: TensorFile, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write and check the folder of a model with its adapters on; returns what ``--json`` prints.

    FormatError where it does not read back as it was.
    """
    figures = {path.stem: read_result(path) for path in wanted.results}
    if wanted.vllm:
        check_vllm(model, wanted.name)
    before_TV = next_tokens(model.decoder, probe(tokenizer))
    model.generation_config = generation_config(model.generation_config, tokenizer)
    with built_aside(wanted.out) as folder:
        if isinstance(file, QuantisedFolder):
            _copy_weights(wanted.path, folder, model.generation_config)
        else:
            model.save(folder)
        tokenizer.save(folder)
        card = card_of(wanted, file, model, tokenizer, figures)
        (folder / "README.md").write_text(card.text(), encoding="utf-8")
        _keep_reports(wanted.path, folder)
        write_sums(folder)
        kl = check_folder(folder, tokenizer, before_TV)
        size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    document = {"model": wanted.name, "out": str(wanted.out), "size": size, "dtype": card.dtype, "check_kl": kl}
    return document | {"license": card.license} | ({"serve": serve_command(wanted, model)} if wanted.vllm else {})


def check_vllm(model: Model, name: str) -> None:
    """ConfigError for what vLLM would refuse to load, with its reason."""
    decoder = model.decoder  # says itself why an encoder cannot generate
    if decoder.config.num_labels:
        return
    if model.config.get("scale_attn_by_inverse_layer_idx") or model.config.get("reorder_and_upcast_attn"):
        raise ConfigError(
            f"{name}: vLLM's GPT-2 does not scale attention by the number of the layer, as this model does"
        )
    if model.family.name in ("starcoder2", "gpt2") and model.config.get("tie_word_embeddings") is False:
        raise ConfigError(f"{name}: vLLM ties the output matrix of {model.family.name} to its embedding")
    sizes = {layer.attention.head_dim for layer in decoder.config.layers}
    if any(size % 8 for size in sizes):
        raise ConfigError(f"{name}: vLLM's attention needs heads of a multiple of 8 features, not {sorted(sizes)}")


def serve_command(wanted: Wanted, model: Model) -> str:
    """How vLLM serves the folder."""
    served = wanted.out.absolute().name
    return f"vllm serve ./{served} --served-model-name {served} --max-model-len {model.decoder.config.max_position}"


def check_folder(folder: Path, tokenizer: Tokenizer, before_TV: Tensor) -> float:
    """Read a written folder back; returns how far it is from the original, whose scores ``before_TV`` are (nats a
    token). FormatError where checksums, tokenizer or scores are not the original's."""
    check_sums(folder)
    file = open_tensors(folder)
    theirs = tokenizer_from_file(file)
    if theirs.vocabulary_hash != tokenizer.vocabulary_hash or theirs.chat_templates != tokenizer.chat_templates:
        raise FormatError(folder, "tokenizer", "reads back as another one")
    found = agree(before_TV, next_tokens(load_model(folder, device="cpu", dtype="auto").decoder, probe(theirs)))
    stored = str(stored_dtype(file) or torch.float32).removeprefix("torch.")
    check(found, MOST_KL.get(stored, 0.05), str(folder))
    return found.kl


def card_of(
    wanted: Wanted, file: TensorFile, model: Model, tokenizer: Tokenizer, figures: Mapping[str, Mapping[str, Any]]
) -> Card:
    """What is known of a model that is handed over; ``figures``: of result files, by name."""
    figures = dict(figures)
    run = run_of(wanted.path) if wanted.path.is_dir() else None
    run = run or next((found for path in wanted.adapters if (found := run_of(path)) is not None), None)
    if run is not None and (last := last_evaluation(run)):
        figures["the run's last evaluation"] = last
    for name in REPORTS:
        if wanted.path.is_dir() and (wanted.path / name).is_file():
            figures[name.removesuffix(".json").replace("_", " ")] = read_result(wanted.path / name)
    config = None if run is None else (run / "config.yaml").read_text(encoding="utf-8")
    stored = str(getattr(model.network, "dtype", torch.float32)).removeprefix("torch.")
    if isinstance(file, QuantisedFolder):  # what is computed with here is not what lies in the file
        stored = describe(wanted.path).quantization
    return Card(
        title=wanted.out.absolute().name,
        family=model.family.name,
        parameters=parameters(model.decoder.config),
        dtype=stored,
        context=model.decoder.config.max_position,
        source=Path(wanted.name).name if Path(wanted.name).exists() else wanted.name,
        license=wanted.license or _license(file, wanted.path),
        adapters=[path.name for path in wanted.adapters],
        figures=figures,
        recipe=config,
        data=[] if run is None else _data(run),
        use="\n".join(_commands(wanted, model, tokenizer)),
    )


def _commands(wanted: Wanted, model: Model, tokenizer: Tokenizer) -> list[str]:
    """What puts the folder to use."""
    say = "Once upon a time" if tokenizer.chat_template is None else "Hello"
    run = f'tokenmill run ./{wanted.out.absolute().name} "{say}"'
    return [run, serve_command(wanted, model)] if wanted.vllm else [run]


def _license(file: TensorFile, path: Path) -> str | None:
    """What the model's own files say."""
    if isinstance(file, GGUFFile):
        said = file.metadata.get("general.license")
        return said if isinstance(said, str) else None
    return general_keys(path, path.name).get("general.license")


def _data(run: Path) -> list[dict[str, Any]]:
    """The files that a run's recipe names, with their sums where they are there."""
    from tokenmill.config.run_config import read_run_config

    data = read_run_config(run).recipe.data
    listed: list[dict[str, Any]] = []
    for value in (data.path, data.eval):
        for one in value if isinstance(value, list) else [value]:
            path = None if one is None else Path(one if isinstance(one, str) else one.path)
            if path is None:
                continue
            found: dict[str, Any] = {"name": path.name}
            if path.is_file():
                found |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            listed.append(found)
    return listed


def _copy_weights(source: Path, folder: Path, generation: Mapping[str, Any]) -> None:
    for one in [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json"), source / "config.json"]:
        shutil.copyfile(one, folder / one.name)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n", "utf-8")


def _keep_reports(source: Path, folder: Path) -> None:
    for name in REPORTS:
        for one in (name, name.replace(".json", ".html")):
            if source.is_dir() and (source / one).is_file():
                shutil.copyfile(source / one, folder / one)
