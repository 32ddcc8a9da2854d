"""Hugging Face folders whose weights are quantised: the parts of a layer come out as one tensor, under its plain name.

To the rest of tokenmill such a folder is a `TensorFile` with a ``weight`` a layer, as a GGUF file with quantised blocks
is: ``load`` gives numbers, ``codes`` what they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError, FormatError, did_you_mean
from tokenmill.formats import cache_scales
from tokenmill.formats.awq import AWQ
from tokenmill.formats.bitsandbytes import BitsAndBytes
from tokenmill.formats.codes import Codes
from tokenmill.formats.compressed_tensors import CompressedTensors
from tokenmill.formats.gptq import GPTQ
from tokenmill.formats.hf_folder import HFFolder
from tokenmill.formats.squeezellm import SqueezeLLM
from tokenmill.formats.tensors import TensorInfo


class Layout(Protocol):
    """How a folder keeps quantised layers: GPTQ, AWQ, compressed-tensors, bitsandbytes, SqueezeLLM."""

    @property
    def name(self) -> str:
        """``quant_method`` in the configuration."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of a layer's parts end in."""
        ...

    @property
    def inputs(self) -> str | None:
        """What a layer's inputs are rounded to: see ``ops/rounding.py``."""
        ...

    def config(self) -> dict[str, Any]:
        """``quantization_config`` of what is written."""
        ...

    def shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        """(O, I) of a layer, from the shapes of its parts by suffix; None where only its parts say it."""
        ...

    def read(self, module: str, parts: Mapping[str, Tensor]) -> Codes:
        """A layer from its parts by suffix."""
        ...

    def write(self, module: str, codes: Codes) -> dict[str, Tensor]:
        """The parts of a layer under their names in the file."""
        ...


LAYOUTS: Mapping[str, type[GPTQ | AWQ | CompressedTensors | BitsAndBytes | SqueezeLLM]] = {
    kind.name: kind for kind in (GPTQ, AWQ, CompressedTensors, BitsAndBytes, SqueezeLLM)
}


class QuantisedFolder(HFFolder):
    """A model folder with a ``quantization_config``, which is taken out of ``config``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.layout = layout_of(self.config.pop("quantization_config"), str(path))
        self._stored = super().infos()
        self._parts = self._find_parts()
        inner = {name for parts in self._parts.values() for name in parts.values()}
        self.kv_cache: cache_scales.Kind | None = getattr(self.layout, "kv_cache", None)
        if self.kv_cache is not None:
            inner |= {name for name in self._stored if name.endswith(cache_scales.SUFFIXES)}
        self._infos = {name: info for name, info in self._stored.items() if name not in inner}
        for module, parts in self._parts.items():
            infos = {suffix: self._stored[name] for suffix, name in parts.items()}
            nbytes = sum(info.nbytes for info in infos.values())
            shape = self.layout.shape(module, {suffix: info.shape for suffix, info in infos.items()})
            if shape is None:
                shape = self._read(module).shape
            self._infos[f"{module}.weight"] = TensorInfo(f"{module}.weight", self.layout.name, shape, nbytes)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, the parts of a quantised layer as its ``weight``."""
        return self._infos

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor; of a quantised layer its numbers, float32 unless `dtype` is given."""
        codes = self.codes(name)
        return super().load(name, dtype) if codes is None else codes.dense(dtype or torch.float32)

    def codes(self, name: str) -> Codes | None:
        """The codes of a layer's ``weight``; None for a tensor that is not quantised."""
        module = name.removesuffix(".weight")
        return self._read(module) if module in self._parts and name.endswith(".weight") else None

    def cache_scales(self, attentions: Mapping[str, int]) -> cache_scales.CacheScales | None:
        """Scales of keys and values, None where the folder has none; ``attentions`` as :func:`cache_scales.read`."""
        if self.kv_cache is None:
            return None
        names = [name for name in self._stored if name.endswith(cache_scales.SUFFIXES)]
        return cache_scales.read(
            {name: HFFolder.load(self, name) for name in names}, self.kv_cache, attentions, self.path
        )

    def _read(self, module: str) -> Codes:
        try:
            parts = {suffix: HFFolder.load(self, name) for suffix, name in self._parts[module].items()}
            codes = self.layout.read(module, parts)
            rows, groups = codes.scales_OG.shape
            if rows not in (1, codes.shape[0]) or groups > codes.shape[1]:
                raise ValueError(f"scales of {rows} x {groups}")
        except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
            raise FormatError(self.path, f"layer {module!r}", f"its parts do not fit each other: {error!r}") from error
        return codes

    def _find_parts(self) -> dict[str, dict[str, str]]:
        """By layer: suffix to the name in the file. A ``weight`` of its own is no quantised layer."""
        found: dict[str, dict[str, str]] = {}
        for name in self._stored:
            suffix = next((s for s in self.layout.suffixes if name.endswith(s)), None)
            if suffix is not None:
                found.setdefault(name.removesuffix(suffix), {})[suffix] = name
        return {module: parts for module, parts in found.items() if set(parts) != {".weight"}}


def layout_of(config: Any, source: str) -> Layout:
    """The layout that a ``quantization_config`` describes. ConfigError for one that is not known."""
    method = str(config.get("quant_method")) if isinstance(config, Mapping) else str(config)
    if method not in LAYOUTS:
        near = did_you_mean(method, LAYOUTS)
        raise ConfigError(
            f"{source}: weights quantised by {method!r} are not supported{near}; {', '.join(LAYOUTS)} are"
        )
    return LAYOUTS[method].from_config(config, source)
