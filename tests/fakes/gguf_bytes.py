"""GGUF files made by hand, byte by byte, so that a test can put any lie into any field."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(data: str | bytes) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def info(name: str | bytes, dims: Sequence[int], kind: int, offset: int, num_dims: int | None = None) -> bytes:
    """`dims` as the file has them, fastest first."""
    count = len(dims) if num_dims is None else num_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(
    keys: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_infos: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack("<I", version)
    counts = len(infos) if num_infos is None else num_infos, len(keys) if num_keys is None else num_keys
    head += struct.pack("<QQ", *counts)
    head += b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data
