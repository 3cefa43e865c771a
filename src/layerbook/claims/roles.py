"""Who is who on a card: which control is held against which claim, and which tests decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def named(control: Mapping[str, Any]) -> list[str]:
    """Ids of the claims that a control is held against (`fails`, one or several)."""
    fails = control.get("fails", [])
    return [fails] if isinstance(fails, str) else list(fails)


def of_claim(card: Mapping[str, Any], claim: str) -> list[Mapping[str, Any]]:
    """The controls of a card that are held against one claim, in the card's order."""
    return [c for c in card["claims"] if claim in named(c)]


def role(control: Mapping[str, Any]) -> str:
    """'sabotage' (N) or 'rival' (R, a simpler explanation) for a control that names a claim, 'fact'
    for one that has tests of its own.
    """
    if "fails" not in control:
        return "fact"
    return "rival" if control["id"].startswith("R") else "sabotage"


def tests(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tests of a claim; `deterministic` of the claim is that of each test."""
    common = {"deterministic": True} if claim.get("deterministic") else {}
    return [common | test for test in claim["tests"]]


def paper_tests(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tests that decide a claim's verdict: those that the paper asks."""
    return [t for t in tests(claim) if t.get("asks", "paper") == "paper"]


def compared_on(claim: Mapping[str, Any]) -> Mapping[str, Any]:
    """The test on whose array a claim and its controls are compared: the first of the paper's."""
    return paper_tests(claim)[0]


def smallest_of(claim: Mapping[str, Any], test: Mapping[str, Any]) -> float | None:
    """The smallest effect that would matter in a test of a claim: its own, else the claim's, which
    is in the unit of the array that the claim's first test reads.
    """
    same = test.get("of", "") == compared_on(claim).get("of", "")
    return test.get("smallest", claim.get("smallest") if same else None)
