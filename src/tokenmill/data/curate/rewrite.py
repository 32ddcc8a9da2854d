"""Change what a document says, wherever it says it: the text of a plain one, every message of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenmill.data.curate.read import SPEECH, contents
from tokenmill.data.curate.step import Document

_SPOKEN = frozenset((*SPEECH, "content", "value", "text"))


def rewrite(document: Document, change: Callable[[str], str]) -> bool:
    """Replace every text of the document by what `change` makes of it. Returns whether that changed anything."""
    before = document.text
    if document.derived:
        document.meta = _rewritten(document.meta, change, False)
        document.text = "\n".join(contents(document.meta))
    else:
        document.text = change(before)
    if document.text == before:
        document.text = before  # the same object: words that were found in it stay valid
        return False
    return True


def _rewritten(value: Any, change: Callable[[str], str], inside: bool) -> Any:
    if isinstance(value, str):
        return change(value) if inside else value
    if isinstance(value, dict):
        return {k: _rewritten(item, change, True) if k in _SPOKEN else item for k, item in value.items()}
    if isinstance(value, list):
        return [_rewritten(item, change, inside) for item in value]
    return value
