"""Conversations out of a ChatGPT export (``conversations.json``): a tree of messages becomes the branch that was shown.

Taken is the path from ``current_node`` to the root; answers that were generated anew and abandoned are left out, and
with them hidden messages, thoughts and what passes between ChatGPT and its own tools (browser, code), whose definitions
no export holds. Pictures become ``[image]``. Several answers in a row are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.data.formats import Chat, Message, RowError


def is_export(row: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation of an export."""
    return isinstance(row.get("mapping"), Mapping) and "messages" not in row


def conversation(row: Mapping[str, Any]) -> Chat:
    """The shown branch. RowError if the tree is broken or nobody answers in it."""
    messages: list[Message] = []
    for message in _branch(row):
        said = _said(message)
        if said is None:
            continue
        role, text = said
        if messages and role == "assistant" == messages[-1]["role"]:
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": role, "content": text})
    while messages and messages[-1]["role"] != "assistant":  # a question without an answer
        messages.pop()
    if not messages:
        raise RowError("the exported conversation has no answer in it")
    return Chat(messages)


def spoken(row: Mapping[str, Any]) -> str:
    """All that is said in the shown branch, a paragraph each; empty for a broken tree, and for other rows."""
    if not is_export(row):
        return ""
    try:
        return "\n\n".join(message["content"] for message in conversation(row).messages)
    except RowError:
        return ""


def _branch(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Messages from the root to the shown leaf."""
    nodes: Mapping[str, Any] = row["mapping"]
    leaf = row.get("current_node")
    if leaf is None:
        leaf = _newest_leaf(nodes)
    path: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while leaf is not None:
        node = nodes.get(leaf)
        if not isinstance(node, Mapping):
            raise RowError(f"mapping has no node {leaf!r}")
        if leaf in seen:
            raise RowError(f"mapping: node {leaf!r} is its own ancestor")
        seen.add(leaf)
        path.append(node)
        leaf = node.get("parent")
    for node in reversed(path):
        if isinstance(node.get("message"), Mapping):
            yield node["message"]


def _newest_leaf(nodes: Mapping[str, Any]) -> str:
    leaves = [
        (float((node.get("message") or {}).get("create_time") or 0.0), place, name)
        for place, (name, node) in enumerate(nodes.items())
        if isinstance(node, Mapping) and not node.get("children")
    ]
    if not leaves:
        raise RowError("mapping has no last message")
    return max(leaves)[2]


def _said(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """(role, text) of what a person saw; None for the rest."""
    author, content = message.get("author") or {}, message.get("content") or {}
    role, metadata = author.get("role"), message.get("metadata") or {}
    hidden = metadata.get("is_visually_hidden_from_conversation") or message.get("weight") == 0
    to_a_tool = message.get("recipient") not in (None, "all")
    kind = content.get("content_type")
    if role not in ("system", "user", "assistant") or hidden or to_a_tool or kind not in ("text", "multimodal_text"):
        return None
    parts = content.get("parts")
    if not isinstance(parts, list):
        raise RowError("a message of content_type text has no parts")
    text = "\n".join(part if isinstance(part, str) else "[image]" for part in parts).strip()
    return (role, text) if text else None
