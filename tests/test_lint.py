"""What a card of the second edition is refused for."""

import copy

import pytest

from layerbook.claims import lint, power

CARD = {
    "edition": 2,
    "gates": [{"id": "G1", "test": {"every": {"above": 0}}}],
    "claims": [
        {
            "id": "C1",
            "kind": "effect",
            "title": "A gain",
            "paper": {"says": "it gains", "value": 0.9, "unit": "share", "where": "abstract"},
            "shows": "share",
            "speaks_of": "training runs",
            "on": "trained here",
            "tier": "cpu",
            "tests": [{"of": "gain", "above": 0}],
            "smallest": 0.1,
            "expect": {"mean": 0.2, "sd": 0.15, "n": 12, "from": "a pilot"},
        },
        {"id": "N1", "kind": "control", "fails": "C1", "tier": "cpu"},
    ],
}
GAIN = [0.2, 0.3, 0.1, 0.25, 0.15, 0.22]


def said(change=None, measured=None):
    card = copy.deepcopy(CARD)
    if change:
        change(card, card["claims"][0], card["claims"][1])
    return "\n".join(text for _, text in lint.faults(card, measured))


def test_a_sound_card_has_no_fault():
    assert said() == ""


def test_a_card_of_the_first_edition_is_left_alone():
    assert said(lambda card, claim, control: (card.pop("edition"), claim.pop("title"))) == ""


def test_where_a_fault_stands():
    card = copy.deepcopy(CARD)
    card["claims"][0]["tests"] = [{"of": "gain", "above": 0.5}]
    ((where, text),) = lint.faults(card)
    assert where == ["claims", 0, "tests", 0] and text.startswith("C1: no 'null_value'")


def asking(*found):
    return lambda card, claim, control: claim.update(tests=list(found))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card, claim, control: claim.pop("title"), "no 'title'"),
        (lambda card, claim, control: claim.pop("speaks_of"), "no 'speaks_of'"),
        (lambda card, claim, control: claim.pop("on"), "no 'on'"),
        (lambda card, claim, control: claim.pop("shows"), "no 'shows'"),
        (lambda card, claim, control: claim.update(paper="0.9 (abstract)"), "asked_by: us"),
        (lambda card, claim, control: claim["paper"].pop("unit"), "its value has a unit"),
        (lambda card, claim, control: claim.pop("smallest"), "no 'smallest'"),
        (lambda card, claim, control: claim.pop("expect"), "no 'expect'"),
        (lambda card, claim, control: claim["expect"].pop("sd"), "'sd' is missing"),
        (lambda card, claim, control: claim["expect"].pop("n"), "the number of units, n"),
        (lambda card, claim, control: claim["expect"].update(n=4, mean=0.1), "take "),
        (lambda card, claim, control: claim.update(changed="after a look"), "date of the change"),
        (
            lambda card, claim, control: card["gates"][0].update(changed="lowered"),
            "G1: changed: begin with the date",
        ),
        (lambda card, claim, control: control.update(fails="C9"), "no sabotaged control"),
        (lambda card, claim, control: control.update(id="R1"), "no sabotaged control"),
        (asking({"of": "gain", "every": {"above": 0}}), "'every' is for identities"),
        (asking({"of": "gain", "above": 0.5}), "no 'null_value'"),
        (asking({"of": "gain", "above": 0}, {"of": "rest", "above": 0}), "no 'smallest' for this"),
        (asking({"of": "gain", "count": {"above": 0, "at_least": 0.5}}), "no 'null_value'"),
        (
            asking({"of": "gain", "count": {"above": 0, "at_least": 0.8}, "null_value": 0.5}),
            "even 12 of 12",
        ),
        (asking({"of": "s", "rank": {"among": "random"}}), "12 random orders"),
        (asking({"of": "s", "rank": {"among": "random", "all": True}}), "the best p is"),
    ],
)
def test_what_is_refused(change, says):
    if says == "no sabotaged control":
        change_only = change

        def change(card, claim, control):
            change_only(card, claim, control)
            card["claims"] = card["claims"][:1] if control["fails"] == "C9" else card["claims"]

    assert says in said(change)


def test_a_written_reason_excuses_a_low_chance_alone():
    def low(card, claim, control):
        claim["expect"].update(n=4, mean=0.1)
        claim["underpowered"] = "one run takes an hour"

    assert said(low) == ""
    with_bound = lambda card, claim, control: (  # noqa: E731
        low(card, claim, control),
        claim.update(tests=[{"of": "gain", "above": 0.5}]),
    )
    assert "no 'null_value'" in said(with_bound)


def test_the_number_that_is_named_is_enough():
    text = said(lambda card, claim, control: claim["expect"].update(n=4, mean=0.1))
    needed = int(text.split("take ")[1].split(",")[0])
    expect = {"mean": 0.1, "sd": 0.15}
    assert power.chance_of_decision({"above": 0}, expect, needed, 0.1) >= 0.8
    assert power.chance_of_decision({"above": 0}, expect, needed - 1, 0.1) < 0.8


def test_a_test_of_ours_needs_no_power():
    ours = {"of": "rest", "above": 0.5, "asks": "us"}
    assert said(asking({"of": "gain", "above": 0}, ours)) == ""


def test_the_number_of_units_comes_from_the_record():
    measured = {"C1": {"gain": GAIN}, "N1": {"gain": [v - 0.2 for v in GAIN[::-1]]}}

    def change(card, claim, control):
        claim["expect"] = {"mean": 0.3, "sd": 0.15, "from": "a pilot"}

    assert said(change, measured) == ""
    assert "expect" in said(change)


@pytest.mark.parametrize(
    ("values", "compare", "says"),
    [
        ([0.0] * 6, None, "a constant arm is no control"),
        (GAIN, None, "the very values of C1"),
        ([-v for v in GAIN], None, "with their sign turned"),
        (GAIN[:5], "paired", "'compare: paired' needs one length"),
        (GAIN[:5], "draws", "5 draws, at least 19"),
    ],
)
def test_arms_that_cannot_differ(values, compare, says):
    change = (lambda card, claim, control: control.update(compare=compare)) if compare else None
    assert says in said(change, {"C1": {"gain": GAIN}, "N1": {"gain": values}})
