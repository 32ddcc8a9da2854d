"""Files of tensors: Hugging Face folders (quantised ones too), single safetensors files, GGUF; no modules.

`open_tensors` picks the reader by what a path is. Nothing here unpickles, and nothing believes a number in a file
before it is checked against the file's length.
"""

from __future__ import annotations

from pathlib import Path

from tokenmill.core.errors import FormatError
from tokenmill.formats.gguf import GGUFFile, Typed, write_gguf
from tokenmill.formats.hf_folder import PICKLE_REFUSAL, PICKLE_SUFFIXES, HFFolder, write_hf_folder
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.formats.safetensors_file import SafetensorsFile, save_tensors
from tokenmill.formats.tensors import TensorFile, TensorInfo

__all__ = [
    "GGUFFile",
    "HFFolder",
    "QuantisedFolder",
    "SafetensorsFile",
    "TensorFile",
    "TensorInfo",
    "Typed",
    "open_tensors",
    "save_tensors",
    "write_gguf",
    "write_hf_folder",
]


def open_tensors(path: Path) -> TensorFile:
    """Open a model folder, a .safetensors file or a GGUF file (known by its first bytes, so that a blob of a store
    needs no suffix). FormatError if `path` is none of them."""
    path = Path(path)
    if path.is_dir():
        folder = HFFolder(path)
        return QuantisedFolder(path) if "quantization_config" in folder.config else folder
    if not path.exists():
        raise FormatError(path, "", "no such file or folder")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise FormatError(path, "", PICKLE_REFUSAL)
    if path.suffix == ".gguf" or _starts_with_gguf(path):
        return GGUFFile(path)
    raise FormatError(path, "", "is not a model: give a Hugging Face folder, a .gguf or a .safetensors file")


def _starts_with_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror or error}") from error
