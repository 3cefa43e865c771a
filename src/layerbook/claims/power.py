"""How many units would decide a test, and with what chance a planned number will.

Both ask `layerbook.claims.zones` itself: the interval that Student's t (or a binomial) would give
for n units is put into its zones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from layerbook.claims import inference, stats, zones

MOST = 10_000  # units beyond which no number is named
LEAST_CHANCE = 0.8  # of a decision, below which a card is refused
SIMULATIONS = 4000
SEED = 20260101
MEDIAN_COST = math.pi / 2  # variance of the median over that of the mean, normal values


@cache
def _t(level: float, n: int) -> float:
    return float(scipy_stats.t.ppf((1 + level) / 2, n - 1))


def _verdict_of_mean(
    test: Mapping[str, Any], smallest: float | None
) -> Callable[[float, float, int], str]:
    """A function of mean, standard deviation (on the test's scale) and n, to the verdict."""
    cost = math.sqrt(MEDIAN_COST) if test.get("on") == "median" else 1.0
    scale = inference.SCALES[test.get("scale", "")]
    if "within" in test or "between" in test:
        edges = (-test["within"], test["within"]) if "within" in test else test["between"]
        low, high = (scale.point(v) for v in edges)
        level = 0.90 if "within" in test else 0.95

        def inside(mean: float, sd: float, n: int) -> str:
            half, wide = (_t(p, n) * sd * cost / math.sqrt(n) for p in (level, 0.95))
            if low <= mean - half and mean + half <= high:
                return zones.REPRODUCED
            if mean + wide < low or mean - wide > high:
                return zones.NOT_REPRODUCED
            return zones.UNDECIDED

        return inside
    sign, b = zones.direction(test), zones.bounds(test, smallest)

    def beyond(mean: float, sd: float, n: int) -> str:
        wide, narrow = (_t(p, n) * sd * cost / math.sqrt(n) for p in (0.95, 0.90))
        y = sign * mean
        return zones.zone(y - wide, y + wide, y + narrow, y, b)[0]

    return beyond


def _verdict_of_count(test: Mapping[str, Any], smallest: float | None) -> Callable[[int, int], str]:
    """A function of hits and n to the verdict."""
    least = test["count"]["at_least"]
    null = test.get("null_value", least)
    b = zones.Bounds(least, null, None if smallest is None else null + smallest)

    def verdict(hits: int, n: int) -> str:
        wide, narrow = (inference.share_interval(hits, n, level) for level in (0.95, 0.90))
        return zones.zone(wide.low, wide.high, narrow.high, wide.estimate, b)[0]

    return verdict


def units_needed(
    test: Mapping[str, Any], values: Sequence[float], smallest: float | None = None
) -> int | None:
    """About how many units would decide a test, if mean and spread stay as they were measured.

    Returns None where no number up to 10,000 would, or where units are not what is lacking (a rank,
    a single value, units that are all equal).
    """
    if any(key in test for key in ("rank", "every", "matches", "deterministic")):
        return None
    try:
        x = stats.clean(values)
        if "count" in test:
            share = float(zones.satisfies(test["count"], x).mean())
            verdict = _verdict_of_count(test, smallest)
            return _first(lambda n: verdict(round(share * n), n) != zones.UNDECIDED, x.size)
        y = inference.SCALES[test.get("scale", "")].to(x)
        if y.size < 2 or inference.is_constant(y):
            return None
        of_mean = _verdict_of_mean(test, smallest)
        mean, sd = float(y.mean()), float(y.std(ddof=1))
        return _first(lambda n: of_mean(mean, sd, n) != zones.UNDECIDED, y.size)
    except ValueError:
        return None


def _first(decided: Callable[[int], bool], n: int) -> int | None:
    """The first number of units above n that decides, within 2 %."""
    n = max(n, inference.FEWEST_UNITS - 1)
    while n < MOST:
        n += max(1, n // 50)
        if decided(n):
            return n
    return None


def chance_of_decision(
    test: Mapping[str, Any],
    expect: Mapping[str, Any],
    n: int,
    smallest: float | None = None,
    counts: Sequence[str] = (zones.REPRODUCED, zones.WEAKER, zones.NOT_REPRODUCED),
) -> float:
    """Chance that n units decide a test, if the truth is what the card expects; by simulation.

    Args:
        expect: {"mean": in the array's own unit, "sd": spread between units on the test's scale}.
            For a count the mean is the share of units that satisfy it; for a rank the share of
            random orders beaten, and n their number.
        counts: the verdicts that count as a decision.
    """
    rng = np.random.default_rng(SEED)
    if test.get("deterministic") or "every" in test or "matches" in test:
        return 1.0
    if "rank" in test:
        better = rng.binomial(n, 1 - expect["mean"], SIMULATIONS)
        return float(((1 + better) / (1 + n) <= inference.RANK_LEVEL).mean())
    if n < inference.FEWEST_UNITS:
        return 0.0
    if "count" in test:
        verdict = _verdict_of_count(test, smallest)
        hits = np.arange(n + 1)
        chances = scipy_stats.binom.pmf(hits, n, expect["mean"])
        return float(sum(c for k, c in zip(hits, chances) if verdict(int(k), n) in counts))
    if test.get("on") == "median" and n < inference.units_for_median():
        return 0.0
    of_mean = _verdict_of_mean(test, smallest)
    mean = inference.SCALES[test.get("scale", "")].point(expect["mean"])
    means = mean + expect["sd"] / math.sqrt(n) * rng.standard_normal(SIMULATIONS)
    sds = expect["sd"] * np.sqrt(rng.chisquare(n - 1, SIMULATIONS) / (n - 1))
    return float(np.mean([of_mean(m, s, n) in counts for m, s in zip(means, sds, strict=True)]))


def planned_units(
    test: Mapping[str, Any],
    expect: Mapping[str, Any],
    smallest: float | None = None,
    chance: float = LEAST_CHANCE,
) -> int | None:
    """Fewest units that decide a test with this chance; None where 10,000 do not."""
    low, high = inference.FEWEST_UNITS - 1, inference.FEWEST_UNITS
    enough = lambda n: chance_of_decision(test, expect, n, smallest) >= chance  # noqa: E731
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
