"""``tokenmill eval reward``: how well a reward model, or several, tell preferred answers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, note, step_progress
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.calibration import Preferences

EPILOG = """\b
Examples:
  tokenmill eval reward runs/latest/model --data pairs.jsonl
  tokenmill eval reward first/model second/model --voting cautious --data pairs.jsonl --json
"""
AT_ONCE = 64


def eval_reward(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Reward models; several are judged as one ensemble.")
    ],
    data: Annotated[str, typer.Option(metavar="FILE", help="Pairs: prompt, chosen, rejected (.jsonl, .parquet).")],
    voting: Annotated[
        str, typer.Option(metavar="mean|min|cautious", help="How the scores of several become one.")
    ] = "mean",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    as_json: Json = False,
) -> None:
    """Pairwise accuracy and calibration of reward models on labelled pairs."""
    if voting not in ("mean", "min", "cautious"):
        raise UsageError(f"--voting {voting}: give mean, min or cautious")

    from tokenmill.align.reward_model import Ensemble, RewardModel, length_of
    from tokenmill.evals.calibration import judge_scores

    pairs = _pairs(data, limit)
    ensemble = Ensemble([RewardModel.load(model) for model in models], voting)  # type: ignore[arg-type]
    scores: tuple[list[float], list[float]] = ([], [])
    with step_progress("pairs") as progress:
        for begin in range(0, len(pairs), AT_ONCE):
            for side in (0, 1):
                scores[side].extend(ensemble.score_documents([pair[side] for pair in pairs[begin : begin + AT_ONCE]]))
            progress(min(len(pairs), begin + AT_ONCE), len(pairs))
    found = judge_scores(*scores, [(length_of(a), length_of(b)) for a, b in pairs])
    emit({"models": models, "voting": voting, "data": data, **found.as_dict()}, as_json, _text(found))


def _pairs(data: str, limit: int | None) -> list[tuple[Any, Any]]:
    from tokenmill.align.reward_model import pair_documents
    from tokenmill.data.files import Broken, find_files, read_rows
    from tokenmill.data.formats import RowError

    pairs: list[tuple[Any, Any]] = []
    broken: list[str] = []
    for file in find_files(data):
        for row in read_rows(file):
            if limit is not None and len(pairs) >= limit:
                break
            try:
                if isinstance(row, Broken):
                    raise RowError(row.problem)
                pairs.append(pair_documents(row.value))
            except RowError as error:
                broken.append(f"{file}:{row.line}: {error}")
    if not pairs:
        raise UsageError(f"--data {data}: no row is a pair" + (f"; the first: {broken[0]}" if broken else ""))
    if broken:
        note(f"{len(broken)} rows are no pairs and left out, the first: {broken[0]}")
    return pairs


def _text(found: Preferences) -> str:
    def share(value: float | None) -> str:
        return "none" if value is None else f"{value:.1%}"

    rows = [(f"{b.confidence:.1%}", f"{b.accuracy:.1%}", str(b.count)) for b in found.bins]
    return "\n".join(
        [
            f"pairs              {found.pairs}",
            f"accuracy           {found.accuracy:.1%} ± {found.stderr:.1%}",
            f"  chosen longer    {share(found.accuracy_longer)}",
            f"  chosen shorter   {share(found.accuracy_shorter)}",
            f"log loss           {found.log_loss:.4f} nats (no opinion: 0.6931)",
            f"Brier score        {found.brier:.4f}",
            f"calibration error  {found.ece:.1%}",
            f"margin             {found.mean_margin:.3f}, scores around {found.mean_score:.3f}",
            "",
            columns(("as sure as", "is right", "pairs"), rows),
        ]
    )
