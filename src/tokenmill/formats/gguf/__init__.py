"""GGUF, the format of llama.cpp and Ollama: read, decoded, encoded, written.

`GGUFFile` opens a file (or all parts of a split one) memory-mapped; `write_gguf` writes one; `dequantize` and
`quantize` turn blocks into values and back, equal bit for bit to the gguf package.
"""

from tokenmill.formats.gguf.decode import dequantize
from tokenmill.formats.gguf.encode import WRITABLE, quantize
from tokenmill.formats.gguf.reader import GGUFFile
from tokenmill.formats.gguf.types import TYPES
from tokenmill.formats.gguf.writer import Planned, Typed, write_gguf, write_planned

__all__ = ["TYPES", "WRITABLE", "GGUFFile", "Planned", "Typed", "dequantize", "quantize", "write_gguf", "write_planned"]
