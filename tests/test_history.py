"""The history of verdicts: what moved, why, and how the page says it."""

from __future__ import annotations

import datetime
import json

import pytest

from layerbook import cli, paths
from layerbook.pages import history_page
from layerbook.pages.papers import Paper
from layerbook.pipeline import history, runner, verdicts

MOVE = {"paper": "toy", "tier": "cpu", "claim": "C1", "was": "reproduced", "is": "undecided"}


@pytest.fixture
def ran(house):
    runner.run("toy", "cpu")
    return house


def spoil(house, verdict="weaker"):
    """Stored verdicts as another engine had decided them."""
    file = verdicts.file_of("toy", "cpu")
    content = json.loads(file.read_text(encoding="utf-8"))
    for row in content["claims"]:
        row["verdict"] = verdict
    file.write_text(json.dumps(content), encoding="utf-8")
    return {r["id"]: r["kind"] for r in content["claims"]}


def test_deciding_again_with_a_reason_is_remembered_and_controls_are_left_out(ran, capsys):
    kinds = spoil(ran)
    assert cli.main(["decide", "--why", "the engine  was\nmended"]) == 0
    (entry,) = history.read()
    assert entry["why"] == "the engine was mended"
    assert entry["date"] == datetime.date.today().isoformat()
    moved = {m["claim"] for m in entry["moves"]}
    assert moved and all(kinds[claim] != "control" for claim in moved)
    assert all(m["was"] == "weaker" != m["is"] and m["paper"] == "toy" for m in entry["moves"])
    assert cli.main(["decide", "--why", "again"]) == 0
    assert history.read() == [entry]  # nothing moved


def test_without_a_reason_it_says_how_to_give_one(ran, capsys):
    spoil(ran)
    assert cli.main(["decide"]) == 0
    assert "--why 'the reason'" in capsys.readouterr().out and history.read() == []


def test_a_move_without_a_reason_and_a_damaged_file_are_refused(house):
    with pytest.raises(history.HistoryError, match="say why"):
        history.add("  ", [MOVE])
    history.add("r", [])
    assert not (paths.ROOT / history.FILE).exists()
    for text in ("{", '[{"date": "soon", "why": "r", "moves": []}]', '[{"date": "2026-01-02"}]'):
        (paths.ROOT / history.FILE).parent.mkdir(exist_ok=True)
        (paths.ROOT / history.FILE).write_text(text, encoding="utf-8")
        with pytest.raises(history.HistoryError, match="git checkout -- results/history.json"):
            history.read()


def test_the_page_shows_the_newest_first_and_text_as_text(house):
    history.add("first", [MOVE], datetime.date(2026, 1, 2))
    history.add("<script>", [{**MOVE, "was": "inconclusive"}], datetime.date(2026, 2, 3))
    text = history_page.fragment(house.root, [Paper("other", {"claims": []}, {}, {})])
    assert text.index("3 February 2026") < text.index("2 January 2026")
    assert "<script" not in text and "inconclusive" in text and "no longer asked" in text
    assert "1 verdict moved" in text


def test_the_books_own_history_is_of_claims_that_there_are():
    for entry in history.read():
        for move in entry["moves"]:
            assert (paths.NOTEBOOKS / f"{move['paper']}.yaml").is_file()
            assert move["was"] != move["is"]
