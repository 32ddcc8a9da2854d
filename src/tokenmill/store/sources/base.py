"""What every source speaks in: a plan of files to fetch, each with as many promises (size, digest) as its host makes.

File names come from strangers; they are held to the store's narrow grammar before anybody makes a path of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from tokenmill.store.manifest import FILE, MODEL
from tokenmill.store.names import check_digest, check_file_name


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch.

    name: relative name inside the model. url: where it is; for a member of an archive the archive's ``file://`` URL.
    size: bytes promised. sha256: hex promised. media_type: its layer's type in the manifest. headers: sent with the
    request, to the url's own origin only. member: path inside the archive. git_sha1: hex of its git object, which the
    hub has for small files in place of a sha256.
    """

    name: str
    url: str
    size: int | None
    sha256: str | None
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    member: str | None = None
    git_sha1: str | None = None

    def __post_init__(self) -> None:
        check_file_name(self.name)
        if self.sha256 is not None:
            check_digest(f"sha256:{self.sha256}")

    @property
    def digest(self) -> str | None:
        """The digest promised, as a blob's name."""
        return None if self.sha256 is None else f"sha256:{self.sha256}"

    @property
    def title(self) -> str:
        """Status line of its download, in Ollama's words."""
        return f"pulling {self.sha256[:12] if self.sha256 else self.name}"


@dataclass(frozen=True)
class Plan:
    """What a reference stands for, asked from its source.

    source: the reference's canonical text. revision: the commit, version or tag that was found, for provenance.
    files: in order; the first file of a split GGUF comes first. manifest: a registry's own manifest, byte for byte
    (``files`` are its config and layers); empty for other sources. Close it, or use it as a context manager: a source
    may have put an archive into a temporary folder that the files are taken from.
    """

    source: str
    revision: str
    files: list[RemoteFile]
    manifest: bytes = b""
    workdir: TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what the plan had to download to be made."""
        if self.workdir is not None:
            self.workdir.cleanup()


def media_type_of(chosen: list[str]) -> str:
    """The layer type of each of these files of one model: a lone GGUF is a model, all else are files by name."""
    return MODEL if len(chosen) == 1 and chosen[0].lower().endswith(".gguf") else FILE
