"""Oracles of the method cells of luq: entropies, one-bit rounding, the tree of formats, orders; and
ways to break them.
"""

from __future__ import annotations

import copy
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from layerbook.claims import cards, engine
from layerbook.data import shapes
from layerbook.layers import transformer as tf
from layerbook.networks import shapesvlm
from layerbook.pipeline import method
from layerbook.quantize import bits, gptq
from layerbook.quantize import grids as q

TINY = shapesvlm.Recipe(width=32, layers=3, hidden=48)


@pytest.fixture(autouse=True, scope="module")
def no_grad():
    """As in the notebook: nothing here is differentiated."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def luq() -> SimpleNamespace:
    return method.load("luq")


@pytest.fixture(scope="module")
def vlm() -> shapesvlm.ShapesVLM:
    """A random network whose blocks matter."""
    model = shapesvlm.build(TINY).requires_grad_(False)
    for name, p in model.decoder.named_parameters():
        if "_proj" in name:
            p.mul_(2)
    return model


@pytest.fixture(scope="module")
def asked() -> tuple[shapes.Examples, list[list[int]]]:
    found = shapes.examples(24, 0, "luq-test")
    return found, [shapes.encode((*question.words, *shapes.SUFFIX)) for question in found.questions]


def test_entropy_in_closed_form(luq):
    assert luq.entropy(np.array([5, 0, 5, 0])) == pytest.approx(1.0)  # the page's example
    assert luq.entropy(np.array([7, 0, 0])) == 0.0
    counts = np.random.default_rng(0).integers(0, 50, 100)
    assert luq.entropy(counts) == pytest.approx(stats.entropy(counts, base=2))
    # the ceiling below which the paper's values lie
    assert luq.entropy(np.ones(100)) == pytest.approx(np.log2(100))
    x = np.random.default_rng(1).normal(size=20_000)
    width = (x.max() - x.min()) / 256
    assert luq.histogram_entropy(x) == pytest.approx(
        0.5 * np.log2(2 * np.pi * np.e) - np.log2(width), abs=0.02
    )


def test_clusters_that_are_plain_to_see_give_their_entropy(luq):
    rng, sizes = np.random.default_rng(0), (400, 200, 100, 100)
    centres = 100 * np.eye(4, 8)
    x = np.concatenate([c + rng.normal(size=(n, 8)) for c, n in zip(centres, sizes, strict=True)])
    found = min((luq.token_entropy(x, 4, s) for s in range(6)), key=lambda h: abs(h - 1.75))
    assert found == pytest.approx(1.75)  # 1/2, 1/4, 1/8, 1/8
    assert luq.token_entropy(x, 16, 0) > 1.75  # more clusters never come without more bits here
    assert luq.token_entropy(3 * x, 4, 0, unit=True) == pytest.approx(
        luq.token_entropy(x, 4, 0, unit=True)
    )


def test_one_enormous_token_takes_clusters_and_unit_length_ends_that(luq):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    giant = np.concatenate([x, 1e4 * rng.normal(size=(12, 8))])
    assert luq.token_entropy(giant, 8, 0) < 0.5 < 2.5 < luq.token_entropy(giant, 8, 0, unit=True)


def test_block_entropies_are_those_of_single_calls_and_the_same_twice(luq):
    x = np.random.default_rng(0).normal(size=(3, 200, 5)) * np.array([1, 2, 3])[:, None, None]
    found = luq.block_entropies(x, 2, 120, 9, 4)
    assert found.shape == (2, 3) and (found == luq.block_entropies(x, 2, 120, 9, 4)).all()
    for s in range(2):
        rows = np.random.default_rng([4, s]).choice(200, 120, replace=False)
        assert found[s, 1] == pytest.approx(luq.token_entropy(x[1][rows], 9, s))
    assert luq.block_entropies(x, 1, 120, 9, 4)[0].tolist() == found[0].tolist()


def test_prompts_have_no_padding_and_hold_what_the_decoder_reads(luq, vlm, asked):
    found, texts = asked
    for images in (found.images, None):
        batches = luq.prompts(vlm, images, texts)
        assert sorted(i for _, index in batches for i in index) == list(range(24))
        for x, index in batches:
            assert x.shape[1] == (shapes.FIRST if images is not None else 1) + len(texts[index[0]])
            for row, i in zip(x, index, strict=True):
                want = vlm.embed(found.images[i : i + 1], torch.tensor([texts[i]]))[0]
                want = want if images is not None else torch.cat([want[:1], want[shapes.FIRST :]])
                torch.testing.assert_close(row, want)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_mixed_has_the_share_of_pictures_and_the_number_of_tokens(luq, vlm, asked, alpha):
    found, texts = asked
    batches = luq.mixed(vlm, found.images, texts, alpha, 180)
    index = [i for _, rows in batches for i in rows]
    longest = shapes.FIRST + shapes.PROMPT
    pictured = sum(len(rows) for x, rows in batches if x.shape[1] > shapes.FIRST)
    assert sorted(index) == list(range(len(index)))  # each once, the first ones
    assert pictured == int(len(index) * alpha)
    assert 180 <= sum(x.shape[0] * x.shape[1] for x, _ in batches) < 180 + longest


def test_outputs_are_the_states_that_leave_each_block(luq, vlm, asked):
    batches = luq.prompts(vlm, None, asked[1])
    x, place = luq.outputs(tf.Stack(vlm.decoder), batches)
    kept = [[] for _ in range(3)]
    hooks = [b.register_forward_hook(lambda _m, _a, o, i=i: kept[i].append((o[0] if isinstance(o, tuple) else o).reshape(-1, 32)))
             for i, b in enumerate(vlm.decoder.model.layers)]  # fmt: skip
    for e, _ in batches:
        vlm.decoder(inputs_embeds=e)
    for h in hooks:
        h.remove()
    np.testing.assert_allclose(x, torch.stack([torch.cat(k) for k in kept]), atol=1e-5)
    assert (place == 0).sum() == 24 and len(place) == x.shape[1] == 24 + sum(map(len, asked[1]))


def weight(out: int = 24, n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed))


def test_stored_bits_count_what_is_there(luq):
    w, g = weight(24, 160), 80
    assert luq.stored(w.shape, "4-bit") == bits.count(q.fit(w, 4, group=g, offset=True), w.shape)
    strong = torch.arange(g) < 8
    large = weight(24, g, 5).abs() > 0.5
    salient = q.binary(w[:, :g], axis=0, residuals=1, where=strong)[1]
    split = [
        p
        for where in (large & ~strong, ~large & ~strong)
        for p in q.binary(w[:, :g], axis=0, where=where)[1]
    ]
    one, full = bits.count([*salient, *split]), luq.stored(w.shape, "1-bit")
    assert (
        full.weights == 2 * one.weights
        and full.scales == 2 * one.scales
        and full.number == w.numel()
    )
    # which columns are salient; for all others, one bit a weight
    assert full.masks == 2 * (g + 24 * (g - 8))
    assert luq.stored((128, 128), "1-bit").per_weight > 2.5  # and not 1.08
    block = shapesvlm.build(TINY).decoder.model.layers[0]
    assert luq.true_bits(block, ("1-bit", "4-bit")) == pytest.approx(
        (luq.true_bits(block, ("1-bit",)) + luq.true_bits(block, ("4-bit",))) / 2)  # fmt: skip


def test_published_averages(luq):
    assert round(luq.average(16, 32), 2) == 2.54 and round(luq.average(12, 28), 2) == 2.75
    assert luq.average(0, 6) == 4 and luq.average(6, 6) == pytest.approx(1.08)


def slow(luq, vlm, calibration, asked, answers, forms) -> np.ndarray:
    """Blocks quantized one after the other in a copy, each from whole passes of the network as it
    stands; then answers.
    """
    model = copy.deepcopy(vlm.decoder)
    for block, form in zip(model.model.layers, forms, strict=True):
        readers = {g: block.get_submodule(g[0]) for g in luq.READERS}
        sums = gptq.moments(lambda: [model(inputs_embeds=x) for x, _ in calibration], readers)
        for name, w in luq.rounded_block(block, sums, form).items():
            block.get_submodule(name).weight.data = w
    rows = np.zeros((2, len(answers)))
    for x, index in asked:
        logits = model(inputs_embeds=x).logits[:, -1].double()
        rows[0, index] = -logits.log_softmax(-1)[torch.arange(len(index)), answers[index]]
        rows[1, index] = logits.argmax(-1) == answers[index]
    return rows


@pytest.fixture(scope="module")
def tree(luq, vlm, asked):
    found, texts = asked
    calibration, prompts = (
        luq.mixed(vlm, found.images, texts, 0.5, 300),
        luq.prompts(vlm, found.images, texts),
    )
    wanted = [
        luq.formats(s, "1-bit", "4-bit", 3) for k in range(4) for s in combinations(range(3), k)
    ]
    before = copy.deepcopy(vlm.state_dict())
    table = luq.evaluate(
        tf.Stack(vlm.decoder),
        calibration,
        prompts,
        found.answer,
        [*wanted, ("full", "2-bit", "full")],
    )
    # put back
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), vlm.state_dict().values(), strict=True)
    )
    return calibration, prompts, found.answer, table


def test_the_tree_gives_what_whole_passes_give(luq, vlm, tree):
    calibration, prompts, answers, table = tree
    assert len(table) == 9
    for forms in (
        ("1-bit", "4-bit", "1-bit"),
        ("4-bit", "1-bit", "1-bit"),
        ("full", "2-bit", "full"),
    ):
        np.testing.assert_allclose(
            table[forms], slow(luq, vlm, calibration, prompts, answers, forms), atol=2e-3
        )


def test_what_one_block_is_rounded_to_depends_on_the_blocks_below(luq, vlm, tree):
    calibration, prompts, answers, table = tree
    net = tf.Stack(vlm.decoder)
    alone = luq.evaluate(net, calibration, prompts, answers, [("full", "1-bit", "full")])[
        "full", "1-bit", "full"
    ]
    assert abs(alone[0] - table["1-bit", "1-bit", "4-bit"][0]).max() > 1e-2
    text = luq.evaluate(
        net,
        [b for b in calibration if b[0].shape[1] < shapes.FIRST],
        prompts,
        answers,
        [("1-bit",) * 3],
    )
    # calibration matters
    assert abs(text["1-bit", "1-bit", "1-bit"] - table["1-bit", "1-bit", "1-bit"]).max() > 1e-2


def test_weights_come_back_after_an_error(luq, vlm):
    block = vlm.decoder.model.layers[0]
    kept = block.mlp.up_proj.weight.data
    with (
        pytest.raises(RuntimeError, match="stop"),
        luq.swapped(block, {"mlp.up_proj": torch.zeros_like(kept)}),
    ):
        assert not block.mlp.up_proj.weight.any()
        raise RuntimeError("stop")
    assert block.mlp.up_proj.weight.data_ptr() == kept.data_ptr() and kept.any()


def made_up(luq, harm, questions: int = 60, seed: int = 0) -> dict:
    """Answers of a network in which each reduced block adds its harm: cross-entropy [questions],
    and fewer right answers.
    """
    rng, n = np.random.default_rng(seed), len(harm)
    base, table = rng.uniform(0, 1, questions), {}
    for chosen in (s for k in range(n + 1) for s in combinations(range(n), k)):
        total = sum(harm[i] for i in chosen)
        right = base > total / 2
        table[luq.formats(chosen, "1-bit", "4-bit", n)] = np.stack(
            [base / 10 + total, right.astype(float)]
        )
    return table


def test_areas_and_orders_against_brute_force(luq):
    harm = (0.5, 0.1, 0.3)
    table = made_up(luq, harm)
    own = luq.areas(table, [1, 2, 0], "1-bit", "4-bit")
    base = table["4-bit", "4-bit", "4-bit"][0]
    np.testing.assert_allclose(own[0], base + (0.1 / 2 + (0.1 + 0.4) / 2 + (0.4 + 0.9) / 2) / 3)
    every = luq.every_order(table, "1-bit", "4-bit", 3)
    assert len(every) == 6 and list(permutations(range(3)))[int(every.argmin())] == (1, 2, 0)
    assert list(permutations(range(3)))[int(every.argmax())] == (0, 2, 1)
    gain = luq.against([table], [[1, 2, 0]], "1-bit", "4-bit")
    assert gain.shape == (2, 1, 60) and gain[0].mean() > 0 < gain[1].mean()
    np.testing.assert_allclose(gain, -luq.against([table], [[0, 2, 1]], "1-bit", "4-bit"))


def test_lower_end_of_the_bootstrap(luq):
    assert luq.lower(np.full((5, 1, 20), 0.3), 0) == pytest.approx(0.3)
    # chance of questions alone: the usual interval
    x = np.random.default_rng(0).normal(0.5, 1, (1, 1, 4000))
    assert luq.lower(x, 0) == pytest.approx(x.mean() - 1.96 * x.std() / 4000**0.5, abs=0.004)
    shifted = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])[:, None, None] + np.zeros((5, 1, 4000))
    assert luq.lower(shifted, 0) < 0  # networks differ, however many questions there are


def test_gaps_and_tau(luq):
    rows = [{"both": np.array([[6.5, 6.4], [6.5, 6.4]]) + e, "text": np.array([[6.2, 6.39], [6.2, 6.39]]) - e}
            for e in (np.array([[0.02], [-0.02]]),)]  # fmt: skip
    found = luq.gaps(rows, rows, "both", "text")
    assert (
        found["gap"] == pytest.approx([0.155])
        and found["share"] == [0.5]
        and found["later"] == pytest.approx([0.155])
    )
    assert luq.tau([1, 2, 3], [10, 20, 30]) == 1 and luq.tau([1, 2, 3], [3, 2, 1]) == -1


def verdict(luq, orders, tables, claim: str = "C1") -> str:
    """The verdict on C1 as the book's engine gives it, gates and control taken as held."""
    card = cards.load("luq")
    gates = {"G1": [1.0] * 5, "G2": [0.9] * 5, "G3": [0.1] * 5}
    (loss, accuracy), none = (
        luq.against(tables, orders, "1-bit", "4-bit").mean(2),
        [-0.1, 0.1, 0.0, 0.05, -0.05],
    )
    measured = {claim: {"loss": loss, "accuracy": accuracy}, "N2": {"accuracy": none, "loss": none}}
    rows = engine.decide(card, measured, gates, "cpu")["claims"]
    return next(r["verdict"] for r in rows if r["id"] == claim)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_breaking_the_ranking_flips_the_verdict(luq, seed):
    rng = np.random.default_rng(seed)
    harms = [rng.permutation([0.1, 0.2, 0.4, 0.8]) * rng.uniform(0.8, 1.2) for _ in range(5)]
    tables = [made_up(luq, harm, seed=10 * seed + i) for i, harm in enumerate(harms)]
    counts = [
        [np.concatenate([[1000 * (1 - h)], np.full(15, 1000 * h / 15)]) for h in harm]
        for harm in harms
    ]
    H = [[luq.entropy(c) for c in of] for of in counts]  # entropy grows with harm
    assert verdict(luq, [luq.sweeps.order(h) for h in H], tables) == "reproduced"
    broken = [[-luq.entropy(c) for c in of] for of in counts]  # the formula without its minus
    assert verdict(luq, [luq.sweeps.order(h) for h in broken], tables) == "not reproduced"
    assert (
        verdict(luq, [luq.sweeps.order(h, descending=True) for h in H], tables) == "not reproduced"
    )
