"""When a claim's tests were registered, read from git history."""

import json
import subprocess

import pytest

from bench.toy import CARD
from layerbook.authoring import check
from layerbook.pipeline import registration

DATED = CARD.replace("above: 0}}", "above: 0.1, null_value: 0}}")


@pytest.fixture
def history(house, monkeypatch):
    """A repository in the house; the function commits card and record as they are given."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def git(*arguments):
        who = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *who, *arguments], cwd=house.root, check=True, capture_output=True)

    def commit(card=None, measured=None):
        if card is not None:
            house.paper(card=card)
        if measured is not None:
            file = house.root / "results" / "cpu" / "toy.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"measured": dict.fromkeys(measured, {})}), encoding="utf-8")
        git("add", "-A", "notebooks", "results")
        git("commit", "-q", "--allow-empty", "-m", "one step")
        registration._text.cache_clear()

    git("init", "-q", "-b", "main")
    return commit


def order():
    return {r.claim: r.order for r in registration.of_paper("toy")}


def test_tests_before_with_and_after_the_record(history):
    history(CARD)
    assert order() == dict.fromkeys(("C1", "C2", "N1"), "no record")
    history(measured=["C1", "N1"])
    assert order() == {"C1": "before", "C2": "no record", "N1": "before"}
    history(DATED, ["C1", "C2", "N1"])
    assert order() == {"C1": "after", "C2": "before", "N1": "before"}
    ((claim, text),) = registration.undated("toy")
    assert claim == "C1" and "under 'changed'" in text


def test_one_commit_for_both_shows_nothing(history):
    history(CARD, ["C1"])
    assert order()["C1"] == "together"


def test_words_are_no_change_and_a_dated_change_is_no_fault(history, house):
    history(CARD)
    history(measured=["C1", "C2", "N1"])
    history(CARD.replace("The shift is positive.", "Shifted upwards."))
    assert order()["C1"] == "before"
    said = '    changed: "2026-01-31: asked for more after a look"\n    smallest: 0.1'
    history(DATED.replace("    smallest: 0.1", said))
    assert order()["C1"] == "after" and list(registration.undated("toy")) == []


def test_what_is_not_committed_comes_after(history, house):
    history(CARD, ["C1"])
    house.paper(card=DATED)
    (found,) = [r for r in registration.of_paper("toy") if r.claim == "C1"]
    assert (found.tests, found.order) == ("", "after")
    assert "not committed" in next(text for _, text in registration.undated("toy"))


def test_a_first_edition_gets_a_note_and_a_second_a_fault(history):
    history(CARD)
    history(measured=["C1"])
    history(DATED)
    note = "toy: tests of C1 changed after their first record, no date said"
    assert check.notes("toy") == [note]
    assert not [f for f in check.check("toy") if "first record" in f]
    history(DATED.replace("slug: {slug}", "slug: {slug}\nedition: 2"))
    faults = [f for f in check.check("toy") if "first record" in f]
    assert len(faults) == 1 and faults[0].startswith("toy.yaml:") and check.notes("toy") == []


def test_without_history_nothing_is_known_and_nothing_fails(house, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(house.root.parent))
    assert "no git history" in registration.unknown()
    assert registration.of_paper("toy") == [] and list(registration.undated("toy")) == []
    assert check.notes("toy") == [registration.unknown()]


def test_a_shallow_clone_says_so(history, house, tmp_path_factory, monkeypatch):
    history(CARD)
    history(measured=["C1"])
    clone = tmp_path_factory.mktemp("shallow")
    source = f"file://{house.root}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, str(clone)], check=True)
    monkeypatch.setattr(registration.paths, "ROOT", clone)
    assert "shallow" in registration.unknown() and registration.of_paper("toy") == []
