"""A single GGUF file at an https address.

Nothing is promised about it beforehand, so that there is nothing to verify beyond its beginning; its sha256 is
recorded. Refuses other kinds of file: a ``.safetensors`` file alone lacks the ``config.json`` that says what it is.
"""

from __future__ import annotations

from urllib.parse import unquote

from tokenmill.core.errors import UsageError
from tokenmill.store.manifest import MODEL
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress
from tokenmill.store.sources.base import Plan, RemoteFile


def plan(reference: Reference, progress: Progress) -> Plan:
    """One file. Raises UsageError for an address that does not end in ``.gguf``, StoreError for its name."""
    progress("pulling manifest")
    name = unquote(reference.file)
    if not name.lower().endswith(".gguf"):
        hint = "; a model of safetensors needs its config.json too: pull hf:ORG/REPO" if "safetensors" in name else ""
        raise UsageError(f"{reference}: only a .gguf file can be pulled by its address{hint}")
    return Plan(str(reference), "", [RemoteFile(name, reference.repo, None, None, MODEL)])
