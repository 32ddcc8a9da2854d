"""How alike a text and the right ones are. One text in, a number from 0 to 1 out; BLEU and chrF also over a whole set.

Exact match and F1 are those of SQuAD's script (lower case, no punctuation, no articles); Jaccard takes the same words;
ROUGE is rouge-score's with its stemmer; BLEU and chrF are sacrebleu's, whose signature goes into the result. Of several
right texts the best counts (BLEU and chrF have a way of their own for several).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.evals.tasks.task import Normal

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
CORPUS = ("bleu", "chrf")
"""Their figure for a set is no mean of the samples'."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def normal(text: str, how: Normal) -> str:
    """A text as it is compared. ``number``: the last number in it, written in one way; empty where there is none."""
    if how == "none":
        return text.strip()
    if how == "number":
        found = _NUMBER.findall(text)
        return f"{float(found[-1].replace(',', '')):.10g}" if found else ""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(said: str, right: str, how: Normal = "text") -> float:
    """1 where both are the same once normalised; where that leaves nothing of the right text, letter by letter."""
    wanted = normal(right, how)
    return float(normal(said, how) == wanted) if wanted else float(said.strip() == right.strip())


def contains(said: str, right: str, how: Normal = "text") -> float:
    """1 where the right text stands in what was said, as whole words."""
    if how == "number":
        return float(normal(right, how) in {normal(one, how) for one in _NUMBER.findall(said)})
    wanted, text = normal(right, how), normal(said, how)
    if not wanted:
        return float(right.strip() in said)
    return float(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text) is not None)


def f1(said: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words; both empty is 1."""
    ours, theirs = normal(said, "text").split(), normal(right, "text").split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def jaccard(said: str, right: str) -> float:
    """Words in both over words in either; both empty is 1."""
    ours, theirs = set(normal(said, "text").split()), set(normal(right, "text").split())
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


def score_text(metric: str, said: str, rights: Sequence[str], how: Normal = "text") -> float:
    """One sample's ``metric``, from 0 to 1."""
    if metric in ROUGE:
        scorer = _rouge(metric)
        # ROUGE-Lsum takes lines for sentences
        texts = [_lines(one) if metric == "rougeLsum" else one for one in (said, *rights)]
        return max(float(scorer.score(right, texts[0])[metric].fmeasure) for right in texts[1:])
    if metric in CORPUS:
        return float(_sacrebleu(metric, sentence=True).sentence_score(said, list(rights)).score) / 100
    if metric in ("exact_match", "contains"):
        compare = exact_match if metric == "exact_match" else contains
        return max(compare(said, right, how) for right in rights)
    simple: dict[str, Callable[[str, str], float]] = {"f1": f1, "jaccard": jaccard}
    return max(simple[metric](said, right) for right in rights)


def corpus_score(metric: str, said: Sequence[str], rights: Sequence[Sequence[str]]) -> float:
    """BLEU or chrF of a whole set, from 0 to 1. Rows may have different numbers of right texts."""
    most = max(len(one) for one in rights)
    streams = [[one[n] if n < len(one) else None for one in rights] for n in range(most)]
    return float(_sacrebleu(metric).corpus_score(list(said), streams).score) / 100


def signature(metric: str, said: Sequence[str], rights: Sequence[Sequence[str]]) -> str:
    """sacrebleu's note of how it counted."""
    scorer = _sacrebleu(metric)
    most = max(len(one) for one in rights)
    scorer.corpus_score(list(said), [[one[n] if n < len(one) else None for one in rights] for n in range(most)])
    return str(scorer.get_signature())


def _lines(text: str) -> str:
    return "\n".join(_SENTENCE_END.split(text.strip()))


@cache
def _rouge(metric: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UsageError(f"{metric} needs rouge-score: pip install 'tokenmill[eval]'") from None
    return RougeScorer([metric], use_stemmer=True)


def _sacrebleu(metric: str, *, sentence: bool = False) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UsageError(f"{metric} needs sacrebleu: pip install 'tokenmill[eval]'") from None
    return BLEU(effective_order=sentence) if metric == "bleu" else CHRF()
