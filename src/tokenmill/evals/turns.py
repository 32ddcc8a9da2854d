"""Ours and peers (or nobody) in turn, A B A B, so that a machine whose speed drifts treats all of them alike.

A ratio is taken within each round, between neighbours in time; the median of the rounds counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.evals.peers import Peer
from tokenmill.evals.throughput import (
    Rates,
    Shape,
    Throughput,
    check_shapes,
    measure,
    peak_rss_mb,
    reset_peak,
    warm_up,
)
from tokenmill.nn.decoder import Decoder

RATE_KEYS = ("prefill_tok_s", "decode_tok_s", "runs")


@dataclass(frozen=True)
class Comparison:
    """One shape: ours, and each peer's rates round by round."""

    ours: Throughput
    theirs: dict[str, tuple[Rates, ...]]

    def ratio(self, peer: str, metric: str) -> float:
        """Ours over theirs of ``prefill_tok_s`` or ``decode_tok_s``: the median of the rounds."""
        rounds = zip(self.ours.runs, self.theirs[peer], strict=True)
        return statistics.median(getattr(our, metric) / getattr(their, metric) for our, their in rounds)

    def document(self) -> dict[str, Any]:
        """Our figures, and below ``peers`` each peer's and the ratios to it."""
        peers: dict[str, dict[str, Any]] = {}
        for name, runs in self.theirs.items():
            known = Throughput(self.ours.shape, runs, 0.0).document()
            figures = {key: value for key, value in known.items() if key in RATE_KEYS}
            ratios = {
                "prefill_ratio": self.ratio(name, "prefill_tok_s"),
                "decode_ratio": self.ratio(name, "decode_tok_s"),
            }
            peers[name] = {**figures, **ratios}
        return self.ours.document() | ({"peers": peers} if peers else {})


def compare(
    model: Decoder,
    shapes: Sequence[Shape],
    peers: Sequence[Peer],
    *,
    repeat: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison]:
    """Measure each shape ``repeat`` times: ours, then each peer, then ours again. UsageError where one does not fit."""
    check_shapes(model, shapes)
    warm_up(model, seed)
    results, done, total = [], 0, len(shapes) * repeat
    for shape in shapes:
        ours: list[Rates] = []
        theirs: dict[str, list[Rates]] = {peer.name: [] for peer in peers}
        reset_peak()
        for _ in range(repeat):
            ours.append(measure(model, shape, seed))
            for peer in peers:
                theirs[peer.name].append(peer.measure(shape))
            done += 1
            if progress is not None:
                progress(done, total)
        mine = Throughput(shape, tuple(ours), peak_rss_mb())
        results.append(Comparison(mine, {name: tuple(runs) for name, runs in theirs.items()}))
    return results
