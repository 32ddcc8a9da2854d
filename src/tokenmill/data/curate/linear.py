"""A linear text classifier that trains in seconds and judges tens of thousands of documents a second.

Words and pairs of neighbouring words, in lower case, are hashed into buckets; a document is the mean of its buckets'
weights, as in fastText (Joulin et al. 2017, arXiv 1607.01759) but without a hidden layer: multinomial logistic
regression, trained with AdaGrad over seeded shuffles. The file is safetensors: weights and, in its header, the labels.

Axes: D documents, F features (buckets of all documents, one after another), L labels, B buckets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.core.errors import ConfigError, FormatError, MissingFileError
from tokenmill.data.curate.step import Document
from tokenmill.data.curate.words import ngrams, words_of

FORMAT = "tokenmill-linear-1"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """Labels and weights."""

    labels: tuple[str, ...]
    weight_BL: Floats
    bias_L: Floats

    @property
    def bits(self) -> int:
        """Buckets are 2 to this power."""
        return (len(self.weight_BL) - 1).bit_length()

    def probabilities(self, documents: Sequence[Document]) -> Floats:
        """How likely each label is for each document, [D, L]; rows sum to 1."""
        bucket_F, offset_D1 = features(documents, self.bits)
        return _softmax(_means(self.weight_BL, bucket_F, offset_D1) + self.bias_L)

    def save(self, file: Path) -> None:
        """Write one .safetensors file."""
        from safetensors.numpy import save_file

        header = {"format": FORMAT, "labels": json.dumps(self.labels, ensure_ascii=False)}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight_BL, "bias": self.bias_L}, file, metadata=header)

    @classmethod
    def load(cls, file: Path) -> Linear:
        """Read what `save` wrote.

        Raises:
            NotFoundError: there is no such file.
            FormatError: it is something else.
        """
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            raise MissingFileError(f"no classifier {file}; train one with `tokenmill data classifier train`")
        try:
            with safe_open(file, "numpy") as opened:
                header = opened.metadata() or {}
                if header.get("format") != FORMAT:
                    raise FormatError(file, "header", f"no classifier of this kind (format {header.get('format')!r})")
                model = cls(tuple(json.loads(header["labels"])), opened.get_tensor("weight"), opened.get_tensor("bias"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise error if isinstance(error, FormatError) else FormatError(file, "", str(error)) from error
        size, labels = len(model.weight_BL), len(model.labels)
        if model.weight_BL.shape != (size, labels) or model.bias_L.shape != (labels,) or size & (size - 1):
            raise FormatError(file, "weight", f"shape {model.weight_BL.shape} does not fit {labels} labels")
        return model


def features(documents: Sequence[Document], bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Buckets of every document's words and pairs, [F], and where each document's begin, [D + 1]."""
    words = words_of(documents, folded=True)
    pairs, places = ngrams(words, 2)
    document_F = np.concatenate((words.document_W, words.document_W[places]))
    order = np.argsort(document_F, kind="stable")
    bucket_F = (np.concatenate((words.hash_W, pairs)) >> np.uint64(64 - bits)).astype(np.int64)[order]
    counts = np.bincount(document_F, minlength=len(documents))
    return bucket_F, np.concatenate(([0], np.cumsum(counts)))


def train(
    documents: Sequence[Document],
    labels: Sequence[str],
    *,
    bits: int = 18,
    epochs: int = 10,
    rate: float = 0.5,
    seed: int = 0,
) -> Linear:
    """Fit on labelled documents.

    Args:
        bits: 2 to this many buckets.
        rate: AdaGrad's step.

    Raises:
        ConfigError: fewer than two labels.
    """
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise ConfigError(
            f"a classifier needs documents of two labels at least; there are: {', '.join(names) or 'none'}"
        )
    target_D = np.array([names.index(label) for label in labels])
    bucket_F, offset_D1 = features(documents, bits)
    weight, bias = np.zeros((1 << bits, len(names)), np.float32), np.zeros(len(names), np.float32)
    squares, bias_squares = np.full_like(weight, 1e-8), np.full_like(bias, 1e-8)
    share_L = np.bincount(target_D, minlength=len(names)) / len(target_D)
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(len(target_D)), max(1, len(target_D) // 32)):
            bucket, offset = _rows(bucket_F, offset_D1, rows)
            error_DL = _softmax(_means(weight, bucket, offset) + bias)
            error_DL[np.arange(len(rows)), target_D[rows]] -= 1
            error_DL /= (share_L[target_D[rows]] * len(names) * len(rows))[:, None]  # rare labels count as much
            counts = np.diff(offset)
            used, where = np.unique(bucket, return_inverse=True)
            scaled = np.repeat(error_DL / np.maximum(counts, 1)[:, None], counts, axis=0)
            gradient = np.stack([np.bincount(where, scaled[:, k], len(used)) for k in range(len(names))], axis=1)
            squares[used] += gradient**2
            weight[used] -= rate * gradient / np.sqrt(squares[used])
            total = error_DL.sum(axis=0)
            bias_squares += total**2
            bias -= rate * total / np.sqrt(bias_squares)
    return Linear(names, weight, bias)


def evaluate(model: Linear, documents: Sequence[Document], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and precision and recall of each label."""
    chosen = [model.labels[k] for k in model.probabilities(documents).argmax(axis=1)]
    pairs = list(zip(chosen, labels, strict=True))
    scores = {}
    for label in model.labels:
        right = sum(c == t == label for c, t in pairs)
        said, true = sum(c == label for c, _ in pairs), sum(t == label for _, t in pairs)
        scores[label] = {
            "precision": right / said if said else 0.0,
            "recall": right / true if true else 0.0,
            "documents": true,
        }
    return {"accuracy": sum(c == t for c, t in pairs) / max(len(pairs), 1), "documents": len(pairs), "labels": scores}


def _rows(
    bucket_F: NDArray[np.int64], offset_D1: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Features of some of the documents."""
    counts = offset_D1[rows + 1] - offset_D1[rows]
    offset = np.concatenate(([0], np.cumsum(counts)))
    place = np.arange(offset[-1]) - np.repeat(offset[:-1] - offset_D1[rows], counts)
    return bucket_F[place], offset


def _means(weight_BL: Floats, bucket_F: NDArray[np.int64], offset_D1: NDArray[np.int64]) -> Floats:
    """Mean weight of each document's features, [D, L]; zero for a document without any."""
    sums = np.zeros((len(offset_D1), weight_BL.shape[1]), np.float64)
    counts = np.diff(offset_D1)
    filled = np.flatnonzero(counts)
    if len(filled):
        sums[filled] = np.add.reduceat(weight_BL[bucket_F], offset_D1[filled], axis=0, dtype=np.float64)
    return (sums[:-1] / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _softmax(values_DL: Floats) -> Floats:
    powers = np.exp(values_DL - values_DL.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
