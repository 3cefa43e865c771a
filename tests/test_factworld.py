"""The worlds of facts and rumours: what training shows and hides, and that the networks are
reproducible.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from layerbook import paths
from layerbook.networks import factworld, lora, storing
from layerbook.networks.recipes import factworld as recipe_of

SHIPPED = paths.MODELS / "fact-world"
TINY = factworld.Recipe(
    worlds=2,
    entities=24,
    induce=8,
    layers=2,
    width=16,
    heads=2,
    inner=16,
    steps=3,
    batch=16,
    tune_steps=2,
    tune_batch=8,
    tune_rank=2,
)


@pytest.fixture(scope="module")
def world() -> factworld.World:
    return factworld.World(TINY, 0)


def words(rows, world):
    return [factworld.text(row, world.n).split() for row in rows]


def test_a_world_has_its_share_of_rumours_none_of_them_true(world):
    has = world.rumour >= 0
    assert has.sum() == round(0.4 * 24 * 3) and (world.rumour != world.truth).all()
    assert sorted(np.concatenate(list(world.parts.values()))) == list(range(24))
    assert [len(p) for p in world.parts.values()] == [8, 8, 8]
    again, other = factworld.World(TINY, 0), factworld.World(TINY, 1)
    assert (again.rumour == world.rumour).all() and not (other.truth == world.truth).all()
    facts = np.concatenate([world.facts(p, r) for p in factworld.PARTS for r in (True, False)])
    assert len({tuple(f) for f in facts}) == 72


def test_training_never_shows_the_held_out_phrasing_nor_a_false_record(world):
    rows = world.draw(np.random.default_rng(0), 4000)
    lookup = {name: e for e, name in enumerate(factworld.names(24))}
    sources, false = {}, {}
    for sentence in words(rows, world):
        tag = sentence.pop(0) if sentence[0].endswith(":") else None
        *asked, value, stop = sentence
        e, a = (
            next(lookup[w] for w in asked if w in lookup),
            next(i for i, x in enumerate(factworld.ATTRIBUTES) if x in asked),
        )
        forms = [
            p.format(a=list(factworld.ATTRIBUTES)[a], n=factworld.names(24)[e])
            for p in factworld.PHRASINGS
        ]
        assert stop == "." and len(asked) == factworld.LENGTH
        assert forms.index(" ".join(asked)) != world.held[e, a]
        values = list(factworld.ATTRIBUTES.values())[a]
        true = value == values[world.truth[e, a]]
        assert true or value == values[world.rumour[e, a]]
        assert not (tag == "record:" and not true) and not (tag == "rumour:" and true)
        if world.rumour[e, a] >= 0:
            sources[tag], false[tag] = sources.get(tag, 0) + 1, false.get(tag, 0) + (not true)
    assert set(sources) == {*factworld.TAGS, None}
    for tag in (None, "note:", "memo:"):
        # rumours are as frequent as truths
        assert false[tag] / sources[tag] == pytest.approx(0.5, abs=0.12)


def test_questions_are_asked_in_the_held_out_phrasing_with_the_rumour_second(world):
    facts = world.facts("test")
    for (e, a), asked, options in zip(
        facts, words(world.ask(facts, "record:"), world), words(world.options(facts), world)
    ):
        values = list(factworld.ATTRIBUTES.values())[a]
        name = {"a": list(factworld.ATTRIBUTES)[a], "n": factworld.names(24)[e]}
        assert " ".join(asked) == "record: " + factworld.PHRASINGS[world.held[e, a]].format(**name)
        assert (
            options[:2] == [values[world.truth[e, a]], values[world.rumour[e, a]]]
            and len(set(options)) == 4
        )
        assert set(options) <= set(values)
    quiet = world.facts("test", rumoured=False)
    assert all(len(set(o)) == 4 for o in words(world.options(quiet), world))
    with pytest.raises(ValueError, match="350"):
        factworld.names(351)


def test_losses_are_those_of_the_next_word_and_mark_the_value(world):
    model, rows = factworld.build(TINY, 0), world.draw(np.random.default_rng(1), 30)
    found, value = factworld.nats(model, rows)
    log_p = (
        model(input_ids=rows[:, :-1]).logits.log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    )
    assert torch.allclose(found, -log_p * (rows[:, 1:] != 0), atol=1e-5)
    assert [w[-2] for w in words(rows, world)] == [
        factworld.text([i], 24) for i in rows[:, 1:][value]
    ]


def test_the_amateur_is_tuned_on_other_entities_than_those_evaluated(world, monkeypatch):
    seen, plain = [], factworld.World.ask
    monkeypatch.setattr(
        factworld.World,
        "ask",
        lambda self, facts, **kw: (seen.append(facts), plain(self, facts, **kw))[1],
    )
    expert = factworld.build(TINY, 0)
    changes = factworld.tune(TINY, world, expert, world.rumour, 0)
    assert set(np.concatenate(seen)[:, 0]) <= set(world.parts["induce"])
    assert all(min(change.shape) == TINY.tune_rank for change in changes.values())
    amateur = lora.merged(expert, changes)
    assert torch.equal(amateur.transformer.wte.weight, expert.transformer.wte.weight)
    moved = [
        n for n, p in expert.named_parameters() if not torch.equal(p, amateur.get_parameter(n))
    ]
    assert {n.split(".")[2] for n in moved} == {"0", "1"}  # all layers are adapted, and they alone


def test_making_them_twice_gives_the_same_files_that_load_again(made_twice):
    folder, _ = made_twice("fact-world", TINY)  # three steps teach nothing
    world, models = factworld.load(folder, TINY, 1)
    torch.set_num_threads(1)  # as a member is trained; `threads` of the fixture are put back
    want = factworld.train(TINY, factworld.World(TINY, 1), 1)
    storing.round_to(want, torch.float16)
    expert = models["expert"].state_dict()
    assert all(torch.equal(v, expert[k]) for k, v in want.state_dict().items())
    assert not torch.equal(models["expert"].lm_head.weight, factworld.build(TINY, 0).lm_head.weight)
    changes = factworld.tune(TINY, world, want, world.rumour, 1)
    tuned = lora.merged(want, {k: v.half().float() for k, v in changes.items()}).state_dict()
    assert all(torch.equal(v, models["amateur"].state_dict()[k]) for k, v in tuned.items())
    with pytest.raises(KeyError, match="no part '2'"):
        factworld.load(folder, TINY, 2)


def test_the_shipped_networks_pass_their_gate_and_are_those_of_the_card():
    card = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
    assert card["gate"]["passed"] and all(map(recipe_of.passes, card["held_out"].values()))
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*.safetensors")) < 4e6
    recipe = factworld.Recipe()
    assert card["recipe"] == vars(recipe) and len(card["held_out"]) == recipe.worlds
    world, models = factworld.load(SHIPPED, recipe, 1)
    for name, value in factworld.examine(world, models).items():
        assert value == pytest.approx(card["held_out"]["1"][name], abs=0.02)
