"""Rotary angles: from a :class:`~tokenmill.nn.config.RopeConfig` and positions to cosines and sines.

Scalings, each checked against transformers: linear (kaiokendev, Chen et al. 2023), dynamic NTK (emozilla 2023), YaRN
(Peng et al. 2023), Llama 3.1's bands, and longrope (Ding et al. 2024) with its two tables. The dynamic kinds depend on
how long a sequence is now; each sequence of a batch is treated by its own length, so an answer never depends on its
neighbours.

Axes: T tokens · R rotated features · F = R / 2 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tokenmill.nn.config import RopeConfig, RopeScaling
from tokenmill.ops.rope import rotary_angles, scaled_cos_sin


def inverse_frequencies(config: RopeConfig, length: int | None = None, device: torch.device | None = None) -> Tensor:
    """The angle a position adds, for each of F feature pairs, float32. ``length`` matters to dynamic and longrope."""
    exponent_F = torch.arange(0, config.dim, 2, dtype=torch.float32, device=device) / config.dim
    scaling = config.scaling
    if scaling is not None and scaling.kind == "dynamic":
        longest = max(length or 0, config.max_position)
        stretch = scaling.factor * longest / config.max_position - (scaling.factor - 1)
        return 1.0 / (config.theta * stretch ** (config.dim / (config.dim - 2))) ** exponent_F
    plain_F = 1.0 / config.theta**exponent_F
    if scaling is None:
        return plain_F
    if scaling.kind == "linear":
        return plain_F / scaling.factor
    if scaling.kind == "longrope":
        long = length is not None and length > scaling.original_max_position
        return plain_F / torch.tensor(scaling.long_factor if long else scaling.short_factor, device=device)
    return _yarn(plain_F, config, scaling) if scaling.kind == "yarn" else _llama3(plain_F, scaling)


def _yarn(plain_F: Tensor, config: RopeConfig, scaling: RopeScaling) -> Tensor:
    """Frequencies that turn often in the original context stay, slow ones are interpolated, a ramp lies between."""

    def feature_that_turns(times: float) -> float:
        turns = scaling.original_max_position / (times * 2 * math.pi)
        return config.dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = feature_that_turns(scaling.beta_fast), feature_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    features_F = torch.arange(len(plain_F), dtype=torch.float32, device=plain_F.device)
    interpolated_F = ((features_F - low) / ((high - low) or 0.001)).clamp(0, 1)
    return plain_F * (1 - interpolated_F) + plain_F / scaling.factor * interpolated_F


def _llama3(plain_F: Tensor, scaling: RopeScaling) -> Tensor:
    """Wavelengths beyond the original context are stretched by the factor, short ones kept, a ramp between them."""
    wavelength_F = 2 * math.pi / plain_F
    turns_F = scaling.original_max_position / wavelength_F
    kept_F = ((turns_F - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return plain_F / scaling.factor * (1 - kept_F) + plain_F * kept_F


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied with, so that attention keeps its temperature when it is stretched."""
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1.0:
        return 1.0
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position))

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


class Rotary(nn.Module):
    """Angles of one RopeConfig. Holds no weights; the frequencies of the static kinds are computed once."""

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = attention_factor(config.scaling)
        self.by_length = config.scaling is not None and config.scaling.kind in ("dynamic", "longrope")
        self._inv_F: Tensor | None = None

    def forward(self, positions_T: Tensor, lengths_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, R] in ``dtype``. ``lengths_T``: how long each token's own sequence is by now."""
        if self.by_length:
            return scaled_cos_sin(self._angles_by_length(positions_T, lengths_T), self.scale, dtype)
        return rotary_angles(positions_T, self._frequencies(positions_T.device), self.scale, dtype)

    def _frequencies(self, device: torch.device) -> Tensor:
        if self._inv_F is None or self._inv_F.device != device:
            self._inv_F = inverse_frequencies(self.config, device=device)
        return self._inv_F

    def _angles_by_length(self, positions_T: Tensor, lengths_T: Tensor) -> Tensor:
        angles_TF = torch.empty(len(positions_T), self.config.dim // 2, device=positions_T.device)
        for length in lengths_T.unique().tolist():
            rows = lengths_T == length
            inv_F = inverse_frequencies(self.config, length, positions_T.device)
            angles_TF[rows] = positions_T[rows].float()[:, None] * inv_F
        return angles_TF
