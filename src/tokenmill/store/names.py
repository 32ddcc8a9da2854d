"""What a person may call a model, and where such a name lives in the store.

A *model name* is Ollama's: ``[host/][namespace/]model[:tag]``. Plain names belong to ``registry.ollama.ai/library``, as
in Ollama, so that a name means the same in both stores. A *reference* is a model name or says where to get the model:
``hf:ORG/REPO[@REV][:FILE]``, ``ollama:NAME:TAG``, ``pypi:PACKAGE==VERSION``, ``https://...`` or a path.

Every part is matched against a narrow ASCII grammar before it becomes part of a path, so ``..``, absolute paths, NUL,
control characters and look-alike letters never reach the file system (CVE-2024-37032 was a digest that did).
A reference that is not a model name is stored under a model name computed from it (`Reference.name`): readable where
the grammar allows it, with a piece of a hash where it does not.

Grammar: types/model/name.go of Ollama; repository ids of the Hugging Face hub; PEP 440 and PEP 508 for packages.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tokenmill.core.errors import BadNameError, StoreError, did_you_mean

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
HUB_HOST = "hf.co"
PREFIXES = ("hf", "ollama", "pypi", "https")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_REPO = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@,-]{0,199}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,79}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FORMS = "NAME[:TAG], hf:ORG/REPO[@REV][:FILE], ollama:NAME:TAG, pypi:PACKAGE==VERSION, https://..., or a path"

Kind = Literal["name", "hf", "ollama", "pypi", "url", "path"]


def check_digest(digest: str) -> str:
    """Give back `digest` if it is ``sha256:`` and 64 lower-case hex digits, else raise StoreError."""
    if not _DIGEST.fullmatch(digest):
        raise StoreError(f"not a digest: {digest[:100]!r}; a digest is 'sha256:' and 64 lower-case hexadecimal digits")
    return digest


def check_file_name(name: str) -> str:
    """Give back `name` if it is a plain relative file name of at most four parts, safe below any folder."""
    parts = name.split("/")
    if len(parts) > 4 or not all(_FILE_PART.fullmatch(part) and ".." not in part for part in parts):
        raise StoreError(
            f"not an acceptable file name inside a model: {name[:200]!r}; allowed are relative names of letters, "
            "digits and _ . + = @ , - that do not start with a dot"
        )
    return name


@dataclass(frozen=True, order=True)
class ModelName:
    """A full model name. ``str()`` leaves out the default host and namespace, as Ollama prints it; the tag stays."""

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        checks = (("host", _HOST), ("namespace", _NAMESPACE), ("model", _PART), ("tag", _PART))
        for part, grammar in checks:
            value = getattr(self, part)
            if not grammar.fullmatch(value) or ".." in value:
                raise BadNameError(f"{_quote(value)} cannot be the {part} of a model name; a name is one of: {_FORMS}")

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read ``[host/][namespace/]model[:tag]``; parts left out get Ollama's defaults."""
        path, _, last = text.rpartition("/")
        model, colon, tag = last.partition(":")
        parts = path.split("/") if path else []
        if len(parts) > 2:
            raise BadNameError(f"{_quote(text)} has too many parts for a model name; a name is one of: {_FORMS}")
        return cls(
            host=parts[0] if len(parts) == 2 else DEFAULT_HOST,
            namespace=parts[-1] if parts else DEFAULT_NAMESPACE,
            model=model,
            tag=tag if colon else DEFAULT_TAG,
        )

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The four path components below ``manifests``."""
        return self.host, self.namespace, self.model, self.tag

    def __str__(self) -> str:
        short = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{short}"


@dataclass(frozen=True)
class Reference:
    """Something a person wrote to mean a model; `text` is its canonical spelling, which parses to an equal reference.

    kind    repo                      revision          file                          path
    name    -                         -                 -                             -
    hf      ``ORG/REPO`` or ``REPO``  REV or ``""``     FILE or quantisation or ``""``  -
    ollama  - (see `name`)            -                 -                             -
    pypi    normalised package        VERSION           -                             -
    url     the URL                   -                 last part of its path         -
    path    -                         -                 -                             absolute path
    """

    kind: Kind
    text: str
    name: ModelName = field(compare=False)
    """The model name that it is stored under."""
    repo: str = ""
    revision: str = ""
    file: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        return self.text


def parse_reference(text: str) -> Reference:
    """Read what a person typed. Raises BadNameError that says what is allowed.

    Text that starts with ``/``, ``./``, ``../`` or ``~`` is a path, and so is an existing ``*.gguf`` file.
    """
    if not text or len(text) > 2048 or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise BadNameError(f"{_quote(text)} is not a model: empty, too long, or with control characters in it")
    if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or _is_gguf_file(text):
        return path_reference(Path(text))
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "hf":
        return _parse_hub(rest)
    if colon and prefix == "ollama":
        name = ModelName.parse(rest)
        return Reference("ollama", f"ollama:{name}", name)
    if colon and prefix == "pypi":
        return _parse_package(rest)
    if colon and prefix in ("https", "http") and rest.startswith("//"):
        return _parse_url(text)
    host, _, rest = text.partition("/")
    if host in (HUB_HOST, "huggingface.co") and rest:  # Ollama's spelling of a hub model
        return _parse_hub(rest)
    return _parse_name(text)


def path_reference(path: Path) -> Reference:
    """The reference for a file or folder on this machine; its name is made from the last part of the path."""
    try:
        absolute = path.expanduser().absolute()
    except RuntimeError as error:  # ~unknown-user
        raise BadNameError(f"{str(path)!r}: {error}") from None
    stem = absolute.name.removesuffix(".gguf") or "model"
    name = ModelName(DEFAULT_HOST, DEFAULT_NAMESPACE, _slug(stem, _PART, str(absolute)), DEFAULT_TAG)
    return Reference("path", str(absolute), name, path=absolute)


def _parse_name(text: str) -> Reference:
    try:
        name = ModelName.parse(text)
    except BadNameError as error:
        prefix, colon, _ = text.partition(":")
        hint = did_you_mean(prefix, PREFIXES) if colon else ""
        raise BadNameError(f"{error}{hint}") from None
    return Reference("name", str(name), name)


def _parse_hub(rest: str) -> Reference:
    head, _, file = rest.partition(":")
    repo, at, revision = head.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise BadNameError(f"{_quote(repo)} is not a repository of the hub; write hf:ORG/REPO[@REV][:FILE]")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise BadNameError(f"{_quote(revision)} is not a branch, tag or commit; write hf:ORG/REPO[@REV][:FILE]")
    file = "" if file == DEFAULT_TAG else file
    if file:
        try:
            check_file_name(file)
        except StoreError as error:
            raise BadNameError(str(error)) from None
    text = f"hf:{repo}" + (f"@{revision}" if revision else "") + (f":{file}" if file else "")
    organisation, _, model = repo.rpartition("/")
    chosen = f"{revision}-{file}".strip("-") or DEFAULT_TAG
    name = ModelName(
        HUB_HOST,
        _slug(organisation or "_", _NAMESPACE, text),
        _slug(model, _PART, text),
        # a bare FILE keeps Ollama's spelling hf.co/ORG/REPO:FILE; a revision could be mistaken for one, hence the hash
        _slug(chosen, _PART, text, always=bool(revision)),
    )
    return Reference("hf", text, name, repo=repo, revision=revision, file=file)


def _parse_package(rest: str) -> Reference:
    package, pinned, version = rest.partition("==")
    if not pinned:
        raise BadNameError(
            f"pypi:{rest[:100]}: name the version, as in pypi:PACKAGE==VERSION, so that it stays the same"
        )
    if not _PACKAGE.fullmatch(package) or not _VERSION.fullmatch(version):
        raise BadNameError(f"{_quote(rest)} is not a package and version; write pypi:PACKAGE==VERSION")
    package = re.sub(r"[-_.]+", "-", package).lower()
    text = f"pypi:{package}=={version}"
    name = ModelName("pypi.org", "project", _slug(package, _PART, text), _slug(version, _PART, text))
    return Reference("pypi", text, name, repo=package, revision=version)


def _parse_url(text: str) -> Reference:
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise BadNameError(f"{_quote(text)} is not a URL: {error}") from None
    if "@" in url.netloc:
        raise BadNameError("a URL with a user name or password in it would be kept in the store; leave them out")
    if url.scheme == "http" and host not in _LOOPBACK:
        raise BadNameError(f"{_quote(text)}: only https is accepted (http only from this machine itself)")
    file = url.path.rpartition("/")[2]
    if not host or not file or url.fragment or not text.isascii() or " " in text:
        raise BadNameError(f"{_quote(text)}: write https://HOST/PATH/FILE in ASCII, without a #fragment")
    place = host.replace(":", "_") + (f":{port}" if port else "")
    name = ModelName(_slug(place, _HOST, place), "url", _slug(file.removesuffix(".gguf"), _PART, text), _hash(text))
    return Reference("url", text, name, repo=text, file=file)


def _is_gguf_file(text: str) -> bool:
    return text.endswith(".gguf") and Path(text).is_file()


def _slug(text: str, grammar: re.Pattern[str], whole: str, *, always: bool = False) -> str:
    """`text` itself where `grammar` allows it, else a readable piece of it and a hash of `whole`, so none collide."""
    if grammar.fullmatch(text) and ".." not in text and not always:
        return text
    kept = re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:40]
    return f"{kept or '_'}-{_hash(whole)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _quote(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
