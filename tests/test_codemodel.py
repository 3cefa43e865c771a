"""The code model: its data, its baseline, and that training it is reproducible."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from layerbook.data import loaders, pycode
from layerbook.networks import codecounts, codemodel, making

TINY = codemodel.Recipe(
    layers=2, width=16, heads=2, vocabulary=300, context=24, steps=4, batch=4, examined=4
)


@pytest.fixture
def packages(monkeypatch) -> dict[str, dict[str, str]]:
    """A small stand-in for the sources: sixty modules a package."""
    made = {name: {f"m{i}.py": f"def {name}{i}(a, b):\n    '''Text.'''\n    return a + b * {i} - len(str(a))\n\n\ndef g(): pass\n"
                   for i in range(60)} for name in pycode.PACKAGES}  # fmt: skip
    monkeypatch.setattr(loaders, "python_code", lambda name: made[name])
    return made


def test_texts_are_leaves_of_functions_of_one_part(packages):
    train, test = codemodel.texts(packages, "train"), codemodel.texts(packages, "test")
    assert (
        not any("networkx" in line or "Text" in line or " g " in line for line in train)
        and len(test) == 60
    )
    assert train[0].startswith(" def ") and train[0].endswith(" - len ( str ( a ) )")
    assert codemodel.texts(packages, "train", 5) == train[:5] and not set(train) & set(
        codemodel.texts(packages, "valid")
    )


def test_the_tokenizer_is_reproducible_loses_nothing_and_adds_both_ends():
    lines = [" def f ( a ) : return a + 1", " class 'text é' \n ,"] * 5
    first, second = (codemodel.learn_tokenizer(lines, 290) for _ in range(2))
    assert first.to_str() == second.to_str() and first.get_vocab_size() <= 290
    for line in lines:
        ids = first.encode(line).ids
        assert ids[0] == 2 and ids[-1] == 3 and first.decode(ids) == line


def test_long_rows_are_cut_and_nothing_is_lost():
    rows = [[2, *range(10, 40), 3], [2, 50, 51, 3]]
    found = codemodel.pieces(rows, 12)
    assert [p[1:-1] for p in found] == [
        list(range(10, 20)),
        list(range(20, 30)),
        list(range(30, 40)),
        [50, 51],
    ]
    assert all(p[0] == 2 and p[-1] == 3 and len(p) <= 12 for p in found)


def test_rows_hold_every_function_once_before_any_comes_twice():
    functions = [[k] * k for k in range(1, 13)]  # 78 subwords
    stream = codemodel.rows_of(functions, 13, torch.Generator().manual_seed(0))
    first, second = (torch.cat([next(stream) for _ in range(6)]) for _ in range(2))
    for seen in (first, second):
        assert sorted(seen.tolist()) == sorted(t for f in functions for t in f)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="do not fill one row"):
        next(codemodel.rows_of([[1, 2]], 13, torch.Generator()))


def test_masking_spares_special_places_and_has_the_shares_of_bert():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (200, 60), generator=g)
    ids[:, 0], ids[:, -2], ids[:, -1] = 2, 3, 0
    chosen = codemodel.choose(ids, 0.2, g)
    assert not chosen[ids < 4].any() and chosen.float().mean().item() == pytest.approx(
        0.2 * 57 / 60, abs=0.01
    )
    seen = codemodel.corrupt(ids, chosen, 300, g)
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert (seen[chosen] == 1).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (seen[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert codemodel.choose(torch.tensor([[2, 9, 8, 3]]), 0.0, g).sum() == 1


def test_guesses_are_those_of_the_whole_model_and_padding_changes_nothing():
    model, g = codemodel.build(TINY).eval(), torch.Generator().manual_seed(1)
    ids = torch.randint(4, 300, (3, 10), generator=g)
    chosen = codemodel.choose(ids, 0.3, g)
    whole = model(input_ids=ids).logits[chosen]
    assert torch.allclose(codemodel.guesses(model, ids, chosen), whole, atol=1e-5)
    wide = torch.nn.functional.pad(ids, (0, 5))
    assert torch.allclose(
        codemodel.guesses(model, wide, torch.nn.functional.pad(chosen, (0, 5))), whole, atol=1e-5
    )


def test_with_attention_cut_the_states_are_those_of_the_same_weights_in_a_causal_model():
    from transformers import LlamaConfig, LlamaModel

    model = codemodel.build(TINY).eval()
    known = {
        k: v
        for k, v in model.config.to_dict().items()
        if k not in ("architectures", "model_type", "transformers_version")
    }
    causal = LlamaModel(LlamaConfig(**known)).eval()
    assert not causal.load_state_dict(model.model.state_dict(), strict=False).unexpected_keys
    ids = torch.randint(4, 300, (3, 10), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        codemodel.read(model, ids, both_sides=False),
        causal(input_ids=ids).last_hidden_state,
        atol=1e-5,
    )
    assert not torch.allclose(
        codemodel.read(model, ids), causal(input_ids=ids).last_hidden_state, atol=1e-2
    )


def test_training_learns_from_both_sides_and_spares_no_source(threads):
    """Rows of 0 1 2 ... and of 5 5 5 ...: next tokens and masked ones can be known, and the losses
    of both kinds fall.
    """
    up, flat = [[2, *range(4, 40), 3]] * 20, [[2, *[50] * 36, 3]] * 20
    model, curve = codemodel.train(replace(TINY, steps=200, batch=8, width=32), [up, flat])
    assert sum(curve[-5:]) < 0.2 * sum(curve[:5])
    ids = torch.tensor([up[0][:24], flat[0][:24]])
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, 11] = True
    assert (
        codemodel.guesses(model, torch.where(chosen, 1, ids), chosen).argmax(-1).tolist()
        == ids[chosen].tolist()
    )


def test_the_baseline_is_counts_and_its_mixture_the_best():
    rows = [[2, 5, 6, 7, 3], [2, 5, 6, 7, 3], [2, 5, 8, 7, 3]]
    shares, right = codecounts.counted(rows, [(5, 6, 7), (5, 8, 7), (9, 6, 7), (9, 9, 9)], 10)
    third = [2 / 3, 2 / 3, 2 / 3, 3 / 25]
    assert shares[0].tolist() == pytest.approx(third) and shares[1].tolist() == pytest.approx(
        [1 / 3] * 3 + [2 / 25]
    )
    assert shares[2].tolist() == pytest.approx([0, 0, 2 / 3, 3 / 25]) and shares[
        3
    ].tolist() == pytest.approx([0, 0, 0, 1 / 25])
    assert right == [True, False, True, False]
    grid = [torch.tensor([a, 0, b, 1 - a - b], dtype=torch.float64) for a in (x / 50 for x in range(50)) for b in
            (x / 50 for x in range(50)) if a + b < 1]  # fmt: skip
    best = min(-(shares @ w).log().mean().item() for w in grid)
    assert codecounts.mixed_nats(shares) <= best + 1e-3
    assert codecounts.mixed_nats(torch.full((3, 4), 0.5, dtype=torch.float64)) == pytest.approx(
        math.log(2)
    )


def test_making_it_is_reproducible_and_refuses_a_poor_network(tmp_path, packages, made_twice):
    folder, card = made_twice("code-model", TINY)  # four steps do not beat counts
    assert set(card["held_out"]) >= {"networkx (test)", "sympy (valid)"}
    model, tokenizer = codemodel.load(folder)
    assert model.config.num_hidden_layers == 2 and model.dtype == torch.float32
    assert len(tokenizer) <= 300
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)  # tied, stored once
    other = making.make(making.find("code-model"), tmp_path / "c", replace(TINY, seed=1))
    assert other["training"]["loss_nats"] != card["training"]["loss_nats"]
