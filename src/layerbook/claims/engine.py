"""The engine that turns raw measurements and a card into verdicts. Nothing else may write one.

A card registers, before the run, what is measured and by which test it is decided; a notebook
hands over arrays; `decide` compares the two. The order of precedence is fixed: a tier that may
not decide, missing or unusable measurements, an unmet gate, the test itself, Holm's correction,
the twin that must fail, the identities that must hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerbook.claims import stats
from layerbook.claims.outcomes import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    WEAKER,
    Outcome,
    describe,
    evaluate,
    satisfies,
)

TIERS = ("smoke", "cpu", "gpu")
ALPHA = 0.05
Measurements = Mapping[str, Mapping[str, Sequence[float]]]


def _conjunction(
    tests: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, Sequence[float]],
    smallest: float | None,
) -> tuple[str, str, list[Outcome]]:
    """All tests of a claim must hold; the weakest outcome decides."""
    outcomes = []
    for k, test in enumerate(tests):
        name = test.get("of", "")
        if name not in arrays:
            outcomes.append(
                Outcome(
                    INCONCLUSIVE,
                    f"array {name or 'values'!r} was not measured",
                    of=name,
                    test=describe(test),
                )
            )
        else:
            outcomes.append(evaluate(test, arrays[name], smallest if k == 0 else None))
    for verdict in (NOT_REPRODUCED, INCONCLUSIVE, WEAKER):
        for o in outcomes:
            if o.verdict == verdict:
                prefix = "" if len(outcomes) == 1 else f"{o.test}: "
                return verdict, prefix + o.reason, outcomes
    return REPRODUCED, outcomes[0].reason, outcomes


def control_tests(
    claim: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The tests that a control is put through: its own, or those of the effect that it must fail."""
    return claim["tests"] if "tests" in claim else by_id[claim["fails"]]["tests"]


def decide(
    card: Mapping[str, Any],
    measured: Measurements,
    gates: Mapping[str, Sequence[float]],
    tier: str,
    dry: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Verdicts of every claim of a card.

    Args:
        card: a validated card (`layerbook.claims.cards.load`).
        measured: claim id -> array name ('' when there is one only) -> per-unit values.
        gates: gate id -> per-unit values.
        tier: the tier that produced the measurements; claims above it are 'not tested'.
        dry: a rehearsal of a tier at tiny size decides nothing.

    Returns:
        {"claims": [...], "gates": [...]}, both JSON-ready, in the card's order.
    """
    by_id = {c["id"]: c for c in card["claims"]}
    gate_rows, met = [], {}
    for gate in card.get("gates", []):
        o = evaluate(gate["test"], gates.get(gate["id"], []))
        met[gate["id"]] = o.verdict == REPRODUCED
        gate_rows.append(
            {
                "id": gate["id"],
                "statement": gate["statement"],
                "test": o.test,
                "met": met[gate["id"]],
                "estimate": o.estimate,
                "n": o.n,
                "values": o.values,
                "reason": o.reason,
            }
        )
    rows: dict[str, dict[str, Any]] = {}
    for claim in card["claims"]:
        rows[claim["id"]] = _first_pass(claim, by_id, measured.get(claim["id"]), met, tier, dry)
    _holm(rows)
    _twins(rows)
    _identities(rows)
    return {"claims": list(rows.values()), "gates": gate_rows}


def _first_pass(
    claim: Mapping[str, Any],
    by_id: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, Sequence[float]] | None,
    met: Mapping[str, bool],
    tier: str,
    dry: bool,
) -> dict[str, Any]:
    tests = control_tests(claim, by_id)
    verdict, reason, outcomes = NOT_TESTED, "", []
    if arrays is not None:
        smallest = (by_id[claim["fails"]] if "fails" in claim else claim).get("smallest")
        verdict, reason, outcomes = _conjunction(tests, arrays, smallest)
        if "fails" in claim:
            verdict, reason = _must_fail(claim["fails"], tests, outcomes)
    if arrays is None:
        reason = "no measurement was recorded"
    unmet = [g for g in claim.get("requires", []) if not met.get(g)]
    if arrays is not None and unmet:
        verdict, reason = INCONCLUSIVE, f"gate {', '.join(unmet)} was not met"
    if dry or TIERS.index(tier) < TIERS.index(claim["tier"]):
        verdict, reason = (
            NOT_TESTED,
            "a rehearsal decides nothing"
            if dry
            else f"only the {claim['tier']} tier may decide this",
        )
    first = outcomes[0] if outcomes else Outcome(verdict, reason, test=describe(tests[0]))
    ps = [o.p for o in outcomes if o.p is not None]
    return {
        "id": claim["id"],
        "kind": claim["kind"],
        "verdict": verdict,
        "reason": reason,
        "test": first.test,
        "estimate": first.estimate,
        "interval": list(first.interval) if first.interval else None,
        "n": first.n,
        "unit": claim["unit"],
        "values": first.values,
        "p": max(ps) if ps else None,
        "p_holm": None,
        "also": [
            {
                "test": o.test,
                "estimate": o.estimate,
                "interval": list(o.interval) if o.interval else None,
                "n": o.n,
                "values": o.values,
                "outcome": o.verdict,
                "reason": o.reason,
            }
            for o in outcomes[1:]
        ],
        "twin": claim.get("twin"),
        "rival": {"id": claim["rival"], "passes": None} if claim.get("rival") else None,
    }


def _must_fail(
    effect: str, tests: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]
) -> tuple[str, str]:
    """A control held when at least one of the effect's tests is measured on it and not passed."""
    passed = []
    for test, o in zip(tests, outcomes, strict=True):
        if o.n and np.isfinite(o.values).all() and np.ptp(o.values) == 0 and _is_bound(test):
            # no interval, yet plain to see
            passed.append(bool(satisfies(test, np.asarray(o.values)).all()))
        elif o.estimate is not None:
            passed.append(o.verdict == REPRODUCED)
        else:
            passed.append(None)
    if False in passed:
        o = outcomes[passed.index(False)]
        return REPRODUCED, f"fails the test of {effect}, as it must ({o.test}: {o.reason})"
    if None in passed:
        return INCONCLUSIVE, outcomes[passed.index(None)].reason
    return NOT_REPRODUCED, f"passes the test of {effect} ({outcomes[0].reason})"


def _is_bound(test: Mapping[str, Any]) -> bool:
    return any(key in test for key in ("above", "below", "between"))


def _holm(rows: Mapping[str, dict[str, Any]]) -> None:
    """Holm's correction over the effects and equivalences that this run decided."""
    family = [
        r
        for r in rows.values()
        if r["kind"] in ("effect", "equivalence")
        and r["verdict"] != NOT_TESTED
        and r["p"] is not None
    ]
    for row, adjusted in zip(family, stats.holm([r["p"] for r in family]), strict=True):
        row["p_holm"] = adjusted
        if row["verdict"] == REPRODUCED and adjusted > ALPHA:
            row["verdict"] = INCONCLUSIVE
            row["reason"] = (
                f"does not survive Holm's correction over {len(family)} claims (p = {adjusted:.3f}); "
                + row["reason"]
            )


def _twins(rows: Mapping[str, dict[str, Any]]) -> None:
    for row in rows.values():
        if row["rival"]:
            rival = rows[row["rival"]["id"]]
            if rival["verdict"] in (REPRODUCED, NOT_REPRODUCED):
                row["rival"]["passes"] = rival["verdict"] == NOT_REPRODUCED
        twin = rows.get(row["twin"] or "")
        if twin is None or row["verdict"] not in (REPRODUCED, WEAKER):
            continue
        if twin["verdict"] == NOT_REPRODUCED:
            row["verdict"], row["reason"] = (
                INCONCLUSIVE,
                f"its control {row['twin']} passes as well; " + row["reason"],
            )
        elif twin["verdict"] != REPRODUCED:
            row["verdict"], row["reason"] = (
                INCONCLUSIVE,
                f"its control {row['twin']} is {twin['verdict']}; " + row["reason"],
            )


def _identities(rows: Mapping[str, dict[str, Any]]) -> None:
    broken = [
        r["id"]
        for r in rows.values()
        if r["kind"] == "identity" and r["verdict"] in (NOT_REPRODUCED, INCONCLUSIVE)
    ]
    for row in rows.values():
        if broken and row["kind"] in ("effect", "equivalence") and row["verdict"] == NOT_REPRODUCED:
            row["verdict"] = INCONCLUSIVE
            row["reason"] = (
                f"identity {', '.join(broken)} does not hold, so a failure proves nothing; "
                + row["reason"]
            )


def finding(name: str, statement: str, values: Sequence[float]) -> dict[str, Any]:
    """A measured quantity without a verdict: its mean and, where there are units enough, its
    interval.
    """
    row: dict[str, Any] = {
        "name": name,
        "statement": statement,
        "n": len(values),
        "values": [float(v) for v in values],
        "estimate": None,
        "interval": None,
    }
    try:
        row["estimate"] = float(stats.clean(values).mean())
        i = stats.mean_interval(values)
        row["interval"] = [i.low, i.high]
    except ValueError:
        pass  # too few units or NaN: shown without an interval
    return row
