"""The models that are measured, from what the person names: a store's name, a folder, or ``NAME@URL`` for a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.output import PullProgress, note
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.subject import Subject


def is_remote(model: str) -> bool:
    """Whether this names a model of a server."""
    return "@http://" in model or "@https://" in model


def open_subject(
    model: str,
    *,
    adapter: Sequence[str] | None = None,
    dtype: str | None = None,
    ctx_size: int | None = None,
    batch_size: int = 16,
    exact: bool = True,
    cache: Path | None = None,
    key_variable: str | None = None,
) -> Subject:
    """Load a model, or say where its server is.

    ``exact``: answers that do not depend on the batch size; where the engine cannot compute so, one sequence at a time.
    ``cache``: folder for answers of a server.
    """
    if is_remote(model):
        from tokenmill.evals.remote import EndpointSubject

        if adapter or dtype or ctx_size:
            raise UsageError("--adapter, --dtype and --ctx-size are for models on this machine")
        name, _, url = model.partition("@")
        assert cache is not None
        return EndpointSubject(url, name, cache, at_once=batch_size, key_variable=key_variable)
    if key_variable:
        raise UsageError("--key-variable is for servers: give the model as NAME@http://…")
    import torch

    from tokenmill import LLM
    from tokenmill.evals.identity import content_digest, digest_of
    from tokenmill.evals.local import LocalSubject
    from tokenmill.evals.subject import Identity
    from tokenmill.ops.native import native

    def load(deterministic: bool) -> LLM:
        with PullProgress() as pulled:
            given = list(adapter) if adapter else None
            return LLM(
                model, adapter=given, dtype=dtype, ctx_size=ctx_size, deterministic=deterministic, progress=pulled
            )

    one_by_one = False
    try:
        llm = load(exact)
    except UsageError as error:
        if not exact or "deterministic" not in str(error):
            raise
        note(f"{error}; one sequence at a time instead")
        llm, one_by_one = load(False), True
    files = llm.files
    content = digest_of(
        [
            content_digest([files.path, *files.adapters, *map(Path, adapter or ())]),
            files.template,
            files.system,
        ]
    )
    size = 1 if one_by_one else batch_size
    kernels = native()
    facts: dict[str, object] = {
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "ctx_size": llm.ctx_size,
        "exact": exact,
        "device": str(llm.model.device),
        "kernels": kernels.isa if kernels else "torch",
        "threads": torch.get_num_threads(),
    }
    if not exact:
        facts["batch_size"] = size
    name = "+".join([model, *(adapter or ())])
    return LocalSubject(llm, Identity(name, content, facts), batch_size=size)
