"""Base networks and their instruction-tuned descendants: their text, their training, and what is
shipped.
"""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from layerbook import paths
from layerbook.data import loaders
from layerbook.data.instructions import (
    AGENTS,
    KINDS,
    LONGEST,
    NOUNS,
    NUMBERS,
    SLOTS,
    TASKS,
    VERBS,
    WIDEST,
    World,
    answer,
    foreign,
    kept_out,
    roles,
)
from layerbook.networks import training, tunedpair

PAIR = paths.MODELS / "tuned-pair"
TINY = tunedpair.Recipe(
    seeds=2,
    layers=1,
    width=16,
    inner=8,
    heads=2,
    kv_heads=1,
    steps=3,
    further=2,
    batch=4,
    examined=7,
)
VERSES = {
    "Genesis": [
        "In the beginning was the word. And the word was here, with the men of the land.",
        "Go to the house; be well there.",
    ]
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(VERSES)


def test_roles_divide_the_words_and_differ_between_seeds():
    for seed in range(5):
        role = roles(seed)
        assert (
            len(role.task_of) == 28
            and set(role.task_of) <= set(VERBS)
            and len(set(role.operands)) == 24
        )
        assert Counter(role.task_of.values()) == dict.fromkeys(TASKS, 4)
    assert roles(0) == roles(0) != roles(1)


def test_answers_are_right():
    items = ["lamp", "boat", "coat"]
    found = {task: " ".join(answer(task, items)) for task in TASKS}
    assert found == {
        "first": "the first is lamp .",
        "last": "the last is coat .",
        "count": "there are three .",
        "sort": "boat coat lamp .",
        "copy": "lamp boat coat .",
        "mark": "^ lamp boat coat .",
        "translate": "lampo boato coato .",
    }
    with pytest.raises(KeyError):
        answer("sing", items)


def test_examples_know_where_their_parts_are(world):
    rng, role, slots = random.Random(0), roles(3), Counter()
    for _ in range(300):
        e = world.example(rng, role, held_out=True)
        verbs = [e.words[i] for i in e.instruction]
        items = [e.words[i] for i in e.operand]
        assert (
            verbs.count(e.verb) == 1
            and role.task_of[e.verb] == e.task
            and set(items) <= set(role.operands)
        )
        assert (
            list(e.response) == answer(e.task, items)
            and kept_out(items)
            and len(e.response) <= WIDEST
        )
        places = [*e.instruction, *e.operand, *e.distractor]
        assert (
            len(places) == len(set(places)) == len(e.words) - 5
            and e.words[0] == "<bos>"
            and e.words[-2:] == ("answer", ":")
        )
        world.encode([*e.words, *e.response])
        slots[e.slot] += 1
        other = e.with_verb("wrap")
        assert [a for a, b in zip(other.words, e.words) if a != b] in (
            [],
            ["wrap"],
        ) and other.response == e.response
    assert set(slots) == set(range(SLOTS)) and min(slots.values()) > 40
    assert not any(
        kept_out([e.words[i] for i in e.operand])
        for e in (world.example(rng, role, False) for _ in range(100))
    )


def test_plain_text_uses_all_verbs_and_nouns_alike(world):
    rows = tunedpair.plain_rows(world, 0, 6000)
    assert rows.shape == (6000, LONGEST) and (rows[:, 0] == 1).all() and (rows > 0).all()
    count = Counter(rows.flatten().tolist())
    verbs, nouns = ([count[world.index[w]] for w in group] for group in (VERBS, NOUNS))
    # nouns come in repeated lists
    assert chisquare(verbs).pvalue > 1e-3 and min(nouns) > 0.8 * max(nouns)
    assert torch.equal(rows[:5], tunedpair.plain_rows(world, 0, 5)) and not torch.equal(
        rows[:5], tunedpair.plain_rows(world, 1, 5)
    )


def test_no_word_has_two_parts():
    groups = (VERBS, NOUNS, AGENTS, KINDS, NUMBERS, tuple(map(foreign, NOUNS)))
    assert len({w for g in groups for w in g}) == sum(map(len, groups))


def test_clauses_come_from_the_verses(world):
    assert (
        tuple("in the beginning was the word .".split()) in world.clauses
        and len(world.clauses) == 4
    )
    small = World(VERSES, common=3)
    assert not small.clauses and set(VERBS) <= set(small.words) and "beginning" not in small.words


def test_the_loss_of_tuning_is_taken_on_answers_alone(world):
    ids, labels = tunedpair.tuning_rows(world, roles(0), 0, 6)
    model = tunedpair.build(TINY, 0, len(world.words))
    log_p, total, n = model(input_ids=ids).logits.log_softmax(-1), 0.0, 0
    for row, label, p in zip(ids, labels, log_p):
        wanted = [i for i in range(len(row)) if label[i] >= 0]
        assert [world.words[row[i]] for i in wanted][-1] == "." and world.words[
            row[wanted[0] - 1]
        ] == ":"
        total, n = total - sum(p[i - 1, row[i]] for i in wanted), n + len(wanted)
    assert tunedpair.loss(model, ids, labels).item() == pytest.approx((total / n).item(), rel=1e-4)


def test_training_is_deterministic_and_starts_from_the_base(world, threads, monkeypatch):
    starts, plain = [], training.fit
    copied = lambda model: {k: v.clone() for k, v in model.state_dict().items()}  # noqa: E731
    monkeypatch.setattr(
        training, "fit", lambda model, f, s: (starts.append(copied(model)), plain(model, f, s))[1]
    )
    (first, curves), (again, _) = (tunedpair.train(TINY, world, 0) for _ in range(2))
    for name in tunedpair.KINDS:
        a, b = first[name].state_dict(), again[name].state_dict()
        assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], a[k].half().float()) for k in a)
    base = first["base"].state_dict()
    assert all(torch.equal(start[k], base[k]) for start in starts[1:3] for k in base)
    assert [len(curves[k]) for k in tunedpair.KINDS] == [3, 2, 2] and curves["tuned"] != curves[
        "control"
    ]


def test_answers_are_greedy_and_end_at_a_full_stop(world):
    model = tunedpair.build(TINY, 0, len(world.words)).eval()
    prompts = [["<bos>", "we", "has"], ["<bos>", "the"], ["<bos>", "the", "word", "is", "here"]]
    for prompt, got in zip(prompts, tunedpair.respond(model, world, prompts, most=5)):
        ids = world.encode(prompt)
        while len(ids) < len(prompt) + 5 and (
            len(ids) == len(prompt) or world.words[ids[-1]] != "."
        ):
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        assert got == [world.words[i] for i in ids[len(prompt) :]]


def test_making_them_writes_loadable_networks_and_refuses_poor_ones(monkeypatch, made_twice):
    monkeypatch.setattr(loaders, "bible", lambda: VERSES)
    folder, _ = made_twice("tuned-pair", TINY)
    seeds, nets = tunedpair.load(folder)
    assert seeds == [0, 1] and all(len(nets[kind]) == 2 for kind in tunedpair.KINDS)
    made, _ = tunedpair.train(TINY, World(VERSES), 1)
    for kind, model in made.items():
        assert all(
            torch.equal(v, nets[kind][1].state_dict()[k]) for k, v in model.state_dict().items()
        )


def test_the_shipped_networks_pass_their_gate_and_say_so():
    card = json.loads((PAIR / "card.json").read_text(encoding="utf-8"))
    assert card["gate"]["passed"] and card["gate"]["worst"]["tuned"] >= tunedpair.Recipe.gate
    assert (
        len(card["held_out"]) == 5
        and sum(p.stat().st_size for p in PAIR.rglob("*.safetensors")) < 8e6
    )
    world, (seeds, nets) = World(loaders.bible()), tunedpair.load()
    assert list(world.words) == card["vocabulary"]
    found = tunedpair.examine(
        {kind: nets[kind][1] for kind in tunedpair.KINDS}, world, seeds[1], 140
    )
    for kind in tunedpair.KINDS:
        assert found[kind]["right"] == pytest.approx(
            card["held_out"][str(seeds[1])][kind]["right"], abs=0.03
        )
