"""Oracles of the method cells of spike-aware-quant: ratios, grids, the bench and planted spikes;
and ways to break them.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from layerbook.claims import cards, engine
from layerbook.pipeline import method
from layerbook.quantize import grids as q

SLUG = "spike-aware-quant"


@pytest.fixture(autouse=True, scope="module")
def no_grad():
    """As in the notebook: nothing here is differentiated."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def sp():
    return method.load(SLUG)


def tiny_llama(layers=6, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def own_text(net, windows=8, tokens=20, seed=4):
    """Text that the network predicts well, because it wrote it."""
    ids = torch.randint(0, 96, (windows, 4), generator=torch.Generator().manual_seed(seed))
    while ids.shape[1] < tokens:
        ids = torch.cat([ids, net(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.fixture(scope="module")
def house(sp):
    """A network whose MLPs matter, calibration and test text, and what was seen on the former."""
    net = tiny_llama(seed=3)
    for layer in net.model.layers:
        for m, gain in (
            (layer.self_attn.o_proj, 2),
            (layer.mlp.up_proj, 4),
            (layer.mlp.down_proj, 8),
        ):
            m.weight *= gain
    net.lm_head.weight *= 30
    calibration, ids = own_text(net, seed=5), own_text(net, seed=6)
    return net, calibration, ids, sp.watch(net, calibration, call=3)


def test_ratio_in_closed_form(sp):
    a = np.array([[300.0, 2, 3, 3, 4], [1, 1, 1, 1, 1]])
    np.testing.assert_allclose(sp.ratio(a), [100, 1])
    np.testing.assert_allclose(sp.ratio(a, skip=1), [4 / 3, 1])
    assert np.isfinite(sp.ratio(np.array([[0.0, 0, 5]]))).all()  # a dead median has a floor
    seen = {(0, "mlp.down_proj"): sp.Seen((0, "mlp.down_proj"), torch.ones(1), a, 2 * a)}
    # over all ten tokens together
    assert sp.pooled(seen)[0, "mlp.down_proj"] == pytest.approx(300 / 1.5)


def test_concentration_in_closed_form(sp):
    keys = [(i, name) for i in range(10) for name in ("self_attn.q_proj", "mlp.down_proj")]
    r = np.ones((20, 2))
    for layer, value in ((0, 50.0), (1, 40), (9, 30)):
        r[2 * layer + 1, 0] = value
    r[2 * 4, 0] = 20  # a query map, fourth
    for layer, value in ((4, 50.0), (5, 40)):
        r[2 * layer + 1, 1] = value
    found = sp.concentration(r, keys)
    assert found["peak"].tolist() == [50, 50] and found["down_of_top4"][0] == 3
    assert found["ends_of_top2"].tolist() == [2, 0]
    for layer, inside in ((1, 1), (2, 0), (7, 0), (8, 1)):  # a fifth of ten layers is two
        r = np.ones((20, 1))
        r[2 * layer + 1], r[1] = 9, 8
        assert sp.concentration(r, keys)["ends_of_top2"][0] == 1 + inside, layer


def test_watch_equals_every_input_and_output_by_hand(sp, house):
    net, calibration, _, seen = house
    maps = sp.projections(net)
    assert list(seen) == list(maps) and len(maps) == 7 * 6
    kept = {}
    hooks = [
        m.register_forward_hook(lambda _m, a, o, key=key: kept.update({key: (a[0], o)}))
        for key, m in maps.items()
    ]
    net(calibration)
    for h in hooks:
        h.remove()
    for key, (x, y) in kept.items():
        np.testing.assert_allclose(seen[key].x, x.abs().amax(-1), rtol=1e-4)
        np.testing.assert_allclose(seen[key].y, y.abs().amax(-1), rtol=1e-4)
        torch.testing.assert_close(
            seen[key].channel, x.abs().flatten(0, 1).amax(0), rtol=1e-4, atol=1e-6
        )
    assert {seen[2, f"self_attn.{n}_proj"].source for n in "qkv"} == {(2, "self_attn.q_proj")}
    assert seen[2, "mlp.up_proj"].source == (2, "mlp.gate_proj")
    assert len({row.source for row in seen.values()}) == 4 * 6


def test_layouts(sp):
    config = BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    seen = sp.watch(BertModel(config).eval(), torch.randint(0, 96, (2, 8)))
    assert len(seen) == 6 * 2 and sum(name in sp.LAST for _, name in seen) == 2
    with pytest.raises(ValueError, match="no linear maps"):
        sp.projections(
            GPT2LMHeadModel(
                GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
            ).eval()
        )


def by_hand(x, bits, top):
    """The formula, in float64."""
    step = float(top) / (2 ** (bits - 1) - 1)
    return (
        np.clip(np.rint(x.double().numpy() / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    )


@pytest.mark.parametrize("bits", [8, 6])
def test_grids_follow_the_formula_and_their_scale(sp, bits):
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    x[1, 2] *= 100  # a spike
    top = torch.tensor(2.5)
    np.testing.assert_allclose(sp.on_grid(x, bits, "static", top), by_hand(x, bits, top), atol=1e-5)
    for w in range(3):
        np.testing.assert_allclose(
            sp.on_grid(x, bits, "window", top)[w], by_hand(x[w], bits, x[w].abs().max()), atol=1e-4
        )
    np.testing.assert_allclose(
        sp.on_grid(x, bits, "batch", top), by_hand(x, bits, x.abs().max()), atol=1e-4
    )
    scales = ("static", "batch", "window", "token")
    error = {
        scale: (sp.on_grid(x, bits, scale, x.abs().max()) - x)[0].abs().mean() for scale in scales
    }
    # who pays for another window's spike
    assert error["static"] == error["batch"] > 10 * error["window"] >= error["token"]
    alone = sp.on_grid(x[:1], bits, "window", top)
    assert torch.equal(sp.on_grid(x, bits, "window", top)[:1], alone)
    assert not torch.equal(sp.on_grid(x, bits, "batch", top)[:1], alone)


@pytest.mark.parametrize(("kind", "error"), [("e4m3", 1 / 16), ("e5m2", 1 / 8)])
def test_fp8_keeps_relative_precision_beside_a_spike(sp, kind, error):
    x = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    x[0, 0, 0] = 1000.0
    back = sp.in_fp8(x, "static", x.max(), kind)
    assert ((back - x).abs() / x).max() <= error * 1.001
    torch.testing.assert_close(back, q.fp8(x, "tensor", kind))
    assert (sp.on_grid(x, 8, "static", x.max())[1] == 0).all()  # where INT8 has nothing left
    # beyond the calibrated range it saturates
    assert torch.isfinite(sp.in_fp8(10 * x, "static", x.max(), kind)).all()
    assert sp.in_fp8(10 * x, "static", x.max(), kind).max() <= 1001


def explicit(sp, net, seen, keep, bits):
    """The same network with quantization written into its linear maps."""

    class Rounded(torch.nn.Module):
        def __init__(self, m, top):
            super().__init__()
            self.weight, self.top = torch.tensor(by_hand(m.weight, bits, m.weight.abs().max())), top

        def forward(self, x):
            return (torch.tensor(by_hand(x, bits, self.top)) @ self.weight.T).float()

    net = copy.deepcopy(net)
    for (i, name), m in sp.projections(net).items():
        if (i, name) not in keep:
            owner = net.model.layers[i].get_submodule(name.rsplit(".", 1)[0])
            setattr(owner, name.rsplit(".", 1)[1], Rounded(m, seen[i, name].x.max()))
    return net


def test_bench_equals_a_network_with_rounding_written_into_it(sp, house):
    net, _, ids, seen = house
    bench, keep = sp.Bench(net, seen, ids, 3), {(1, "mlp.down_proj"), (4, "self_attn.k_proj")}
    real = np.concatenate([sp.loss(net, row[None]) for row in ids])
    logits = net(ids).logits[:, :-1].transpose(1, 2)
    oracle = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none").mean(1)
    np.testing.assert_allclose(real, oracle, rtol=1e-4)
    for kept in (set(), keep):
        theirs = sp.loss(explicit(sp, net, seen, kept, 6), ids)
        np.testing.assert_allclose(
            bench.losses(sp.Arm(6, "static", 6), keep=kept), theirs, rtol=0.02, atol=0.02
        )
    assert abs(bench.losses(sp.Arm(6, "static", 6)) - real).max() > 0.1
    np.testing.assert_allclose(bench.losses(sp.Arm(), keep=set(seen)), real, atol=1e-5)
    assert np.array_equal(bench.losses(sp.Arm(), n=2), bench.losses(sp.Arm())[:2])


def test_weights_and_hooks_are_undone_even_after_an_error(sp, house):
    net, _, ids, seen = house
    before = copy.deepcopy(net.state_dict())
    bench = sp.Bench(net, seen, ids)
    bench.losses(sp.Arm(alpha=0.5), fp8=[(0, "mlp.down_proj")])
    with pytest.raises((IndexError, RuntimeError)):
        sp.Bench(net, seen, ids + 1000).losses(sp.Arm())
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in sp.projections(net).values())


@pytest.mark.parametrize("everywhere", [False, True])
def test_smoothing_changes_nothing_in_floating_point(sp, house, everywhere):
    net, _, ids, seen = house
    bench = sp.Bench(net, seen, ids)
    arm = sp.Arm(bits=None, weights=None, alpha=0.8, everywhere=everywhere)
    s = sp.smoothing(bench.maps, seen, arm)
    assert len(s) == (4 if everywhere else 2) * 6 and ((5, "mlp.down_proj") in s) == everywhere
    np.testing.assert_allclose(bench.losses(arm), sp.loss(net, ids), atol=1e-3)
    x, w = (
        seen[3, "mlp.gate_proj"].channel,
        torch.cat([bench.maps[3, f"mlp.{n}_proj"].weight for n in ("gate", "up")]),
    )
    torch.testing.assert_close(s[3, "mlp.gate_proj"], x**0.8 / w.abs().amax(0) ** 0.2)


def test_linearised_share_has_the_mean_and_spread_of_the_ratio(sp):
    rng = np.random.default_rng(0)
    v = rng.gamma(4, 0.5, 40)
    u = 0.6 * v + 0.2 * rng.standard_normal(40)
    values = sp.share(u, v)
    assert values.mean() == pytest.approx(u.mean() / v.mean())
    pick = rng.integers(0, 40, (20_000, 40))
    assert values.std(ddof=1) / 40**0.5 == pytest.approx(
        (u[pick].mean(1) / v[pick].mean(1)).std(), rel=0.1
    )


def plant(sp, net, calibration, layers=(1, 3, 4)):
    """A copy of the network with spikes in `layers`, and what was seen on it."""
    net = copy.deepcopy(net)
    units = sp.uneven(net, calibration, list(layers))
    for i, unit, s in units:
        sp.scale_unit(net, i, unit, s)
    return net, units, sp.watch(net, calibration)


def test_planting_changes_no_bit_of_the_function_and_can_be_undone(sp, house):
    net, calibration, ids, seen = house
    spiked, units, after = plant(sp, net, calibration)
    assert torch.equal(spiked(ids).logits, net(ids).logits)
    r, native = sp.pooled(after), sp.pooled(seen)
    for i, unit, s in units:
        key = (i, "mlp.down_proj")
        assert np.log2(s) == round(np.log2(s)) and int(after[key].channel.argmax()) == unit
        # to the nearest power of two
        assert after[key].x.max() == pytest.approx(1000 * np.median(seen[key].x), rel=0.42)
        assert r[key] > 5 * native[key]
        sp.scale_unit(spiked, i, unit, 1 / s)
    assert all(torch.equal(v, net.state_dict()[name]) for name, v in spiked.state_dict().items())


def test_the_most_uneven_unit_is_taken(sp, house):
    net, calibration, *_ = house
    ((_, unit, _),) = sp.uneven(net, calibration, [2])
    kept = []
    hook = net.model.layers[2].mlp.down_proj.register_forward_pre_hook(
        lambda _m, a: kept.append(a[0].abs().flatten(0, 1))
    )
    net(calibration)
    hook.remove()
    ratios = [float(column.max() / column.median()) for column in kept[0].T]
    assert unit == int(np.argmax(ratios))


def verdict_of_c7(sp, net, seen, ids, keep, **arm):
    """C7's verdict when `keep` is the spike set, with a gate that is met and a control that fails
    as it must.
    """
    bench = sp.Bench(net, seen, ids)
    naive, real = bench.losses(sp.Arm(weights=None)), sp.loss(net, ids)
    shares = sp.share(naive - bench.losses(sp.Arm(weights=None), keep=keep), naive - real)
    result = engine.decide(
        cards.load(SLUG),
        {"C7": {"recovered": shares}, "N10": {"recovered": [0.0, 0.1, 0.05, 0.02]}},
        {"G4": list(naive - real)},
        "cpu",
    )
    return next(row["verdict"] for row in result["claims"] if row["id"] == "C7")


@pytest.fixture(scope="module")
def spiked(sp, house):
    net, calibration, ids, _ = house
    net, units, seen = plant(sp, net, calibration)
    r = sp.pooled(seen)
    return net, seen, ids, sorted(r, key=lambda key: -r[key])


def test_the_spike_set_repairs_planted_spikes_and_other_sets_do_not(sp, spiked):
    net, seen, ids, order = spiked
    assert set(order[:3]) == {(i, "mlp.down_proj") for i in (1, 3, 4)}
    assert verdict_of_c7(sp, net, seen, ids, order[:6]) == "reproduced"
    # the order turned round
    assert verdict_of_c7(sp, net, seen, ids, order[-6:]) == "not reproduced"
    assert (
        verdict_of_c7(sp, net, seen, ids, [(i, "mlp.down_proj") for i in (0, 2, 5)])
        == "not reproduced"
    )


def test_keeping_the_weights_but_not_the_input_repairs_nothing(spiked):
    broken = method.load(
        SLUG,
        slip="""
def plan(maps, seen, arm, bank, keep, fp8, kind):
    for key, m in maps.items():
        yield m, None if key in keep else bank[0].get(key), reader(arm, seen[key].channel)
""",
    )
    net, seen, ids, order = spiked
    # all shares are zero, without spread
    assert verdict_of_c7(broken, net, seen, ids, order[:6]) == "undecided"
    bench = broken.Bench(net, seen, ids)
    assert np.array_equal(
        bench.losses(broken.Arm(weights=None), keep=order[:6]),
        bench.losses(broken.Arm(weights=None)),
    )
