"""Oracles of the method cells of vidit-q: ranges, balancing, simulation, measures and the split of
bits; and ways to break them.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from layerbook.claims import cards, engine, roles
from layerbook.networks import diffusion, tinydit
from layerbook.pipeline import method

RECIPE = tinydit.Recipe(width=8, depth=2, heads=2)
WORDS = torch.tensor([[0, 3, 6], [1, 4, 8], [2, 5, 15]])


@pytest.fixture(scope="module")
def vq():
    return method.load("vidit-q")


def network(seed: int = 0) -> tinydit.TinyDiT:
    """A tiny network in float64, all of whose weights are random."""
    net, g = (
        tinydit.build(RECIPE, seed).double().requires_grad_(False),
        torch.Generator().manual_seed(seed),
    )
    for p in net.parameters():
        p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    net.time.register_forward_pre_hook(lambda m, args: (args[0].double(),))
    return net


@pytest.fixture
def net():
    return network()


def noise(seed: int = 3, n: int = 3) -> torch.Tensor:
    return torch.randn(
        n, 1, 14, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.fixture
def seen(vq, net):
    return vq.calibrate(net, WORDS, noise(1), 4, 2.0)


def grid_of(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """The paper's formula, written out."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    s = (high - low) / (2**bits - 1)
    z = torch.round(-low / s)
    return s * (torch.clamp(torch.round(x / s) + z, 0, 2**bits - 1) - z)


def by_row(v: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """A weight on the paper's grid, one range for each output channel."""
    return grid_of(v, v.amin(1, keepdim=True), v.amax(1, keepdim=True), bits)


# --- ranges ---


def test_calibration_sees_every_step_and_both_halves(vq, net, seen):
    rows = {}
    with tinydit.watch(net, lambda t, site, x: rows.setdefault(site, {}).update({t: x.clone()})):
        diffusion.sample(net, WORDS, noise(1), 4, 2.0)
    assert set(rows) == set(seen) and len(seen) == 14
    for site, by_step in rows.items():
        x = torch.stack(list(by_step.values()))  # [steps, 2 n, tokens, channels]
        assert x.shape[:2] == (4, 6)
        low, high = seen[site].limits("tensor", 0)
        assert (low, high) == (x.min(), x.max())
        assert torch.equal(seen[site].limits("token", 0)[1].flatten(), x.amax((0, 1, 3)))
        for t, one in by_step.items():
            assert torch.equal(seen[site].limits("step-token", t)[0].flatten(), one.amin((0, 2)))
            assert torch.equal(seen[site].channel[t], one.abs().amax((0, 1)))
        clipped = seen[site].limits("clipped", 0)
        assert low <= clipped[0] and clipped[1] <= high


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_weights_have_one_range_for_each_output_channel(vq, bits):
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    w[0] = w[0].abs() + 1  # one-sided: zero stays in the range
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    plan = vq.Plan()
    torch.testing.assert_close(
        vq.rounded(w, bits, plan), grid_of(w, low, high, bits), rtol=0, atol=1e-12
    )
    shrunk = vq.rounded(w, bits, replace(plan, shrink=0.8))
    torch.testing.assert_close(shrunk, grid_of(w, 0.8 * low, 0.8 * high, bits), rtol=0, atol=1e-12)
    noisy = vq.rounded(w, bits, replace(plan, noise=1))
    assert (noisy - w).norm().item() == pytest.approx(
        (grid_of(w, low, high, bits) - w).norm().item()
    )
    assert not torch.equal(noisy, vq.rounded(w, bits, replace(plan, noise=1), layer=2))


# --- balancing ---


def test_the_static_mask_comes_from_the_table_or_the_first_step(vq, net, seen):
    plan = vq.Plan(static=True)
    table = net.blocks[1].table
    for site, row in (("1.attn.qkv", 0), ("1.mlp.up", 3)):
        wanted = 3 * (1 + table[row + 1]).abs() + table[row].abs()
        assert torch.equal(vq.reach(net, site, seen[site], plan, 0), wanted)
    assert torch.equal(
        vq.reach(net, "1.attn.o", seen["1.attn.o"], plan, 0), seen["1.attn.o"].channel[999]
    )


def test_ranges_of_noise_levels_take_their_own_maxima(vq, net, seen):
    levels, site = diffusion.levels(4), "0.cross.q"
    for part, inside in ((0, [t for t in levels if t < 500]), (1, [t for t in levels if t >= 500])):
        wanted = torch.stack([seen[site].channel[t] for t in inside]).amax(0)
        assert torch.equal(vq.reach(net, site, seen[site], vq.Plan(parts=2), part), wanted)
    sim = vq.Quantized(net, seen, vq.Plan(weights=4, acts=None, alpha=0.5, parts=2))
    held = {}
    with (
        sim,
        tinydit.watch(
            net, lambda t, s, x: held.update({t: net.blocks[0].cross.q.weight.data.clone()})
        ),
    ):
        diffusion.sample(net, WORDS, noise(), 4, 2.0)
    assert torch.equal(held[999], held[749]) and not torch.equal(held[749], held[250])
    for t, w in held.items():
        c = vq.basis(
            vq.reach(net, site, seen[site], sim.plan, int(t >= 500)),
            net.blocks[0].cross.q.weight,
            sim.plan,
        )[0]
        v = net.blocks[0].cross.q.weight * c
        torch.testing.assert_close(w, by_row(v), rtol=0, atol=1e-9)


def test_basis_against_the_formula(vq):
    g = torch.Generator().manual_seed(0)
    reached, w = (
        torch.rand(8, generator=g, dtype=torch.float64) + 0.1,
        torch.randn(5, 8, generator=g, dtype=torch.float64),
    )
    plan = vq.Plan(alpha=0.3)
    c, R = vq.basis(reached, w, plan)
    torch.testing.assert_close(c, reached**0.3 / w.abs().amax(0) ** 0.7)
    assert torch.equal(R, torch.eye(8).double())
    torch.testing.assert_close(vq.basis(reached, w, replace(plan, power=-1.0))[0], 1 / c)
    dealt = vq.basis(reached, w, replace(plan, dealt=1))[0]
    assert torch.equal(dealt.sort().values, c.sort().values) and not torch.equal(dealt, c)
    R = vq.basis(reached, w, replace(plan, rotation=5))[1]
    torch.testing.assert_close(R @ R.T, torch.eye(8).double())
    assert R.abs().unique().numel() == 1


PLANS = [
    {"alpha": 0.5, "parts": 2},
    {"rotation": 1},
    {"alpha": 0.3, "static": True, "rotation": 2},
    {"alpha": 0.5, "power": -1.0},
]


@pytest.mark.parametrize("how", PLANS)
def test_without_rounding_balancing_changes_nothing(vq, net, seen, how):
    right = diffusion.sample(net, WORDS, noise(), 4, 2.0)
    with vq.Quantized(net, seen, vq.Plan(None, None, **how)):
        assert (
            diffusion.sample(net, WORDS, noise(), 4, 2.0) - right
        ).abs().max() < 1e-9 * right.abs().max()
    assert torch.equal(diffusion.sample(net, WORDS, noise(), 4, 2.0), right)


def test_weights_are_rounded_once_in_the_rotated_basis(vq, net, seen):
    plan = vq.Plan(weights=4, alpha=0.4, static=True, rotation=3)
    sim, name = vq.Quantized(net, seen, plan), "0.attn.k"
    joint = torch.cat([net.blocks[0].attn.get_submodule(s).weight for s in "qkv"])
    c, R = vq.basis(vq.reach(net, "0.attn.qkv", seen["0.attn.qkv"], plan, 0), joint, plan)
    v = net.blocks[0].attn.k.weight * c @ R
    torch.testing.assert_close(sim.part()[0][name], by_row(v), rtol=0, atol=1e-9)
    twice = vq.Quantized(net, seen, replace(plan, twice=True)).part()[0][name]
    torch.testing.assert_close(
        twice, by_row(by_row(net.blocks[0].attn.k.weight * c) @ R), rtol=0, atol=1e-9
    )


# --- simulation ---


@pytest.mark.parametrize("scale", ["tensor", "token", "step-token", "dynamic"])
def test_the_simulation_against_a_network_rebuilt_by_hand(vq, net, seen, scale):
    x, t = noise(), torch.full((3,), 749)
    with vq.Quantized(net, seen, vq.Plan(weights=4, acts=6, scale=scale)):
        found = net(x, t, WORDS)
    other = copy.deepcopy(net)
    for name, m in tinydit.linears(other).items():
        m.weight.data = by_row(m.weight)

        def hook(m, args, site=seen[tinydit.site_of(name)]):  # noqa: B008
            own = args[0].amin(-1, keepdim=True), args[0].amax(-1, keepdim=True)
            return (grid_of(args[0], *(own if scale == "dynamic" else site.limits(scale, 749)), 6),)

        m.register_forward_pre_hook(hook)
    torch.testing.assert_close(found, other(x, t, WORDS), rtol=1e-9, atol=1e-9)
    assert (found - net(x, t, WORDS)).abs().max() > 1e-4


def test_dynamic_ranges_do_not_depend_on_the_rest_of_the_batch(vq, net, seen):
    x, t = noise(), torch.full((3,), 500)
    x[1] *= 40
    with vq.Quantized(net, seen, vq.Plan(acts=4)):
        together = net(x, t, WORDS)
        torch.testing.assert_close(net(x[:1], t[:1], WORDS[:1]), together[:1], rtol=1e-9, atol=1e-9)


def test_layers_outside_a_map_stay_in_float_and_all_weights_come_back(vq, net, seen):
    before, layers = copy.deepcopy(net.state_dict()), tinydit.linears(net)
    sim = vq.Quantized(net, seen, vq.Plan(acts=None, parts=4, bits={(3, "0.cross.v"): 3}))
    with sim:
        net(noise(), torch.full((3,), 900), WORDS)
        changed = {
            n for n, m in layers.items() if not torch.equal(m.weight, before[f"blocks.{n}.weight"])
        }
        net(noise(), torch.full((3,), 100), WORDS)
        again = {
            n for n, m in layers.items() if not torch.equal(m.weight, before[f"blocks.{n}.weight"])
        }
    assert changed == {"0.cross.v"} and not again
    with pytest.raises(RuntimeError, match="stop"), vq.Quantized(net, seen, vq.Plan(weights=2)):
        net(noise(), torch.full((3,), 900), WORDS)
        raise RuntimeError("stop")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in layers.values()) and not net._forward_pre_hooks


# --- measures ---


def test_errors_of_layers_and_of_the_noise_by_brute_force(vq, net, seen):
    x = noise()
    sims = {
        scale: vq.Quantized(net, seen, vq.Plan(acts=5, scale=scale))
        for scale in ("dynamic", "step-token")
    }
    found = vq.layer_errors(net, sims, [(999, x), (500, x)], WORDS)
    assert all(v.shape == (2 * 20,) for v in found.values())
    rows = {}
    with tinydit.watch(net, lambda t, site, x: rows.__setitem__(site, x)):
        diffusion.guided(net, x, 500, WORDS, 1.0)
    name = "1.mlp.down"
    last = 39  # the last layer of the second state
    v, w = rows[name], net.blocks[1].mlp.down.weight
    xq, wq = grid_of(v, *seen[name].limits("step-token", 500), 5), by_row(w, 8)
    wanted = (F.linear(xq, wq) - F.linear(v, w)).square().mean().item()
    assert found["step-token"][last] == pytest.approx(wanted, rel=1e-6)
    right = [diffusion.guided(net, x, 999, WORDS, 3.0)[0]]
    with sims["dynamic"]:
        wrong = diffusion.guided(net, x, 999, WORDS, 3.0)[0]
    found = vq.noise_error(sims["dynamic"], [(999, x)], WORDS, 3.0, right)
    assert found == pytest.approx([(wrong - right[0]).square().mean().item()])


def test_incoherence_and_jaccard(vq):
    x = torch.ones(2, 3, 4)
    x[0, 0, 0] = 10
    assert vq.incoherence(x).item() == pytest.approx(10 / np.sqrt((23 + 100) / 24))
    assert vq.incoherence(x, (0, 1))[0].tolist() == pytest.approx([10 / np.sqrt(103 / 4), 1, 1])
    a, b = torch.arange(64.0), torch.arange(64.0)
    b[63] = -1
    assert vq.jaccard(a, a) == 1 and vq.jaccard(a, b) == 0.5 and vq.jaccard(a, -a) == 0


def test_bits_follow_sensitivity_inside_each_group(vq):
    units = [(s, f"{b}.{m}") for s in range(2) for b in range(3) for m in ("attn", "cross", "mlp")]
    sizes = np.array([2.0 if name.endswith("mlp") else 1.0 for _, name in units])
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9, 1.0):
        fall, rise = rng.random(len(units)), rng.random(len(units))
        bits = np.array(
            vq.decoupled(units, sizes, fall, rise, {True: share, False: 1 - share}, 5.0)
        )
        assert set(bits.tolist()) <= {4.0, 8.0} and bits @ sizes / sizes.sum() <= 5.0 + 1e-9
        cross = np.array([name.endswith("cross") for _, name in units])
        for mine, score in ((cross, fall), (~cross, rise)):
            order = np.argsort(-score[mine])
            assert (np.diff(bits[mine][order]) <= 0).all()
        spare = 0.25 * sizes.sum()
        assert sizes[cross & (bits == 8)].sum() <= min(share * spare, sizes[cross].sum()) + 1e-9
    assert vq.contrast(3, 1) == 0.5 and vq.contrast(-1, 1) == -1 and vq.contrast(0.0, 0.0) == 0
    assert {len(v) for v in vq.modules(network()).values()} == {4, 2}


def test_a_random_quarter_has_the_weights_of_cross_attention(vq, net):
    layers = tinydit.linears(net)
    size = lambda names: sum(layers[n].weight.numel() for n in names)  # noqa: E731
    drawn = [vq.quarter(layers, [s]) for s in range(5)]
    assert all(
        size(names) == size([n for n in layers if ".cross." in n]) == size(layers) / 4
        for names in drawn
    )
    assert len({frozenset(names) for names in drawn}) > 1


# --- broken on purpose ---

FLAT = {
    "ratio": [1.0, 1.1, 0.9, 1.0, 1.05],
    "noise": [1.0, 1.1, 0.9, 1.0, 1.05],
    "psnr": [0.1, -0.1, 0.0, 0.1, -0.2],
}


def verdict(claim: str, control: dict[str, list[float]] | None, **arrays: list[float]) -> str:
    """A claim's verdict when its control fails and its gates are met."""
    card = cards.load("vidit-q")
    measured = {claim: arrays}
    if control:
        measured[next(c["id"] for c in roles.of_claim(card, claim))] = control
    found = engine.decide(
        card, measured, {"G1": [0.6] * 5, "G2": [30.0] * 5, "G3": [20.0] * 5}, "cpu"
    )
    return next(r["verdict"] for r in found["claims"] if r["id"] == claim)


def ratios(vq) -> list[float]:
    """Static over dynamic error of a layer whose input has one token of thirty times the size, in
    five networks.
    """
    found = []
    for k in range(5):
        net = network(k)
        net.places[5] *= 100
        seen, x = vq.calibrate(net, WORDS, noise(k), 3, 1.0), noise(k + 10)
        sims = {s: vq.Quantized(net, seen, vq.Plan(scale=s)) for s in ("tensor", "dynamic")}
        # the query of cross-attention
        e = {s: v[4] for s, v in vq.layer_errors(net, sims, [(666, x)], WORDS).items()}
        found.append(e["tensor"] / e["dynamic"])
    return found


def test_ranges_of_the_wrong_kind_flip_the_verdict(vq):
    others = {"noise": [1.5, 1.6, 1.7, 1.5, 1.6], "psnr": [3.0, 4.0, 3.5, 3.2, 3.1]}
    assert verdict("C1", FLAT, ratio=ratios(vq), **others) == "reproduced"
    source = """
right_input = Quantized.input
def swapped(self, site, x):
    self.plan = replace(self.plan, scale={"dynamic": "tensor", "tensor": "dynamic"}[given.setdefault(self, self.plan.scale)])
    return right_input(self, site, x)
given, Quantized.input = {}, swapped
"""
    assert (
        verdict("C1", FLAT, ratio=ratios(method.load("vidit-q", source=source)), **others)
        == "not reproduced"
    )


def test_a_scaling_of_one_side_alone_breaks_the_control(net, seen):
    def largest(space) -> list[float]:
        right = net(noise(), torch.full((3,), 500), WORDS)
        with space.Quantized(net, seen, space.Plan(None, None, alpha=0.5)):
            return [
                (
                    (net(noise(), torch.full((3,), 500), WORDS) - right).abs().max()
                    / right.abs().max()
                ).item()
            ] * 5

    worse = [0.5, 0.6, 0.4, 0.5, 0.7]
    assert (
        verdict("N1", None, difference=largest(method.load("vidit-q")), inverted=worse) == "holds"
    )
    broken = method.load("vidit-q", source="Quantized.input = lambda self, site, x: x")
    assert verdict("N1", None, difference=largest(broken), inverted=worse) == "fails"
