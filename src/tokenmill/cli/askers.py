"""Who is asked, from what the person names: a model on this machine, or ``NAME@URL`` for a server. Answers are kept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmill.align.constitution import Asker


def open_asker(model: str, key_variable: str | None) -> tuple[str, Asker]:
    """A name, and who answers to it: a server, or a model here that is loaded when something has to be asked."""
    from tokenmill.align.constitution import LocalAnswers
    from tokenmill.cli.subjects import is_remote
    from tokenmill.core.endpoint import Endpoint
    from tokenmill.core.paths import home
    from tokenmill.evals.identity import content_digest
    from tokenmill.store import Store

    cache = home() / "cache" / "answers"
    if is_remote(model):
        name, _, url = model.partition("@")
        return name, Endpoint(url, cache / hashlib.sha256(url.encode()).hexdigest()[:32], key_variable=key_variable)
    files = Store().resolve(model, pull=True)

    def load() -> Any:
        from tokenmill.llm import LLM

        return LLM(files)

    return model, LocalAnswers(load, cache / content_digest([files.path, *files.adapters])[:32])
