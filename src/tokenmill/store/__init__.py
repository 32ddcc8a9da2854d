"""The models on this machine: names, blobs, manifests, Modelfiles and where models are pulled from."""

from __future__ import annotations

from tokenmill.store.library import ModelFiles
from tokenmill.store.names import ModelName
from tokenmill.store.progress import Progress
from tokenmill.store.store import Store

__all__ = ["ModelFiles", "ModelName", "Progress", "Store"]
