"""Rules of a card that a schema cannot say: references between claims, and bounds that make sense."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from layerbook.claims import roles

Fault = tuple[list[Any], str]  # path of the value, text


def faults(card: Mapping[str, Any], stem: str, common: Collection[str]) -> list[Fault]:
    """Faults of a card that fits the schema.

    Args:
        stem: the card's file name without its ending.
        common: parameters that every notebook has.
    """
    found: list[Fault] = []
    if card["slug"] != stem:
        found.append((["slug"], f"slug {card['slug']!r} is not the file's name {stem!r}"))
    if len(card["title"].splitlines()) > 1:
        found.append((["title"], "title: write it on one line"))
    found += _parameters(card.get("parameters", {}), common)
    ids: dict[str, Mapping[str, Any]] = {}
    for group in ("gates", "claims"):
        for k, item in enumerate(card.get(group, [])):
            if item["id"] in ids:
                found.append(([group, k, "id"], f"duplicate id {item['id']}"))
            ids[item["id"]] = item
            if "test" in item:
                found += [
                    ([group, k, "test", *at], f"{item['id']}: {text}")
                    for at, text in _bounds(item["test"])
                ]
    for k, claim in enumerate(card["claims"]):
        found += [
            (["claims", k, *where], f"{claim['id']}: {text}") for where, text in _claim(claim, ids)
        ]
    return found


def _parameters(parameters: Mapping[str, Any], common: Collection[str]) -> Iterator[Fault]:
    for name, spec in parameters.items():
        where = ["parameters", name]
        if name in common:
            yield where, f"parameter {name!r} belongs to every notebook, leave it out"
        if "min" in spec and "max" in spec and spec["min"] > spec["max"]:
            yield where, f"parameter {name!r}: min is larger than max, so no value passes"


def _claim(claim: Mapping[str, Any], ids: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    kind, tests = claim["kind"], claim.get("tests", [])
    yield from _control(claim, ids) if kind == "control" else _own(claim)
    if kind == "effect":
        for key in ("smallest", "differs"):
            if key not in claim:
                yield [], f"an effect needs '{key}'"
    for gate in claim.get("requires", []):
        if not gate.startswith("G") or gate not in ids:
            yield ["requires"], f"requires {gate!r}, which is no gate of this card"
    names = [t.get("of", "") for t in tests]
    if len(names) > 1 and "" in names:
        yield ["tests"], "with several tests each names its array with 'of'"
    if tests and not roles.paper_tests(claim):
        yield ["tests"], "every test has 'asks: us': at least one asks what the paper says"
    for k, test in enumerate(tests):
        yield from ((["tests", k, *at], text) for at, text in _bounds(test))
        if "rank" in test and test.get("of") in (None, test["rank"]["among"]):
            yield ["tests", k], "a rank test names its score with 'of', and the random ones 'among'"


def _own(claim: Mapping[str, Any]) -> Iterator[Fault]:
    """What an effect, equivalence or identity has."""
    if "paper" not in claim and "asked_by" not in claim:
        yield [], "no 'paper': the paper's own figure and where it stands, or 'not known'"
    if "tests" not in claim:
        yield [], "no 'tests': a claim is decided by at least one"
    for key in ("fails", "compare"):
        if key in claim:
            yield [key], f"only a control has '{key}'"


def _control(claim: Mapping[str, Any], ids: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    """A control is held against claims, or has tests of its own."""
    if ("fails" in claim) == ("tests" in claim):
        yield (
            [],
            "a control has either 'fails' (the effect whose test it must fail) or its own 'tests'",
        )
    effects = []
    for name in roles.named(claim):
        if ids.get(name, {}).get("kind") not in ("effect", "equivalence"):
            yield ["fails"], f"fails {name!r}, which is no effect of this card"
        else:
            effects.append(ids[name])
    arrays = {tuple(sorted({t.get("of", "") for t in e.get("tests", [])})) for e in effects}
    if len(arrays) > 1:
        yield ["fails"], "the claims that one control fails read the same arrays"
    if "compare" in claim and "fails" not in claim:
        yield ["compare"], "'compare' goes with 'fails'"


def _bounds(test: Mapping[str, Any]) -> Iterator[Fault]:
    """Bounds of one test that nothing, or nothing sensible, can satisfy."""
    for at, bound in (([], test.get("between")), (["every"], test.get("every", {}).get("between"))):
        if bound and bound[0] > bound[1]:
            yield at, f"between {bound}: the first bound must not be the larger"
    bound = test.get("between")
    if bound and bound[0] == bound[1]:
        yield (
            [],
            f"between {bound}: no interval fits between equal bounds; use every: "
            f"{{between: {bound}}} for an exact value",
        )
    yield from _scale(test)
    if "null_value" not in test:
        return
    null = test["null_value"]
    if "count" in test:
        if not 0 <= null <= test["count"]["at_least"]:
            yield ["null_value"], "null_value of a count is a share, at most its at_least"
    elif "rank" in test:
        if not 0.5 <= null < 1:
            yield ["null_value"], "null_value of a rank is a share beaten, from 0.5 (chance) to 1"
    elif not ("above" in test or "below" in test):
        yield ["null_value"], "'null_value' goes with above, below, count or rank"
    elif null > test["above"] if "above" in test else null < test["below"]:
        side = "above" if "above" in test else "below"
        yield (
            ["null_value"],
            f"null_value {null:g} means no effect, so it cannot itself lie {side} "
            f"the threshold {test[side]:g}",
        )


INSIDE = {"log": "positive", "z": "between -1 and 1", "share": "between 0 and 1"}


def _scale(test: Mapping[str, Any]) -> Iterator[Fault]:
    """A scale needs a mean or median that is compared, and bounds that lie on it."""
    scale = test.get("scale")
    if scale is None:
        return
    if any(key in test for key in ("every", "count", "matches", "rank")):
        yield ["scale"], "'scale' goes with above, below, between or within"
        return
    if "within" in test and scale == "log":
        yield ["within"], "a ratio is held within between: [0.9, 1.11], not within a distance of 0"
        return
    numbers = [test[k] for k in ("above", "below", "null_value") if k in test]
    numbers += test.get("between", [])
    fits = {"log": lambda v: v > 0, "z": lambda v: -1 < v < 1, "share": lambda v: 0 <= v <= 1}
    for value in numbers:
        if not fits[scale](value):
            yield ["scale"], f"on the scale {scale} every bound is {INSIDE[scale]}, not {value:g}"
