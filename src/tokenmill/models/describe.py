"""What a model file says of itself: architecture, size, context, quantization, template. Reads headers, builds
nothing.

For ``tokenmill show`` and servers that answer the same question. An architecture that tokenmill cannot run is
described all the same, as far as the file speaks.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.formats.gguf import GGUFFile
from tokenmill.formats.hf_folder import HFFolder
from tokenmill.formats.tensors import TensorInfo
from tokenmill.models.load import read_any_config
from tokenmill.nn.cost import parameters


@dataclass(frozen=True)
class Description:
    """What is known from the headers; None where the file does not say."""

    format: str
    """``gguf`` or ``safetensors``."""
    architecture: str
    parameters: int | None
    context_length: int | None
    embedding_length: int | None
    quantization: str
    """GGUF's file type (``Q4_1``), a checkpoint's layout (``gptq, 4 bits``), or the type of most weights (``BF16``)."""
    template: str | None
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Ollama's words for what tokenmill can do with it: completion, and tools where the template speaks of them."""
        return ("completion", "tools") if self.template and "tools" in self.template else ("completion",)


def describe(path: Path) -> Description:
    """Describe the GGUF file or Hugging Face folder at `path`; raises what their readers raise."""
    return _describe_folder(path) if path.is_dir() else _describe_gguf(path)


def _describe_gguf(path: Path) -> Description:
    file = GGUFFile(path)
    metadata, tensors = file.metadata, tuple(file.infos().values())
    architecture = str(metadata.get("general.architecture", "unknown"))
    return Description(
        format="gguf",
        architecture=architecture,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        context_length=metadata.get(f"{architecture}.context_length"),
        embedding_length=metadata.get(f"{architecture}.embedding_length"),
        quantization=_file_type(metadata.get("general.file_type")) or _main_type(tensors),
        template=metadata.get("tokenizer.chat_template"),
        metadata=metadata,
        tensors=tensors,
    )


def _describe_folder(path: Path) -> Description:
    folder = HFFolder(path)
    config, tensors = folder.config, tuple(folder.infos().values())
    text = config.get("text_config", config)
    quantised = config.get("quantization_config") or {}
    return Description(
        format="safetensors",
        architecture=str(config.get("model_type", "unknown")),
        # packed weights hold several parameters in a number, so their count would be wrong
        parameters=_by_shape(config) if quantised else sum(math.prod(tensor.shape) for tensor in tensors),
        context_length=text.get("max_position_embeddings") or text.get("n_positions"),
        embedding_length=text.get("hidden_size") or text.get("n_embd"),
        quantization=_method(quantised) or _main_type(tensors),
        template=_folder_template(path),
        metadata=config,
        tensors=tensors,
    )


def _by_shape(config: Mapping[str, Any]) -> int | None:
    """Parameters of a model by its configuration; None for one that tokenmill does not know."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        return parameters(read_any_config(plain, "config.json")[1])
    except TokenmillError:
        return None


def _method(config: Mapping[str, Any]) -> str:
    """Layout and bits of a quantised folder: ``gptq, 4 bits``; ``compressed-tensors, 3 to 8 bits``."""
    groups = config.get("config_groups")
    weights = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else []
    found = {config.get(key) for key in ("bits", "wbits", "w_bit")} | {group.get("num_bits") for group in weights}
    found |= {number for number in (4, 8) if config.get(f"load_in_{number}bit")}
    bits = sorted(number for number in found if isinstance(number, int))
    name = str(config.get("quant_method") or "")
    if not name or not bits:
        return name
    return f"{name}, {bits[0]} bits" if len(bits) == 1 else f"{name}, {bits[0]} to {bits[-1]} bits"


def _file_type(value: object) -> str | None:
    """``general.file_type`` -> ``Q4_1``; None when absent or unknown."""
    from gguf import LlamaFileType

    if not isinstance(value, int):
        return None
    try:
        return LlamaFileType(value).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return None


def _main_type(tensors: tuple[TensorInfo, ...]) -> str:
    """The type that most of the bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _folder_template(path: Path) -> str | None:
    """The chat template as transformers saves it: a file of its own, or a field of tokenizer_config.json."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        template = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError):
        return None
    return template if isinstance(template, str) else None
