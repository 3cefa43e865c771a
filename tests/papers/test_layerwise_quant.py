"""Oracles of the method cells of layerwise-quant: quantisers, scores, orders and the sweep; and
ways to break them.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from layerbook.claims import cards, engine
from layerbook.pipeline import method
from layerbook.quantize import bits as storage
from layerbook.quantize import gptq, sweeps
from layerbook.quantize import grids as q


@pytest.fixture(autouse=True, scope="module")
def no_grad():
    """As in the notebook: nothing here is differentiated."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lq():
    return method.load("layerwise-quant")


def tiny_llama(layers=6, seed=0, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def rounded(lq, w, bits, group):
    """The weights that the notebook's quantiser makes of `w`."""
    return q.decode(*lq.quantize(w, bits, group))


def scale_and_low(w, bits):
    """Scale and offset [out, 1] of one group a row."""
    grid = q.fit(w, bits, axis=0, offset=True, stored=torch.float16)
    return grid.scale, grid.offset


def two_bits(lq, net):
    """A bank with every layer of `net` rounded to 2 bits."""
    return {
        i: {name: rounded(lq, m.weight, 2, 32) for name, m in block.items()}
        for i, block in enumerate(lq.blocks(net))
    }


def brute_force(w, bits, group):
    """The affine group quantiser, one weight at a time, in float64 except for the float16 of scale
    and offset.
    """
    out = np.empty_like(w, dtype=np.float64)
    for r, row in enumerate(w.astype(np.float64)):
        for start in range(0, row.size, group):
            g = row[start : start + group]
            low = float(np.float16(g.min()))
            scale = float(np.float16(np.float32((g.max() - low) / (2**bits - 1))))
            for k, value in enumerate(g):
                code = (
                    0
                    if scale == 0
                    else min(max(int(np.rint((value - low) / scale)), 0), 2**bits - 1)
                )
                out[r, start + k] = low + scale * code
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_equals_a_brute_force_in_float64(lq, bits):
    w = np.random.default_rng(bits).standard_normal((5, 128))
    ours = rounded(lq, torch.from_numpy(w), bits, 64).numpy()
    np.testing.assert_allclose(ours, brute_force(w, bits, 64), atol=1e-12)


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 32)])
def test_rounding_equals_torchs_fake_quantisation(lq, bits, group):
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    codes, grid = lq.quantize(w, bits, group)
    scale, low = grid.scale, grid.offset
    rows = w.view(-1, group) - low.view(-1, 1)
    theirs = torch.fake_quantize_per_channel_affine(
        rows, scale.flatten(), torch.zeros(len(rows), dtype=torch.int32), 0, 0, 2**bits - 1
    ) + low.view(-1, 1)
    off = (q.decode(codes, grid).view(-1, group) - theirs).abs()
    assert (off > 1e-6).double().mean() < 0.002  # halves may fall either way, by one step
    assert off.max() <= scale.max() * 1.001


def test_rounding_of_odd_groups(lq):
    w = torch.zeros(4, 64)
    w[1], w[2, 7], w[3] = 0.25, 100.0, torch.linspace(-1, 1, 64)
    back = rounded(lq, w, 2, 64)
    assert torch.equal(back[:2], w[:2])  # all zero, constant
    # one outlier
    assert back[2, 7] == pytest.approx(100.0, rel=1e-3) and back[2].count_nonzero() == 1
    assert torch.isfinite(back).all() and len(back[3].unique()) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unusable_weights_and_groups_are_refused(lq, bad):
    w = torch.ones(2, 64)
    w[1, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        lq.quantize(w, 4, 64)
    with pytest.raises(ValueError, match="groups of 48"):
        lq.quantize(torch.ones(2, 64), 4, 48)
    with pytest.raises(ValueError, match="groups of 48"):
        gptq.solve(torch.ones(2, 64), torch.eye(64), 4, 48)


def test_a_grid_reproduces_itself_but_not_once_shuffled(lq):
    once = rounded(lq, torch.randn(32, 256, generator=torch.Generator().manual_seed(2)), 4, 32)
    error = lambda w: float((rounded(lq, w, 4, 32) - w).norm() / w.norm())  # noqa: E731
    assert error(once) < 1e-3
    assert error(once[:, torch.randperm(256, generator=torch.Generator().manual_seed(3))]) > 0.03


def test_bits_are_those_counted_by_hand(lq):
    codes, grid = lq.quantize(torch.randn(2, 128), 3, 64)
    # 3.5 bits a weight
    assert storage.count(grid, codes.shape).total == 2 * 128 * 3 + 4 * 16 + 4 * 16
    assert storage.count(lq.quantize(torch.randn(1, 64), 4, 32)[1], (1, 64)).per_weight == 5.0
    packed = storage.pack(codes, 3)
    assert packed.nbytes * 8 == 2 * 128 * 3
    unpacked = np.unpackbits(packed).reshape(-1, 3) @ np.array([1, 2, 4])
    np.testing.assert_array_equal(unpacked, codes.flatten().numpy())


def correlated(n, rank, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(512, rank, generator=g) @ torch.randn(rank, n, generator=g) + 0.3 * torch.randn(
        512, n, generator=g
    )
    return x.T @ x


def objective(w, back, h):
    """Squared error of the map's outputs over the inputs that `h` sums up."""
    d = (w - back).double()
    return float(torch.einsum("oi,ij,oj->", d, h.double(), d))


def fixed_order_obq(lq, w, h, bits, group, damp):
    """Optimal brain quantisation in fixed order, by explicit elimination in the inverse Hessian, in
    float64.
    """
    w, h = w.double().clone(), h.double().clone()
    h += damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse, back = torch.linalg.inv(h), torch.zeros_like(w)
    for j in range(w.shape[1]):
        if j % group == 0:
            scale, low = scale_and_low(w[:, j : j + group].float(), bits)
        column = ((w[:, j : j + 1].float() - low) / scale).round().clamp(
            0, 2**bits - 1
        ) * scale + low
        back[:, j] = column[:, 0].double()
        w -= (w[:, j : j + 1] - back[:, j : j + 1]) / inverse[j, j] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return back


def test_gptq_equals_elimination_in_the_inverse_hessian(lq):
    w, h = torch.randn(16, 64, generator=torch.Generator().manual_seed(4)), correlated(64, 8, 5)
    ours, theirs = gptq.solve(w, h, 3, 32).double(), fixed_order_obq(lq, w, h, 3, 32, 0.01)
    # a value near a half may round the other way
    assert ((ours - theirs).abs() < 1e-3).double().mean() > 0.97
    assert objective(w, ours, h) == pytest.approx(objective(w, theirs, h), rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_beats_rounding_on_a_layers_output(lq, bits):
    w, h = torch.randn(32, 128, generator=torch.Generator().manual_seed(6)), correlated(128, 16, 7)
    assert objective(w, gptq.solve(w, h, bits, 64), h) < 0.7 * objective(
        w, rounded(lq, w, bits, 64), h
    )


def test_gptq_lies_between_exhaustive_search_and_rounding(lq):
    w, h = torch.randn(64, 6, generator=torch.Generator().manual_seed(10)), correlated(6, 2, 11)
    scale, low = scale_and_low(w, 2)
    codes = torch.cartesian_prod(*[torch.arange(4.0)] * 6)  # all 4096 roundings of a row
    d = (w[:, None] - (codes * scale[:, None] + low[:, None])).double()
    best = float(((d @ h.double()) * d).sum(-1).min(1).values.sum())
    solved, rtn = (objective(w, b, h) for b in (gptq.solve(w, h, 2, 6), rounded(lq, w, 2, 6)))
    assert best <= solved < best + 0.5 * (rtn - best)


def test_gptq_without_correlation_is_rounding_and_dead_inputs_do_no_harm(lq):
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(8))
    assert torch.allclose(
        gptq.solve(w, 3.0 * torch.eye(64), 3, 32), rounded(lq, w, 3, 32), atol=1e-6
    )
    h = correlated(64, 8, 9)
    h[5], h[:, 5] = 0, 0
    assert torch.isfinite(gptq.solve(w, h, 3, 32)).all()


def test_a_layers_maps_are_solved_on_their_own_inputs(lq):
    net, ids = (
        tiny_llama(2),
        torch.randint(0, 96, (20, 8), generator=torch.Generator().manual_seed(1)),
    )
    seen, layer = {}, net.model.layers[1]
    for name in lq.LINEARS:
        layer.get_submodule(name).register_forward_pre_hook(
            lambda m, a, name=name: seen.update({name: a[0].flatten(0, 1)})
        )
    net.model(ids)
    inputs = {name: x.clone() for name, x in seen.items()}
    states, extra = lq.entries(net, ids)
    solved = lq.solve(layer, states[1], extra[1], 3, 32)
    assert set(solved) == set(lq.LINEARS) and sum(lq.READERS, ()) == lq.LINEARS
    for name, x in inputs.items():
        alone = gptq.solve(layer.get_submodule(name).weight.data, x.T @ x, 3, 32)
        # a value near a half may round the other way
        assert ((solved[name] - alone).abs() < 1e-4).double().mean() > 0.97, name
    wrong = gptq.solve(
        layer.mlp.gate_proj.weight.data,
        inputs["self_attn.q_proj"].T @ inputs["self_attn.q_proj"],
        3,
        32,
    )
    assert ((solved["mlp.gate_proj"] - wrong).abs() < 1e-4).double().mean() < 0.9


def test_lim_in_closed_form(lq):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    right = torch.zeros(1, 4, 2)
    right[..., 0] = 1
    for y, expected in ((x, -1.0), (2.5 * x, -1.0), (-x, 1.0)):
        assert all(torch.allclose(v, torch.tensor(expected)) for v in lq.lim_of(x, y).values())
    turned = torch.stack([right[..., 0], 3**0.5 * right[..., 0]], -1)  # by 60 degrees
    turned[:, 0] = right[:, 0]  # but not at position 0
    found = {k: float(v) for k, v in lq.lim_of(right, turned).items()}
    assert found["per token"] == pytest.approx(-(1 + 3 * 0.5) / 4)
    assert found["without position 0"] == pytest.approx(-0.5)
    assert found["flattened"] == pytest.approx(-4 / (2 * 13**0.5))


def test_lim_spans_the_whole_block_and_stops_before_the_final_norm(lq):
    net, ids = tiny_llama(4), torch.randint(0, 96, (3, 8))
    for i in (1, 3):  # blocks that write nothing to the residual stream
        net.model.layers[i].self_attn.o_proj.weight.zero_()
        net.model.layers[i].mlp.down_proj.weight.zero_()
    net.model.norm.weight.normal_()
    values = lq.lim(net, ids)["per token"]
    assert values.shape == (3, 4)
    np.testing.assert_allclose(values[:, [1, 3]], -1, atol=1e-6)
    assert (values[:, [0, 2]] > -0.999).all()


def test_zd_in_closed_form_and_direction(lq):
    assert lq.zd_of(
        torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    ) == pytest.approx(0.1587, abs=3e-3)
    assert lq.zd_of(torch.tensor([0.0] * 99 + [1.0])) == pytest.approx(0.01)
    net = tiny_llama(4)
    heavy = net.model.layers[2].mlp.up_proj.weight
    heavy[torch.rand(heavy.shape, generator=torch.Generator().manual_seed(1)) < 0.01] = 3.0
    scores = lq.zd(net)
    # fewest large: lowered last
    assert scores["pooled"].argmin() == 2 and sweeps.order(-scores["pooled"])[-1] == 2


def test_orders_areas_and_k90_in_closed_form(lq):
    assert sweeps.order(np.array([0.3, -1.0, 0.3, 0.0])) == [1, 3, 0, 2]
    x = np.array([0.0, 0.1, 0.5])
    assert sweeps.area(x, 2 * x) == pytest.approx(0.5)
    assert lq.k90(x, x * np.log(1.1) / 0.3) == pytest.approx(0.3)
    assert lq.k90(x, 0 * x) == 0.5 and lq.k90(x, x * 1e6) == pytest.approx(0, abs=1e-6)
    ends = np.array([[5.0, 1, 2, -3, -4, -2, 0, 4]])
    assert lq.positions(ends) == {"rank_first": [1], "rank_last": [2], "valley": [3.5 / 8]}
    assert lq.positions(-ends)["rank_first"] == [8]  # a sign slip turns C3 over


def test_sweep_equals_the_changed_model(lq):
    net, ids = (
        tiny_llama(5),
        torch.randint(0, 96, (6, 12), generator=torch.Generator().manual_seed(2)),
    )
    bank = two_bits(lq, net)
    sweep = lq.Sweep(net, ids, 3, {"low": bank, "dropped": dict.fromkeys(range(5))})

    def loss(model, n):
        logits = model(ids[:n], use_cache=False).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:n, 1:], reduction="none"
        )
        return each.clamp(max=np.log(96)).mean(1).numpy()

    changed, short = copy.deepcopy(net), copy.deepcopy(net)
    for i in (1, 3):
        for name, m in lq.blocks(changed)[i].items():
            m.weight.data = bank[i][name]
    short.model.layers = torch.nn.ModuleList([short.model.layers[i] for i in (0, 2, 4)])
    np.testing.assert_allclose(sweep.base, loss(net, 6), atol=1e-5)
    np.testing.assert_allclose(
        sweep.rise("low", [3, 1], 6), loss(changed, 6) - loss(net, 6), atol=1e-5
    )
    np.testing.assert_allclose(
        sweep.rise("dropped", [1, 3], 4), loss(short, 4) - loss(net, 4), atol=1e-5
    )
    np.testing.assert_allclose(sweep.base, sweep.losses({}, 6), atol=1e-6)  # the weights are back
    with pytest.raises(RuntimeError):
        sweep.losses({1: {"mlp.up_proj": torch.ones(3, 3)}}, 6)
    np.testing.assert_allclose(sweep.base, sweep.losses({}, 6), atol=1e-6)  # also after a failure


def test_another_layout_is_refused_with_a_reason(lq):
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not laid out like LLaMA"):
        lq.blocks(other)


@pytest.fixture(scope="module")
def planted(lq):
    """A network whose last three of six layers do nearly all the work, on text that it predicts
    well.
    """
    net = tiny_llama(6, seed=3)
    for i, layer in enumerate(net.model.layers):
        for m in (layer.self_attn.o_proj, layer.mlp.down_proj):
            m.weight *= 20.0 if i >= 3 else 0.5
    net.lm_head.weight *= 30
    ids = torch.randint(0, 96, (16, 4), generator=torch.Generator().manual_seed(4))
    for _ in range(12):
        ids = torch.cat([ids, net(ids).logits[:, -1:].argmax(-1)], 1)
    bank = two_bits(lq, net)
    return lq.lim(net, ids)["per token"], lq.Sweep(net, ids, 8, {"rtn3": bank})


def verdict_of_c2(sweep, order):
    """C2's verdict when `order` is taken for LIM's, with a control that fails as it must."""
    gap = {
        f"rtn3_{place}": sweep.rise("rtn3", order[::-1][:k], 16) - sweep.rise("rtn3", order[:k], 16)
        for place, k in (("quarter", 2), ("half", 3))
    }
    failing = {name: np.linspace(-0.1, 0.1, len(rows)) for name, rows in gap.items()}
    result = engine.decide(cards.load("layerwise-quant"), {"C2": gap, "N2": failing}, {}, "cpu")
    return next(row["verdict"] for row in result["claims"] if row["id"] == "C2")


def test_a_flipped_sign_and_shuffled_labels_turn_the_verdict(lq, planted):
    values, sweep = planted
    score = values.mean(0)
    assert set(sweeps.order(score)[3:]) == {3, 4, 5}
    assert verdict_of_c2(sweep, sweeps.order(score)) == "reproduced"
    assert verdict_of_c2(sweep, sweeps.order(-score)) == "not reproduced"
    assert verdict_of_c2(sweep, sweeps.order(np.roll(score, 3))) == "not reproduced"
