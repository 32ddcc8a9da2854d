"""The store: every model on this machine by name, however it got here.

A name is looked for in this order: our own store; the catalog (fetched if asked); a path; Ollama's store; Hugging
Face's cache and LM Studio's folder. If it is nowhere and fetching is asked for, its source is asked: the one that the
name's prefix says, and Ollama's registry for plain names, as in Ollama.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tokenmill.core.errors import (
    BadNameError,
    MissingFileError,
    ModelfileError,
    NetworkError,
    NotFoundError,
    StoreError,
    TemplateError,
    TokenmillError,
    UsageError,
)
from tokenmill.core.log import get_logger
from tokenmill.core.paths import home
from tokenmill.store import catalog, creating, derived, foreign, pulling
from tokenmill.store import manifest as m
from tokenmill.store.commit import copy_manifest, remove, store_manifest
from tokenmill.store.library import Library, ModelFiles
from tokenmill.store.modelfile import Modelfile, parse_modelfile, write_modelfile
from tokenmill.store.names import ModelName, Reference, parse_reference, path_reference
from tokenmill.store.progress import Progress, silent
from tokenmill.store.select import select_files

_log = get_logger(__name__)


class Store:
    """The models below `root` (``$TOKENMILL_HOME/models`` unless given).

    `sources` stands in for the network in tests.
    """

    def __init__(self, root: Path | None = None, *, sources: pulling.Sources | None = None) -> None:
        self.root = (root or home() / "models").absolute()
        self.library = Library(self.root)
        self._sources = sources

    def resolve(
        self, name: str, *, pull: bool = False, progress: Progress | None = None, paths: bool = True
    ) -> ModelFiles:
        """The files that `name` stands for; with `pull`, what is not here is fetched.

        `paths=False` is for names that strangers send: then a name never means a file or folder of this machine.
        Raises NotFoundError that names near misses, StoreError for what is here and cannot be used.
        """
        reference = parse_reference(name)
        if reference.kind == "path" and not paths:
            raise StoreError(f"{name!r} is a path; here only models of the store can be named")
        if reference.kind == "path":
            return _resolve_path(reference)
        if stored := self._find(reference):
            return self.library.files(stored)
        entry = catalog.find(reference.name) if reference.kind == "name" else None
        if entry and pull:
            return self.pull(name, progress)
        if paths and reference.kind == "name" and (found := _model_in_folder(name)):
            return found
        for find in (foreign.find_in_ollama, foreign.find_in_hub_cache):
            if found := find(reference):
                return found
        if not pull:
            raise self._not_found(reference)
        try:
            return self.pull(name, progress)
        except (NotFoundError, NetworkError) as error:
            raise type(error)(f"model {name!r} is not on this machine: {error}{self._near(reference)}") from None

    def pull(self, name: str, progress: Progress | None = None) -> ModelFiles:
        """Fetch a model, or bring the one that is here up to date and mend it. A path is linked in place."""
        reference = parse_reference(name)
        if reference.kind == "path":
            return self._link(reference, progress or silent)
        if reference.kind == "name" and catalog.find(reference.name) is None:
            reference = parse_reference(f"ollama:{reference.name}")
        stored = pulling.pull(self.library, self._network(), reference, progress or silent)
        return self.library.files(stored)

    def list(self) -> list[ModelFiles]:
        """All models of this store, newest first. Opens no model; a broken entry is logged and left out."""
        found = []
        for name in self.library.names():
            try:
                found.append(self.library.files(name, use=False))
            except (TokenmillError, OSError) as error:
                _log.warning("%s is left out: %s", name, error)
        return sorted(found, key=lambda files: (-files.modified.timestamp(), files.name))

    def copy(self, source: str, target: str) -> None:
        """Give a model of this store, or one found elsewhere on this machine, another name."""
        name = _new_name(target)
        stored = self._find(parse_reference(source))
        if stored is None:
            self.resolve(source)  # on this machine already, or an error: a copy fetches nothing
            self._create(name, Modelfile(base=source), silent)
        else:
            self.library.files(stored)
            copy_manifest(self.library, stored, self.library.find(name) or name)

    def remove(self, name: str) -> None:
        """Remove a model of this store, and its blobs that no other model uses. Linked files stay."""
        reference = parse_reference(name)
        stored = self._find(reference)
        if stored:
            remove(self.library, stored)
            derived.remove_useless()
            return
        if reference.kind != "path" and foreign.find_in_ollama(reference):
            raise NotFoundError(
                f"{name!r} is in Ollama's own store, not in this one; remove it with `ollama rm {name}`"
            )
        raise self._not_found(reference)

    def create(
        self,
        name: str,
        modelfile_text: str,
        base_dir: Path,
        progress: Progress | None = None,
        *,
        check_template: Callable[[str], None] | None = None,
    ) -> ModelFiles:
        """Make a model from a Modelfile; its relative paths start at `base_dir`. FROM is fetched if it is not here.

        `check_template` raises what is wrong with a TEMPLATE, before anything is stored: this layer knows no templates.
        """
        target, progress = _new_name(name), progress or silent
        modelfile = parse_modelfile(modelfile_text)
        if check_template is not None and modelfile.template is not None:
            try:
                check_template(modelfile.template)
            except TemplateError as error:
                raise ModelfileError("Modelfile", "TEMPLATE", str(error)) from None
        for warning in modelfile.warnings:
            progress(f"warning: {warning}")
            _log.warning("%s", warning)
        adapters = [str(_below(base_dir, adapter)) for adapter in modelfile.adapters]
        base = _base_text(base_dir, modelfile.base)
        return self._create(target, replace(modelfile, base=base, adapters=adapters), progress)

    def modelfile(self, name: str) -> str:
        """The Modelfile that would make the model again on this machine."""
        files = self.resolve(name)
        return write_modelfile(
            Modelfile(
                base=str(files.path),
                parameters=files.parameters,
                template=files.template,
                system=files.system,
                adapters=[str(adapter) for adapter in files.adapters],
                licenses=files.licenses,
                messages=files.messages,
                requires=files.requires,
            )
        )

    def push(self, name: str, destination: str | None = None, progress: Progress | None = None) -> None:
        """Upload a model to `destination` (``ollama:...`` or ``hf:...``), by default where its own name says.

        A folder on this machine goes to the hub as it is, all of its files in one commit.
        """
        if parse_reference(name).kind == "path" and Path(name).is_dir():
            if destination is None:
                raise UsageError(f"{name}: say where the folder goes, such as hf:ORG/REPO")
            from tokenmill.store.sources import hf_push  # brings httpx and huggingface_hub

            return hf_push.push_folder(parse_reference(destination), Path(name), progress or silent)
        if parse_reference(name).kind == "path" and not Path(name).exists():
            raise MissingFileError(f"{name}: no such folder")
        stored = self._find(parse_reference(name))
        if stored is None:
            raise NotFoundError(
                f"{name!r} is not in this store; only what is can be pushed (`tokenmill create` makes it)"
            )
        self.library.files(stored)
        # where the model came from is this machine's matter, and may name its folders
        manifest = replace(self.library.read(stored)[0], annotations={})
        target = parse_reference(destination or name)
        if target.kind == "name":
            target = parse_reference(f"ollama:{target.name}")
        self._network().upload(target, manifest, self.library.layer_path, progress=progress or silent)

    def known_names(self) -> Iterator[str]:
        """Every name that `resolve` would find, here, in the catalog and in other programs' stores."""
        yield from map(str, self.library.names())
        yield from (str(entry.name) for entry in catalog.entries())
        yield from foreign.names()

    def _find(self, reference: Reference) -> ModelName | None:
        """The name in our own store that `reference` means, if it is there."""
        if reference.kind == "path":
            return None
        stored = self.library.find(reference.name)
        if stored is None and reference.kind == "name" and (entry := catalog.find(reference.name)):
            stored = self.library.find(entry.name)
        if stored and reference.kind == "ollama":
            # the plain name may be a catalog model or the person's own; the prefix asks for Ollama's
            source = self.library.read(stored)[0].annotations.get(m.SOURCE, "ollama:")
            return stored if source.startswith("ollama:") else None
        return stored

    def _link(self, reference: Reference, progress: Progress) -> ModelFiles:
        stored = self.library.find(reference.name)
        source = f"path:{reference.text}"
        if stored and self.library.read(stored)[0].annotations.get(m.SOURCE) != source:
            raise StoreError(
                f"the store has another {stored} already; choose the name yourself: write 'FROM {reference.text}' "
                "into a Modelfile and run `tokenmill create NAME -f Modelfile`"
            )
        return self._create(reference.name, Modelfile(base=reference.text), progress, source)

    def _create(self, name: ModelName, modelfile: Modelfile, progress: Progress, source: str = "") -> ModelFiles:
        name = self.library.find(name) or name

        def build() -> bytes:
            base = self._base(modelfile.base, progress)
            return creating.build_manifest(
                self.library, base, modelfile, source or f"created from {modelfile.base}", progress
            )

        store_manifest(self.library, name, build)
        progress("success")
        return self.library.files(name)

    def _base(self, text: str, progress: Progress) -> creating.Base:
        files = self.resolve(text, pull=True, progress=progress)
        stored = self._find(parse_reference(text))
        if stored:
            return creating.Base(list(self.library.read(stored)[0].layers), files)
        return creating.base_from_files(self.library, files, progress)

    def _network(self) -> pulling.Sources:
        if self._sources is not None:
            return self._sources
        from tokenmill.store import sources  # brings httpx and huggingface_hub, which reading the store does not need

        return sources

    def _not_found(self, reference: Reference) -> NotFoundError:
        gone = reference.path is not None and not reference.path.exists()
        return (MissingFileError if gone else NotFoundError)(
            f"model {reference.text!r} is not on this machine{self._near(reference)}; "
            f"`tokenmill pull {reference.text}` gets it, `tokenmill list` shows what is here"
        )

    def _near(self, reference: Reference) -> str:
        others = sorted({name for name in self.known_names() if name != reference.text})
        near = difflib.get_close_matches(reference.text, others, n=3)
        return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _new_name(text: str) -> ModelName:
    reference = parse_reference(text)
    if reference.kind != "name":
        raise BadNameError(
            f"{text!r} says where a model comes from; a new model needs a plain name such as my-model:v1"
        )
    return reference.name


def _below(base_dir: Path, text: str) -> Path:
    return base_dir / Path(text).expanduser()


def _base_text(base_dir: Path, text: str) -> str:
    """FROM's value: a path that exists below `base_dir` is meant as one, like in Ollama."""
    reference = parse_reference(text) if text else None
    path = _below(base_dir, text)
    if reference and reference.kind in ("path", "name") and (reference.kind == "path" or path.exists()):
        return str(path.absolute())
    return text


def _model_in_folder(text: str) -> ModelFiles | None:
    """The model at a relative path that does not look like one (``runs/latest/model``), if it is one."""
    path = Path(text)
    try:
        return _resolve_path(path_reference(path)) if path.exists() else None
    except NotFoundError:  # a folder that happens to have the name
        return None


def _resolve_path(reference: Reference) -> ModelFiles:
    path = reference.path or Path()
    if path.is_file():
        names, folder, chosen = creating.split_names(path), path.parent, path
    elif path.is_dir():
        folder = path
        try:
            names = select_files(foreign.folder_files(path), "", str(path))
        except NotFoundError as error:
            raise MissingFileError(str(error)) from None
        chosen = path / names[0] if names[0].endswith(".gguf") else path
    else:
        raise MissingFileError(f"{path}: no such file or folder")
    states = [(folder / name).stat() for name in names]
    return ModelFiles(
        name=reference.text,
        path=chosen,
        size=sum(state.st_size for state in states),
        source=f"path:{reference.text}",
        modified=datetime.fromtimestamp(max(state.st_mtime for state in states), UTC),
    )
