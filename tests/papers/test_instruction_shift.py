"""The three tools of the instruction-shift paper against closed forms and brute force; and what
happens when they break.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from transformers import AutoModelForCausalLM, LlamaConfig

from layerbook.claims import cards, engine
from layerbook.claims import roles as who
from layerbook.data import loaders
from layerbook.data.instructions import VERBS, World, roles
from layerbook.layers import transformer as tf
from layerbook.networks import tunedpair
from layerbook.pipeline import method


@pytest.fixture(scope="module")
def shift() -> SimpleNamespace:
    return method.load("instruction-shift")


@pytest.fixture(scope="module")
def net():
    """A random network with grouped keys and norm gains that are not one, in double precision."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        .double()
        .eval()
        .requires_grad_(False)
    )
    for name, p in model.named_parameters():
        if "norm" in name:
            p.copy_(torch.rand_like(p) + 0.5)
    return model


@pytest.fixture(scope="module")
def world() -> World:
    return World(loaders.bible())


@pytest.fixture(scope="module")
def shipped():
    return tunedpair.load()


# --- tool 1 ---


def test_importances_are_finite_differences_in_batches_of_unequal_lengths(shift, net):
    prompts, responses = [[1, 5, 9, 7], [1, 8], [1, 3, 4, 6, 2, 30]], [[4, 4, 11], [12], [20, 21]]
    exact = shift.in_double(net)
    found = shift.importance(exact, prompts, responses, batch=2)
    for x, y, raw in zip(prompts, responses, found):
        assert raw.shape == (len(x), len(y))
        assert np.abs(raw - shift.differences(exact, x, y)).max() < 1e-7 * np.abs(raw).max()
        assert np.allclose(raw, shift.importance(exact, [x], [y])[0], atol=1e-14)
    # the same network
    assert np.allclose(
        found[0], shift.importance(net, prompts[:1], responses[:1])[0], rtol=1e-3, atol=1e-8
    )


class Lagging(torch.nn.Module):
    """A hand-made copying network: the logits at a position are c times the one-hot token `lag`
    positions before.
    """

    def __init__(self, size: int, lag: int, c: float = 3.0) -> None:
        super().__init__()
        self.table, self.lag, self.c, self.device = (
            torch.nn.Embedding(size, size),
            lag,
            c,
            torch.device("cpu"),
        )
        self.table.weight.data = torch.eye(size, dtype=torch.float64)
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return lambda hidden: self.c * hidden

    def base_model(self, inputs_embeds, use_cache):
        return SimpleNamespace(last_hidden_state=torch.roll(inputs_embeds, self.lag, 1))


def test_a_copying_network_points_at_what_it_copies(shift):
    # position 4 is predicted from position 4 - 3 = 1, and so on
    x, y, lag = (
        [0, 3, 4, 5, 6],
        [3, 9, 5],
        3,
    )
    (raw,) = shift.importance(Lagging(10, lag), [x], [y])
    p = np.exp(3) / (np.exp(3) + 9), 1 / (np.exp(3) + 9)  # of the copied token, and of any other
    wanted = np.zeros((5, 3))
    wanted[1, 0] = wanted[3, 2] = 3 * p[0] * (1 - p[0])  # c p (1 - p): it copies and is right
    wanted[2, 1] = -3 * p[0] * p[1]  # it copies 4, but the response says 9
    assert np.allclose(raw, wanted)
    assert not np.allclose(shift.importance(Lagging(10, lag + 1), [x], [y])[0], wanted)


def test_the_sparse_map_by_hand(shift):
    raw = np.array(
        [
            [100.0, 0, 100, 9],
            [10, 1, -1, 1e-9],
            [7.0, 0.7, -2, -1],
            [7.1, 0.71, -3, -5],
            [6.9, 0.5, -4, 0],
        ]
    )
    s = shift.sparsified(raw, [1, 2, 3, 4])
    assert s.tolist() == [[0, 0, 0, 0], [10, 10, 0, 0], [0, 0, 0, 0], [8, 8, 0, 0], [0, 0, 0, 0]]
    # what letting the first position in would do
    assert shift.sparsified(raw, range(5))[:, 0].tolist() == [
        10,
        0,
        0,
        0,
        0,
    ]
    assert shift.sparsified(raw, [1, 2, 3, 4], b=0)[:, 0].tolist() == [0, 10, 7, 8, 7]
    # a column's scale does not matter
    assert (shift.sparsified(raw * [[5, 1e-3, 2, 1]], [1, 2, 3, 4]) == s).all()
    assert shift.sparsified(raw, [1, 2, 3, 4], floor=0)[1, 3] == 10


def test_density_counts_response_tokens_to_the_power_three_quarters(shift):
    s = np.zeros((4, 16))
    s[0, :16], s[1, 2], s[2, :4] = 9, 10, [8, 8, 8, 8]
    a = shift.density(s)
    assert (
        np.allclose(a * 16**0.75, [16**0.75, 1, 4**0.75, 0])
        and not shift.density(np.zeros((3, 2))).any()
    )
    assert shift.score(a, [0, 1]) == pytest.approx((1 + 1 / 8) / 2)
    assert shift.score(np.ones(6), range(6)) == pytest.approx(6 / 3)


def test_places_and_sentences_of_a_prompt(shift, world, shipped):
    for q in tunedpair.examples(world, 0, 28):
        parts = shift.sentences(q)
        assert len(parts) == 3 and all("." not in [q.words[i] for i in part] for part in parts)
        assert sum(part[0] < q.instruction[0] for part in parts) == q.slot
    q = tunedpair.examples(world, 0, 28)
    found = shift.measure(shipped[1]["tuned"][0], world, q, [x.response for x in q])
    assert (np.isfinite(found["place"]).sum(1) == 1).all() and (
        np.isfinite(found["elsewhere"]).sum(1) == 3
    ).all()
    assert np.allclose(np.nanmax(found["place"], 1), found["inside"])
    assert shift.lost(np.array([[1, np.nan, np.nan, np.nan], [np.nan, 2, 4, 2.0]])) == 2


# --- C1 ---


def test_shares_average_to_the_regression_coefficient(shift):
    g = np.random.default_rng(0)
    tasks, lengths = [f"t{i % 4}" for i in range(80)], g.normal(size=(2, 80))
    followed = g.random(80) < 0.4 + 0.1 * lengths[0].clip(-2, 2)
    y = (
        0.3 * followed
        + np.array([int(t[1]) for t in tasks])
        + 0.5 * lengths[0]
        + 0.1 * g.normal(size=80)
    )
    x = np.column_stack(
        [followed, lengths.T, *[[t == f"t{k}" for t in tasks] for k in range(3)]]
    ).astype(float)
    assert shift.shares(followed, y, tasks, *lengths).mean() == pytest.approx(
        LinearRegression().fit(x, y).coef_[0]
    )
    assert np.isnan(shift.shares(np.ones(80), y, tasks)).all()
    one = np.array(["t0"] * 80)
    assert shift.shares(followed, y, list(one)).mean() == pytest.approx(
        y[followed].mean() - y[~followed].mean()
    )


def test_ratings_are_made_by_rules(shift):
    good = {
        "capitals": "GRASS IS GREEN",
        "list": "1. Green",
        "begin": "Well, it is",
        "repeat": '"The old teacher opened',
        "json": '{"answer":',
        "spanish": "El color de la hierba",
        "question": "Do you know?",
    }
    for task, text in good.items():
        assert shift.WAYS[task][1](text, "The old teacher opened the door."), task
        assert not shift.WAYS[task][1](
            "Grass is green, as all of us know.", "The old teacher opened the door."
        ), task
    asked = shift.requests(70, 0)
    assert (
        asked == shift.requests(70, 0) != shift.requests(70, 1)
        and len({q["task"] for q in asked}) == 7
    )
    assert {q["parts"][0][0] for q in asked} == {"instruction", "context"}


@pytest.mark.parametrize("template", [False, True], ids=["raw", "chat"])
def test_spans_are_the_tokens_of_their_words(shift, template):
    _, tokenizer = loaders.causal_lm("smollm2")
    for q in shift.requests(14, 3):
        found = shift.tokenised(tokenizer, q, template)
        for role, text in q["parts"]:
            assert tokenizer.decode([found["ids"][i] for i in found[role]]).strip() == text
        assert 0 not in found["keep"] and set(found["instruction"]) | set(found["context"]) <= set(
            found["keep"]
        )
        assert ("system" in tokenizer.decode(found["ids"])) == template
        assert "system" not in tokenizer.decode([found["ids"][i] for i in found["keep"]])


# --- tool 2 ---


def test_mutual_information_and_its_filter_by_brute_force(shift):
    rows = np.random.default_rng(0).integers(-1, 6, (20, 12))
    found, counts = shift.ppmi(rows, 6), np.zeros((6, 6))
    for row in rows:
        for i, a in enumerate(row):
            for b in row[i + 1 : i + 6]:
                if a >= 0 and b >= 0:
                    counts[a, b] += 1
                    counts[b, a] += 1
    p = counts / counts.sum()
    assert np.allclose(found, np.maximum(np.log(p / np.outer(p.sum(0), p.sum(0))), 0))
    allowed = shift.related(found, 0.5)
    for u in range(6):
        for v in range(6):
            bars = [found[w].mean() + 0.5 * found[w].std() for w in (u, v)]
            assert allowed[u, v] == (u != v and found[u, v] > max(bars))
    assert allowed.any() and not shift.ppmi(np.full((2, 3), -1), 3).any()


def test_activations_fold_the_gain_and_repeat_the_keys(shift, net):
    words, stack = net.get_input_embeddings().weight, tf.Stack(net)
    q, k = shift.activations(stack, 1, words)
    assert q.shape == k.shape == (4, 8, 50)
    block = net.model.layers[1]
    for h in range(4):
        wq = block.self_attn.q_proj.weight[8 * h : 8 * h + 8]
        wk = block.self_attn.k_proj.weight[8 * (h // 2) : 8 * (h // 2) + 8]
        scaled = words * block.input_layernorm.weight
        assert torch.allclose(q[h].T @ k[h], (scaled @ wq.T) @ (scaled @ wk.T).T)


def test_kept_pairs_by_brute_force(shift, net):
    g = np.random.default_rng(1)
    allowed = g.random((50, 50)) < 0.5
    q, k = (x[0] for x in shift.activations(tf.Stack(net), 0, net.get_input_embeddings().weight))
    wanted = []
    for u in range(50):
        for v in range(50):
            times = sum(
                u in q[d].abs().argsort(descending=True)[:9]
                and v in k[d].abs().argsort(descending=True)[:9]
                # fmt: skip
                and allowed[u, v]
                and float(q[d, u] * k[d, v]) > 0
                for d in range(8)
            )
            if times > 1:
                wanted.append([u, v])
    found = shift.kept_pairs(q, k, allowed, 9)
    assert len(wanted) > 3 and found.tolist() == wanted
    counts = shift.word_counts(tf.Stack(net), net.get_input_embeddings().weight, allowed, 9)
    assert counts.shape == (3, 4, 50) and counts[0, 0].sum() == 2 * len(wanted)
    assert counts[0, 0, 7] == sum(pair.count(7) for pair in wanted)


def test_shares_of_increasing_heads_and_their_contrasts(shift):
    base, tuned = np.zeros((2, 2, 3), int), np.zeros((2, 2, 3), int)
    tuned[0, :, 0], base[1, 0, 0], tuned[1, 1, 1] = 2, 5, 1
    share = shift.increasing(base, tuned)
    assert share[:2].tolist() == [2 / 3, 1] and np.isnan(share[2])
    table = np.array([[1.0, 0, 0.5, np.nan], [0.2, 0.6, 0.4, 0.4]])
    chosen = np.array([[True, False, True, False], [False, True, True, True]])
    centred = table - np.nanmean(table, 1, keepdims=True)
    # the third was always chosen, the fourth has one value
    wanted = [
        centred[0, 0] - centred[1, 0],
        centred[1, 1] - centred[0, 1],
    ]
    assert np.allclose(shift.by_word(table, chosen), wanted)
    assert np.allclose(shift.by_seed(table, chosen), [0.75 - 0, (0.6 + 0.4 + 0.4) / 3 - 0.2])


# --- tool 3 ---


def test_directions_are_principal_components(shift):
    down = torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found, wanted = (
        shift.directions(down, 4).numpy(),
        PCA(4, svd_solver="full").fit(down.T.numpy()).components_,
    )
    assert np.allclose(np.abs((found * wanted).sum(1)), 1)


def test_overlap_is_the_mean_squared_cosine_of_principal_angles(shift):
    g = torch.Generator().manual_seed(1)
    u, v = (
        torch.linalg.qr(torch.randn(30, 4, generator=g, dtype=torch.float64))[0].T for _ in range(2)
    )
    assert shift.overlap(u, v) == pytest.approx(
        (np.cos(subspace_angles(u.numpy().T, v.numpy().T)) ** 2).mean()
    )
    turned = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    assert shift.overlap(u, turned @ u) == pytest.approx(1) and shift.overlap(
        u, -u
    ) == pytest.approx(1)
    stack_a, stack_b = (
        tf.Stack(
            AutoModelForCausalLM.from_config(
                LlamaConfig(
                    vocab_size=20,
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                )
            ).eval()
        )
        for _ in range(2)
    )
    assert (
        shift.turning(stack_a, stack_a, 3) == pytest.approx([1, 1])
        and max(shift.turning(stack_a, stack_b, 3)) < 0.9
    )
    classes = np.arange(20) % 3
    # all words: all classes
    assert shift.mix(stack_a, classes, 3, top=20) == pytest.approx([7 / 20, 7 / 20, 6 / 20])
    assert shift.mix(stack_a, classes, 3, top=4).sum() == pytest.approx(1)


# --- broken on purpose ---


def verdict(claim: str, **arrays) -> str:
    """A claim's verdict when its control is in order and its gates are met."""
    card = cards.load("instruction-shift")
    control = next(c["id"] for c in who.of_claim(card, claim))
    noise = np.cos(np.arange(9))
    measured = {claim: arrays, control: dict.fromkeys(arrays, -1 + 0.1 * noise)}
    rows = engine.decide(card, measured, {"G1": [1.0, 0.9], "G2": [0.0, 0.01], "G3": [30]}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


@pytest.fixture(scope="module")
def densities(shift, world, shipped):
    """Mean scores [seeds] of base and tuned networks on right answers, by span."""
    seeds, nets = shipped
    table = {"base": [], "tuned": []}
    for i, s in enumerate(seeds):
        questions = tunedpair.examples(world, s, 28, draw=7)
        for kind, rows in table.items():
            found = shift.measure(nets[kind][i], world, questions, [q.response for q in questions])
            rows.append({name: found[name].mean() for name in ("operand", "sham")})
    return {
        kind: {name: np.array([r[name] for r in rows]) for name in rows[0]}
        for kind, rows in table.items()
    }


def test_swapped_networks_flip_the_verdict(densities):
    # every task copies or maps these words
    rise = densities["tuned"]["operand"] - densities["base"]["operand"]
    assert verdict("C2", reference=rise, own=rise) == "reproduced"
    assert verdict("C2", reference=-rise, own=-rise) == "not reproduced"


def test_a_span_in_the_wrong_place_loses_the_rise(densities):
    rise = densities["tuned"]["sham"] - densities["base"]["sham"]
    assert verdict("C2", reference=rise, own=rise) != "reproduced"


def test_shuffled_labels_lose_the_verbs(shift):
    g = np.random.default_rng(0)
    chosen = np.array([[v in roles(s).task_of for v in VERBS] for s in range(5)])
    share = 0.5 + 0.15 * chosen + 0.1 * g.normal(size=chosen.shape)
    found = lambda c: {"words": shift.by_word(share, c), "seeds": shift.by_seed(share, c)}  # noqa: E731
    assert verdict("C5", **found(chosen)) == "reproduced"
    assert verdict("C5", **found(g.permuted(chosen, axis=1))) != "reproduced"
