"""What a card of the second edition may not ask: tests that cannot pass, effects without a measure of
what matters, too few units for a decision, controls that cannot fail.

Cards of the first edition (no `edition: 2`) are not held against this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layerbook.claims import comparisons, inference, power, roles, zones

DATE = re.compile(r"\b20\d\d-[01]\d-[0-3]\d\b")
EFFECTS = ("effect", "equivalence")
Fault = tuple[list[Any], str]  # path of the value in the card, text
Arrays = Mapping[str, Mapping[str, Sequence[float]]]


def faults(card: Mapping[str, Any], measured: Arrays | None = None) -> list[Fault]:
    """Every way in which a card asks what it may not; an empty list for one of the first edition.

    Args:
        card: a card that has been loaded.
        measured: claim id -> array name -> values of its stored record, where there is one.
    """
    if card.get("edition") != 2:
        return []
    found: list[Fault] = []
    arrays = measured or {}
    for k, claim in enumerate(card["claims"]):
        rules = [_dates(claim)]
        if claim["kind"] == "control":
            rules += [_arms(claim, card, arrays)] if "fails" in claim else []
        else:
            rules += [_reader(claim)]
        if claim["kind"] in EFFECTS:
            rules += [_effect(claim, card), _passable(claim, arrays), _powered(claim, arrays)]
        found += [
            (["claims", k, *where], f"{claim['id']}: {text}")
            for rule in rules
            for where, text in rule
        ]
    for k, gate in enumerate(card.get("gates", [])):
        found += [(["gates", k, *at], f"{gate['id']}: {text}") for at, text in _dates(gate)]
    return found


def _dates(item: Mapping[str, Any]) -> Iterator[Fault]:
    """What was changed after a look says when."""
    changes = [([], item), *((["tests", k], t) for k, t in enumerate(item.get("tests", [])))]
    for where, holder in changes:
        if "changed" in holder and not DATE.search(holder["changed"]):
            yield [*where, "changed"], "changed: begin with the date of the change, as 2026-01-31"


def _reader(claim: Mapping[str, Any]) -> Iterator[Fault]:
    """What a reader needs to place a claim."""
    if "title" not in claim:
        yield [], "no 'title': at most 40 characters, for tables"
    paper = claim.get("paper")
    if "asked_by" not in claim and not isinstance(paper, Mapping):
        yield (
            [],
            "paper: give {says, value, unit, where}, or 'asked_by: us' if the paper has no such claim",
        )
    if isinstance(paper, Mapping) and "value" in paper and "unit" not in paper:
        yield ["paper"], "paper: its value has a unit (share, points of accuracy, Pearson r ...)"
    if isinstance(paper, Mapping) and "value" in paper and "shows" not in claim:
        yield [], "no 'shows': the array that is the same quantity as the paper's value"
    if claim["kind"] in EFFECTS:
        for key, meaning in (
            ("speaks_of", "the population that the interval speaks of"),
            ("on", "what it is decided on (pretrained model, real data, trained here, synthetic)"),
        ):
            if key not in claim:
                yield [], f"no '{key}': {meaning}"


def _effect(claim: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Fault]:
    """An effect has a value of no effect, a smallest size that matters, and a sabotaged control."""
    if not any(roles.role(c) == "sabotage" for c in roles.of_claim(card, claim["id"])):
        yield [], "no sabotaged control (N) has it under 'fails', so that it cannot be reproduced"
    for k, test in enumerate(claim["tests"]):
        where = ["tests", k]
        if "every" in test and not (test.get("deterministic") or claim.get("deterministic")):
            yield where, "'every' is for identities: ask for the mean, the median or a count"
        if test.get("asks", "paper") != "paper":
            continue
        if ("above" in test or "below" in test) and "null_value" not in test:
            bound, scale = test.get("above", test.get("below")), test.get("scale")
            if bound != (1 if scale == "log" else 0):
                yield (
                    where,
                    f"no 'null_value': which value is no effect, if {bound:g} is asked for?",
                )
        if "count" in test and "null_value" not in test:
            yield where, "no 'null_value': the share of units that chance alone would satisfy"
        one_sided = any(key in test for key in ("above", "below", "count", "rank"))
        if one_sided and roles.smallest_of(claim, test) is None:
            yield where, "no 'smallest' for this array: the smallest effect that would matter"


def units(
    claim: Mapping[str, Any], test: Mapping[str, Any], measured: Arrays
) -> tuple[int | None, Mapping[str, Any] | None]:
    """Number of units that a test will have, and what is expected of it.

    The number is that of the card (`expect: {n}`), else that of the stored record; for a rank it is
    the number of random orders. `expect` of a claim is that of the array which its first test reads.
    """
    same = test.get("of", "") == roles.compared_on(claim).get("of", "")
    expect = test.get("expect", claim.get("expect") if same else None)
    if expect and "n" in expect:
        return expect["n"], expect
    name = test["rank"]["among"] if "rank" in test else test.get("of", "")
    values = measured.get(claim["id"], {}).get(name)
    return (None if values is None else len(values)), expect


def _passable(claim: Mapping[str, Any], measured: Arrays) -> Iterator[Fault]:
    """Tests that no measurement of this many units could pass."""
    for k, test in enumerate(roles.tests(claim)):
        n, where = units(claim, test, measured)[0], ["tests", k]
        if n is None:
            continue
        if test.get("deterministic"):
            if n > 1:
                yield where, f"deterministic: one value, but there are {n}"
            continue
        if "count" in test:
            least = test["count"]["at_least"]
            if inference.share_interval(n, n).low <= least:
                yield (
                    where,
                    f"{n} units cannot pass: even {n} of {n} leave {least:g} in the interval",
                )
        elif "rank" in test:
            level = min(inference.RANK_LEVEL, 1 - test["rank"].get("beats", 0.95))
            if not test["rank"].get("all") and n < zones.FEWEST_DRAWS:
                yield where, f"{n} random orders, at least {zones.FEWEST_DRAWS} unless they are all"
            elif 1 / (1 + n) > level + 1e-12:
                yield where, f"{n} random orders cannot pass: the best p is {1 / (1 + n):.3g}"
        elif "every" not in test and n < inference.FEWEST_UNITS:
            yield where, f"{n} units cannot pass: an interval needs {inference.FEWEST_UNITS}"
        elif test.get("on") == "median" and n < inference.units_for_median():
            needed = inference.units_for_median()
            yield where, f"{n} units cannot pass: an interval of the median needs {needed}"


def _powered(claim: Mapping[str, Any], measured: Arrays) -> Iterator[Fault]:
    """The chance of a decision, from what is expected; or why it is low."""
    if claim["tier"] == "gpu" or "underpowered" in claim:
        return
    for k, test in enumerate(roles.tests(claim)):
        if test.get("asks", "paper") != "paper" or test.get("deterministic"):
            continue
        if "underpowered" in test or "every" in test or "matches" in test:
            continue
        n, expect = units(claim, test, measured)
        where = ["tests", k]
        if expect is None:
            yield (
                where,
                "no 'expect': {mean, sd, from} of a pilot on other seeds, or 'underpowered'",
            )
        elif n is None:
            yield where, "expect: without a stored record give the number of units, n"
        elif "sd" not in expect and not ("count" in test or "rank" in test):
            yield where, "expect: 'sd' is missing, the spread between units on the test's scale"
        else:
            yield from _chance(claim, test, expect, n, where)


def _chance(
    claim: Mapping[str, Any],
    test: Mapping[str, Any],
    expect: Mapping[str, Any],
    n: int,
    where: list[Any],
) -> Iterator[Fault]:
    smallest = roles.smallest_of(claim, test)
    try:
        chance = power.chance_of_decision(test, expect, n, smallest)
    except ValueError as error:
        yield where, f"expect: {error}"
        return
    if chance >= power.LEAST_CHANCE:
        return
    text = f"{n} units decide with a chance of {chance:.2f}, {power.LEAST_CHANCE} is wanted"
    needed = None if "rank" in test else power.planned_units(test, expect, smallest)
    text += f": take {needed}" if needed else ""
    yield where, f"{text}, change the design, or say under 'underpowered' why not"


def _arms(control: Mapping[str, Any], card: Mapping[str, Any], measured: Arrays) -> Iterator[Fault]:
    """Arms that cannot differ, as far as stored values tell."""
    by_id = {c["id"]: c for c in card["claims"]}
    for name in roles.named(control):
        test = roles.compared_on(by_id[name])
        own = measured.get(name, {}).get(test.get("of", ""), [])
        other = measured.get(control["id"], {}).get(test.get("of", ""), [])
        if not len(own) or not len(other):
            continue
        a, b = np.asarray(own, dtype=float), np.asarray(other, dtype=float)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            continue
        how = comparisons.way(control, a, b)
        if b.size > 1 and inference.is_constant(b):
            yield [], f"all {b.size} values are {b[0]:.4g}: a constant arm is no control"
        elif a.shape == b.shape and np.array_equal(a, b):
            yield [], f"has the very values of {name}: nothing was sabotaged"
        elif a.shape == b.shape and a.size > 1 and np.array_equal(a, -b):
            yield (
                [],
                f"has the values of {name} with their sign turned: it is no second measurement",
            )
        if how == "paired" and a.size != b.size:
            yield [], f"{b.size} units against {a.size}: 'compare: paired' needs one length"
        if how == "draws" and b.size < comparisons.FEWEST_DRAWS:
            yield [], f"{b.size} draws, at least {comparisons.FEWEST_DRAWS} are needed"
