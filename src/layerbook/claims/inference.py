"""Estimates, intervals and p values on the scale on which a quantity is averaged.

Every function takes one value per independent unit (a seed, a prompt family, a text). What scipy
has is scipy's; this module says which of its procedures is used, and on which scale: logarithms for
ratios, times and perplexities, Fisher's z for correlations, shares kept inside [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from layerbook.claims import stats
from layerbook.claims.stats import Interval

FEWEST_UNITS = 3  # with two units Student's t is wider than any effect that a paper reports
RANK_LEVEL = 0.05  # one-sided: an order has to beat this many of the random ones, all but 5 %
EQUAL = 1e-12  # spread, relative to the size of the numbers, below which they are one number


class Constant(ValueError):
    """All units are equal, so that nothing says how far another one would have been."""


class TooFew(ValueError):
    """Fewer units than the procedure needs; `needed` says how many it does."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Scale:
    """A monotone map under which values are averaged.

    Attributes:
        name: as a card writes it.
        forward: from the array's own unit to the scale.
        backward: from the scale to the array's own unit.
        inside: the open range of values that the map takes.
    """

    name: str
    forward: Callable[[float], float]
    backward: Callable[[float], float]
    inside: tuple[float, float]
    wants: str

    def to(self, values: Sequence[float]) -> np.ndarray:
        """Values of shape (n,) on this scale. Raises ValueError for one outside the range."""
        x = stats.clean(values)
        low, high = self.inside
        bad = int((~((x > low) & (x < high))).sum())
        if bad:
            raise ValueError(f"scale {self.name} takes {self.wants}: {bad} of {x.size} are not")
        return np.asarray(self.forward(x), dtype=np.float64)

    def point(self, value: float) -> float:
        """One number of the card (a threshold, a null) on this scale. Raises ValueError."""
        return float(self.to([value])[0])


INFINITE = (-np.inf, np.inf)
SCALES = {
    "": Scale("", lambda x: x, lambda y: y, INFINITE, "numbers"),
    "log": Scale("log", np.log, np.exp, (0.0, np.inf), "positive numbers"),
    "z": Scale("z", np.arctanh, np.tanh, (-1.0, 1.0), "correlations between -1 and 1"),
    # A share is averaged as it is, its interval is cut to what a share can be.
    "share": Scale(
        "share", lambda x: x, lambda y: y, (-EQUAL, 1 + EQUAL), "shares between 0 and 1"
    ),
}


def is_constant(values: Sequence[float]) -> bool:
    """Whether all of some finite numbers are one number, up to rounding."""
    x = stats.clean(values)
    return bool(np.ptp(x) <= EQUAL * max(1.0, float(np.abs(x).max())))


def interval(
    y: Sequence[float], on: str = "mean", level: float = 0.95, share: bool = False
) -> Interval:
    """Interval of the mean or median of values that are on their scale already, shape (n,).

    Args:
        on: "mean" (hull of Student's t and the BCa bootstrap) or "median" (order statistics).
        share: the values are shares; zeros and ones alone are counted, with the exact binomial
            interval (Clopper and Pearson 1934), others cut to [0, 1].

    Raises:
        Constant: all units are equal.
        TooFew: fewer than three units, or too few for an interval of the median.
        ValueError: a value is not finite.
    """
    x = stats.clean(y)
    if x.size < FEWEST_UNITS:
        raise TooFew(f"{x.size} units, at least {FEWEST_UNITS} are needed", FEWEST_UNITS)
    if is_constant(x):
        raise Constant(
            f"all {x.size} units are {x[0]:.4g}: without variation between units there is no interval"
        )
    if on == "median":
        needed = units_for_median(level)
        if x.size < needed:
            raise TooFew(
                f"{x.size} units, a {level:.0%} interval of the median needs {needed}", needed
            )
        return stats.median_interval(x, level)
    if share and set(np.unique(x)) <= {0.0, 1.0}:
        return share_interval(int(x.sum()), x.size, level)
    found = stats.mean_interval(x, level)
    if not share:
        return found
    low, high = max(0.0, found.low), min(1.0, found.high)
    return Interval(found.estimate, low, high, found.n, f"{found.method}, inside [0, 1]")


def units_for_median(level: float = 0.95) -> int:
    """Fewest units with which order statistics give an interval of the median at this level."""
    n = 1
    while 2 * 0.5**n > 1 - level:
        n += 1
    return n


def share_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a share (Clopper and Pearson 1934) from `hits` in `n` trials."""
    ci = scipy_stats.binomtest(hits, n).proportion_ci(confidence_level=level, method="exact")
    return Interval(hits / n, float(ci.low), float(ci.high), n, "Clopper-Pearson")


def p_above(y: Sequence[float], threshold: float, on: str = "mean", share: bool = False) -> float:
    """One-sided p value of 'the mean (median) is at most `threshold`', on the scale of `y`."""
    x = stats.clean(y)
    if share and on == "mean" and set(np.unique(x)) <= {0.0, 1.0}:
        return stats.p_share(int(x.sum()), x.size, threshold)
    return stats.p_greater(x, threshold, on)


@dataclass(frozen=True)
class Rank:
    """Where one score stands among the scores of random orders.

    Attributes:
        share: share of the random ones that it beats.
        low, high: exact 95 % interval of that share over all random ones.
        high90: upper end of the 90 % interval.
        p: (1 + number at least as good) / (1 + n); 1 / (1 + n) at best (Phipson and Smyth 2010).
        p_worse: the same rank counted from the other end.
        n: number of random ones.
    """

    share: float
    low: float
    high: float
    high90: float
    p: float
    p_worse: float
    n: int


def rank(score: float, draws: Sequence[float], higher: bool = True) -> Rank:
    """Place a score among random ones, shape (n,). Raises ValueError when one is not finite."""
    sign = 1.0 if higher else -1.0
    x, own = sign * stats.clean(draws), sign * float(stats.clean([score])[0])
    n = x.size
    beaten, as_good, as_bad = (
        int(v) for v in ((x < own).sum(), (x >= own).sum(), (x <= own).sum())
    )
    wide, narrow = share_interval(beaten, n), share_interval(beaten, n, 0.90)
    return Rank(
        beaten / n,
        wide.low,
        wide.high,
        narrow.high,
        (1 + as_good) / (1 + n),
        (1 + as_bad) / (1 + n),
        n,
    )


def paired(
    a: Sequence[float], b: Sequence[float], on: str = "mean", level: float = 0.95
) -> Interval:
    """Interval of the mean (median) of a - b over units, arrays of one shape (n,).

    Raises Constant, TooFew, or ValueError for arrays of different length.
    """
    x, y = stats.clean(a), stats.clean(b)
    if x.size != y.size:
        raise ValueError(
            f"{x.size} units against {y.size}: what is compared in pairs has one length"
        )
    return interval(x - y, on, level)


def separate(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Welch's interval of mean(a) - mean(b) for independent units, shapes (n,) and (m,).

    Raises Constant, TooFew or ValueError.
    """
    x, y = stats.clean(a), stats.clean(b)
    few = min(x.size, y.size)
    if few < FEWEST_UNITS:
        raise TooFew(f"{few} units in one arm, at least {FEWEST_UNITS} are needed", FEWEST_UNITS)
    if is_constant(x) or is_constant(y):
        raise Constant(
            "all units of an arm are equal: how far another would have been is not known"
        )
    ci = scipy_stats.ttest_ind(x, y, equal_var=False).confidence_interval(level)
    return Interval(float(x.mean() - y.mean()), float(ci.low), float(ci.high), few, "Welch")


def p_separate(a: Sequence[float], b: Sequence[float]) -> float:
    """One-sided p value of 'mean(a) is at most mean(b)' for independent units, by Welch's test."""
    return float(scipy_stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue)
