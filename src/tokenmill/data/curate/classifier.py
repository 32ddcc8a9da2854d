"""The step ``classifier``: what a linear classifier of one's own finds good (or of a topic, or bad) enough stays."""

from __future__ import annotations

from pathlib import Path

from tokenmill.config.parts import Part, Share
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.linear import Linear
from tokenmill.data.curate.step import Context, Document, Tally


class Judge(Part):
    """One label of a trained classifier."""

    model: str
    """A file that ``tokenmill data classifier train`` wrote."""
    label: str
    """Which of its labels."""


class ClassifierOptions(FilterOptions):
    """Whose judgement, and how much of it is needed."""

    model: str
    """A file that ``tokenmill data classifier train`` wrote."""
    label: str
    """Which of its labels is scored."""
    min: Share = 0.0
    """Least probability of the label."""
    max: Share = 1.0
    """Most; for labels that are not wanted."""
    column: str = "quality"
    """Column that the probability is written into."""


def build(options: ClassifierOptions, context: Context) -> Classifier:
    """The step. NotFoundError, FormatError: no such classifier; ConfigError: it has no such label."""
    return Classifier(options)


class Classifier:
    """Scores and drops."""

    def __init__(self, options: ClassifierOptions) -> None:
        self.options = options
        self.model, self.column = loaded(options.model, options.label)

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        o = self.options
        chosen = judged(documents, o.languages)
        verdicts = {}
        for document, value in zip(chosen, self.model.probabilities(chosen)[:, self.column].tolist(), strict=True):
            document.meta[o.column] = round(value, 4)
            if not o.min <= value <= o.max:
                verdicts[document.id] = "below_min" if value < o.min else "above_max"
        return settle(documents, verdicts, tally, tag=o.tag)


def loaded(file: str, label: str) -> tuple[Linear, int]:
    """A classifier, and which of its columns the label is."""
    model = Linear.load(Path(file))
    if label not in model.labels:
        known = ", ".join(model.labels)
        raise ConfigError(f"{file} has no label {label!r}{did_you_mean(label, model.labels)}; it has: {known}")
    return model, model.labels.index(label)
