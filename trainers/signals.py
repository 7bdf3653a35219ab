"""What a token earns from the teacher: detached advantages b_t on the sampled tokens.

With gamma = 0 their expectation is the gradient of KL(pi || target) at each position, the prefix
held fixed; the target is the teacher, unless a piece says otherwise
(tests/test_signals.py shows it by enumeration). A token without a score is NaN here and
masked by who mixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from turnwise.trainers.ranges import above, at_least
from turnwise.trainers.tokens import TokenTable

Signal = Callable[[TokenTable], np.ndarray]
"""float64 [M]: b_t; NaN where the teacher has no score."""


def reverse_kl(table: TokenTable) -> np.ndarray:
    """b = log T - log pi_old (on-policy distillation: tinker-cookbook, TCOD, SOD). [M]"""
    return table.teacher_M - table.old_M


def with_control_variate(table: TokenTable) -> np.ndarray:
    """b = log T - log pi_old + KL(pi || T) (vOPD, arXiv:2605.07865). [M]

    The KL is the mean of -b under pi, so the expected gradient is that of `reverse_kl` and its
    variance is lower.
    """
    return reverse_kl(table) + table.column("reverse_kl_M", "with_control_variate")


def tilted(factor: float = 1.25) -> Signal:
    """b = factor (log T - log R0) - (log pi_old - log R0) (G-OPD / ExOPD, arXiv:2602.12125).

    Its target is R0^(1 - factor) T^factor / Z: 1 is `reverse_kl`, below 1 interpolates between the
    reference R0 and the teacher, above 1 extrapolates beyond it.
    """
    at_least(0, factor=factor)
    return partial(_tilted, factor=factor)


def _tilted(table: TokenTable, factor: float) -> np.ndarray:
    reference_M = table.column("reference_M", "tilted")
    return factor * (table.teacher_M - reference_M) - (table.old_M - reference_M)


def contrast(table: TokenTable) -> np.ndarray:
    """b = log T+ - log T-, the teacher in two contexts (CEPO, arXiv:2605.19436). [M]"""
    return table.teacher_M - table.column("against_M", "contrast")


def clipped(signal: Signal, limit: float = 10.0) -> Signal:
    """`signal`, held within +-limit nats: one odd token cannot carry the batch."""
    above(0, limit=limit)
    return partial(_clipped, signal=signal, limit=limit)


def _clipped(table: TokenTable, signal: Signal, limit: float) -> np.ndarray:
    return np.clip(signal(table), -limit, limit)


def floored(signal: Signal, share: float = 0.1) -> Signal:
    """`signal`, at least log(share) / (1 - share) (REOPOLD): bounds what a token may lose.

    Raises:
        ValueError: `share` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    return partial(_floored, signal=signal, least=math.log(share) / (1 - share))


def _floored(table: TokenTable, signal: Signal, least: float) -> np.ndarray:
    return np.maximum(signal(table), least)
