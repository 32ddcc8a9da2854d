"""From files to a model, and back.

``load_model`` takes what a person writes: a name in the store, a Hugging Face folder, a GGUF file. The decoder is built
on the meta device (no memory, no time) and its weights are then put in, as views of the mapped file where they fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from tokenmill.core.device import pick_device, pick_dtype
from tokenmill.core.errors import ConfigError, FormatError, did_you_mean
from tokenmill.formats import open_tensors
from tokenmill.formats.gguf import GGUFFile
from tokenmill.formats.hf_folder import CONFIG, HFFolder, write_hf_folder
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.formats.tensors import TensorFile
from tokenmill.models import (
    bert,
    gemma2,
    gemma3,
    gguf,
    gpt2,
    granite,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    starcoder2,
    t5,
)
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import Family
from tokenmill.models.packed_file import PackedFile
from tokenmill.models.packing import can_pack, pack_floats
from tokenmill.models.scorer import is_scorer, read_scorer
from tokenmill.models.weights import Network, Table, attention_names, check_plain, file_tensors, load_weights
from tokenmill.nn.config import Config, DecoderConfig, EncoderConfig, EncoderDecoderConfig
from tokenmill.nn.cost import parameters
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.encoder import Encoder
from tokenmill.nn.encoder_decoder import EncoderDecoder
from tokenmill.nn.scorer import Scorer
from tokenmill.store import Store

if TYPE_CHECKING:
    from tokenmill.text.tokenizer import Tokenizer

_MODULES = (
    llama,
    mistral,
    qwen2,
    qwen3,
    gemma2,
    gemma3,
    phi3,
    granite,
    gpt2,
    starcoder2,
    mixtral,
    qwen3_moe,
    bert,
    roberta,
    t5,
)
FAMILIES: Mapping[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


@dataclass
class Model:
    """A network and what it takes to write it down again."""

    network: Network
    """A :class:`Decoder`, an encoder, or an encoder with a decoder; possibly with adapters in it."""
    family: Family
    config: dict[str, Any]
    """The ``config.json`` of the Hugging Face side, also for a model that came from a GGUF file."""
    generation_config: dict[str, Any] = field(default_factory=dict)
    adapters: Any = None
    """Which adapters the network has and which are on: a :class:`tokenmill.adapt.switch.Adapters`."""

    @property
    def decoder(self) -> Decoder:
        """The network of a model that generates text token by token; ConfigError where it is none."""
        if not isinstance(self.network, Decoder):
            raise not_a_decoder(self.family.architecture, self.family.architecture)
        return self.network

    def save(self, folder: Path | str) -> None:
        """Write a Hugging Face folder (weights and configuration; ``Tokenizer.save`` writes the rest of it).

        ConfigError while adapters or quantised layers are in the network: merge them first.
        """
        check_plain(self.network)
        config = {**self.config, "dtype": str(self.network.dtype).removeprefix("torch.")}
        write_hf_folder(
            Path(folder),
            config,
            file_tensors(self.network, self.family.weights),
            generation_config=self.generation_config or None,
        )


def not_a_decoder(source: str, architecture: str) -> ConfigError:
    """The refusal of a model that fills gaps or maps one text to another where one that continues a text is needed."""
    return ConfigError(
        f"{source}: {architecture} does not continue a text token by token, so it cannot generate, chat or be measured "
        "by perplexity; it can be trained (mlm, span) and adapted, and load_model gives its network"
    )


def read_config(config: Mapping[str, Any], source: str) -> tuple[Family, DecoderConfig]:
    """A decoder's ``config.json`` to its family and our configuration.

    ConfigError lists everything that is not understood, or says that the model is no decoder.
    """
    family, ours = read_any_config(config, source)
    if not isinstance(ours, DecoderConfig):
        raise not_a_decoder(source, family.architecture)
    return family, ours


def read_any_config(config: Mapping[str, Any], source: str) -> tuple[Family, Config]:
    """What :func:`read_config` does, for encoders and pairs of encoder and decoder too."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        if isinstance(config.get("text_config"), Mapping):
            raise ConfigError(f"{source}: {kind!r} also takes images or sound; only text models are supported so far")
        near = did_you_mean(kind, FAMILIES)
        raise ConfigError(f"{source}: model type {kind!r} is not supported{near}; known: {', '.join(sorted(FAMILIES))}")
    family, reader = FAMILIES[kind], ConfigReader(config, source)
    if family.variant is not None:
        family = family.variant(config)
    ours = family.read(reader)
    if is_scorer(config):
        family, ours = read_scorer(reader, family, ours)
    other_architectures = {"is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"}
    if isinstance(ours, EncoderDecoderConfig):
        other_architectures.remove("is_encoder_decoder")
    elif isinstance(ours, EncoderConfig):
        reader.only("is_decoder", False)
    for other_architecture in sorted(other_architectures):
        reader.only(other_architecture, False)
    reader.finish()
    return family, ours


@overload
def build(config: DecoderConfig) -> Decoder: ...
@overload
def build(config: Config) -> Network: ...
def build(config: Config) -> Network:
    """A network without memory behind its weights."""
    with torch.device("meta"):
        network: Network
        if isinstance(config, DecoderConfig):
            network = Scorer(config) if config.num_labels else Decoder(config)
        elif isinstance(config, EncoderConfig):
            network = Encoder(config)
        else:
            network = EncoderDecoder(config)
        return network.requires_grad_(False).eval()


def load_model(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    store: Store | None = None,
) -> Model:
    """Load by store name, folder or file. ``dtype``: ``auto`` keeps the file's where the device is fast at it."""
    path = model if isinstance(model, Path) else (store or Store()).resolve(model).weights()
    return model_from_file(open_tensors(path), device=device, dtype=dtype)


def model_from_file(
    file: TensorFile,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    pack: bool = False,
) -> Model:
    """What :func:`load_model` does, for a file that is already open.

    ``pack``: for serving. Weights stay quantised, or become floats in the kernels' layout, where this machine has
    kernels for them and no ``dtype`` is asked for.
    """
    config, generation_config = config_of(file)
    family, ours = read_any_config(config, str(file.path))
    on = pick_device(device)
    table, ignored = names_of(file, family)
    network = build(ours)
    serve = pack and dtype in (None, "auto")
    pack = serve and can_pack(network, on)
    stored = stored_dtype(file)
    number_format = torch.float32 if pack and stored is None else pick_dtype(dtype, on, stored, parameters(ours))
    saved = PackedFile(file, table)
    load_weights(
        network,
        file,
        table,
        dtype=number_format,
        device=on,
        ignored=ignored,
        pack=pack,
        hold=serve and not pack,
        filled=partial(saved.fill, network) if pack else tuple,
    )
    if serve and isinstance(file, QuantisedFolder) and isinstance(network, Decoder):
        heads = [layer.attention.num_kv_heads for layer in network.config.layers]
        attentions = attention_names(table, len(heads))
        network.cache_scales = file.cache_scales(dict(zip(attentions, heads, strict=True)))
    if pack:
        pack_floats(network)
        saved.save_soon(network)
    return Model(network, family, config, generation_config)


def config_of(file: TensorFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.json`` and ``generation_config.json`` of a model's files, made from the metadata of a GGUF file."""
    if isinstance(file, HFFolder):
        return file.config, file.generation_config
    if not isinstance(file, GGUFFile):
        raise FormatError(file.path, "", "a single safetensors file has no configuration; give its folder")
    family = FAMILIES[gguf.family_name(file)]
    reader = gguf.reader(file)
    config = {"architectures": [family.architecture], "model_type": family.name}
    config |= gguf.config_from_gguf(file, reader)
    family.gguf_config(reader, config)
    reader.finish()
    return config, {}


def names_of(file: TensorFile, family: Family) -> tuple[Table, str]:
    """The table of the names that a file uses, and a pattern of those that hold nothing."""
    if isinstance(file, GGUFFile):
        return family.gguf_weights, gguf.IGNORED
    # A bare base model has no prefix: the hub's own gpt2 calls its embedding wte, not transformer.wte
    prefix = family.weights[0].theirs.partition(".")[0] + "."
    if any(name.startswith(prefix) for name in file.infos()):
        return family.weights, family.ignored
    bare = tuple(replace(entry, theirs=entry.theirs.removeprefix(prefix)) for entry in family.weights)
    return bare, family.ignored


def stored_dtype(file: TensorFile) -> torch.dtype | None:
    """The float format that holds most of the file's bytes; None where those are quantised blocks."""
    sizes: dict[str, int] = {}
    for info in file.infos().values():
        sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    most = max(sizes, key=lambda kind: sizes[kind]) if sizes else "F32"
    floats = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return floats.get(most)


def load_tokenizer(model: str | Path, *, store: Store | None = None) -> Tokenizer:
    """The tokenizer of a store name, folder or GGUF file; also of a folder that holds nothing else."""
    alone = Path(model)
    if (alone / "tokenizer.json").is_file() and not (alone / CONFIG).exists():
        model = alone
    path = model if isinstance(model, Path) else (store or Store()).resolve(model).path
    if not path.is_dir():
        return tokenizer_from_file(open_tensors(path))
    from tokenmill.text.load import tokenizer_from_folder

    return tokenizer_from_folder(path)


def tokenizer_from_file(file: TensorFile) -> Tokenizer:
    """What :func:`load_tokenizer` does, for a model file or folder that is already open."""
    if isinstance(file, HFFolder):
        return load_tokenizer(file.path)
    if not isinstance(file, GGUFFile):
        raise FormatError(file.path, "", "a single safetensors file has no tokenizer; give its folder")
    from tokenmill.text.gguf import tokenizer_from_gguf

    return tokenizer_from_gguf(file.metadata, file.path)
