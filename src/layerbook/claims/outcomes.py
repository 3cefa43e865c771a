"""One registered test applied to one array of measurements.

This is the part of the engine that looks at numbers; `layerbook.claims.engine` combines its
outcomes into verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbook.claims import stats

REPRODUCED, WEAKER, NOT_REPRODUCED = "reproduced", "weaker", "not reproduced"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
VERDICTS = (REPRODUCED, WEAKER, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED)


@dataclass
class Outcome:
    """What one test says about one array."""

    verdict: str
    reason: str
    of: str = ""
    test: str = ""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    p: float | None = None
    values: list[float] = field(default_factory=list)


def describe(test: Mapping[str, Any]) -> str:
    """The test in words, for tables: 'mean of gain > 0'."""
    name = f" of {test['of']}" if test.get("of") else ""
    if "every" in test:
        return f"every unit{name} {_bound(test['every'])}"
    if "count" in test:
        c = test["count"]
        return f"share of units{name} {_bound(c)} is at least {c['at_least']:g}"
    if "matches" in test:
        m = test["matches"]
        return f"mean{name} within the prediction interval of {len(m['values'])} reference units (floor {m['floor']:g})"
    return f"{test.get('on', 'mean')}{name} {_bound(test)}"


def _bound(t: Mapping[str, Any]) -> str:
    if "above" in t:
        return f"> {t['above']:g}"
    if "below" in t:
        return f"< {t['below']:g}"
    if "between" in t:
        return f"in [{t['between'][0]:g}, {t['between'][1]:g}]"
    return f"within ±{t['within']:g} (90 % interval)"


def satisfies(t: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Elementwise truth of a bound, shape (n,)."""
    if "above" in t:
        return x > t["above"]
    if "below" in t:
        return x < t["below"]
    return (x >= t["between"][0]) & (x <= t["between"][1])


def evaluate(
    test: Mapping[str, Any], values: Sequence[float], smallest: float | None = None
) -> Outcome:
    """Apply one registered test to one array of per-unit measurements, shape (n,).

    Returns an `Outcome`; unusable input (NaN, too few units) is inconclusive with its reason,
    never an exception and never a pass.
    """
    out = Outcome(
        INCONCLUSIVE,
        "",
        of=test.get("of", ""),
        test=describe(test),
        values=[float(v) for v in values],
        n=len(values),
    )
    try:
        x = stats.clean(values)
        if "every" in test:
            return _every(test["every"], x, out)
        if "count" in test:
            return _count(test["count"], x, out)
        if "matches" in test:
            return _matches(test["matches"], x, out)
        return _interval_test(test, x, out, smallest)
    except ValueError as error:
        out.reason = str(error)
        return out


def _every(bound: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    ok = satisfies(bound, x)
    worst = (
        x.max()
        if "below" in bound
        else x.min()
        if "above" in bound
        else x[np.argmax(np.abs(x - np.mean(bound["between"])))]
    )
    out.estimate, out.p = float(worst), None
    out.verdict = REPRODUCED if ok.all() else NOT_REPRODUCED
    out.reason = f"{int(ok.sum())} of {x.size} units satisfy it; the worst is {worst:.3g}"
    return out


def _count(c: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    if x.size < 3:
        raise ValueError(f"{x.size} units, at least 3 are needed for an interval")
    hits = int(satisfies(c, x).sum())
    i = stats.share_interval(hits, x.size)
    out.estimate, out.interval, out.p = (
        i.estimate,
        (i.low, i.high),
        stats.p_share(hits, x.size, c["at_least"]),
    )
    if i.low >= c["at_least"]:
        out.verdict = REPRODUCED
    elif i.high < c["at_least"]:
        out.verdict = NOT_REPRODUCED
    out.reason = f"share {i.estimate:.2f}, 95 % interval [{i.low:.2f}, {i.high:.2f}]"
    return out


def _matches(m: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    low, high = stats.prediction_interval(m["values"], x.size, m["floor"])
    out.estimate, out.interval = float(x.mean()), (low, high)
    out.verdict = REPRODUCED if low <= x.mean() <= high else NOT_REPRODUCED
    out.reason = f"mean {x.mean():.4g} against the prediction interval [{low:.4g}, {high:.4g}]"
    return out


def _interval_test(
    t: Mapping[str, Any], x: np.ndarray, out: Outcome, smallest: float | None
) -> Outcome:
    on = t.get("on", "mean")
    i = stats.interval(x, on, 0.90 if "within" in t else 0.95)
    out.estimate, out.interval = i.estimate, (i.low, i.high)
    if i.low == i.high:
        raise ValueError(
            "all units are equal: without variation between units no interval can be formed"
        )
    text = f"{'90' if 'within' in t else '95'} % interval [{i.low:.4g}, {i.high:.4g}]"
    if "within" in t or "between" in t:
        low, high = (-t["within"], t["within"]) if "within" in t else t["between"]
        inside, outside = low <= i.low and i.high <= high, i.high < low or i.low > high
        out.p = max(stats.p_greater(x, low, on), stats.p_greater(-x, -high, on))
        out.verdict = REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
        out.reason = f"{text} {'lies inside' if inside else 'lies outside' if outside else 'crosses'} [{low:g}, {high:g}]"
        return out
    sign = 1.0 if "above" in t else -1.0
    threshold = sign * (t["above"] if "above" in t else t["below"])
    low, high, estimate = sorted((sign * i.low, sign * i.high)) + [sign * i.estimate]
    out.p = stats.p_greater(sign * x, threshold, on)
    null = sign * t["null_value"] if "null_value" in t else None
    if low > threshold:
        out.verdict, out.reason = REPRODUCED, f"{text} satisfies the test"
        base = threshold if null is None else null
        if smallest is not None and estimate - base < smallest:
            out.verdict = WEAKER
            out.reason = f"{text} satisfies the test, but the effect is smaller than the smallest of interest ({smallest:g})"
    elif high <= threshold and null is not None and low > null:
        out.verdict, out.reason = (
            WEAKER,
            f"{text} has the paper's direction but falls short of the threshold",
        )
    elif high <= threshold:
        out.verdict, out.reason = NOT_REPRODUCED, f"{text} lies on the wrong side"
    else:
        out.reason = f"{text} spans the threshold"
    return out
