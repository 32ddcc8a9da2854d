"""A scaling law fitted to one's own runs: L = E + A / N^alpha + B / D^beta, with intervals. numpy alone.

The logarithm of the loss is fitted, as in Chinchilla's approach 3 (arXiv 2203.15556, appendix D.2), robustly: Huber's
loss, whose bend is 1.345 times the spread of what is left over (95 % efficient where the noise is normal). Levenberg
and Marquardt's method from the best points of a grid of exponents, where E, A and B follow by least squares without
negative values. Intervals: bootstrap of the residuals, which keeps the design of few runs as it is; 90 % by
percentiles.

Runs have to have ended on their own schedule: a loss in the middle of a run, with the learning rate still high, belongs
to no law.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.core.errors import FormatError, MissingFileError, UsageError
from tokenmill.plan import laws

Array = NDArray[np.float64]
FEWEST_RUNS, FEWEST_SIZES, FEWEST_LENGTHS = 6, 3, 3
"""Five numbers are fitted; with less variety some of them would be the grid's choice, not the data's."""
EXPONENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
HUBER = 1.345
LOW, HIGH = 5.0, 95.0
"""Percentiles of the intervals."""


@dataclass(frozen=True)
class Run:
    """A finished run: parameters, tokens seen, loss in nats a token on held-out text."""

    parameters: float
    tokens: float
    loss: float
    name: str = ""


@dataclass(frozen=True)
class Law:
    """L = e + a / N^alpha + b / D^beta."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return laws.power_loss(parameters, tokens, self.e, self.a, self.b, self.alpha, self.beta)

    def best(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens that make the loss least for 6 N D operations."""
        return (
            laws.best_parameters(flops, self.a, self.b, self.alpha, self.beta),
            laws.best_tokens(flops, self.a, self.b, self.alpha, self.beta),
        )


CHINCHILLA = Law(e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28)
"""As printed in arXiv 2203.15556, equation 10."""
REFITTED = Law(e=1.8172, a=482.01, b=2085.43, alpha=0.3478, beta=0.3658)
"""Besiroglu et al. 2024, arXiv 2404.10102: the same runs, fitted again."""


@dataclass(frozen=True)
class Fit:
    """A law with the laws of its bootstrap, and how well it holds."""

    law: Law
    samples: tuple[Law, ...]
    runs: tuple[Run, ...]
    spread: float
    """Root of the mean square of what is left over, in parts of the loss."""
    held_out: float
    """Relative error on the run with the most operations, by a law fitted to the others; NaN where too few are left."""

    def interval(self, figure: Callable[[Law], float]) -> tuple[float, float]:
        """90 % interval of anything that follows from a law."""
        low, high = np.percentile([figure(law) for law in self.samples], [LOW, HIGH])
        return float(low), float(high)


def fit(runs: Sequence[Run], *, bootstrap: int = 200, seed: int = 0) -> Fit:
    """Fit the law to finished runs.

    Raises:
        UsageError: too few runs, sizes or lengths to tell the parts of the law from each other; a value that is not
            positive.
    """
    _check(runs)
    law = _fitted(runs)
    predicted = np.array([law.loss(run.parameters, run.tokens) for run in runs])
    left = np.log([run.loss for run in runs]) - np.log(predicted)
    # five numbers were fitted to these very runs, so what is left over is smaller than the noise; and how large that
    # is, is itself a guess from few runs: Student's factor over the normal one, for 90 % (Cornish and Fisher)
    free = len(runs) - 5
    student = 1 + (1.645**2 + 1) / (4 * free)
    noise = (left - left.mean()) * math.sqrt(len(runs) / free) * student
    draw = np.random.default_rng(seed)
    samples = []
    for _ in range(bootstrap):
        losses = predicted * np.exp(draw.choice(noise, size=len(runs)))
        again = [Run(run.parameters, run.tokens, loss) for run, loss in zip(runs, losses, strict=True)]
        samples.append(_refined(_start(law), again, tolerance=1e-4))
    largest = max(runs, key=lambda run: run.parameters * run.tokens)
    rest = [run for run in runs if run is not largest]
    held_out = math.nan
    if len(rest) >= FEWEST_RUNS and _varied(rest):
        held_out = _fitted(rest).loss(largest.parameters, largest.tokens) / largest.loss - 1
    return Fit(law, tuple(samples), tuple(runs), float(np.sqrt(np.mean(left**2))), held_out)


def _varied(runs: Sequence[Run]) -> bool:
    sizes, lengths = {run.parameters for run in runs}, {run.tokens for run in runs}
    return len(sizes) >= FEWEST_SIZES and len(lengths) >= FEWEST_LENGTHS


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if not all(math.isfinite(x) and x > 0 for x in (run.parameters, run.tokens, run.loss)):
            raise UsageError(f"{run.name or run}: parameters, tokens and loss have to be positive numbers")
    if len(runs) < FEWEST_RUNS or not _varied(runs):
        sizes, lengths = len({run.parameters for run in runs}), len({run.tokens for run in runs})
        raise UsageError(
            f"{len(runs)} runs of {sizes} sizes and {lengths} lengths: a law with five unknowns needs {FEWEST_RUNS} "
            f"runs at least, of {FEWEST_SIZES} sizes and {FEWEST_LENGTHS} lengths; vary both over a factor of ten"
        )


# --- the fit. theta is (log e, log a, log b, alpha, beta), so that nothing turns negative


def _start(law: Law) -> Array:
    tiny = 1e-12
    return np.array([*(math.log(max(x, tiny)) for x in (law.e, law.a, law.b)), law.alpha, law.beta])


def _fitted(runs: Sequence[Run]) -> Law:
    candidates = sorted(_grid(runs), key=lambda found: found[0])[:4]
    laws_found = [_refined(theta, runs) for _, theta in candidates]
    return min(laws_found, key=lambda law: _huber(_residuals(_start(law), runs)))


def _grid(runs: Sequence[Run]) -> list[tuple[float, Array]]:
    found = []
    losses = np.array([run.loss for run in runs])
    for alpha, beta in itertools.product(EXPONENTS, EXPONENTS):
        columns = np.stack(
            [
                np.ones(len(runs)),
                np.array([run.parameters for run in runs]) ** -alpha,
                np.array([run.tokens for run in runs]) ** -beta,
            ],
            axis=1,
        )
        weights = _not_negative(columns / losses[:, None], np.ones(len(runs)))
        theta = np.array([*np.log(np.maximum(weights, 1e-12)), alpha, beta])
        found.append((_huber(_residuals(theta, runs)), theta))
    return found


def _not_negative(columns: Array, target: Array) -> Array:
    """Least squares with no weight below zero: of all subsets of three columns the best whose weights are positive."""
    best, least = np.zeros(3), math.inf
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            weights = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
            error = float(np.sum((columns[:, chosen] @ weights - target) ** 2))
            if (weights > 0).all() and error < least:
                best, least = np.zeros(3), error
                best[list(chosen)] = weights
    return best


def _residuals(theta: Array, runs: Sequence[Run]) -> Array:
    return _parts(theta, _table(runs))[0]


def _table(runs: Sequence[Run]) -> Array:
    return np.log([(run.parameters, run.tokens, run.loss) for run in runs])


def _parts(theta: Array, table: Array) -> tuple[Array, Array]:
    """Residuals of the logarithm of the loss, and their derivatives by theta."""
    n, d, loss = table.T
    constant = np.full_like(n, np.exp(theta[0]))
    size, data = np.exp(theta[1] - theta[3] * n), np.exp(theta[2] - theta[4] * d)
    total = constant + size + data
    slopes = np.stack([constant, size, data, -n * size, -d * data], axis=1) / total[:, None]
    return np.log(total) - loss, slopes


def _bend(residuals: Array) -> float:
    """Where Huber's loss goes over from squares to lengths, by the median of what is left over."""
    return max(1e-6, HUBER * float(np.median(np.abs(residuals))) / 0.6745)


def _huber(residuals: Array) -> float:
    size, bend = np.abs(residuals), _bend(residuals)
    return float(np.sum(np.where(size <= bend, size**2 / 2, bend * (size - bend / 2))))


def _refined(theta: Array, runs: Sequence[Run], rounds: int = 60, tolerance: float = 1e-9) -> Law:
    """Levenberg and Marquardt with Huber's weights."""
    table, damping = _table(runs), 1e-3
    residuals, slopes = _parts(theta, table)
    for _ in range(rounds):
        bend = _bend(residuals)
        weights = np.minimum(1.0, bend / np.maximum(np.abs(residuals), 1e-300))
        normal = slopes.T @ (weights[:, None] * slopes)
        uphill = slopes.T @ (weights * residuals)
        step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), uphill)
        tried = theta + np.clip(step, -2, 2)
        tried[3:] = np.clip(tried[3:], 0.01, 2.0)
        new, new_slopes = _parts(tried, table)
        if np.sum(weights * new**2) < np.sum(weights * residuals**2):
            small = float(np.max(np.abs(tried - theta))) < tolerance
            theta, residuals, slopes, damping = tried, new, new_slopes, damping / 5
            if small:
                break
        else:
            damping *= 4
            if damping > 1e8:
                break
    e, a, b = (float(x) for x in np.exp(theta[:3]))
    return Law(e, a, b, float(theta[3]), float(theta[4]))


# --- where runs come from


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Runs from folders of ``tokenmill train`` and from tables (``.csv``, ``.jsonl`` with parameters, tokens, loss).

    Raises:
        FormatError: no run and no table; a run that has not ended, or was never evaluated.
    """
    found: list[Run] = []
    for path in paths:
        if path.is_dir():
            found.append(_read_folder(path))
        elif path.suffix in (".csv", ".jsonl"):
            found += _read_table(path)
        elif not path.exists():
            raise MissingFileError(f"{path}: no such file or folder")
        else:
            raise FormatError(path, "", "is neither the folder of a run nor a .csv or .jsonl of runs")
    return found


def _read_folder(path: Path) -> Run:
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise FormatError(path, "", f"is not the folder of a run: {error}") from error
    if run.get("status") != "finished":
        raise FormatError(
            path, "run.json", f"status is {run.get('status')!r}: only a finished run tells a law something"
        )
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    tokens = [row["total_tokens"] for row in rows if "total_tokens" in row]
    if not losses or not tokens:
        raise FormatError(path, "metrics.jsonl", "the run was never evaluated on held-out text (data.eval_share=0.05)")
    return Run(float(run["parameters"]), float(tokens[-1]), float(losses[-1]), path.name)


def _read_table(path: Path) -> list[Run]:
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    found = []
    for number, row in enumerate(rows, 1):
        try:
            parameters, tokens, loss = (float(row[key]) for key in ("parameters", "tokens", "loss"))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(path, f"row {number}", "needs the numbers parameters, tokens and loss") from error
        found.append(Run(parameters, tokens, loss, str(row.get("name", f"row {number}"))))
    return found
