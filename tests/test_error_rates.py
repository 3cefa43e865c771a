"""How often the engine is wrong, by simulation: what a card registers is what it gets.

Rates are counted over seeded repetitions; `noise` is three standard errors of a rate near its limit.
"""

import math

import numpy as np
import pytest

from layerbook.claims import comparisons, power, zones

N = 400


def noise(rate, n=N):
    return 3 * math.sqrt(rate * (1 - rate) / n)


def share(found, wanted):
    return sum(v == wanted for v in found) / len(found)


def claim(tests=({"above": 0},), smallest=0.5):
    return {"id": "C1", "kind": "effect", "tests": list(tests), "smallest": smallest}


@pytest.mark.parametrize("n", [5, 12])
def test_a_true_null_is_seldom_reproduced(n):
    rng = np.random.default_rng(n)
    found = [zones.evaluate({"above": 0}, rng.normal(size=n), 0.5).verdict for _ in range(N)]
    assert share(found, "reproduced") <= 0.025 + noise(0.025)


@pytest.mark.parametrize(
    ("scale", "draw", "test"),
    [
        ("log", lambda rng, n: np.exp(0.5 * rng.normal(size=n)), {"above": 1}),
        ("z", lambda rng, n: np.tanh(0.5 * rng.normal(size=n)), {"above": 0}),
        ("share", lambda rng, n: rng.beta(2, 2, size=n), {"above": 0.5}),
    ],
)
def test_a_true_null_on_each_scale(scale, draw, test):
    rng = np.random.default_rng(7)
    test = {**test, "scale": scale}
    found = [zones.evaluate(test, draw(rng, 8)).verdict for _ in range(N)]
    assert share(found, "reproduced") <= 0.025 + noise(0.025)


def test_a_true_null_of_a_count_and_of_a_median():
    rng = np.random.default_rng(3)
    count = {"count": {"above": 0, "at_least": 0.5}}
    found = [zones.evaluate(count, rng.normal(size=20)).verdict for _ in range(N)]
    assert share(found, "reproduced") <= 0.025 + noise(0.025)
    median = {"on": "median", "above": 0}
    found = [zones.evaluate(median, rng.normal(size=12)).verdict for _ in range(N)]
    assert share(found, "reproduced") <= 0.025 + noise(0.025)


def test_a_difference_outside_the_margin_is_seldom_equivalent():
    rng = np.random.default_rng(4)
    found = [zones.evaluate({"within": 1.0}, rng.normal(1.0, 1, 15)).verdict for _ in range(N)]
    assert share(found, "reproduced") <= 0.05 + noise(0.05)


@pytest.mark.parametrize("expect", [{"mean": 0.5, "sd": 0.6}, {"mean": 0.5, "sd": 0.3}])
def test_an_effect_of_the_planned_size_is_decided(expect):
    n = power.planned_units({"above": 0}, expect, smallest=0.5)
    rng = np.random.default_rng(5)
    found = [
        zones.evaluate({"above": 0}, rng.normal(expect["mean"], expect["sd"], n), 0.5).verdict
        for _ in range(N)
    ]
    assert 1 - share(found, "undecided") >= 0.80 - noise(0.80)


def test_an_absent_effect_is_decided_at_the_same_number():
    n = power.planned_units({"above": 0}, {"mean": 0.0, "sd": 0.6}, smallest=0.5)
    rng = np.random.default_rng(6)
    found = [zones.evaluate({"above": 0}, rng.normal(0, 0.6, n), 0.5).verdict for _ in range(N)]
    assert share(found, "not reproduced") >= 0.75 - noise(0.75)


@pytest.mark.parametrize("compare", ["paired", "separate"])
@pytest.mark.parametrize(("name", "state"), [("N1", "held"), ("R1", "beaten")])
def test_a_control_equal_to_the_method_is_seldom_held_or_beaten(compare, name, state):
    rng = np.random.default_rng(8)
    control = {"id": name, "kind": "control", "fails": "C1", "compare": compare}
    found = [
        comparisons.compare(
            claim(smallest=0.01),
            control,
            {"": rng.normal(2, 1, size=8)},
            {"": rng.normal(2, 1, size=8)},
        ).state
        for _ in range(N)
    ]
    assert share(found, state) <= 0.025 + noise(0.025)
    if name == "N1":  # it satisfies the claim's test: mostly it is seen to pass
        assert share(found, "passes") > 0.8


def test_a_rival_that_is_ahead_is_said_to_be():
    rng = np.random.default_rng(9)
    control = {"id": "R1", "kind": "control", "fails": "C1"}
    found = []
    for _ in range(N // 3):
        own = rng.normal(1, 0.3, 8)
        other = own + rng.normal(1, 0.3, 8)
        found.append(comparisons.compare(claim(), control, {"": own}, {"": other}).state)
    assert share(found, "ahead") > 0.95


def test_draws_equal_to_the_method_are_seldom_beaten():
    rng = np.random.default_rng(10)
    control = {"id": "N1", "kind": "control", "fails": "C1", "compare": "draws"}
    found = [
        comparisons.compare(
            claim(), control, {"": rng.normal(size=1)}, {"": rng.normal(size=19)}
        ).state
        for _ in range(N)
    ]
    assert share(found, "held") <= 0.05 + noise(0.05)


def test_a_random_order_seldom_earns_a_verdict():
    rng = np.random.default_rng(11)
    test = {"of": "score", "rank": {"among": "random"}}
    found = [
        zones.evaluate(test, rng.normal(size=1), 0.3, rng.normal(size=200)).verdict
        for _ in range(N)
    ]
    assert share(found, "reproduced") + share(found, "weaker") <= 0.05 + noise(0.05)


def test_the_named_number_of_units_decides_as_often_as_said():
    """At the number that an undecided claim names, the same mean and spread do decide."""
    rng = np.random.default_rng(12)
    named = 0
    for _ in range(60):
        values = rng.normal(0.2, 0.6, 8)
        if zones.evaluate({"above": 0}, values, 0.5).verdict != "undecided":
            continue
        n = power.units_needed({"above": 0}, values, 0.5)
        x = np.linspace(-1, 1, n)
        again = values.mean() + values.std(ddof=1) * x / x.std(ddof=1)
        named += zones.evaluate({"above": 0}, again, 0.5).verdict != "undecided"
        assert n > 8
    assert named > 10
