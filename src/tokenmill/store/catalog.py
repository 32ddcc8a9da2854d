"""The models that tokenmill knows by a short name, each pinned to the sha256 of its file.

A catalog name means one sequence of bytes, for ever: figures measured with it on one machine hold on another. Its
sources are tried in order (the hub first, then what mirrors it), and each counts only if it delivers exactly the
pinned file. So it does not matter for the answers which source was reachable; it is recorded and shown all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from tokenmill.store.names import ModelName, check_digest, check_file_name, parse_reference


@dataclass(frozen=True)
class Origin:
    """One place that has the file: a reference, and the digest of the archive that it is packed in, if it is."""

    reference: str
    archive_digest: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model of the catalog."""

    name: ModelName
    aliases: tuple[ModelName, ...]
    description: str
    license: str
    homepage: str
    file: str
    digest: str
    size: int
    origins: tuple[Origin, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def license_text(self) -> str:
        """What goes into the model's LICENSE."""
        return f"{self.license}\n{self.description}\n{self.homepage}"


def entries() -> list[Entry]:
    """Every model of the catalog."""
    return list(_catalog().values())


def find(name: ModelName) -> Entry | None:
    """The entry that `name` is or is an alias of, up to case."""
    wanted = str(name).casefold()
    for entry in entries():
        if wanted in (str(known).casefold() for known in (entry.name, *entry.aliases)):
            return entry
    return None


@cache
def _catalog() -> dict[str, Entry]:
    plain = json.loads(resources.files("tokenmill.store").joinpath("catalog.json").read_bytes())
    return {name: _entry(name, fields) for name, fields in plain.items()}


def _entry(name: str, plain: dict[str, Any]) -> Entry:
    file = plain["file"]
    return Entry(
        name=ModelName.parse(name),
        aliases=tuple(ModelName.parse(alias) for alias in plain["aliases"]),
        description=plain["description"],
        license=plain["license"],
        homepage=plain["homepage"],
        file=check_file_name(file["name"]),
        digest=check_digest(f"sha256:{file['sha256']}"),
        size=file["size"],
        origins=tuple(_origin(source) for source in plain["sources"]),
        parameters=plain["parameters"],
    )


def _origin(plain: dict[str, str]) -> Origin:
    archive = plain.get("archive_sha256")
    return Origin(parse_reference(plain["reference"]).text, check_digest(f"sha256:{archive}") if archive else None)
