"""The page that sets several papers' measures of one model side by side."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from layerbook.pages import family_page
from layerbook.pipeline import runner


def a_paper(slug: str, model: str = "smollm2", **profiles: list) -> SimpleNamespace:
    rows = [{"name": k, "statement": f"what {k} is", "values": v} for k, v in profiles.items()]
    record = {"parameters": {"model": model}, "profiles": rows}
    return SimpleNamespace(slug=slug, short=slug.upper(), main="cpu", records={"cpu": record})


RISING = [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]


def test_profiles_of_another_model_of_another_depth_or_with_holes_are_left_out():
    papers = [
        a_paper("a", rising=RISING),
        a_paper("b", model="other", odd=RISING),
        a_paper("c", short=[1.0, 2.0]),
        a_paper("d", holes=[1.0, None, 3.0, 4.0, 5.0, 6.0], falling=RISING[::-1]),
    ]
    assert [p["name"] for p in family_page.profiles(papers, "smollm2")] == ["rising", "falling"]


def test_correlations_are_those_of_values_and_of_steps():
    # rises as well, but steps down where the other steps up
    zigzag = [
        1.0,
        3.0,
        2.0,
        4.0,
        3.0,
        5.0,
    ]
    text = family_page.fragment([a_paper("a", rising=RISING), a_paper("b", zigzag=zigzag)])
    shown = re.search(r'2\. zigzag</th><td data-label="1">(\S+) / (\S+)</td>', text)
    by_hand = (11.5 / (17.5 * 17) ** 0.5, -5 / 60**0.5)  # of the ranks, ties at their mean rank
    assert [float(v.replace("−", "-")) for v in shown.groups()] == pytest.approx(by_hand, abs=0.006)


def test_a_constant_measure_has_no_correlation_and_no_crash():
    text = family_page.fragment([a_paper("a", rising=RISING, flat=[2.0] * 6)])
    assert "– / –" in text and text.count("<svg") == 2


def test_the_highest_layer_is_named_and_thirds_are_means():
    text = family_page.fragment([a_paper("a", rising=RISING, falling=RISING[::-1])])
    row = re.search(r"1\. rising</th>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td[^>]*>([^<]+)</td>", row)[:5] == ["1.5", "3.5", "5.5", "4", "0"]
    assert "highest 6 at layer 4" in text


@pytest.mark.parametrize("papers", [[], [a_paper("a")], [a_paper("a", one=RISING)]])
def test_fewer_than_two_measures_are_said_to_be_too_few(papers):
    assert "Fewer than two" in family_page.fragment(papers)


def test_a_run_hands_its_profile_to_the_record(house):
    house.paper(extra='run.profile("depth", "number of the layer", [0, 1, 2])')
    runner.run("toy")
    assert house.record()["profiles"] == [
        {"name": "depth", "statement": "number of the layer", "values": [0, 1, 2]}
    ]
