"""The engine: each verdict of the contract, and sabotage that must never come out as reproduced."""

import copy
import math

import numpy as np
import pytest

from layerbook.claims import engine, outcomes

GOOD = [0.5, 0.6, 0.55, 0.65, 0.52, 0.58]
NOISE = [0.1, -0.2, 0.05, -0.1, 0.15, -0.05]
CARD = {
    "claims": [
        {
            "id": "C1",
            "kind": "effect",
            "statement": "s",
            "paper": "p",
            "metric": "m",
            "unit": "seed",
            "tests": [{"of": "gain", "above": 0}, {"of": "level", "above": 0.4, "null_value": 0}],
            "smallest": 0.05,
            "tier": "cpu",
            "twin": "N1",
            "rival": "R1",
            "requires": ["G1"],
            "differs": "d",
        },
        {
            "id": "C2",
            "kind": "identity",
            "statement": "s",
            "paper": "p",
            "metric": "m",
            "unit": "layer",
            "tests": [{"every": {"below": 1e-3}}],
            "tier": "smoke",
        },
        {
            "id": "C3",
            "kind": "equivalence",
            "statement": "s",
            "paper": "p",
            "metric": "m",
            "unit": "seed",
            "tests": [{"within": 0.5}],
            "tier": "cpu",
        },
        {
            "id": "C4",
            "kind": "effect",
            "statement": "s",
            "paper": "p",
            "metric": "m",
            "unit": "seed",
            "tests": [{"above": 0}],
            "smallest": 0.01,
            "tier": "gpu",
            "twin": "N1",
            "differs": "d",
        },
        {
            "id": "N1",
            "kind": "control",
            "statement": "s",
            "metric": "m",
            "unit": "seed",
            "tier": "cpu",
            "fails": "C1",
        },
        {
            "id": "R1",
            "kind": "control",
            "statement": "s",
            "metric": "m",
            "unit": "seed",
            "tier": "cpu",
            "fails": "C1",
        },
    ],
    "gates": [
        {
            "id": "G1",
            "statement": "trained",
            "metric": "m",
            "unit": "seed",
            "test": {"every": {"above": 0.9}},
        }
    ],
}
MEASURED = {
    "C1": {"gain": GOOD, "level": GOOD},
    "C2": {"": [1e-6] * 4},
    "C3": {"": NOISE},
    "C4": {"": GOOD},
    "N1": {"gain": NOISE, "level": NOISE},
    "R1": {"gain": NOISE, "level": NOISE},
}


def decide(tier="cpu", gates=(0.95, 0.97), dry=False, **changes):
    measured = copy.deepcopy(MEASURED)
    for key, value in changes.items():
        if value is None:
            del measured[key]
        else:
            measured[key] = value
    return {
        r["id"]: r for r in engine.decide(CARD, measured, {"G1": list(gates)}, tier, dry)["claims"]
    }


def test_clean_measurements_are_reproduced():
    rows = decide()
    assert (
        rows["C1"]["verdict"] == "reproduced"
        and rows["C1"]["interval"][0] > 0
        and rows["C1"]["n"] == 6
    )
    assert rows["C1"]["rival"] == {"id": "R1", "passes": False}
    assert [rows[k]["verdict"] for k in ("C2", "C3", "N1", "R1")] == ["reproduced"] * 4
    assert rows["C1"]["also"][0]["outcome"] == "reproduced" and rows["C1"]["p_holm"] <= 0.05


def test_a_claim_above_the_tier_is_not_tested_even_with_values():
    assert decide()["C4"]["verdict"] == "not tested"
    assert decide(tier="gpu")["C4"]["verdict"] == "reproduced"
    assert {r["verdict"] for r in decide(tier="gpu", dry=True).values()} == {"not tested"}


def test_smoke_decides_identities_only():
    rows = decide(tier="smoke")
    assert rows["C2"]["verdict"] == "reproduced" and rows["C1"]["verdict"] == "not tested"


def test_wrong_side_is_not_reproduced():
    assert (
        decide(C1={"gain": [-g for g in GOOD], "level": GOOD})["C1"]["verdict"] == "not reproduced"
    )


def test_short_of_the_threshold_is_weaker():
    rows = decide(C1={"gain": GOOD, "level": [0.2, 0.25, 0.22, 0.21, 0.24, 0.2]})
    assert rows["C1"]["verdict"] == "weaker"


def test_smaller_than_the_smallest_of_interest_is_weaker():
    assert (
        decide(C1={"gain": [0.01, 0.012, 0.011, 0.009, 0.01, 0.011], "level": GOOD})["C1"][
            "verdict"
        ]
        == "weaker"
    )


def test_spanning_interval_is_inconclusive():
    assert decide(C1={"gain": NOISE, "level": GOOD})["C1"]["verdict"] == "inconclusive"
    assert decide(C3={"": [0.2, 0.9, 0.4, 0.6, 0.3, 0.7]})["C3"]["verdict"] == "inconclusive"


def test_unmet_gate_makes_inconclusive():
    row = decide(gates=(0.95, 0.5))["C1"]
    assert row["verdict"] == "inconclusive" and "G1" in row["reason"]
    assert decide(gates=())["C1"]["verdict"] == "inconclusive"


def test_a_twin_that_passes_makes_inconclusive_and_says_so():
    row = decide(N1={"gain": GOOD, "level": GOOD})
    assert row["N1"]["verdict"] == "not reproduced"
    assert row["C1"]["verdict"] == "inconclusive" and "N1 passes" in row["C1"]["reason"]
    assert decide(N1=None)["C1"]["verdict"] == "inconclusive"


def test_a_constant_control_that_passes_is_seen():
    row = decide(N1={"gain": [1.0] * 6, "level": [1.0] * 6})
    assert row["N1"]["verdict"] == "not reproduced" and row["C1"]["verdict"] == "inconclusive"
    assert decide(N1={"gain": [0.0] * 6, "level": [1.0] * 6})["N1"]["verdict"] == "reproduced"


def test_a_rival_that_passes_is_told_but_leaves_the_verdict():
    row = decide(R1={"gain": GOOD, "level": GOOD})["C1"]
    assert row["verdict"] == "reproduced" and row["rival"] == {"id": "R1", "passes": True}


def test_a_broken_identity_spares_nobody_a_failure():
    rows = decide(C1={"gain": [-g for g in GOOD], "level": GOOD}, C2={"": [1e-6, 0.5]})
    assert rows["C2"]["verdict"] == "not reproduced"
    assert rows["C1"]["verdict"] == "inconclusive" and "C2" in rows["C1"]["reason"]


def test_holm_takes_back_a_marginal_effect():
    marginal = [0.30, 0.9, 0.05, 0.7, -0.02, 0.8]  # p about 0.02 alone
    wide = [0.3, -0.4, 0.2, -0.1, 0.4, -0.3]
    card = {
        "claims": [
            dict(CARD["claims"][3], id=f"C{k}", tier="cpu", smallest=1e-6) for k in range(1, 6)
        ]
        + [dict(CARD["claims"][4], fails="C1")]
    }
    measured = {
        "C1": {"": marginal},
        **{f"C{k}": {"": wide} for k in range(2, 6)},
        "N1": {"": wide},
    }
    alone = engine.decide({"claims": [card["claims"][0], card["claims"][5]]}, measured, {}, "cpu")[
        "claims"
    ][0]
    five = engine.decide(card, measured, {}, "cpu")["claims"][0]
    assert (
        alone["verdict"] == "reproduced"
        and five["verdict"] == "inconclusive"
        and "Holm" in five["reason"]
    )


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 6,
        [0.0] * 6,
        [0.5, 0.6],
        [0.7],
        [],
        [math.nan] * 6,
        [0.5, math.nan, 0.6, 0.55, 0.5, 0.6],
        [math.inf, 0.5, 0.6, 0.5, 0.6, 0.7],
        [-v for v in GOOD],
        NOISE,
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "test", [{"above": 0}, {"between": [0.4, 0.7]}, {"on": "median", "above": 0.1}], ids=str
)
def test_sabotaged_measurements_are_never_reproduced(values, test):
    assert outcomes.evaluate(test, values).verdict != "reproduced"


def test_swapped_arms_flip_the_verdict():
    rng = np.random.default_rng(0)
    a, b = 0.9 + 0.01 * rng.normal(size=6), 0.7 + 0.01 * rng.normal(size=6)
    assert outcomes.evaluate({"above": 0}, a - b).verdict == "reproduced"
    assert outcomes.evaluate({"above": 0}, b - a).verdict == "not reproduced"


def test_count_uses_an_interval():
    test = {"count": {"above": 0, "at_least": 0.5}}
    assert outcomes.evaluate(test, [1.0] * 19 + [-1.0]).verdict == "reproduced"
    assert outcomes.evaluate(test, [1.0, 1.0, -1.0, 1.0]).verdict == "inconclusive"
    assert outcomes.evaluate(test, [-1.0] * 20).verdict == "not reproduced"
    assert outcomes.evaluate(test, [1.0] * 20).p == pytest.approx(0.5**20)


def test_matches_a_reference_with_a_floor():
    test = {"matches": {"values": [1.0, 1.01, 0.99, 1.0], "floor": 0.02}}
    assert outcomes.evaluate(test, [1.0, 1.01, 1.0]).verdict == "reproduced"
    assert outcomes.evaluate(test, [1.3, 1.31, 1.3]).verdict == "not reproduced"


def test_every_is_strict():
    assert outcomes.evaluate({"every": {"below": 1e-3}}, [1e-4, 2e-3]).verdict == "not reproduced"
    assert outcomes.evaluate({"every": {"between": [0, 0]}}, [0.0, 0.0]).verdict == "reproduced"


def test_a_missing_array_and_a_missing_claim():
    assert decide(C1={"gain": GOOD})["C1"]["verdict"] == "inconclusive"
    assert decide(C3=None)["C3"]["verdict"] == "not tested"


def test_below_is_the_mirror_of_above():
    flipped = [-v for v in GOOD]
    up = outcomes.evaluate({"above": 0.4, "null_value": 0}, GOOD)
    down = outcomes.evaluate({"below": -0.4, "null_value": 0}, flipped)
    assert up.verdict == down.verdict == "reproduced" and up.p == pytest.approx(down.p, abs=2e-3)
    short = [-0.2, -0.25, -0.22, -0.21, -0.24]
    assert outcomes.evaluate({"below": -0.4, "null_value": 0}, short).verdict == "weaker"
