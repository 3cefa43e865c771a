"""Attention knockout by windows against passes written out by hand; and what happens when it is
broken.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from layerbook.claims import cards, engine, roles
from layerbook.data import loaders, shapes
from layerbook.layers import transformer as tf
from layerbook.networks import shapesgraft, shapesvlm
from layerbook.pipeline import method

TINY = shapesvlm.Recipe(width=32, layers=4, hidden=48)
FLOWS = [("image", "question"), ("image", "last"), ("question", "last"), ("last", "last"), ("other 0", "question"),
         ("image", "later"), ("image", "crowd"), ("suffix", "last")]  # fmt: skip


@pytest.fixture(scope="module")
def flow() -> SimpleNamespace:
    return method.load("cross-modal-flow")


@pytest.fixture(scope="module")
def vlm() -> shapesvlm.ShapesVLM:
    """A random network, its weights enlarged so that attention is sharp enough to be missed."""
    model = shapesvlm.build(TINY).requires_grad_(False)
    for name, p in model.decoder.named_parameters():
        if "_proj" in name:
            p.mul_(3)
    return model


@pytest.fixture(scope="module")
def pool() -> shapes.Examples:
    return shapes.examples(8, 0)


@pytest.fixture(scope="module")
def reader(flow, vlm, pool):
    groups = flow.groups_of(pool, torch.arange(8), 0)
    return flow.Reader(tf.Stack(vlm.decoder), vlm.embed(pool.images, pool.ids), pool.last, groups)


def by_hand(reader, j: int, source: str, target: str, layers: range) -> torch.Tensor:
    """Probabilities [vocabulary] for prompt j alone: no padding, block by block, each with a mask
    written out.
    """
    base, end = reader.net.model.base_model, int(reader.last[j]) + 1
    h = reader.calls[0][0][j : j + 1, :end]
    places = torch.arange(end)[None]
    for i, block in enumerate(base.layers):
        mask = torch.full((end, end), float("-inf")).triu(1)
        if i in layers:
            s, t = (reader.groups[name][j, :end] for name in (source, target))
            mask[t[:, None] & s[None]] = float("-inf")
        rotary = base.rotary_emb(h, position_ids=places)
        h = block(
            h, attention_mask=mask[None, None], position_ids=places, position_embeddings=rotary
        )
    return reader.net.model.lm_head(base.norm(h))[0, -1].softmax(-1)


# --- cuts ---


def test_windows_are_those_of_the_published_code(flow):
    for n in (8, 30, 40):
        for k in (1, 3, 7, 9):
            for centre in range(n):
                wanted = range(max(0, centre - k // 2), min(n, centre + -(-k // 2) - 1 + 1))
                assert (
                    list(flow.window(centre, k, n)) == list(wanted)
                    and centre in wanted
                    and len(wanted) <= k
                )
    assert list(flow.window(10, 9, 40)) == list(range(6, 15)) and list(
        flow.window(0, 9, 40)
    ) == list(range(5))
    assert [flow.scaled(n) for n in (4, 8, 30, 32, 40)] == [3, 3, 7, 7, 9]


@pytest.mark.parametrize(("source", "target"), FLOWS)
def test_sweeps_equal_single_prompts_masked_by_hand(flow, reader, source, target):
    p_cut, same = reader.sweep(source, target, 3)
    for j in (0, 1, 5):
        plain = by_hand(reader, j, source, target, range(0))
        assert plain.argmax() == reader.token[j] and torch.allclose(
            plain.max(), reader.p[j], atol=1e-5
        )
        for c in range(reader.net.n):
            p = by_hand(reader, j, source, target, flow.window(c, 3, reader.net.n))
            assert torch.allclose(p_cut[c, j], p[reader.token[j]], atol=1e-5)
            assert same[c, j] == (p.argmax() == reader.token[j])
    if target != "crowd":
        assert (p_cut - reader.p).abs().max() > 1e-4
    found = flow.change(reader, source, target, 3)
    assert np.allclose(found, 100 * (p_cut / reader.p - 1), atol=1e-3)


def test_cut_weights_are_zero_and_rows_sum_to_one(reader):
    pairs = (reader.groups["later"][:, :, None] & reader.groups["image"][:, None])[:, None]
    with tf.knock_out(reader.net, [1, 2], reader.groups["image"], reader.groups["later"]):
        cut = reader.net.model(inputs_embeds=reader.calls[0][0], output_attentions=True).attentions
    plain = reader.net.model(inputs_embeds=reader.calls[0][0], output_attentions=True).attentions
    for i, (a, b) in enumerate(zip(cut, plain)):
        assert torch.allclose(a.sum(-1), torch.ones(()), atol=1e-6) and a.triu(1).abs().max() == 0
        assert ((a * pairs).max() == 0) == (i in (1, 2)) and (b * pairs).max() > 0
    # the first layer that is cut sees the same states: its weights are renormalised
    kept = plain[1].masked_fill(pairs, 0)
    assert torch.allclose(cut[1], kept / kept.sum(-1, keepdim=True), atol=1e-5)


def test_a_row_without_any_source_is_refused_and_nothing_is_left_behind(reader):
    everything = torch.ones_like(reader.groups["image"])
    with pytest.raises(ValueError, match="cut off from every position"):
        with tf.knock_out(reader.net, [0], everything, reader.groups["last"]):
            reader.read(reader.calls[0][0], 0)
    assert torch.equal(reader.read(reader.calls[0][0], 0), reader.probabilities)
    with tf.knock_out(reader.net, [0], reader.groups["image"], reader.groups["last"]):
        with tf.knock_out(reader.net, [0], reader.groups["question"], reader.groups["last"]):
            both = reader.read(reader.calls[0][0], 0)
    united = reader.groups["image"] | reader.groups["question"]
    with tf.knock_out(reader.net, [0], united, reader.groups["last"]):
        assert torch.equal(both, reader.read(reader.calls[0][0], 0))


def test_cuts_without_edges_change_nothing(flow, reader):
    assert not flow.change(reader, "nothing", "question", 3).any()
    assert np.abs(flow.change(reader, "last", "image", 3)).max() < 1e-4


# --- numbers ---


def test_depth_and_centroid_of_known_curves(flow):
    curve = np.array([0.0, -10, -30, 5, 0])
    assert flow.depth(curve) == -30 and flow.centroid(curve) == pytest.approx(
        (1 * 10 + 2 * 30) / 40
    )
    # dividing all questions alike by a number of patches is no matter
    assert flow.centroid(7 * curve) == flow.centroid(curve)
    assert np.isnan(flow.centroid(np.abs(curve))) and flow.centroid(
        np.stack([curve, curve[::-1]])
    ).tolist() == [1.75, 2.25]


def test_the_bootstrap_is_that_of_scipy(flow):
    g = np.random.default_rng(0)
    a, b = g.normal(-40, 20, (4, 60)), g.normal(-10, 20, (4, 60))
    estimate, low, high = flow.contrast(flow.depth, a, b, 0)
    assert estimate == pytest.approx(a.mean(1).min() - b.mean(1).min())

    def statistic(index: np.ndarray) -> float:
        index = index.astype(int)
        return a[:, index].mean(1).min() - b[:, index].mean(1).min()

    found = stats.bootstrap(
        (np.arange(60),), statistic, vectorized=False, method="percentile", rng=g, n_resamples=2000
    )
    ci = found.confidence_interval
    assert low == pytest.approx(ci.low, abs=1.5) and high == pytest.approx(ci.high, abs=1.5)
    assert flow.contrast(flow.depth, a, a, 0) == (0, 0, 0)


def test_dips_are_counted(flow):
    shapes_of_curves = ([0, -9, 0, -9, 0], [-9, -9, -9], [-9, 0, 0, -1], [0, 1, 2], [-1, -5, -9])
    assert [flow.dips(np.array(c, float)) for c in shapes_of_curves] == [2, 1, 1, 0, 1]


# --- positions ---


def test_groups_are_what_they_are_called(flow, pool):
    groups = flow.groups_of(pool, torch.arange(8), 3)
    g = {name: mask.numpy() for name, mask in groups.items()}
    assert (
        (g["image"].sum(1) == 16).all()
        and ((g["object"] ^ g["rest"]) == g["image"]).all()
        and not g["nothing"].any()
    )
    assert (g["last"].sum(1) == 1).all() and (g["suffix"].sum(1) == len(shapes.SUFFIX) - 1).all()
    assert (g["crowd"].sum(1) == g["question"].sum(1)).all() and not (
        g["crowd"] & ~g["image"]
    ).any()
    for i in range(5):
        other = g[f"other {i}"]
        assert (other.sum(1) == g["object"].sum(1)).all() and not (other & ~g["rest"]).any()
    assert (
        not (g["other 0"] & g["others"]).any()
        and ((g["other 0"] | g["others"]) == g["image"]).all()
    )
    assert (g["upper"].sum(1) == 8).all() and not (g["distractor"] & g["object"]).any()
    for i, (scene, q) in enumerate(zip(pool.scenes, pool.questions)):
        assert set(np.flatnonzero(g["distractor"][i]) - 1) <= set(scene.cells) - {
            scene.cells[q.subject]
        }
    again = flow.groups_of(pool, torch.arange(8), 3)
    assert all(torch.equal(groups[name], again[name]) for name in groups)
    draws = [flow.groups_of(pool, torch.arange(8), s)["other 0"] for s in range(400)]
    share = torch.stack(draws).double().mean(0)[groups["rest"]]
    assert (share - 1 / 15).abs().max() < 0.07


def test_facts_mark_the_sentence_that_holds_the_answer(flow):
    _, tokenizer = loaders.causal_lm("smollm2")
    ids, last, answer, groups = flow.facts(tokenizer, 6, 0)
    for row, end, word, fact in zip(ids, last, answer, groups["fact"]):
        text, sentence, colour = (
            tokenizer.decode(row[: end + 1]),
            tokenizer.decode(row[fact]),
            tokenizer.decode(word),
        )
        thing = text.split()[-2]
        assert text.endswith(" is") and text.count(sentence) == 1 and colour in sentence
        assert sentence.endswith(f"a{colour} {thing}.") and text.count(colour) == 1
    assert torch.equal(ids, flow.facts(tokenizer, 6, 0)[0])


def test_the_graft_says_what_it_marks():
    language, tokenizer = loaders.causal_lm("smollm2")
    found = shapes.examples(4, 0)
    graft = shapesgraft.Graft(language, tokenizer, 0)
    with torch.no_grad():
        embeds, last, answer, groups = graft.prompts(found)
    table = language.get_input_embeddings().weight
    for i, q in enumerate(found.questions):
        said = tokenizer.decode(
            [int((table - e).abs().sum(-1).argmin()) for e in embeds[i][groups["question"][i]]]
        )
        assert said == " " + " ".join(q.words[:-1]) + "?"
        picture = graft.see(found.images[i : i + 1])[0]
        assert (
            torch.allclose(embeds[i][groups["image"][i]], picture, atol=1e-5)
            and groups["last"][i].nonzero()[0] == last[i]
        )
        assert tokenizer.decode(answer[i]).strip() == q.answer


# --- reading the answer ---


def test_tracking_ends_at_the_output_and_notices_what_is_planted(flow, reader):
    curve = flow.tracked(reader)
    assert curve.shape == (reader.net.n + 1, 8) and np.allclose(curve[-1], reader.p, atol=1e-5)
    h = reader.net.model(inputs_embeds=reader.calls[0][0], output_hidden_states=True).hidden_states
    rows = torch.arange(8)
    for i in (0, 2):
        logits = reader.net.model.lm_head(reader.net.norm(h[i][rows, reader.last]))
        assert np.allclose(curve[i], logits.softmax(-1)[rows, reader.token], atol=1e-5)
        logits = reader.net.model.lm_head(h[i][rows, reader.last])
        assert np.allclose(
            flow.tracked(reader, normed=False)[i], logits.softmax(-1)[rows, reader.token], atol=1e-5
        )
    assert np.allclose(flow.tracked(reader, normed=False)[-1], reader.p, atol=1e-5)
    assert np.allclose(flow.tracked(reader, planted=True)[0], reader.p, atol=1e-5)
    assert np.allclose(flow.tracked(reader, torch.arange(len(shapes.WORDS))), 1, atol=1e-5)


def test_lag_counts_blocks(flow):
    curve, transfer = np.array([0.1, 0.2, 0.7, 0.4, 0.9])[:, None], np.array([0, -50, -10, 0.0])
    assert flow.lag(curve, transfer) == 0  # readable after block 1, where the cut costs most
    assert flow.lag(curve, transfer[::-1]) == -1 and np.isnan(flow.lag(curve / 2, transfer))


# --- broken on purpose ---

NOISE = np.linspace(-2, 2, 5)


def verdict(claim: str, **arrays) -> str:
    """A claim's verdict when its control is in order and its gate is met."""
    card = cards.load("cross-modal-flow")
    control = next(c["id"] for c in roles.of_claim(card, claim))
    measured = {claim: arrays, control: dict.fromkeys(arrays, NOISE)}
    rows = engine.decide(card, measured, {"G1": [0.99] * 5}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


def curves(seed: int, centre: float, deep: float) -> np.ndarray:
    """Changes in % [8, 40] with a dip of a given depth around a layer."""
    g = np.random.default_rng(seed)
    return deep * np.exp(-((np.arange(8) - centre) ** 2) / 2)[:, None] + g.normal(0, 3, (8, 40))


def route(flow, names: tuple[str, str, str]) -> dict[str, str]:
    """Verdicts on networks whose picture, question and last position exchange what `names` says, in
    this order of depth.
    """
    rows = []
    for s in range(5):
        deep = {"picture to question": curves(s, 2, -80 - s), "question to last": curves(s + 10, 5, -85 - s),
                "picture to last": curves(s + 20, 4, -5)}  # fmt: skip
        rows.append([deep[name] for name in names])
    c1 = [flow.contrast(flow.depth, a, c, 0) for a, _, c in rows]
    c2 = [flow.contrast(flow.centroid, b, a, 0) for a, b, _ in rows]
    return {"C1": verdict("C1", gap=[x[0] for x in c1], upper=[x[2] for x in c1]),
            "C2": verdict("C2", gap=[x[0] for x in c2], lower=[x[1] for x in c2])}  # fmt: skip


def test_flows_that_are_confused_flip_the_verdicts(flow):
    right = ("picture to question", "question to last", "picture to last")
    assert route(flow, right) == {"C1": "reproduced", "C2": "reproduced"}
    assert route(flow, right[::-1])["C1"] == "not reproduced"
    assert route(flow, (right[1], right[0], right[2]))["C2"] == "not reproduced"


def test_a_cut_that_cuts_nothing_flips_the_verdict(flow, monkeypatch):
    found = shapes.examples(120, 5)
    vlm = shapesvlm.load(loaders.paths.MODELS / "shapes-vlm")["seed-0"]

    def blind() -> float:
        groups = flow.groups_of(found, torch.arange(120), 0)
        reader = flow.Reader(
            tf.Stack(vlm.decoder), vlm.embed(found.images, found.ids), found.last, groups
        )
        right = reader.cut("image", "later", range(reader.net.n)).argmax(-1) == found.answer
        return (right.double() - found.prior).mean().item()

    null = {"empty": [0.0] * 5, "acausal": [0.0] * 5}
    assert blind() < 0.15
    monkeypatch.setattr(tf, "knock_out", lambda net, layers, sources, targets: tf.replace(net, {}))
    broken = blind()
    assert (
        broken > 0.4
        and verdict("C5", blind=(broken + NOISE / 1000).tolist(), **null) == "not reproduced"
    )
    assert verdict("C5", blind=(NOISE / 1000).tolist(), **null) == "reproduced"
    assert (
        verdict("C5", blind=(NOISE / 1000).tolist(), empty=[0, 0, 0, 0, 0.1], acausal=[0.0] * 5)
        == "not reproduced"
    )
