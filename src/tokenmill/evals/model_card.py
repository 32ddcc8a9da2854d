"""The model card of an exported folder: what it is, what was measured, how and from what it was made, its licence.

Nothing in it is made up: figures come from result files (``eval … --json``, reports of pruning and quantisation, the
last evaluation of a run), the recipe and the data from the run's folder, the licence from the person or from the card
of the model that was exported. What is not known is not said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError
from tokenmill.core.version import __version__

REPORTS = ("pruning_report.json", "quantization_report.json")
MAX_BYTES = 16 << 20
_SHOWN = 40


@dataclass
class Card:
    """What a card says."""

    title: str
    family: str
    parameters: int
    dtype: str
    context: int
    source: str
    license: str | None = None
    adapters: Sequence[str] = ()
    figures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of result files, by name."""
    recipe: str | None = None
    """``config.yaml`` of the run."""
    data: Sequence[Mapping[str, Any]] = ()
    """Files that the run read: name, bytes, sha256 where they are still there."""
    use: str = ""
    """The commands that put the folder to use."""
    library: str = "transformers"
    """What reads it, in the hub's words."""

    def text(self) -> str:
        """README.md, with the hub's front matter."""
        front = ["---", *([f"license: {self.license}"] if self.license else []), f"library_name: {self.library}"]
        front += ["pipeline_tag: text-generation", "tags:", "- tokenmill", f"- {self.family}", "---"]
        parts = [
            f"# {self.title}",
            f"{self.family}, {self.parameters / 1e6:.1f} M parameters in {self.dtype}, context {self.context:,} "
            f"tokens. Written by tokenmill {__version__} from `{self.source}`"
            + (f" with {', '.join(f'`{name}`' for name in self.adapters)} folded in." if self.adapters else "."),
            "## Use",
            f"```bash\n{self.use}\n```",
        ]
        if self.figures:
            parts += ["## Figures", *(_table(name, values) for name, values in self.figures.items())]
        if self.recipe is not None:
            parts += ["## Recipe", f"```yaml\n{self.recipe.strip()}\n```"]
        if self.data:
            rows = [
                f"| {one['name']} | {one.get('bytes', '')} | {one.get('sha256', 'no longer there')} |"
                for one in self.data
            ]
            parts += ["## Data", "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])]
        parts += ["## Licence", self.license or "Not said by the model that this one was made from; ask its authors."]
        parts += ["`SHA256SUMS` names every file: `sha256sum -c SHA256SUMS`."]
        return "\n".join(front) + "\n\n" + "\n\n".join(parts) + "\n"


def _table(name: str, values: Mapping[str, Any]) -> str:
    flat = [(key, value) for key, value in _flat(values) if not isinstance(value, bool) and value is not None]
    rows = [
        f"| {key} | {value:.6g} |" if isinstance(value, float) else f"| {key} | {_cell(value)} |" for key, value in flat
    ]
    return "\n".join([f"### {name}", "", "| | |", "|---|---|", *rows[:_SHOWN]])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Numbers and short texts, nested ones by dotted names; lists (layers, curves) are for the files themselves."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) or (isinstance(value, str) and len(value) < 120 and "/" not in value):
            found.append((f"{prefix}{key}", value))
    return found


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def read_result(path: Path) -> Mapping[str, Any]:
    """A result file: one JSON object. FormatError for anything else."""
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(path, "", "is too large for figures")
    try:
        found = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
    except (ValueError, IndexError):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(path, "", f"is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(path, "", "is no JSON object of figures")
    return found


def run_of(folder: Path) -> Path | None:
    """The folder of the run that a model folder is the result of."""
    parent = folder.parent
    return parent if folder.name == "model" and (parent / "config.yaml").is_file() else None


def last_evaluation(run: Path) -> Mapping[str, Any]:
    """The last line of a run's metrics that is an evaluation; empty without one."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if '"bits_per_byte"' in line]
    wanted = ("step", "loss", "perplexity", "bits_per_byte", "tokens")
    return {key: lines[-1][key] for key in wanted if lines and lines[-1].get(key) is not None}
