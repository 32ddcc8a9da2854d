"""Which files of a repository or folder make up one model.

One rule for the hub, the hub's cache on this machine and plain folders: the original weights (``config.json`` and
``*.safetensors``) where there are any, else a GGUF file. Pickled weights (``*.bin``, ``*.pt``) are never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from tokenmill.core.errors import NotFoundError

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
_PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")
"""What people of llama.cpp and Ollama get when they name no quantisation."""
_SHOWN = 20
_COMPANIONS = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config)\.json"
    r"|config\.json|merges\.txt|vocab\.txt|[\w.-]+\.model|chat_template\.(jinja|json)|LICENSE(\.\w+)?"
)


def select_files(names: Iterable[str], wanted: str, where: str, how: str = "give the path of one") -> list[str]:
    """The files of one model among `names`, sorted; the first split of a GGUF comes first.

    `wanted` is a file name, a quantisation (``Q4_K_M``) or empty. `where` is named in the NotFoundError that is raised
    when nothing or more than one thing fits; `how` says what to do about several.
    """
    all_names = sorted(names)
    groups = _gguf_groups(all_names)
    if wanted:
        chosen = [group for first, group in groups.items() if wanted in group or _quantisation_is(first, wanted)]
        if len(chosen) == 1:
            return chosen[0]
        problem = f"several files match {wanted!r}" if chosen else f"no GGUF file is {wanted!r}"
        raise NotFoundError(f"{where}: {problem}; there is {_listing(groups)}")
    folder = _hf_files(all_names)
    if folder:
        return folder
    if len(groups) == 1:
        return next(iter(groups.values()))
    for kind in _PREFERRED:
        chosen = [group for first, group in groups.items() if _quantisation_is(first, kind)]
        if len(chosen) == 1:
            return chosen[0]
    if groups:
        raise NotFoundError(f"{where}: there are several models in it, {how}: {_listing(groups)}")
    pickled = [name for name in all_names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    hint = f" (pickled weights such as {pickled[0]} can run code and are not read)" if pickled else ""
    raise NotFoundError(f"{where}: no model in it: neither config.json with *.safetensors nor *.gguf{hint}")


def _hf_files(names: Collection[str]) -> list[str]:
    weights = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if "config.json" not in names or not weights:
        return []
    # Mistral's repositories carry the weights twice; the second copy is in another naming
    standard = [name for name in weights if name.startswith("model")] or weights
    index = [name for name in names if "/" not in name and name.endswith(".safetensors.index.json")]
    return sorted({*standard, *index, *(name for name in names if _COMPANIONS.fullmatch(name))})


def _gguf_groups(names: Collection[str]) -> dict[str, list[str]]:
    """First file of each GGUF model -> all its files. Projectors of vision models are not models."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.lower().endswith(".gguf") or "mmproj" in name.lower():
            continue
        split = _SPLIT.fullmatch(name)
        first = f"{split['stem']}-00001-of-{split['count']}.gguf" if split else name
        groups.setdefault(first, []).append(name)
    return {first: group for first, group in groups.items() if first in group}


def _quantisation_is(first: str, kind: str) -> bool:
    stem = _SPLIT.sub(r"\g<stem>", first).removesuffix(".gguf")
    return re.search(rf"(^|[-._/]){re.escape(kind)}$", stem, re.IGNORECASE) is not None


def _listing(groups: Collection[str]) -> str:
    shown = ", ".join(sorted(groups)[:_SHOWN]) or "no GGUF file at all"
    return shown + (f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")
