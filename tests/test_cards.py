"""Cards: every fault is refused with the line it stands on."""

import pytest

from bench.toy import CARD
from layerbook.claims import cards


def refused(house, old: str, new: str) -> str:
    assert old in CARD
    house.paper(card=CARD.replace(old, new))
    with pytest.raises(cards.CardError) as caught:
        cards.load("toy")
    return str(caught.value)


def line_of(text: str) -> int:
    return next(k for k, line in enumerate(CARD.splitlines(), 1) if text in line)


def test_a_good_card_loads(house):
    assert [c["id"] for c in cards.load("toy")["claims"]] == ["C1", "C2", "N1"]
    assert cards.registered_arrays(cards.load("toy")) == {
        "C1": {"gain"},
        "C2": {""},
        "N1": {"gain"},
    }


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("    smallest: 0.1\n", "    twin: N1\n    smallest: 0.1\n", "smallest", "twin"),
        ("fails: C1", "fails: [C1, C9]", "fails: C1", "C9"),
        ("above: 0}}", "above: 0, asks: us}}", "tests:", "asks what the paper says"),
        ("above: 0}}", "above: 0, scale: log}}", "of: gain", "positive"),
        ("above: 0}}", "above: 0, null_value: 1}}", "of: gain", "null_value 1"),
        ("{{of: gain, above: 0}}", "{{rank: {{among: random}}}}", "of: gain", "names its score"),
        (
            "    smallest: 0.1",
            "    compare: paired\n    smallest: 0.1",
            "smallest",
            "only a control",
        ),
        ("{{of: gain, above: 0}}", "{{of: gain, over: 0}}", "of: gain", "over"),
        ("id: C2", "id: C1", "id: C2", "duplicate id C1"),
        ("kind: identity", "kind: theorem", "kind: identity", "theorem"),
        ('    differs: "nothing"\n', "", "- id: C1", "differs"),
        ("requires: [G1]", "requires: [G9]", "requires", "G9"),
        ("fails: C1", "fails: C2", "fails: C1", "C2"),
        ("    fails: C1\n", "", "- id: N1", "fails"),
        ("tier: smoke", "tier: laptop", "tier: smoke", "laptop"),
        ("family: training", "family: cooking", "family", "cooking"),
        ('statement: "One is one."', 'statement: "TODO"', "One is one", "TODO"),
        ("slug: {slug}", "slug: other", "slug", "other"),
    ],
)
def test_faults_are_named_with_their_line(house, old, new, line, says):
    message = refused(house, old, new)
    assert f"toy.yaml:{line_of(line)}:" in message and says in message


def test_broken_yaml_names_its_line(house):
    assert "toy.yaml:4:" in refused(house, "year: 2024", 'year: "2024').replace(
        "toy.yaml:5:", "toy.yaml:4:"
    )


def test_an_unknown_paper_names_the_choices(house):
    with pytest.raises(cards.CardError, match="there are: toy"):
        cards.load("toi")
