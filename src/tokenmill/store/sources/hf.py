"""Models on the Hugging Face hub, or on a mirror that ``HF_ENDPOINT`` names.

Metadata is asked through huggingface_hub; the files come through our own transport, so that one engine resumes and
verifies. A plan is pinned to the commit that the revision is at now. Large files have a sha256 in the hub's metadata;
for small ones the git object's sha1 is checked.

Refuses pickled weights and everything that is code (`select.py` chooses). ``HF_TOKEN``, or the token that
``hf auth login`` left, goes to the hub itself and not along with redirects.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from tokenmill.core.errors import NetworkError, NotFoundError, TokenmillError
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress
from tokenmill.store.select import select_files
from tokenmill.store.sources.base import Plan, RemoteFile, media_type_of
from tokenmill.store.transport import Client, DeniedError, Transient, retry_after_s

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

DEFAULT_ENDPOINT = "https://huggingface.co"
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_TOKEN_HINT = "if it is private or gated, accept its terms on its page and set HF_TOKEN (or run `hf auth login`)"


def plan(reference: Reference, client: Client, progress: Progress) -> Plan:
    """Ask the hub which files `reference` means. Raises NotFoundError, NetworkError."""
    from huggingface_hub import get_token, hf_hub_url

    progress("pulling manifest")
    info = client.retrying(lambda: _model_info(hub(), reference))
    if info.sha is None or not re.fullmatch("[0-9a-f]{40}", info.sha):
        raise NetworkError(f"{reference}: the hub names no commit ({info.sha!r})")
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    chosen = select_files(there, reference.file, str(reference), "name one after a colon")
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    files = []
    for name in chosen:
        url = hf_hub_url(reference.repo, name, revision=info.sha, endpoint=endpoint())
        size, sha256, git_sha1 = _promises(there[name])
        files.append(RemoteFile(name, url, size, sha256, media_type_of(chosen), headers, git_sha1=git_sha1))
    return Plan(str(reference), info.sha, files)


def endpoint() -> str:
    """The hub's address. Read at each call: huggingface_hub itself reads the variable once, when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hub() -> HfApi:
    """The hub's own client."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def typed_error(error: Exception, what: str) -> TokenmillError | Transient | None:
    """What an exception of huggingface_hub means to us; None if it is none of its."""
    from huggingface_hub import errors

    text = str(error).strip().split("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return DeniedError(f"{what}: gated; accept its terms on its page and set HF_TOKEN (or run `hf auth login`)")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"{what}: the repository has no such branch, tag or commit")
    if isinstance(error, errors.RepositoryNotFoundError):  # the hub says 401 for what does not exist, too
        return NotFoundError(f"{what}: no such repository on the hub; {_TOKEN_HINT}")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in _PASSING:
            return Transient(f"{what}: the hub answers {status}", wait_s=_wait_s(error), answered=True)
        if status in (401, 403):
            return DeniedError(f"{what}: {status}, access denied; {_TOKEN_HINT}")
        return NetworkError(f"{what}: {text}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError(f"{what}: HF_HUB_OFFLINE is set, so the hub is not asked")
    if isinstance(error, errors.HTTPError):  # type: ignore[attr-defined]  # of httpx or httpx2, by the hub's version
        return Transient(f"{what}: {endpoint()}: {text or type(error).__name__}")
    if isinstance(error, ValueError):  # broken JSON, or an answer that the client's checks reject
        return NetworkError(f"{what}: the hub's answer is not understood: {text}")
    return None


def _model_info(api: HfApi, reference: Reference) -> ModelInfo:
    try:
        return api.model_info(reference.repo, revision=reference.revision or None, files_metadata=True, timeout=20)
    except Exception as error:
        typed = typed_error(error, str(reference))
        if typed is None:
            raise
        raise typed from error


def _wait_s(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    return None if response is None else retry_after_s(response.headers)


def _promises(sibling: RepoSibling) -> tuple[int | None, str | None, str | None]:
    """(bytes, sha256, git sha1) as far as the hub's metadata has them."""
    if sibling.lfs is not None:
        return sibling.lfs.size, sibling.lfs.sha256, None
    return sibling.size, None, sibling.blob_id
