"""``general.*`` keys of a GGUF file out of a model folder's card: its name, licence, languages, tags.

The card's front matter is what others wrote; of it only short texts are taken, anything else is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_CARD_BYTES = 1 << 20
MAX_TEXT = 200


def general_keys(folder: Path, name: str) -> dict[str, Any]:
    """Keys for the model in `folder`, which the person called `name`."""
    keys: dict[str, Any] = {"general.name": Path(name).name or folder.name}
    card = _front_matter(folder / "README.md")
    for theirs, ours in (("license", "general.license"), ("license_name", "general.license.name")):
        if isinstance(card.get(theirs), str):
            keys[ours] = card[theirs][:MAX_TEXT]
    for theirs, ours in (("tags", "general.tags"), ("language", "general.languages")):
        found = card.get(theirs)
        listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        texts = [text[:MAX_TEXT] for text in listed if isinstance(text, str)]
        if texts:
            keys[ours] = texts
    return keys


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes; empty where there is none that can be read."""
    import yaml

    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = text.split("\n---", 1)
    if not text.startswith("---\n") or len(parts) < 2:
        return {}
    try:
        found = yaml.safe_load(parts[0].removeprefix("---\n"))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
