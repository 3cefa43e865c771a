"""The method of the depth-efficiency paper against brute force and closed forms; and what happens
when it is broken.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from sklearn.linear_model import Ridge
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from layerbook.claims import cards, engine, roles
from layerbook.data import loaders
from layerbook.layers import transformer as tf
from layerbook.pipeline import method

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=5, n_head=4, n_positions=32),
    "gpt-neox": GPTNeoXConfig(**SMALL, max_position_embeddings=32),
}


@pytest.fixture(scope="module")
def de() -> SimpleNamespace:
    return method.load("depth-efficiency")


def network(kind: str, seed: int = 0):
    """A random network whose layers write enough to be missed, in double precision."""
    torch.manual_seed(seed)
    model = (
        AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="eager")
        .double()
        .eval()
        .requires_grad_(False)
    )
    for p in model.parameters():
        if p.ndim == 2:
            p.mul_(5)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def net(request):
    return tf.Stack(network(request.param))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(60, (3, 12), generator=torch.Generator().manual_seed(1))


def hidden(model, ids):
    """Residual states [n + 1, B, T, d] by hooks of our own on the blocks, and the logits."""
    base = model.base_model
    blocks, seen = base.layers if hasattr(base, "layers") else base.h, []
    hooks = [blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))]
    hooks += [
        b.register_forward_hook(
            lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for b in blocks
    ]
    logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), logits


def brute_skip(model, ids, s, where):
    """The same with the output of block s overwritten by its input at `where`, in a full run."""
    base = model.base_model
    block = (base.layers if hasattr(base, "layers") else base.h)[s]

    def overwrite(module, args, out):
        h = out[0] if isinstance(out, tuple) else out
        h = torch.where(where[..., None], args[0], h)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    hook = block.register_forward_hook(overwrite)
    try:
        return hidden(model, ids)
    finally:
        hook.remove()


def masks(ids, t):
    position = torch.arange(ids.shape[1]).expand_as(ids)
    return (position >= 1) & (position < t), position >= t


# --- A: contributions ---


def test_contributions_are_those_of_the_plain_forward_pass(de, net, ids):
    h, _ = hidden(net.model, ids)
    d = (h[1:] - h[:-1])[:, :, 1:]
    found = de.contributions(net, ids)
    wanted = d.norm(dim=-1) / h[:-1, :, 1:].norm(dim=-1)
    assert np.allclose(found["size"][2], wanted.mean(-1), rtol=1e-5)
    assert np.allclose(found["raw"], d.norm(dim=-1).mean(-1), rtol=1e-5)
    dots = (d * h[:-1, :, 1:]).sum(-1) / d.norm(dim=-1) / h[:-1, :, 1:].norm(dim=-1)
    assert np.allclose(found["cosine"][2], dots.mean(-1), atol=1e-5)
    again = ids.clone()
    # the first token is attended to, so a little changes, but it is not measured
    again[:, 0] = (again[:, 0] + 1) % 60
    assert (
        found["size"].shape == (3, net.n, 3)
        and not np.isnan(de.contributions(net, again)["size"]).any()
    )


def test_the_accumulating_stack_falls_like_one_over_the_root_of_the_depth(de, net, ids):
    h, _ = hidden(net.model, ids)
    w = (h[1:] - h[:-1])[de.middle(net.n)][:, :, 1:].norm(dim=-1).mean(0)
    h0 = h[0][:, 1:].norm(dim=-1)
    wanted = torch.stack([(w / (h0**2 + k * w**2).sqrt()).mean(-1) for k in range(net.n)])
    assert np.allclose(de.contributions(net, ids)["null"], wanted, rtol=1e-5)
    # ... and that this is what orthogonal writes of equal length do, shown on vectors
    stream, shares = np.eye(50)[0] * 3, []
    for k in range(1, 40):
        shares.append(2 / np.linalg.norm(stream))
        stream = stream + 2 * np.eye(50)[k]
    assert np.allclose(shares, [2 / math.sqrt(9 + 4 * k) for k in range(39)])


def test_halves_leave_out_the_first_and_the_last_tenth(de):
    assert de.middle(30) == list(range(3, 27)) and de.middle(10) == list(range(1, 9))
    x = np.ones((30, 2))
    x[:3] = x[27:] = 1000
    x[15:27, 1] = 0.5
    assert de.share_ratio(x).tolist() == [1.0, 0.5]
    root = 1 / np.sqrt(np.arange(1, 31))[:, None]
    assert de.share_ratio(root)[0] == pytest.approx(
        sum(k**-0.5 for k in range(16, 28)) / sum(k**-0.5 for k in range(4, 16))
    )


# --- B, C: skipping ---


@pytest.mark.parametrize("t", [12, 5], ids=["present", "future"])
def test_restarted_skips_equal_brute_force(de, net, ids, t):
    where, after = masks(ids, t)
    read = where if t == 12 else after
    e, o = de.skip_effects(net, ids, where, read)
    h, logits = hidden(net.model, ids)
    d, p = h[1:] - h[:-1], logits.softmax(-1)
    for s in range(net.n):
        h_new, logits_new = brute_skip(net.model, ids, s, where)
        change = (h_new[1:] - h_new[:-1] - d).norm(dim=-1) / d.norm(dim=-1)
        for i in range(s + 1, net.n):
            assert np.allclose(e[s, i][read], change[i][read], rtol=1e-3, atol=1e-5)
        assert np.allclose(
            o[s][read], (logits_new.softmax(-1) - p).norm(dim=-1)[read], rtol=1e-3, atol=1e-5
        )
        if t == 12:
            assert torch.allclose(change[s][where], torch.ones(()).double())  # the trivial diagonal
        else:
            # keys and values of the skipped layer are left alone
            assert change[s][after].max() < 1e-6
    assert np.isnan(e[np.tril_indices(net.n)]).all() and np.isnan(e[0, 1][~read.numpy()]).all()
    e2, o2 = de.skip_effects(net, ids, where, read, step=2)
    assert (
        np.isnan(e2[1::2]).all()
        and np.isnan(o2[1::2]).all()
        and np.array_equal(e2[::2], e[::2], equal_nan=True)
    )
    assert (
        de.onwards(e2[..., None, :], "max").shape
        == de.output(o2[..., None, :], "max").shape
        == (2, 3)
    )


def test_the_last_layer_has_no_future_and_nothing_precedes_its_cause(de, net, ids):
    where, after = masks(ids, 5)
    _, o = de.skip_effects(net, ids, where, after)
    assert np.nanmax(o[-1]) < 1e-6 and np.nanmax(o[0]) > 1e-3
    # read at positions 1 to 3, skip from 5 on: a causal network cannot know
    early, _ = masks(ids, 4)
    e, o = de.skip_effects(net, ids, after, early)
    assert np.nanmax(e) < 1e-6 and np.nanmax(o) < 1e-6


def test_a_skip_of_both_sublayers_is_not_a_skip_of_one(de, net, ids):
    where, _ = masks(ids, 12)
    e = {
        part: de.skip_effects(net, ids, where, where, part, output=False)[0]
        for part in ("layer", "attn", "mlp")
    }
    assert all(np.nanmax(np.abs(e["layer"] - e[part])) > 1e-2 for part in ("attn", "mlp"))
    assert np.isnan(de.skip_effects(net, ids, where, where, output=False)[1]).all()


def test_direct_effects_equal_brute_force(de, net, ids):
    where, read = masks(ids, 5)
    e = de.local_effects(net, ids, where, read)
    h, _ = hidden(net.model, ids)
    d = h[1:] - h[:-1]
    for s, i in ((0, 1), (0, 4), (2, 3)):
        x = h[i].clone()
        x[where] -= d[s][where]
        with tf.replace(net, {("resid", i): lambda _, x=x: x}):
            new, _ = hidden(net.model, ids)
        change = (new[i + 1] - x - d[i]).norm(dim=-1) / d[i].norm(dim=-1)
        assert np.allclose(e[s, i][read], change[read], rtol=1e-3, atol=1e-5)
    assert np.isnan(e[3, 2]).all() and np.isnan(e[0, 1][~read.numpy()]).all()


def test_lens_ends_at_the_output(de, net, ids):
    kl, top = de.lens_curves(net, ids)
    assert np.abs(kl[-1]).max() < 1e-6 and (top[-1] == 1).all() and (kl[:-1] > 0).all()
    h, logits = hidden(net.model, ids)
    p, final = tf.lens(net, h[2][:, 1::2]).softmax(-1).numpy(), logits[:, 1::2].softmax(-1).numpy()
    # this direction, not the other
    assert np.allclose(kl[2], rel_entr(p, final).sum(-1).mean(-1), rtol=1e-5)


# --- shapes of curves ---


def test_pooling_and_means_over_later_layers(de):
    e = np.full((3, 3, 1, 2, 2), np.nan)
    e[0, 1, 0], e[0, 2, 0], e[1, 2, 0] = (
        [[1, np.nan], [3, 5]],
        [[7, np.nan], [1, 1]],
        [[2, np.nan], [2, 2]],
    )
    assert de.onwards(e, "max").tolist() == [[6], [2]] and de.onwards(e, "mean").tolist() == [
        [3],
        [2],
    ]
    ratio, rho = de.asymmetry(np.array([[100.0], [4], [2], [1], [0.5]]))
    assert ratio[0] == pytest.approx(0.75 / 4) and rho[0] == pytest.approx(-1)


def test_a_step_is_told_from_a_power_law(de):
    n, depth = 30, np.arange(4, 28)
    step = np.log(np.where(depth <= 15, 0.4, 0.1)) + 0.01 * np.sin(depth)
    law = np.log(0.7 / np.sqrt(depth)) + 0.01 * np.sin(depth)
    found = de.transition(np.stack([step, law]).T, n)
    assert found["advantage"][0] > 0.2 and found["advantage"][1] < -0.1
    assert found["where"][0] == pytest.approx(0.5) and found["drop"][0] == pytest.approx(
        math.log(4), abs=0.02
    )
    assert np.allclose(de.power_law(np.log(2.0 * depth**-0.3), depth), np.log(2.0 * depth**-0.3))


def test_dealt_layers_share_an_order_between_curves_of_one_passage(de):
    x = np.arange(40.0).reshape(10, 4)
    y = de.dealt(x, 3)
    assert (
        (np.sort(y, 0) == x).all()
        and not (y == x).all()
        and len({tuple(np.argsort(c)) for c in y.T}) == 4
    )
    assert (de.dealt(x**2, 3) == y**2).all()
    part = de.dealt(x, 3, [2, 3, 4])
    assert (part[[0, 1, 5, 6, 7, 8, 9]] == x[[0, 1, 5, 6, 7, 8, 9]]).all() and (
        np.sort(part, 0) == x
    ).all()


def test_rows_and_readings_of_present_and_future(de, ids):
    cuts = np.array([[4, 8], [8, 4], [4, 8]])
    row, before, after = de.rows_of(ids, cuts)
    assert torch.equal(row[::2], ids) and torch.equal(row[1::2], ids)
    assert (
        not before[:, 0].any()
        and before.sum(1).tolist() == [3, 7, 7, 3, 3, 7]
        and after.sum(1).tolist() == [8, 4, 4, 8, 8, 4]
    )
    found = de.effects(tf.Stack(network("llama")), ids, cuts)
    assert found["future"][0].shape == (5, 5, 3, 2, 12) and found["now"][1].shape == (5, 3, 1, 12)
    late = found["late"][1]
    assert (
        np.isnan(late[0, 0, 0, :4]).all()
        and (late[0, 0, 0, 4:] == found["now"][1][0, 0, 0, 4:]).all()
    )
    gap = de.gaps(found["now"][1], found["now"][1])
    assert set(de.both(lambda how: de.output(found["now"][1], how))) == {
        "ratio_max",
        "rho_max",
        "ratio_mean",
        "rho_mean",
    }
    assert not gap["gap_max"].any() and not gap["gap_mean"].any()


# --- passages ---


def test_passages_begin_with_the_sink_and_are_not_padded(de):
    _, tokenizer = loaders.causal_lm("smollm2")
    bible = loaders.bible()
    rows = de.passages(tokenizer, bible, 6, 40, 0)
    start = rows == tokenizer.bos_token_id
    assert rows.shape == (6, 40) and start[:, 0].all() and not start[:, 1:].any()
    assert torch.equal(rows, de.passages(tokenizer, bible, 6, 40, 0))
    other = de.passages(tokenizer, bible, 6, 40, 1)
    # numbers are drawn, texts are not
    assert torch.equal(rows[0], other[0]) and not torch.equal(rows[1], other[1])
    assert (
        "def " in tokenizer.decode(rows[2]) and len(de.passages(tokenizer, bible, 30, 96, 0)) == 30
    )
    with pytest.raises(ValueError, match="tokens"):
        de.passages(tokenizer, bible, 3, 5000, 0)


# --- difficulty ---


def test_sums_and_their_depth_score(de):
    prompts, wanted = de.sums(torch.tensor([[5, 7, 3], [0, 0, 1]]))
    assert prompts.tolist() == [
        [12, 5, 10, 7, 10, 3, 11],
        [12, 0, 10, 0, 10, 1, 11],
    ] and wanted.tolist() == [13 + 15, 13 + 1]
    everything = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    assert 10 <= de.kept_out(everything).sum() <= 20
    assert de.depth_score(np.array([[1.0, 0], [1, 0], [2, 3]])).tolist() == [1.25, 2.0]


def test_the_adder_is_trained_reproducibly_and_scored_chain_by_chain(de):
    settings = {
        "layers": 3,
        "width": 16,
        "terms": range(2, 4),
        "steps": 8,
        "batch": 16,
        "seed": 0,
        "device": "cpu",
    }
    first, second = (de.train_adder(**settings) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    chains = torch.randint(10, (6, 3), generator=torch.Generator().manual_seed(0))
    slopes, right = de.score_slopes(tf.Stack(first), chains, range(2, 4))
    assert (
        slopes["output"].shape == slopes["layers"].shape == right.shape == (6,)
        and np.isfinite(slopes["output"]).all()
    )
    assert len(de.accuracies(tf.Stack(first), torch.randint(10, (200, 3)), range(2, 4))) == 2


# --- maps between models ---


def test_ridge_is_that_of_scikit_learn(de):
    g = torch.Generator().manual_seed(0)
    x, y, x_new = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((80, 7), (80, 5), (9, 7))
    )
    x[:, 0] *= 100
    scale, predict = x.std(0), de.ridge(x, y)
    for alpha in de.ALPHAS:
        guess = predict(x_new, alpha)
        wanted = Ridge(alpha=alpha).fit(x / scale, y).predict(x_new / scale)
        assert np.allclose(guess, wanted, atol=1e-9)


def test_maps_find_a_linear_relation_and_nothing_else(de):
    g = torch.Generator().manual_seed(0)
    source = torch.randn(3, 900, 6, generator=g, dtype=torch.float64)
    target = torch.stack(
        [
            source[i] @ torch.randn(6, 4, generator=g, dtype=torch.float64) + 2
            for i in (0, 0, 1, 2, 2)
        ]
    )
    errors = de.map_errors(source[:, :600], target[:, :600], source[:, 600:], target[:, 600:])
    assert errors.shape == (3, 5, 300) and errors.mean(-1).argmin(0).tolist() == [0, 0, 1, 2, 2]
    assert errors[0, 0].max() < 1e-2 and errors[0, 4].mean() > 0.3
    contrast, rho = de.diagonal(errors[..., :4])
    assert (contrast > 0.1).all() and (rho > 0.9).all()
    turned, against = de.diagonal(errors[::-1, :, :4])
    assert (turned < contrast).all() and (against < -0.9).all()
    assert de.diagonal(np.broadcast_to(np.arange(3.0)[:, None, None], (3, 5, 2)))[1].tolist() == [
        0,
        0,
    ]


def test_an_untrained_twin_has_the_shape_and_not_the_weights(de):
    model = network("llama")
    a, b, c = (de.untrained(model, seed) for seed in (1, 1, 2))
    key = "model.layers.0.mlp.up_proj.weight"
    weights = [m.state_dict()[key] for m in (model, a, b, c)]
    assert weights[0].shape == weights[1].shape and torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0]) and not torch.equal(weights[1], weights[3])
    shared = de.untrained(network("gpt2"), 5, like=de.untrained(network("gpt2"), 6)).transformer
    lone = de.untrained(network("gpt2"), 6).transformer
    assert torch.equal(shared.wte.weight, lone.wte.weight) and torch.equal(
        shared.wpe.weight, lone.wpe.weight
    )
    assert not torch.equal(shared.h[0].mlp.c_fc.weight, lone.h[0].mlp.c_fc.weight)
    assert de.states(tf.Stack(model), torch.zeros(70, 6, dtype=torch.long)).shape == (6, 350, 32)


# --- broken on purpose ---


def verdict(claim: str, **arrays) -> str:
    """A claim's verdict when its control is in order and its gates are met."""
    card = cards.load("depth-efficiency")
    control = next(c["id"] for c in roles.of_claim(card, claim))
    measured = {claim: arrays, control: {name: 1 + 0.1 * np.cos(np.arange(9)) for name in arrays}}
    rows = engine.decide(card, measured, {"G1": [1.0, 1.0]}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


def skip_curve() -> np.ndarray:
    """Effects [29, 9] that fall with depth, differently for each passage."""
    g = np.random.default_rng(0)
    return np.exp(-0.1 * np.arange(29))[:, None] * np.exp(0.1 * g.normal(size=(29, 9)))


@pytest.mark.parametrize("claim", ["C2", "C7"])
def test_layers_in_the_wrong_order_flip_the_verdict(de, claim):
    assert verdict(claim, **de.both(lambda how: skip_curve())) == "reproduced"
    assert verdict(claim, **de.both(lambda how: skip_curve()[::-1])) == "not reproduced"
    assert verdict(claim, **de.both(lambda how: de.dealt(skip_curve(), 0))) != "reproduced"


def test_a_decline_by_accumulation_alone_passes_c1_and_fails_c8_and_c9(de):
    g = np.random.default_rng(1)
    stack = (1 / np.sqrt(1 + np.arange(30)))[:, None]
    null = stack * np.exp(0.02 * g.normal(size=(30, 9)))
    rows = de.middle(30)
    assert verdict("C1", ratio=de.share_ratio(null)) == "reproduced"
    assert (
        verdict("C8", excess=np.log(de.share_ratio(null) / de.share_ratio(stack))) != "reproduced"
    )
    assert verdict("C9", **de.transition(np.log(null[rows]), 30)) != "reproduced"
