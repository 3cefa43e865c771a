"""The shallow and the deep network: their data, their baselines, and that training them is
reproducible.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from layerbook import paths
from layerbook.data import loaders
from layerbook.networks import depthpair

PAIR = paths.MODELS / "depth-pair"
TINY = depthpair.Recipe(
    depths=(1, 2), width=16, heads=2, context=8, vocabulary=290, steps=3, batch=4, examined=2
)
LINES = [
    "In the beginning was the word.",
    "And the word was here, and the word was there.",
    "The light shines in the dark.",
]


@pytest.fixture
def books() -> dict[str, list[str]]:
    """A small stand-in for the text: every held-out book and one to train on."""
    return {"Genesis": LINES * 20} | {
        name: [f"{name} says: {line}" for line in LINES * 4] for name in depthpair.HELD_OUT
    }


def test_held_out_books_are_not_in_the_training_text(books):
    text, held = depthpair.texts(books)
    assert list(held) == list(depthpair.HELD_OUT) and "says" not in text and text.count("\n") == 59
    with pytest.raises(KeyError, match="Jonah"):
        depthpair.texts({name: verses for name, verses in books.items() if name != "Jonah"})


def test_the_tokenizer_is_reproducible_and_loses_nothing():
    first, second = (depthpair.learn_tokenizer("\n".join(LINES * 5), 290) for _ in range(2))
    assert first.to_str() == second.to_str() and first.get_vocab_size() == 290
    for text in (*LINES, "Ærø costs 5 €\n\tnaïve"):
        assert first.decode(first.encode(text).ids) == text


def test_windows_are_disjoint_and_spread_over_the_text():
    rows = depthpair.windows(range(100), 8, 5)
    assert rows.shape == (5, 8) and rows[:, 0].tolist() == [0, 16, 32, 56, 72]
    assert len(set(rows.flatten().tolist())) == 40
    with pytest.raises(ValueError, match="12 windows of 8"):
        depthpair.windows(range(100), 8, 13)


def test_baselines_are_counts():
    ids = [0, 1, 0, 1, 0, 2]
    found = depthpair.baselines(ids, torch.tensor([[0, 1, 0]]), 3)
    assert found["unigram"][0] == pytest.approx(-(math.log(3 / 9) + math.log(4 / 9)) / 2)
    # 1 follows 0 twice in three; 0 always follows 1
    after_0, after_1 = (
        0.99 * 2 / 3 + 0.01 * 3 / 9,
        0.99 * 1 + 0.01 * 4 / 9,
    )
    assert found["bigram"][0] == pytest.approx(-(math.log(after_0) + math.log(after_1)) / 2)


def test_both_depths_see_the_same_windows_and_training_is_deterministic(threads, monkeypatch):
    ids, seen = torch.randint(290, (500,), generator=torch.Generator().manual_seed(0)), []
    plain = depthpair.token_nats
    monkeypatch.setattr(
        depthpair, "token_nats", lambda model, batch: (seen.append(batch), plain(model, batch))[1]
    )
    runs = [depthpair.train(TINY, layers, ids) for layers in (1, 2, 1)]
    assert all(torch.equal(seen[i], seen[i + TINY.steps]) for i in range(TINY.steps))
    first, again = runs[0][0].state_dict(), runs[2][0].state_dict()
    assert (
        all(torch.equal(first[k], again[k]) for k in first)
        and runs[0][1] == runs[2][1] != runs[1][1]
    )
    assert not any(p.requires_grad for p in runs[0][0].parameters())


def test_token_nats_are_those_of_the_next_token():
    model, batch = (
        depthpair.build(TINY, 2),
        torch.randint(290, (3, 8), generator=torch.Generator().manual_seed(1)),
    )
    log_p = model(input_ids=batch).logits.log_softmax(-1)
    assert torch.allclose(
        depthpair.token_nats(model, batch),
        -log_p[:, :-1].gather(-1, batch[:, 1:, None])[..., 0],
        atol=1e-5,
    )
    assert not torch.equal(
        depthpair.build(TINY, 2, seed=1).transformer.wte.weight, model.transformer.wte.weight
    )


def test_making_them_writes_two_loadable_networks_and_refuses_poor_ones(
    books, monkeypatch, made_twice
):
    monkeypatch.setattr(loaders, "bible", lambda: books)
    folder, card = made_twice("depth-pair", TINY)  # three steps do not beat a bigram model
    assert set(card["held_out"]) == set(depthpair.HELD_OUT)
    for name, layers in zip(depthpair.NAMES, TINY.depths):
        model, tokenizer = loaders.causal_lm(folder / name)
        assert model.config.n_layer == layers and len(tokenizer) == 290
        assert (
            tokenizer.decode(tokenizer("And the word was here.").input_ids)
            == "And the word was here."
        )


def test_the_shipped_pair_passes_its_gate_and_says_so():
    card = json.loads((PAIR / "card.json").read_text(encoding="utf-8"))
    assert card["gate"]["passed"] and card["gate"]["worst"] >= depthpair.Recipe.gate
    assert all(
        max(s["shallow"], s["deep"]) < s["bigram"] < s["unigram"] for s in card["held_out"].values()
    )
    assert sum(p.stat().st_size for p in PAIR.rglob("*.safetensors")) < 4e6
    models = {}
    for name, layers in zip(depthpair.NAMES, depthpair.Recipe.depths):
        models[name], tokenizer = loaders.causal_lm(PAIR / name)
        assert models[name].config.n_layer == layers
    _, held = depthpair.texts(loaders.bible())
    batch = depthpair.windows(
        tokenizer(held["Ruth"]).input_ids, depthpair.Recipe.context, depthpair.Recipe.examined
    )
    for name, model in models.items():
        assert depthpair.token_nats(model, batch).mean().item() == pytest.approx(
            card["held_out"]["Ruth"][name], abs=2e-3
        )
