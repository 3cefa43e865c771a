"""Controls as differences: the claim's own measurement against a sabotaged or a simpler version.

A control that names an effect (`fails: C1`) is measured on the same array as the claim's first
test of the paper's, and compared on that test's scale, turned so that more is better:

    N, sabotage             held     the interval of (method - sabotage) lies above 0
                            passes   not so, and the sabotaged version satisfies the claim's tests
    R, simpler explanation  level    the 90 % interval of the difference lies within +-smallest
                            beaten   the 95 % interval of (method - rival) lies above 0
                            ahead    it lies below 0

and both are undecided otherwise. Arms without variation between units cannot be compared, whichever
of the two is constant: their difference would have an interval that nothing was learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbook.claims import inference, power, roles, stats, zones

HELD, PASSES = "held", "passes"
BEATEN, LEVEL, AHEAD = "beaten", "level", "ahead"
UNDECIDED = zones.UNDECIDED
STATES = {"sabotage": (HELD, PASSES, UNDECIDED), "rival": (BEATEN, LEVEL, AHEAD, UNDECIDED)}
FEWEST_DRAWS = 19  # with the method itself twenty: the first of twenty has p = 0.05


@dataclass(frozen=True)
class Comparison:
    """One control against one claim.

    Attributes:
        state: one of STATES.
        estimate, interval: of method - control on the test's scale, positive when the method is
            better; None for draws and for single values the interval.
        compare: "paired", "separate", "draws" or "one value".
        p: of "the control is at least as good"; by rank for draws.
    """

    state: str
    reason: str
    compare: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    n: int = 0
    cause: dict[str, Any] | None = None


def goodness(test: Mapping[str, Any]) -> Callable[[Sequence[float]], np.ndarray]:
    """The map of values, shape (n,), to a scale on which more is better for a test.

    For a test of one side that is its scale with its sign; for a range it is minus the distance
    from the middle. Hits of a count are compared by the values themselves.
    """
    if "rank" in test:
        sign = 1.0 if test["rank"].get("better", "higher") == "higher" else -1.0
        return lambda values: sign * stats.clean(values)
    bound = test.get("every") or test.get("count") or test
    scale = inference.SCALES[test.get("scale", "")]
    if "above" in bound or "below" in bound:
        sign = zones.direction(bound)
        return lambda values: sign * scale.to(values)
    if "matches" in test:
        middle = float(np.mean(test["matches"]["values"]))
    elif "within" in bound:
        middle = scale.point(0.0)
    else:
        middle = float(np.mean([scale.point(v) for v in bound["between"]]))
    return lambda values: -np.abs(scale.to(values) - middle)


def margin(test: Mapping[str, Any], smallest: float | None) -> float | None:
    """`smallest` as a width on the scale of a test: within it two versions are level.

    An equivalence has its own margin. A count and a rank have none: their `smallest` is a share.
    """
    if "within" in test:
        return float(test["within"])
    if smallest is None or "count" in test or "rank" in test:
        return None
    if "above" in test or "below" in test:
        b = zones.bounds(test, smallest)
        return abs(b.enough - b.null)
    return smallest


def way(control: Mapping[str, Any], own: Sequence[float], other: Sequence[float]) -> str:
    """How two arms are compared: as registered, else in pairs when they have one length."""
    return control.get("compare", "paired" if len(own) == len(other) else "separate")


def compare(
    claim: Mapping[str, Any],
    control: Mapping[str, Any],
    own: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
) -> Comparison:
    """Hold a control against one claim.

    Args:
        own: array name -> the claim's values, shape (n,).
        other: array name -> the control's values, shape (m,).
    """
    test, name = roles.compared_on(claim), roles.compared_on(claim).get("of", "")
    a, b = own.get(name, []), other.get(name, [])
    how = way(control, a, b)
    try:
        if not len(a) or not len(b):
            raise ValueError(f"the array {name or 'of values'!r} was not measured on both")
        better = goodness(test)
        x, y = better(a), better(b)
        width = margin(test, roles.smallest_of(claim, test))
        if how == "draws":
            return _by_rank(roles.role(control), test, x, y, b, width)
        if test.get("deterministic") and x.size == y.size == 1:
            return _by_value(claim, control, own, other, float(x[0] - y[0]), width)
        return _by_interval(claim, control, own, other, how, x, y, width)
    except inference.TooFew as error:
        cause = {"kind": "units", "n": len(b), "needed": error.needed}
        return Comparison(UNDECIDED, str(error), how, n=len(b), cause=cause)
    except inference.Constant as error:
        reason = f"cannot be compared: {error}"
        return Comparison(UNDECIDED, reason, how, n=len(b), cause={"kind": "constant"})
    except ValueError as error:
        cause = {"kind": "not measured"}
        return Comparison(UNDECIDED, str(error), how, n=len(b), cause=cause)


def _varied(x: np.ndarray, whose: str) -> None:
    if x.size > 1 and inference.is_constant(x):
        raise inference.Constant(f"all {x.size} units of {whose} are equal")


def satisfied(claim: Mapping[str, Any], own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a control's arrays satisfy all of the paper's tests of a claim as far as the claim does:
    all are reproduced; where the claim itself comes out weaker, they may be weaker as well.

    Random orders of a rank test are those of the claim.
    """

    def outcomes(arrays: Mapping[str, Any]) -> set[str]:
        found = set()
        for test in roles.paper_tests(claim):
            values = arrays.get(test.get("of", ""), [])
            among = own.get(test["rank"]["among"]) if "rank" in test else None
            smallest = roles.smallest_of(claim, test)
            found.add(zones.evaluate(test, values, smallest, among).verdict)
        return found

    enough, here = {zones.REPRODUCED}, outcomes(own)
    if here <= {zones.REPRODUCED, zones.WEAKER}:
        enough |= here
    return outcomes(other) <= enough


def _by_interval(
    claim: Mapping[str, Any],
    control: Mapping[str, Any],
    own: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    how: str,
    x: np.ndarray,
    y: np.ndarray,
    width: float | None,
) -> Comparison:
    """Paired, or two independent samples."""
    _varied(x, claim["id"])
    _varied(y, control["id"])
    on = roles.compared_on(claim).get("on", "mean")
    if how == "paired":
        interval = lambda level: inference.paired(x, y, on, level)  # noqa: E731
        one_sided = lambda: stats.p_greater(x - y, 0.0, on)  # noqa: E731
    else:
        interval = lambda level: inference.separate(x, y, level)  # noqa: E731
        one_sided = lambda: inference.p_separate(x, y)  # noqa: E731
    i = interval(0.95)  # refuses what has no interval, and so no p either
    found = {"estimate": i.estimate, "interval": (i.low, i.high), "p": one_sided(), "n": i.n}
    text = f"{how} difference {i.estimate:.3g}, {zones.span(i.low, i.high)}"
    needed = power.units_needed({"above": 0}, x - y) if how == "paired" else None
    units = {"kind": "units", "n": i.n, "needed": needed}
    if roles.role(control) == "sabotage":
        if i.low > 0:
            return Comparison(HELD, f"{text} lies above 0", how, **found)
        if satisfied(claim, own, other):
            reason = f"{text} does not lie above 0, and it satisfies the test of {claim['id']}"
            return Comparison(PASSES, reason, how, **found)
        return Comparison(UNDECIDED, f"{text} does not lie above 0", how, cause=units, **found)
    narrow = i if width is None else interval(0.90)
    if width is not None and -width <= narrow.low and narrow.high <= width:
        reason = f"{zones.span(narrow.low, narrow.high, 0.90)} lies within ±{width:.3g}"
        return Comparison(LEVEL, f"{how} difference {i.estimate:.3g}: {reason}", how, **found)
    if i.low > 0:
        return Comparison(BEATEN, f"{text} lies above 0", how, **found)
    if i.high < 0:
        return Comparison(AHEAD, f"{text} lies below 0", how, **found)
    return Comparison(UNDECIDED, f"{text} includes 0", how, cause=units, **found)


def _by_rank(
    kind: str,
    test: Mapping[str, Any],
    x: np.ndarray,
    y: np.ndarray,
    raw: Sequence[float],
    width: float | None,
) -> Comparison:
    """One value of the method among draws of the control; units of the method are averaged first.

    Few draws say little however close they lie together: fewer than 19 decide nothing.
    """
    if y.size < FEWEST_DRAWS:
        text = f"{y.size} draws, at least {FEWEST_DRAWS} are needed"
        raise inference.TooFew(text, FEWEST_DRAWS)
    _varied(y, "the control")
    r = inference.rank(float(x.mean()), y)
    difference = float(x.mean() - np.median(y))
    text = f"better than {r.share:.0%} of {r.n} draws, p = {r.p:.3g}"
    found = {"estimate": difference, "p": r.p, "n": r.n}
    units = {"kind": "units", "n": r.n, "needed": None}
    if kind == "sabotage":
        if r.p <= inference.RANK_LEVEL:
            return Comparison(HELD, text, "draws", **found)
        bound = test.get("every") or test.get("count") or test
        if "rank" not in test and zones.satisfies(bound, stats.clean(raw)).mean() >= 0.5:
            text += "; half of the draws or more lie where the claim asks"
            return Comparison(PASSES, text, "draws", **found)
        return Comparison(UNDECIDED, text, "draws", cause=units, **found)
    close = width is not None and np.quantile(np.abs(x.mean() - y), 0.9) <= width
    if close:
        return Comparison(LEVEL, f"{text}; nine in ten lie within ±{width:.3g}", "draws", **found)
    if r.p <= inference.RANK_LEVEL:
        return Comparison(BEATEN, text, "draws", **found)
    if r.p_worse <= inference.RANK_LEVEL:
        return Comparison(AHEAD, text, "draws", **found)
    return Comparison(UNDECIDED, text, "draws", cause=units, **found)


def _by_value(
    claim: Mapping[str, Any],
    control: Mapping[str, Any],
    own: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    difference: float,
    width: float | None,
) -> Comparison:
    """One value against one value, neither with an interval: told apart by `smallest`."""
    text = f"difference of two single values {difference:.3g}"
    found = {"estimate": difference, "n": 1}
    least = width or 0.0
    if roles.role(control) == "sabotage":
        if difference > 0 and difference >= least:
            return Comparison(HELD, text, "one value", **found)
        state = PASSES if satisfied(claim, own, other) else UNDECIDED
        cause = {"kind": "units", "n": 1, "needed": None} if state == UNDECIDED else None
        return Comparison(state, text, "one value", cause=cause, **found)
    state = LEVEL if abs(difference) <= least else BEATEN if difference > 0 else AHEAD
    return Comparison(state, text, "one value", **found)
