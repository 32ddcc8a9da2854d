"""Text spoiled so that a model can restore it: BERT's masked tokens, T5's lost spans.

What is spoiled follows from (seed, epoch, number of the sample) alone: not from the batch, the process or how often a
run was resumed. Sources: Devlin et al. 2019 (80/10/10), Raffel et al. 2020 (15 % in spans of 3; spans as t5's
``random_spans_noise_mask`` draws them), BERT's whole-word release of 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenmill.config.parts import CorruptConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import NO_LABEL, Batch, PairBatch, Sample
from tokenmill.text.tokenizer import Tokenizer

_STREAM = 0x6D61736B
"""Sets these numbers apart from those of the loader, which are drawn from the same seed."""


def random_of(seed: int, sample: Sample) -> np.random.Generator:
    """The generator of one sample in one epoch, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample.epoch, sample.index, _STREAM])))


class MaskTokens:
    """(samples, seed) → a batch in which ``share`` of the tokens are to be restored; labels stand where they are.

    Of the chosen ones ``mask_share`` become the mask token, ``random_share`` a random one, the rest stays. At least one
    is chosen in every sample that has one to choose. Control tokens are never chosen, nor drawn.
    """

    def __init__(self, config: CorruptConfig, tokenizer: Tokenizer) -> None:
        mask_id = _special(tokenizer, "mask_token")
        if mask_id is None:
            raise ConfigError("this model's tokenizer has no mask token, which objective=mlm needs")
        self.config, self.mask_id = config, mask_id
        self.special = np.array(sorted(tokenizer.special_ids), np.int64)
        self.ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), self.special)
        self.begins_V = word_beginnings(tokenizer) if config.whole_words else None

    def __call__(self, samples: Sequence[Sample], seed: int) -> Batch:
        return Batch.of([self.spoil(sample, random_of(seed, sample)) for sample in samples])

    def spoil(self, sample: Sample, random: np.random.Generator) -> Sample:
        """One sample with some of its tokens replaced, and labels for them."""
        tokens = sample.tokens.copy()
        labels = np.full(len(tokens), NO_LABEL, np.int64)
        chosen = self._chosen(tokens, random)
        labels[chosen] = tokens[chosen]
        kind = random.random(len(chosen))
        masked = kind < self.config.mask_share
        drawn = ~masked & (kind < self.config.mask_share + self.config.random_share)
        tokens[chosen[masked]] = self.mask_id
        tokens[chosen[drawn]] = self.ordinary[random.integers(len(self.ordinary), size=int(drawn.sum()))]
        return Sample(sample.index, tokens, labels, sample.epoch)

    def _chosen(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        places = np.flatnonzero(~np.isin(tokens, self.special))
        if not len(places):
            return places
        count = max(1, round(self.config.share * len(places)))
        if self.begins_V is None:
            return np.sort(random.permutation(places)[:count])
        begins = self.begins_V[tokens[places]]
        begins[0] = True
        begins[1:] |= np.diff(places) > 1  # a control token lies between
        words = np.split(places, np.flatnonzero(begins)[1:])
        order = random.permutation(len(words))
        ends = np.cumsum([len(words[i]) for i in order])
        # as BERT's: a word that would go beyond the count is passed over only if it is not the first
        taken = order[: max(1, int(np.searchsorted(ends, count, side="right")))]
        return np.sort(np.concatenate([words[i] for i in taken]))


def word_beginnings(tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens of the vocabulary begin a word, bool [V]: by their marks for a space, or WordPiece's for none."""
    spelled = [tokenizer.id_to_token(token_id) or "" for token_id in range(tokenizer.vocab_size)]
    if any(token.startswith("##") and len(token) > 2 for token in spelled) and not any("Ġ" in t for t in spelled):
        return np.array([not token.startswith("##") for token in spelled])
    return np.array([token.startswith(("Ġ", "▁", "Ċ", " ")) for token in spelled])


class CorruptSpans:
    """(samples, seed) → a pair: text with spans replaced by sentinels, and the sentinels with what stood there.

    The target is read shifted by one: the decoder is given ``start_id`` first. Both sides end with the end token.
    """

    def __init__(self, config: CorruptConfig, tokenizer: Tokenizer, *, start_id: int | None = None) -> None:
        names = (tokenizer.token_to_id(f"<extra_id_{n}>") for n in range(1000))
        sentinels = [token_id for token_id in names if token_id is not None]
        start = tokenizer.pad_token_id if start_id is None else start_id
        if not sentinels or tokenizer.eos_token_id is None or start is None:
            raise ConfigError(
                "this model's tokenizer lacks what objective=span needs: <extra_id_0> and more, an end token, and a "
                "token that the decoder begins with"
            )
        self.config, self.sentinels, self.start, self.eos = config, np.array(sentinels), start, tokenizer.eos_token_id
        self.special = frozenset(tokenizer.special_ids)

    def __call__(self, samples: Sequence[Sample], seed: int) -> PairBatch:
        pairs = [self.spoil(sample, random_of(seed, sample)) for sample in samples]
        return PairBatch(Batch.of([source for source, _ in pairs]), Batch.of([target for _, target in pairs]))

    def spoil(self, sample: Sample, random: np.random.Generator) -> tuple[Sample, Sample]:
        """Source and target of one sample."""
        tokens = sample.tokens
        while len(tokens) and int(tokens[-1]) in self.special:  # the end token, which both sides get anew
            tokens = tokens[:-1]
        lost = spans(len(tokens), self.config.share, self.config.span_length, len(self.sentinels), random)
        source, target = self._split(tokens, lost)
        nothing = np.full(len(source), NO_LABEL, np.int64)
        given = np.concatenate(([self.start], target[:-1]))
        return (
            Sample(sample.index, source, nothing, sample.epoch),
            Sample(sample.index, given.astype(np.int64), target, sample.epoch),
        )

    def _split(self, tokens: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begins = lost & ~np.concatenate(([False], lost[:-1]))
        number = np.cumsum(begins) - 1
        source = np.where(begins, self.sentinels[np.maximum(number, 0)], tokens)[~lost | begins]
        places = np.flatnonzero(begins)
        target = np.insert(tokens[lost], np.searchsorted(np.flatnonzero(lost), places), self.sentinels[: len(places)])
        end = np.array([self.eos])
        return np.concatenate((source, end)).astype(np.int64), np.concatenate((target, end)).astype(np.int64)


def spans(length: int, share: float, mean: float, most: int, random: np.random.Generator) -> np.ndarray:
    """Which of ``length`` tokens are lost, bool: kept and lost stretches take turns, kept first, lost last.

    As many tokens as ``share`` says (one at least, one left), in at most ``most`` spans of ``mean`` tokens on average.
    A text of a single token loses nothing.
    """
    if length < 2:
        return np.zeros(length, bool)
    noise = min(max(round(length * share), 1), length - 1)
    count = min(max(round(noise / mean), 1), most, noise, length - noise)
    kept, lost = _cut(length - noise, count, random), _cut(noise, count, random)
    stretches = np.stack((kept, lost), axis=1).reshape(-1)
    return np.repeat(np.arange(2 * count) % 2 == 1, stretches)


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """``parts`` positive lengths that sum to ``total``, every way as likely as any other."""
    borders = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], borders, [total])))


def _special(tokenizer: Tokenizer, name: str) -> int | None:
    token = tokenizer.special_tokens.get(name)
    return None if token is None else tokenizer.token_to_id(token)
