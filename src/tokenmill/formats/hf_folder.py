"""Hugging Face model folders: config.json, generation_config.json and safetensors weights, in one file or in shards.

Reading maps the files and believes nothing: shard names must be plain names (an index must not reach outside the
folder), every tensor that the index names must be in the shard it names, and no tensor may be in two. Pickled weights
are refused: unpickling runs code from the file. Writing puts everything aside first and renames it into place with
config.json last, so that a folder with a config is complete. transformers reads what is written and the reverse.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokenmill.core.errors import ConfigError, FormatError, UsageError
from tokenmill.formats.safetensors_file import SafetensorsFile, save_tensors
from tokenmill.formats.tensors import TensorInfo, no_such_tensor, read_json_object

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class HFFolder:
    """A model folder: `config` and `generation_config` (empty if there is none) as read, tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FormatError(self.path, "", "is not a folder")
        if not (self.path / CONFIG).exists():
            raise FormatError(self.path, CONFIG, "is missing: not a Hugging Face model folder, or an incomplete one")
        self.config = read_json_object(self.path / CONFIG)
        generation = self.path / GENERATION_CONFIG
        self.generation_config = read_json_object(generation) if generation.exists() else {}
        self._owners: dict[str, SafetensorsFile] = {}
        for file in self._weight_files():
            for name in file.infos():
                if name in self._owners:
                    raise FormatError(file.path, f"tensor {name!r}", f"is also in {self._owners[name].path.name}")
                self._owners[name] = file

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor of every shard."""
        return {name: file.infos()[name] for name, file in self._owners.items()}

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor as stored, a view of the mapped shard, or converted to `dtype`."""
        owner = self._owners.get(name)
        return owner.load(name, dtype) if owner is not None else no_such_tensor(self.path, name, self._owners)

    def _weight_files(self) -> list[SafetensorsFile]:
        # the order of preference is transformers'
        if (self.path / WEIGHTS).exists():
            return [SafetensorsFile(self.path / WEIGHTS)]
        if (self.path / INDEX).exists():
            return self._shards()
        pickled = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLE_SUFFIXES)
        if pickled:
            raise FormatError(self.path, pickled[0], PICKLE_REFUSAL)
        raise FormatError(self.path, WEIGHTS, f"is missing, and so is {INDEX}: the folder has no weights")

    def _shards(self) -> list[SafetensorsFile]:
        index = self.path / INDEX
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise FormatError(index, "weight_map", "is missing or not an object")
        by_shard: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            if not _is_plain_name(shard):
                problem = f"{shard!r:.200} is not the plain name of a .safetensors file in this folder"
                raise FormatError(index, f"weight_map, tensor {name!r}", problem)
            by_shard.setdefault(shard, []).append(name)
        missing = sorted(shard for shard in by_shard if not (self.path / shard).exists())
        if missing:
            raise FormatError(index, "weight_map", f"shards missing beside it: {', '.join(missing[:5])}")
        files = []
        for shard, names in by_shard.items():
            file = SafetensorsFile(self.path / shard)
            absent = [name for name in names if name not in file.infos()]
            if absent:
                problem = f"{len(absent)} tensor(s) that {INDEX} places here are not in it: {', '.join(absent[:5])}"
                raise FormatError(file.path, "header", problem)
            files.append(file)
        return files


PICKLE_REFUSAL = (
    "holds pickled weights, and unpickling a file runs whatever code is in it; get the model's safetensors files, or "
    "convert them where you trust them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
)


def _is_plain_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    return name.isprintable() and not set(name) & set('/\\:*?"<>|') and not name.startswith(".")


def write_hf_folder(
    path: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model folder that transformers loads; memory holds one shard of tensors that are not the caller's.

    Tensors may be on any device, not contiguous, the same or views of one another (each is stored whole). Weights and
    configs that an existing folder has are replaced, its other files are kept. FormatError for a name given twice.
    """
    path = Path(path)
    if max_shard_bytes <= 0:
        raise UsageError(f"max_shard_bytes must be positive, not {max_shard_bytes}")
    configs = {CONFIG: _json(CONFIG, config)}
    if generation_config is not None:
        configs[GENERATION_CONFIG] = _json(GENERATION_CONFIG, generation_config)
    path.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=path, prefix=".writing-"))
    try:
        shards, weight_map, total = _write_shards(path, stage, tensors, max_shard_bytes)
        names = _final_names(len(shards))
        if len(shards) > 1:
            final = {name: names[shard] for name, shard in weight_map.items()}
            configs[INDEX] = _json(INDEX, {"metadata": {"total_size": total}, "weight_map": final})
        for name, text in configs.items():
            (stage / name).write_text(text, encoding="utf-8")
        for file in stage.iterdir():
            # the library makes its files private; what we write is as shareable as any file the person creates
            shutil.copymode(stage / CONFIG, file)
            _sync(file)
        _replace(path, stage, dict(zip(shards, names, strict=True)), configs)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_shards(
    path: Path, stage: Path, tensors: Iterable[tuple[str, torch.Tensor]], limit: int
) -> tuple[list[str], dict[str, int], int]:
    """Write numbered shards; give back their file names, each tensor's shard number, and the bytes in all."""
    shards: list[str] = []
    weight_map: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    taken = set[int]()
    total = size = 0

    def flush() -> None:
        shards.append(f"{len(shards)}.safetensors")
        save_tensors(held, stage / shards[-1], metadata={"format": "pt"})
        held.clear()
        taken.clear()

    for name, tensor in tensors:
        if name in weight_map:
            raise FormatError(path, f"tensor {name!r}", "is given twice")
        if held and size + tensor.nbytes > limit:
            flush()
            size = 0
        held[name] = _own_memory(tensor, taken)
        taken.add(held[name].data_ptr())
        weight_map[name] = len(shards)
        size += tensor.nbytes
        total += tensor.nbytes
    if held or not shards:
        flush()
    return shards, weight_map, total


def _own_memory(tensor: torch.Tensor, taken: Collection[int]) -> torch.Tensor:
    """Contiguous, on the CPU, and sharing its memory with no other (``taken``: addresses): safetensors refuses anything
    else."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole and tensor.data_ptr() not in taken else tensor.clone()


def _final_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _replace(path: Path, stage: Path, shards: Mapping[str, str], configs: Iterable[str]) -> None:
    """Rename everything into place. config.json goes first and comes last: with it, the folder is complete."""
    for name in (CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS):
        (path / name).unlink(missing_ok=True)
    for stale in path.glob("model-*-of-*.safetensors"):
        stale.unlink()
    for staged, final in shards.items():
        os.replace(stage / staged, path / final)
    for name in sorted(configs, key=lambda name: name == CONFIG):
        os.replace(stage / name, path / name)


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be written as JSON: {error}") from error
