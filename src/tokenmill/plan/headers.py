"""Shapes out of model files: their headers are read, never their weights, here or on a server.

A remote file is read by HTTP ranges, doubled until the header is whole: a model of 40 GB costs a megabyte or a few.
What arrived is put at the beginning of an empty file as long as the real one (it takes no room on the disk), so that
the very parsers that open models check it, and believe nothing that they would not believe there.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import ConfigError, FormatError, NetworkError, NotFoundError, UsageError, did_you_mean
from tokenmill.plan import catalog, shape
from tokenmill.plan.shape import Shape

if TYPE_CHECKING:
    from tokenmill.store.transport import Client

FIRST_RANGE = 1 << 20
LARGEST_HEAD = 256 << 20
"""Bytes; what a hostile server can make us read."""
_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True)
class Fetched:
    """How much of a remote file was read."""

    requests: int
    bytes: int
    of: int
    """The file's size."""


def find_shape(model: str) -> tuple[Shape, Fetched | None]:
    """The shape of what a person names: a catalog entry, a store name, a path, ``https://…`` or ``hf:ORG/REPO``.

    Raises:
        NotFoundError: nothing has this name; the message has the nearest. MissingFileError: nothing is at this path.
        ConfigError, FormatError: there is something, and it is broken.
    """
    if model.startswith(("https://", "http://", "hf:")):
        return remote_shape(model)
    path = Path(model).expanduser()
    if path.exists():
        return local_shape(path), None
    known = catalog.models()
    try:
        return shape.from_catalog(known.find(model)), None
    except NotFoundError as unknown:
        stored = _in_store(model)
        if stored is None:
            near = did_you_mean(model.casefold(), known.entries)
            raise NotFoundError(
                f"{model}: no model of the catalog{near}, no file, and not in the store; give a catalog name "
                f"({', '.join(list(known.entries)[:4])}, …), a config.json, a GGUF or safetensors file, hf:ORG/REPO, "
                "an https address, or dimensions"
            ) from unknown
        return local_shape(stored), None


def _in_store(name: str) -> Path | None:
    from tokenmill.core.errors import MissingFileError, StoreError
    from tokenmill.store import Store

    try:
        return Store().resolve(name).path
    except MissingFileError:  # it is a path
        raise
    except StoreError:
        return None


def local_shape(path: Path) -> Shape:
    """A ``config.json``, a model folder, a GGUF or a safetensors file (whose folder has the configuration)."""
    from tokenmill.formats.tensors import read_json_object

    if path.suffix == ".json":
        return shape.from_config(read_json_object(path), path.parent.name or path.name)
    if path.is_dir():
        config = shape.from_config(read_json_object(path / "config.json"), path.name)
        files = sorted(path.glob("*.safetensors"))
        return with_stored(config, _stored_in(files), sum(f.stat().st_size for f in files)) if files else config
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return gguf_shape(path, path.name)
    if path.suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise FormatError(path, "", "has no dimensions of its own; put its config.json beside it")
        config = shape.from_config(read_json_object(path.parent / "config.json"), path.stem)
        return with_stored(config, _stored_in([path]), path.stat().st_size)
    raise FormatError(path, "", "is neither a config.json, a GGUF file, a safetensors file nor a model folder")


def _stored_in(files: list[Path]) -> dict[str, int]:
    from tokenmill.formats.safetensors_file import read_header

    stored: dict[str, int] = {}
    for path in files:
        for info in read_header(path).values():
            stored[info.type] = stored.get(info.type, 0) + info.nbytes
    return stored


def with_stored(found: Shape, stored: Mapping[str, int], file_bytes: int) -> Shape:
    """A shape with what a header says of the weights' formats."""
    return replace(found, stored=dict(stored), file_bytes=file_bytes, origin="config.json and file header")


def gguf_shape(path: Path, name: str) -> Shape:
    """From a GGUF file's metadata and tensor table, whatever its architecture."""
    from tokenmill.formats.gguf import GGUFFile

    file = GGUFFile(path)
    meta, infos = file.metadata, file.infos()
    prefix = str(meta.get("general.architecture", ""))

    def number(key: str, default: int | None = None) -> int:
        value = meta.get(f"{prefix}.{key}", default)
        if isinstance(value, list):  # one a layer: the widest counts
            value = max(value, default=None)
        if not isinstance(value, int) or value < (0 if default is not None else 1):
            raise ConfigError(f"{name}: metadata has no {prefix}.{key} to plan with")
        return value

    heads, hidden, layers = number("attention.head_count"), number("embedding_length"), number("block_count")
    rank = number("attention.kv_lora_rank", 0)
    head_dim = number("attention.key_length", max(1, hidden // heads))
    rope = number("rope.dimension_count", 0) if rank else 0
    experts = number("expert_count", 0)
    table = infos.get("token_embd.weight")
    if table is None:
        raise ConfigError(f"{name}: there is no tensor token_embd.weight; this is not a language model")
    entry = catalog.Model(
        name=str(meta.get("general.name", name)),
        family=prefix, developer="", license="", year=0, source="header",
        context=number("context_length", 2048),
        parameters=sum(_count(info.shape) for info in infos.values()),
        hidden_size=hidden, num_layers=layers, num_heads=heads,
        num_kv_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim - rope if rank else head_dim,
        intermediate_size=number("feed_forward_length", 0) or number("expert_feed_forward_length", 0),
        vocab_size=table.shape[0], tied_embeddings="output.weight" not in infos,
        window=number("attention.sliding_window", 0) or None,
        window_layers=_windowed(prefix, layers) if number("attention.sliding_window", 0) else 0,
        kv_rank=rank, rope_dim=rope, q_rank=number("attention.q_lora_rank", 0), value_dim=128 if rank else 0,
        num_experts=experts, experts_per_token=number("expert_used_count", 0),
        expert_size=number("expert_feed_forward_length", number("feed_forward_length", 0)) if experts else 0,
        moe_layers=layers - number("leading_dense_block_count", 0) if experts else 0,
    )  # fmt: skip
    stored: dict[str, int] = {}
    for info in infos.values():
        stored[info.type] = stored.get(info.type, 0) + info.nbytes
    experts_here = sum(_count(info.shape) for tensor, info in infos.items() if re.search(r"_exps\.", tensor))
    active = entry.parameters - experts_here * (1 - entry.experts_per_token / experts if experts else 0)
    found = shape.from_catalog(entry.model_copy(update={"active_parameters": active}))
    return replace(
        found,
        origin="GGUF header",
        stored=stored,
        file_bytes=path.stat().st_size,
        expert_parameters=float(experts_here),
    )


def _windowed(architecture: str, layers: int) -> int:
    """Layers with a window, for architectures whose metadata has one: GGUF does not say which they are."""
    every = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "llama4": 4}.get(architecture)
    return layers - layers // every if every else layers


def _count(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


# --- far away


def remote_shape(address: str) -> tuple[Shape, Fetched]:
    """The shape of a model on a server, by ranges: a ``.gguf`` or ``.safetensors`` address, a ``config.json``, or a
    hub's repository.

    Raises:
        NetworkError: the server does not answer, or gives no ranges.
    """
    from tokenmill.store.transport import Client

    with Client() as client, tempfile.TemporaryDirectory(prefix="tokenmill-plan-") as scratch:
        reader = _Reader(client, Path(scratch))
        if address.startswith("hf:"):
            return _from_hub(reader, address), reader.fetched
        bare = address.partition("?")[0]
        if bare.endswith(".json"):
            return shape.from_config(reader.json(address), bare.split("/")[-2]), reader.fetched
        if bare.endswith(".safetensors"):
            config = reader.json(f"{bare.rsplit('/', 1)[0]}/config.json")
            return _safetensors(reader, config, [(bare.rsplit("/", 1)[-1], address, {})]), reader.fetched
        if bare.endswith(".gguf"):
            return gguf_shape(
                reader.head(address, bare.rsplit("/", 1)[-1], {}), bare.rsplit("/", 1)[-1]
            ), reader.fetched
        raise UsageError(f"{address}: an address must end in .gguf, .safetensors or config.json; or give hf:ORG/REPO")


def _from_hub(reader: _Reader, name: str) -> Shape:
    from tokenmill.store.names import parse_reference
    from tokenmill.store.sources import hf

    plan = hf.plan(parse_reference(name), reader.client, lambda *_, **__: None)
    files = {file.name: file for file in plan.files}
    gguf = [file for file in plan.files if file.name.endswith(".gguf")]
    if gguf:
        first = gguf[0]
        return gguf_shape(reader.head(first.url, Path(first.name).name, first.headers), name)
    config = files.get("config.json")
    if config is None:
        raise ConfigError(f"{name}: the repository has neither a GGUF file nor a config.json")
    weights = [(f.name, f.url, f.headers) for f in plan.files if f.name.endswith(".safetensors")]
    return _safetensors(reader, reader.json(config.url, config.headers), weights)


def _safetensors(reader: _Reader, config: dict[str, Any], files: list[tuple[str, str, Mapping[str, str]]]) -> Shape:
    paths = [reader.head(url, Path(name).name, headers) for name, url, headers in files]
    found = shape.from_config(config, files[0][0] if files else "config.json")
    return with_stored(found, _stored_in(paths), sum(path.stat().st_size for path in paths))


class _Reader:
    """Reads beginnings of remote files and counts."""

    def __init__(self, client: Client, scratch: Path) -> None:
        self.client, self.scratch = client, scratch
        self.fetched = Fetched(0, 0, 0)

    def json(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A whole small file."""
        body = self.client.read("GET", url, headers=headers, limit=_CONFIG_BYTES).body
        self._count(len(body), 0)
        try:
            value = json.loads(body)
        except ValueError as error:
            raise FormatError(url, "", f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FormatError(url, "", "must be a JSON object")
        return value

    def head(self, url: str, name: str, headers: Mapping[str, str]) -> Path:
        """A file as long as the remote one, of which the beginning is real up to the end of its header."""
        path = self.scratch / name
        have, size = 0, FIRST_RANGE
        while True:
            body, total = self._range(url, headers, have, size)
            with open(path, "r+b" if have else "w+b") as file:
                os.ftruncate(file.fileno(), total)
                file.seek(have)
                file.write(body)
            have += len(body)
            whole, problem = _header_ends_by(path, have)
            if whole or (have >= total and problem is None):
                self.fetched = replace(self.fetched, of=self.fetched.of + total)
                return path
            if have >= min(total, LARGEST_HEAD) and problem is not None:
                raise FormatError(url, "", str(problem).removeprefix(f"{path}: "))
            size = min(max(have, FIRST_RANGE), total - have, LARGEST_HEAD)

    def _range(self, url: str, headers: Mapping[str, str], start: int, count: int) -> tuple[bytes, int]:
        """Bytes of a file and its size."""

        def attempt() -> tuple[bytes, int]:
            asked = {**headers, "Range": f"bytes={start}-{start + count - 1}"}
            with self.client.stream("GET", url, headers=asked) as response:
                place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("content-range", ""))
                if response.status_code != 206 or place is None or int(place[1]) != start:
                    raise NetworkError(f"{url}: the server gives no ranges of files; pull the model and plan with that")
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > count:
                        raise NetworkError(f"{url}: the server sends more than the range that was asked for")
                return bytes(body), int(place[3])

        found = self.client.retrying(attempt)
        self._count(len(found[0]), 0)
        if not found[0]:
            raise NetworkError(f"{url}: the server sent nothing of the range that was asked for")
        return found

    def _count(self, size: int, of: int) -> None:
        self.fetched = Fetched(self.fetched.requests + 1, self.fetched.bytes + size, self.fetched.of + of)


def _header_ends_by(path: Path, have: int) -> tuple[bool, FormatError | None]:
    """Whether the header lies in the first ``have`` bytes; what a parser says against the file as far as it is here."""
    with open(path, "rb") as file:
        magic = file.read(8)
    if magic[:4] != b"GGUF":
        end = 8 + int.from_bytes(magic, "little")
        if end <= have:
            return True, None
        return False, FormatError(path, "header", f"ends at byte {end}") if end > path.stat().st_size else None
    from tokenmill.formats.gguf.parse import parse_head
    from tokenmill.formats.tensors import map_file

    buffer = map_file(path)
    try:
        places = parse_head(buffer, path).tensors.values()
    except FormatError as error:  # most likely the zeros behind what is here
        return False, error
    finally:
        with suppress(BufferError):
            buffer.close()
    starts = [place.start for place in places]
    return not starts or min(starts) <= have, None
