"""The engine that turns raw measurements and a card into verdicts. Nothing else may write one.

A card registers, before the run, what is measured and by which test it is decided; a notebook
hands over arrays; `decide` compares the two. The order of precedence is fixed: a tier that may
not decide, missing measurements, an unmet precondition, the paper's tests, the controls, the
identities and facts that must hold. Each claim is a question of its own: no correction over the
other claims of a card enters a verdict (`layerbook.claims.chance` says what chance alone would do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerbook.claims import comparisons, power, roles, rows, stats, zones
from layerbook.claims.rows import FACT_WORDS, Row
from layerbook.claims.zones import (
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    UNDECIDED,
    WEAKER,
    Outcome,
)

TIERS = ("smoke", "cpu", "gpu")
EFFECTS = ("effect", "equivalence")
Bar = tuple[str, str, dict[str, Any] | None]  # verdict, reason, cause
Measurements = Mapping[str, Mapping[str, Sequence[float]]]


def tests_of(
    claim: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The tests that say what a claim measures: its own, or those of the effect that a control is
    held against.
    """
    return claim["tests"] if "tests" in claim else by_id[roles.named(claim)[0]]["tests"]


def decide(
    card: Mapping[str, Any],
    measured: Measurements,
    gates: Mapping[str, Sequence[float]],
    tier: str,
    dry: bool = False,
    broken_facts: Sequence[str] = (),
) -> dict[str, list[Row]]:
    """Verdicts of every claim of a card, and the states of its controls.

    Args:
        card: a validated card (`layerbook.claims.cards.load`).
        measured: claim id -> array name ('' when there is one only) -> per-unit values.
        gates: gate id -> per-unit values.
        tier: the tier that produced the measurements; claims above it are 'not tested'.
        dry: a rehearsal of a tier at tiny size decides nothing.
        broken_facts: facts that the notebook stated and that did not hold; they block every verdict.

    Returns:
        {"claims": [...], "gates": [...]}, both JSON-ready, in the card's order.
    """
    by_id = {c["id"]: c for c in card["claims"]}
    gate_rows = [rows.gate(gate, gates.get(gate["id"], [])) for gate in card.get("gates", [])]
    blocked = {g["id"]: g["cause"] for g in gate_rows if not g["met"]}

    def barred(claim: Mapping[str, Any]) -> Bar | None:
        """Verdict, reason and cause of a claim that its measurements do not decide."""
        if dry:
            return NOT_TESTED, "a rehearsal decides nothing", None
        if TIERS.index(tier) < TIERS.index(claim["tier"]):
            return NOT_TESTED, f"only the {claim['tier']} tier may decide this", None
        if claim["id"] not in measured:
            return UNDECIDED, "no measurement was recorded", {"kind": "not measured"}
        unmet = [g for g in claim.get("requires", []) if g in blocked]
        if unmet:
            kind = "gate" if any(blocked[g] == "gate" for g in unmet) else "gate not measured"
            said = "met" if kind == "gate" else "measured"
            reason = f"precondition {', '.join(unmet)} was not {said}"
            return UNDECIDED, reason, {"kind": kind, "ids": unmet}
        return None

    decided: dict[str, Row] = {}
    for claim in card["claims"]:
        if "fails" in claim:
            decided[claim["id"]] = _control(claim, by_id, measured, barred)
        else:
            decided[claim["id"]] = _claim(claim, measured.get(claim["id"], {}), barred(claim))
    _controls(decided, card)
    _identities(decided)
    _facts(decided, broken_facts)
    _silence(decided)
    return {"claims": list(decided.values()), "gates": gate_rows}


def _outcomes(claim: Mapping[str, Any], arrays: Mapping[str, Sequence[float]]) -> list[Outcome]:
    """The outcome of each test; `smallest` is in the unit of the first of the paper's."""
    out = []
    for test in roles.tests(claim):
        name, smallest = test.get("of", ""), roles.smallest_of(claim, test)
        among = arrays.get(test["rank"]["among"]) if "rank" in test else None
        if name in arrays:
            out.append(zones.evaluate(test, arrays[name], smallest, among))
        else:
            out.append(zones.evaluate(test, []))
            out[-1].reason = f"the array {name or 'of values'!r} was not measured"
    return out


def combine(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of the paper's tests that decides a claim.

    Not reproduced if one is, else undecided if one is, else weaker if one is, else reproduced.
    """
    decisive = [o for o in outcomes if o.asks == "paper"]
    for verdict in (NOT_REPRODUCED, UNDECIDED, WEAKER, REPRODUCED):
        for o in decisive:
            if o.verdict == verdict:
                return o
    raise ValueError("a claim is decided by at least one test of the paper's")


def _claim(
    claim: Mapping[str, Any],
    arrays: Mapping[str, Sequence[float]],
    bar: Bar | None,
) -> Row:
    outcomes = _outcomes(claim, arrays)
    deciding = combine(outcomes) if bar is None else outcomes[0]
    number = {id(o): k for k, o in enumerate(outcomes)}
    verdict, reason, cause = bar or (deciding.verdict, deciding.reason, deciding.cause)
    if bar is None and len(outcomes) > 1:
        reason = f"{deciding.test}: {reason}"
    if cause and cause["kind"] == "units" and cause["needed"] is None:
        test = roles.tests(claim)[number[id(deciding)]]
        smallest = roles.smallest_of(claim, test)
        cause = cause | {"needed": power.units_needed(test, deciding.values, smallest)}
        if cause["needed"]:
            reason += f"; about {cause['needed']} units would decide, {deciding.n} were measured"
    ps = [o.p for o in outcomes if o.p is not None and o.asks == "paper"]
    row = {
        "id": claim["id"],
        "kind": claim["kind"],
        "verdict": verdict,
        "cause": cause,
        "reason": reason,
        **rows.numbers(deciding),
        "unit": claim["unit"],
        "p": max(ps) if ps and bar is None else None,
        "also": [rows.also(o) for o in outcomes if o is not deciding],
    }
    if claim["kind"] == "control":
        row |= {"role": "fact", "verdict": FACT_WORDS.get(verdict, verdict), "silent": False}
    return row


def _control(
    control: Mapping[str, Any],
    by_id: Mapping[str, Mapping[str, Any]],
    measured: Measurements,
    barred: Callable[[Mapping[str, Any]], Bar | None],
) -> Row:
    """A control's state against each claim that it names."""
    found = []
    for name in roles.named(control):
        claim = by_id[name]
        bar = barred(control) or barred(claim)
        if bar:
            how = control.get("compare", "")
            found.append((name, comparisons.Comparison(bar[0], bar[1], how, cause=bar[2])))
        else:
            arrays = measured[name], measured[control["id"]]
            found.append((name, comparisons.compare(claim, control, *arrays)))
    test = roles.compared_on(by_id[found[0][0]])
    values = measured.get(control["id"], {}).get(test.get("of", ""), [])
    return rows.control(control, found, test, values)


def _states(decided: Mapping[str, Row], claim: str, role: str) -> list[Row]:
    """[{"id", "state"}] of the controls of one role that are held against a claim."""
    return [
        {"id": r["id"], "state": a["state"]}
        for r in decided.values()
        if r.get("role") == role
        for a in r["against"]
        if a["claim"] == claim
    ]


def _undecide(row: Row, cause: Mapping[str, Any], reason: str) -> None:
    row["verdict"], row["cause"] = UNDECIDED, dict(cause)
    row["reason"] = f"{reason}; {row['reason']}"


def _controls(decided: Mapping[str, Row], card: Mapping[str, Any]) -> None:
    """Enter the states of its controls at each claim, and what they do to its verdict.

    An effect is only reproduced if at least one sabotaged version is seen to be worse, and neither
    reproduced nor weaker if one passes.
    """
    for claim in card["claims"]:
        if claim["kind"] == "control":
            continue
        row = decided[claim["id"]]
        row["controls"] = _states(decided, claim["id"], "sabotage")
        row["rivals"] = _states(decided, claim["id"], "rival")
        if claim["kind"] not in EFFECTS or row["verdict"] not in (REPRODUCED, WEAKER):
            continue
        passing = [c["id"] for c in row["controls"] if c["state"] == comparisons.PASSES]
        if passing:
            text = f"its sabotaged control {', '.join(passing)} passes as well"
            _undecide(row, {"kind": "control", "ids": passing}, text)
        elif row["verdict"] == REPRODUCED and not any(
            c["state"] == comparisons.HELD for c in row["controls"]
        ):
            ids = [c["id"] for c in row["controls"]]
            text = "no sabotaged control was seen to be worse"
            text += f" ({', '.join(ids)} undecided)" if ids else ": none names this claim"
            _undecide(row, {"kind": "control", "ids": ids}, text)


def _identities(decided: Mapping[str, Row]) -> None:
    """While an identity does not hold, a failure proves nothing; one that was not measured says
    nothing.
    """
    broken = [
        r["id"]
        for r in decided.values()
        if r["kind"] == "identity" and r["n"] and r["verdict"] in (NOT_REPRODUCED, UNDECIDED)
    ]
    for row in decided.values():
        if broken and row["kind"] in EFFECTS and row["verdict"] == NOT_REPRODUCED:
            text = f"identity {', '.join(broken)} does not hold, so a failure proves nothing"
            _undecide(row, {"kind": "identity", "ids": broken}, text)


def _facts(decided: Mapping[str, Row], broken: Sequence[str]) -> None:
    """A notebook that contradicts itself decides nothing."""
    for row in decided.values():
        settled = row["verdict"] in (REPRODUCED, WEAKER, NOT_REPRODUCED)
        if broken and settled and row["kind"] != "control":
            text = f"the notebook states what does not hold ({'; '.join(broken)[:200]})"
            _undecide(row, {"kind": "fact"}, text)


def _silence(decided: Mapping[str, Row]) -> None:
    """Mark controls that say nothing: their effect was not reproduced, or not decided for another
    reason than a control.
    """

    def says_nothing(claim: Row) -> bool:
        cause = (claim["cause"] or {}).get("kind")
        holds = claim["verdict"] in (REPRODUCED, WEAKER)
        return not (holds or claim["verdict"] == UNDECIDED and cause == "control")

    for row in decided.values():
        for against in row.get("against", []):
            against["silent"] = says_nothing(decided[against["claim"]])
        if row.get("against"):
            row["silent"] = all(a["silent"] for a in row["against"])


def finding(name: str, statement: str, values: Sequence[float]) -> Row:
    """A measured quantity without a verdict: its mean and, where there are units enough, its
    interval.
    """
    row: Row = {
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
