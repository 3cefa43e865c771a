"""Rows of verdicts: what is stored and shown of a gate, a test and a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerbook.claims import roles, stats, zones
from layerbook.claims.comparisons import Comparison
from layerbook.claims.zones import NOT_REPRODUCED, REPRODUCED, UNDECIDED, WEAKER, Outcome

Row = dict[str, Any]
# What is said of a test that is not the paper's question, and of facts about a control.
FACT_WORDS = {REPRODUCED: "holds", WEAKER: "fails", NOT_REPRODUCED: "fails", UNDECIDED: UNDECIDED}


def gate(spec: Mapping[str, Any], values: Sequence[float]) -> Row:
    o = zones.evaluate(spec["test"], values)
    met = o.verdict == REPRODUCED
    return {
        "id": spec["id"],
        "statement": spec["statement"],
        "test": o.test,
        "met": met,
        "cause": None if met else "gate" if len(values) else "gate not measured",
        "estimate": o.estimate,
        "n": o.n,
        "values": o.values,
        "reason": o.reason,
    }


def numbers(o: Outcome) -> Row:
    return {
        "of": o.of,
        "test": o.test,
        "estimate": o.estimate,
        "interval": list(o.interval) if o.interval else None,
        "level": o.level,
        "n": o.n,
        "values": o.values,
    }


def also(o: Outcome) -> Row:
    """A test that did not decide; one of ours says holds, fails or undecided."""
    outcome = o.verdict if o.asks == "paper" else FACT_WORDS[o.verdict]
    return {**numbers(o), "asks": o.asks, "outcome": outcome, "reason": o.reason}


def control(
    control: Mapping[str, Any],
    found: Sequence[tuple[str, Comparison]],
    test: Mapping[str, Any],
    values: Sequence[float],
) -> Row:
    """A control's row.

    Args:
        found: claim id and comparison, for each claim that the control names.
        test: that of the first of these claims on which they are compared.
        values: what the control measured there, shape (n,).
    """
    name, first = found[0]
    return {
        "id": control["id"],
        "kind": "control",
        "role": roles.role(control),
        "verdict": first.state,
        "cause": first.cause,
        "reason": first.reason,
        "of": test.get("of", ""),
        "test": f"{name} minus {control['id']}" + (f", {first.compare}" if first.compare else ""),
        "estimate": first.estimate,
        "interval": list(first.interval) if first.interval else None,
        "level": 0.95 if first.interval else None,
        "n": first.n or len(values),
        "unit": control["unit"],
        "values": [float(v) for v in values],
        "p": first.p,
        "own": _mean(values),
        "against": [
            {
                "claim": claim,
                "state": c.state,
                "compare": c.compare,
                "estimate": c.estimate,
                "interval": list(c.interval) if c.interval else None,
                "reason": c.reason,
                "silent": False,
            }
            for claim, c in found
        ],
        "also": [],
        "silent": False,
    }


def _mean(values: Sequence[float]) -> float | None:
    try:
        return float(stats.clean(values).mean())
    except ValueError:
        return None
