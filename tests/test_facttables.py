"""Tables of plain facts and multiple choice made of them."""

from __future__ import annotations

from collections import Counter

import pytest

from layerbook.data import facts as facttables
from layerbook.data import loaders


@pytest.fixture(scope="module")
def facts():
    return facttables.tables(loaders.bible())


def test_questions_and_answers_are_unique_and_true(facts):
    for name, rows in facts.items():
        assert len({q for q, _ in rows}) == len({a for _, a in rows}) == len(rows) >= 8, name
    assert 100 <= sum(map(len, facts.values())) <= 150
    everything = {q: a for rows in facts.values() for q, a in rows}
    assert everything["What does the HTTP status code 404 mean?"] == "Not Found"
    assert everything["Which Python module has sqrt?"] == "math"
    assert everything["Which month comes after March?"] == "April"
    assert everything["Which book of the Bible comes after Genesis?"] == "Exodus"
    assert everything["What is the character & called?"] == "ampersand"


def test_every_answer_is_once_true_and_three_times_false_and_halves_share_nothing(facts):
    questions = facttables.quiz(facts, 0)
    assert len(questions) == sum(map(len, facts.values()))
    true = {q: a for rows in facts.values() for q, a in rows}
    for half in (0, 1):
        mine = [q for q in questions if q.half == half]
        assert all(true[q.text] == q.options[0] and len(set(q.options)) == 4 for q in mine)
        assert set(Counter(o for q in mine for o in q.options).values()) == {4}
    first, second = ({o for q in questions if q.half == h for o in q.options} for h in (0, 1))
    assert not first & second


def test_the_seed_deals_the_halves_and_small_tables_are_refused(facts):
    assert facttables.quiz(facts, 3) == facttables.quiz(facts, 3) != facttables.quiz(facts, 4)
    assert len(facttables.quiz({"capital": facts["capital"]}, 0, limit=4)) == 8
    with pytest.raises(ValueError, match="3 facts"):
        facttables.quiz({"short": facts["month"][:7]}, 0)
