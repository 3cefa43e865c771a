"""One registered test applied to one array: the three zones between which a claim is decided.

For a test "above a threshold" (below is its mirror image) with the 95 % interval of the mean over
units:

    reproduced      the interval lies beyond the threshold
    weaker          it lies on the paper's side of no effect, but not beyond the threshold;
                    or beyond it with an estimate under the smallest effect that would matter
    not reproduced  opposite: it lies on the other side of no effect;
                    or absent: the 90 % interval lies below no effect + smallest
    undecided       none of these

Where two rows fit, the earlier one counts. `layerbook.claims.engine` combines the outcomes of a
claim's tests, its controls and its preconditions into a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbook.claims import inference, stats, testwords

REPRODUCED, WEAKER, NOT_REPRODUCED = "reproduced", "weaker", "not reproduced"
UNDECIDED, NOT_TESTED = "undecided", "not tested"
VERDICTS = (REPRODUCED, WEAKER, NOT_REPRODUCED, UNDECIDED, NOT_TESTED)
CAUSES = {
    "units": "too few units",
    "gate": "a precondition was not met",
    "gate not measured": "a precondition was not measured",
    "control": "a sabotaged control passes, or none was seen to fail",
    "identity": "an identity does not hold",
    "fact": "a fact that the notebook states does not hold",
    "not measured": "it was not measured, or not as numbers",
    "constant": "all units are equal",
}
FEWEST_DRAWS = 200  # random orders of a rank test, unless all there are were taken


@dataclass
class Outcome:
    """What one test says about one array.

    Attributes:
        verdict: one of VERDICTS but the last.
        cause: of an undecided one: {"kind": one of CAUSES, ...}.
        estimate, interval: in the array's own unit; `level` is the level of the interval.
        p: one-sided, of the test's own null hypothesis; None where there is no inference.
    """

    verdict: str
    reason: str
    of: str = ""
    asks: str = "paper"
    test: str = ""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None
    n: int = 0
    p: float | None = None
    cause: dict[str, Any] | None = None
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bounds:
    """The numbers that separate the zones, on the test's scale and turned so that more is better.

    Attributes:
        threshold: what the paper's figure has to lie beyond.
        null: no effect; the threshold itself where the card names none.
        enough: null + smallest, the smallest effect that would matter; None where none is named.
    """

    threshold: float
    null: float
    enough: float | None


def satisfies(t: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Elementwise truth of a bound, shape (n,)."""
    if "above" in t:
        return x > t["above"]
    if "below" in t:
        return x < t["below"]
    low, high = t["between"] if "between" in t else (-t["within"], t["within"])
    return (x >= low) & (x <= high)


def direction(t: Mapping[str, Any]) -> float:
    """+1 for 'above', -1 for 'below'."""
    return 1.0 if "above" in t else -1.0


def bounds(test: Mapping[str, Any], smallest: float | None) -> Bounds:
    """The bounds between the zones of a test 'above' or 'below', on its scale.

    Raises:
        ValueError: a bound lies where the scale has no value (a ratio of 0 or less).
    """
    sign, scale = direction(test), inference.SCALES[test.get("scale", "")]
    threshold = test["above"] if "above" in test else test["below"]
    null = test.get("null_value", threshold)
    enough = None if smallest is None else sign * scale.point(null + sign * smallest)
    return Bounds(sign * scale.point(threshold), sign * scale.point(null), enough)


def zone(low: float, high: float, high90: float, estimate: float, b: Bounds) -> tuple[str, str]:
    """Verdict and its reason, from a 95 % interval, the upper end of the 90 % one, and the bounds.

    All are on one scale on which more is better.
    """
    if low > b.threshold and (b.enough is None or estimate >= b.enough):
        return REPRODUCED, "lies beyond the threshold"
    if low > b.threshold:
        return WEAKER, "lies beyond the threshold, but the effect is smaller than would matter"
    if low > b.null:
        return WEAKER, "has the paper's direction but does not lie beyond the threshold"
    if high < b.null:
        return NOT_REPRODUCED, "lies on the other side"
    if b.enough is not None and high90 < b.enough:
        return NOT_REPRODUCED, "leaves no room for an effect that would matter"
    return UNDECIDED, "is too wide to decide"


def evaluate(
    test: Mapping[str, Any],
    values: Sequence[float],
    smallest: float | None = None,
    among: Sequence[float] | None = None,
) -> Outcome:
    """Apply one registered test to one array of per-unit measurements, shape (n,).

    Args:
        smallest: the smallest effect that would matter, in the test's own unit
            (`layerbook.claims.roles.smallest_of`).
        among: scores of random orders, shape (m,), for a rank test.

    Returns:
        an `Outcome`. Unusable input (NaN, too few units, one number n times) is undecided with its
        cause, never an exception and never a pass.
    """
    out = Outcome(
        UNDECIDED,
        "",
        of=test.get("of", ""),
        asks=test.get("asks", "paper"),
        test=testwords.describe(test),
        values=[float(v) for v in values],
        n=len(values),
    )
    try:
        x = stats.clean(values)
        if "rank" in test:
            return _rank(test, x, out, smallest, among)
        if test.get("deterministic"):
            return _deterministic(test, x, out, smallest)
        if "every" in test:
            return _every(test["every"], x, out)
        if "count" in test:
            return _count(test, x, out, smallest)
        if "matches" in test:
            return _matches(test["matches"], x, out)
        if "within" in test or "between" in test:
            return _inside(test, x, out)
        return _beyond(test, x, out, smallest)
    except inference.TooFew as error:
        out.cause = {"kind": "units", "n": out.n, "needed": error.needed}
        out.reason = str(error)
    except inference.Constant as error:
        out.cause, out.reason = {"kind": "constant"}, str(error)
    except ValueError as error:
        out.cause, out.reason = {"kind": "not measured"}, str(error)
    return out


def _settle(out: Outcome, verdict: str, reason: str) -> Outcome:
    """Enter a verdict; an undecided one is so for want of units."""
    out.verdict, out.reason = verdict, reason
    if verdict == UNDECIDED:
        out.cause = {"kind": "units", "n": out.n, "needed": None}
    return out


def span(low: float, high: float, level: float = 0.95) -> str:
    """'95 % interval [low, high]'."""
    return f"{level * 100:.0f} % interval [{low:.4g}, {high:.4g}]"


def _beyond(
    test: Mapping[str, Any], x: np.ndarray, out: Outcome, smallest: float | None
) -> Outcome:
    """Mean or median above or below a threshold."""
    scale, sign, on = (
        inference.SCALES[test.get("scale", "")],
        direction(test),
        test.get("on", "mean"),
    )
    share = scale.name == "share"
    b, y = bounds(test, smallest), scale.to(x)
    wide = inference.interval(y, on, 0.95, share)
    low, high = sorted((sign * wide.low, sign * wide.high))
    high90 = high
    if b.enough is not None and low <= b.null:  # else it decides nothing
        narrow = inference.interval(y, on, 0.90, share)
        high90 = max(sign * narrow.low, sign * narrow.high)
    back = scale.backward
    out.estimate = float(back(wide.estimate))
    out.interval, out.level = (float(back(wide.low)), float(back(wide.high))), 0.95
    if share and sign < 0:  # p of a share is counted upwards
        out.p = inference.p_above(1 - y, 1 + b.threshold, on, share)
    else:
        out.p = inference.p_above(sign * y, b.threshold, on, share)
    verdict, reason = zone(low, high, high90, sign * wide.estimate, b)
    return _settle(out, verdict, f"{span(*out.interval)} {reason}")


def _inside(test: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    """Equivalence (90 % interval inside a margin) or a mean in a range (95 % interval inside)."""
    scale, on = inference.SCALES[test.get("scale", "")], test.get("on", "mean")
    share = scale.name == "share"
    edges = (-test["within"], test["within"]) if "within" in test else test["between"]
    low, high = (scale.point(v) for v in edges)
    y, level = scale.to(x), 0.90 if "within" in test else 0.95
    shown = inference.interval(y, on, level, share)
    out.estimate, out.level = float(scale.backward(shown.estimate)), level
    out.interval = (float(scale.backward(shown.low)), float(scale.backward(shown.high)))
    out.p = max(inference.p_above(y, low, on), inference.p_above(-y, -high, on))
    text = span(*out.interval, level)
    if low <= shown.low and shown.high <= high:
        return _settle(out, REPRODUCED, f"{text} lies inside [{edges[0]:g}, {edges[1]:g}]")
    wide = shown if level == 0.95 else inference.interval(y, on, 0.95, share)
    if wide.high < low or wide.low > high:
        return _settle(out, NOT_REPRODUCED, f"{text} lies outside [{edges[0]:g}, {edges[1]:g}]")
    return _settle(out, UNDECIDED, f"{text} crosses [{edges[0]:g}, {edges[1]:g}]")


def _count(test: Mapping[str, Any], x: np.ndarray, out: Outcome, smallest: float | None) -> Outcome:
    """Share of units that satisfy a bound, with its exact binomial interval."""
    c = test["count"]
    if x.size < inference.FEWEST_UNITS:
        needed = inference.FEWEST_UNITS
        raise inference.TooFew(f"{x.size} units, at least {needed} are needed", needed)
    hits = int(satisfies(c, x).sum())
    wide, narrow = (inference.share_interval(hits, x.size, level) for level in (0.95, 0.90))
    null = test.get("null_value", c["at_least"])
    b = Bounds(c["at_least"], null, None if smallest is None else null + smallest)
    out.estimate, out.interval, out.level = wide.estimate, (wide.low, wide.high), 0.95
    out.p = stats.p_share(hits, x.size, c["at_least"])
    verdict, reason = zone(wide.low, wide.high, narrow.high, wide.estimate, b)
    return _settle(out, verdict, f"{hits} of {x.size} units: {span(*out.interval)} {reason}")


def _rank(
    test: Mapping[str, Any],
    x: np.ndarray,
    out: Outcome,
    smallest: float | None,
    among: Sequence[float] | None,
) -> Outcome:
    """One score among those of random orders; several values of it are averaged first."""
    spec, draws = test["rank"], stats.clean(among if among is not None else [])
    out.n = draws.size
    if draws.size < FEWEST_DRAWS and not spec.get("all"):
        text = (
            f"{draws.size} random orders, at least {FEWEST_DRAWS} are needed unless these are all"
        )
        raise inference.TooFew(text, FEWEST_DRAWS)
    if inference.is_constant(draws):
        raise inference.Constant(
            "all random orders have one score: none can be better than another"
        )
    r = inference.rank(float(x.mean()), draws, spec.get("better", "higher") == "higher")
    out.estimate, out.interval, out.level, out.p = r.share, (r.low, r.high), 0.95, r.p
    null = test.get("null_value", 0.5)
    text = f"beats {r.share:.1%} of {r.n} random ones, {span(r.low, r.high)}, p = {r.p:.3g}"
    if r.p <= min(inference.RANK_LEVEL, 1 - spec.get("beats", 0.95) + 1e-12):
        return _settle(out, REPRODUCED, text)
    if r.p <= inference.RANK_LEVEL:
        return _settle(out, WEAKER, f"{text}: more than chance, less than the claim asks")
    if r.p_worse <= inference.RANK_LEVEL:
        return _settle(out, NOT_REPRODUCED, f"{text}: worse than random")
    if smallest is not None and r.high90 < null + smallest:
        return _settle(out, NOT_REPRODUCED, f"{text}: a random order often earns as much")
    return _settle(out, UNDECIDED, f"{text}: a random order may earn as much")


def _every(bound: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    """All units satisfy a bound: for identities, which have no spread to infer from."""
    ok = satisfies(bound, x)
    if "below" in bound:
        worst = x.max()
    elif "above" in bound:
        worst = x.min()
    else:
        worst = x[np.argmax(np.abs(x - np.mean(bound["between"])))]
    out.estimate = float(worst)
    out.verdict = REPRODUCED if ok.all() else NOT_REPRODUCED
    out.reason = f"{int(ok.sum())} of {x.size} units satisfy it; the worst is {worst:.3g}"
    return out


def _matches(m: Mapping[str, Any], x: np.ndarray, out: Outcome) -> Outcome:
    low, high = stats.prediction_interval(m["values"], x.size, m["floor"])
    out.estimate, out.interval, out.level = float(x.mean()), (low, high), 0.95
    out.verdict = REPRODUCED if low <= x.mean() <= high else NOT_REPRODUCED
    out.reason = f"mean {x.mean():.4g} against the prediction interval [{low:.4g}, {high:.4g}]"
    return out


def _deterministic(
    test: Mapping[str, Any], x: np.ndarray, out: Outcome, smallest: float | None
) -> Outcome:
    """One value without an interval, decided by the registered bound alone."""
    if x.size > 1:
        kind = "one number" if inference.is_constant(x) else "different numbers"
        raise inference.Constant(f"{kind} {x.size} times where the card registers one value")
    out.estimate, value = float(x[0]), float(x[0])
    text = f"one value, no interval: {value:.4g}"
    if not ("above" in test or "below" in test):
        bound = test.get("every", test)
        out.verdict = REPRODUCED if satisfies(bound, x).all() else NOT_REPRODUCED
        out.reason = (
            f"{text} {testwords.bound(bound) if out.verdict == REPRODUCED else 'lies outside'}"
        )
        return out
    scale, sign, b = (
        inference.SCALES[test.get("scale", "")],
        direction(test),
        bounds(test, smallest),
    )
    y = sign * scale.point(value)
    if y <= b.null:  # a single value has an interval of no width, on neither side when it is null
        out.verdict, out.reason = NOT_REPRODUCED, f"{text} shows no effect in this direction"
        return out
    out.verdict, reason = zone(y, y, y, y, b)
    out.reason = f"{text} {reason}"
    return out
