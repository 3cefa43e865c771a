"""Oracles of the method cells of hawq: quantizer, eigenvalues, maps, fine-tuning and rescaling; and
ways to break them.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from layerbook.claims import cards, engine, roles
from layerbook.layers import curvature, transformer
from layerbook.networks import resnet20
from layerbook.pipeline import method
from layerbook.quantize import sweeps

SIZES = np.array([72, 1152, 1152, 1152, 3456, 4608, 4608, 13824, 18432, 18432, 320])


@pytest.fixture(scope="module")
def hq():
    return method.load("hawq")


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 8, 8, generator=g, dtype=torch.float64), torch.arange(24) % 10
    return x, y


@pytest.fixture
def net():
    """A tiny network in float64 with batch norm that has seen some images."""
    made = (
        resnet20.build(resnet20.Recipe(widths=(2, 2, 4)), 0).double().requires_grad_(False).train()
    )
    g = torch.Generator().manual_seed(1)
    for _ in range(5):
        made(torch.randn(24, 1, 8, 8, generator=g, dtype=torch.float64))
    for p in made.parameters():
        if p.dim() == 1:
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return made.eval()


def draw_of(images, seen=None):
    """A draw of the same batch over and over; counts itself in `seen`."""

    def draw():
        if seen is not None:
            seen.append(1)
        return images

    return draw


# --- the quantizer ---


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_equals_a_brute_force(hq, bits):
    w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    found = hq.rounded({"w": w}, bits)["w"]
    grid = np.linspace(float(w.min()), float(w.max()), 2**bits)
    wanted = grid[abs(w.numpy()[..., None] - grid).argmin(-1)]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
    assert (
        found.min() == w.min()
        and found.max() == pytest.approx(float(w.max()))
        and found.dtype == torch.float64
    )
    assert hq.squared_error({"a": w, "b": w}, bits) == pytest.approx(
        2 * ((wanted - w.numpy()) ** 2).sum()
    )


def test_gradients_pass_straight_through(hq):
    w = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hq.rounded({"w": w}, 2, learn=True)["w"].mul(torch.arange(20.0).view(4, 5)).sum().backward()
    assert torch.equal(w.grad, torch.arange(20.0).view(4, 5))
    assert not hq.rounded({"w": w}, 2)["w"].requires_grad
    flat = torch.full((3, 3), 0.4)
    assert torch.equal(hq.rounded({"w": flat}, 2)["w"], flat)  # a range of one value
    with pytest.raises(ValueError, match="NaN"):
        hq.rounded({"w": torch.tensor([1.0, float("nan")])}, 3)


# --- eigenvalues ---


def test_top_eigenvalues_of_all_blocks_are_those_of_the_dense_hessian(hq, net, images):
    tops = hq.spectrum(net, *images, products=200)
    assert not any(p.requires_grad for p in net.parameters())
    assert len(tops) == 11
    for found, (name, weights) in list(zip(tops, resnet20.blocks(net).items(), strict=True))[::2]:
        params = [w.requires_grad_(True) for w in weights.values()]
        values = torch.linalg.eigvalsh(curvature.dense(partial(hq.mean_loss, net, *images), params))
        net.requires_grad_(False)
        exact = float(values[values.abs().argmax()])
        assert found.value == pytest.approx(exact, rel=0.01), name


def test_power_and_lanczos_find_the_same_negative_eigenvalue(hq):
    w, a = (
        torch.ones(3, dtype=torch.float64),
        torch.diag(torch.tensor([-5.0, 2.0, 1.0], dtype=torch.float64)),
    )
    for how in ("power", "lanczos"):
        assert hq.top(lambda: 0.5 * w @ a @ w, {"w": w}, 60, method=how).value == pytest.approx(
            -5, rel=1e-3
        )
    with pytest.raises(ValueError, match="eval"):
        net = resnet20.build(resnet20.Recipe(widths=(2, 2, 2)), 0).train()
        hq.spectrum(net, torch.randn(4, 1, 8, 8), torch.arange(4), 2)


def test_omega_bounds_the_second_order_rise(hq, net, images):
    weights = resnet20.blocks(net)["1a"]
    params = [w.requires_grad_(True) for w in weights.values()]
    full = curvature.dense(partial(hq.mean_loss, net, *images), params)
    net.requires_grad_(False)
    lam = abs(hq.top(partial(hq.mean_loss, net, *images), weights, 100).value)
    for bits in (2, 3, 4):
        step = torch.cat(
            [(new - weights[k]).flatten() for k, new in hq.rounded(weights, bits).items()]
        )
        assert abs(float(step @ full @ step)) <= 1.01 * lam * hq.squared_error(weights, bits)


def test_off_by_is_the_error_of_an_iteration(hq, net, images):
    weights = resnet20.blocks(net)["stem"]
    assert hq.off_by(net, weights, *images) < 0.01 and not net.conv.weight.requires_grad
    scope, plain = hq.off_by.__globals__, hq.top
    scope["top"] = lambda *args: plain(*args)._replace(value=-plain(*args).value)
    try:
        # the wrong sign does not pass
        assert hq.off_by(net, weights, *images) == pytest.approx(2, abs=0.05)
    finally:
        scope["top"] = plain


def test_spread_of_planted_eigenvalues(hq):
    lam, n = np.array([[1.0, -10.0, 2.0], [2.0, 30.0, 4.0], [-9.0, 3.0, 1.0]]), np.array([1, 2, 4])
    found = hq.spread(lam, n)
    assert found["lambda_ratio"].tolist() == [10, 15, 9] and found["s_ratio"].tolist() == [
        10,
        15,
        36,
    ]
    assert found["rho"] == pytest.approx([0.75, 0.75, 0.5])


def test_blocks_of_a_language_model_against_a_dense_hessian(hq):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    found = hq.by_layer(transformer.Stack(model), ids, products=60, step=2)
    for value, i in zip(found, (0, 2), strict=True):
        params = [p.requires_grad_(True) for p in model.model.layers[i].parameters() if p.dim() > 1]

        def loss():
            return F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:])

        values = torch.linalg.eigvalsh(curvature.dense(loss, params))
        model.requires_grad_(False)
        size = sum(p.numel() for p in params)
        assert value * size == pytest.approx(float(values[values.abs().argmax()]), rel=0.01)


def test_an_untrained_network_has_the_statistics_of_its_images(hq):
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = hq.untrained(resnet20.Recipe(widths=(2, 2, 4)), 3, x)
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    after = made.bn(made.conv(x))
    assert (
        after.mean((0, 2, 3)).abs().max() < 1e-4 and (after.std((0, 2, 3)) - 1).abs().max() < 0.01
    )


# --- maps ---


def keeps_order(scores, chosen):
    return all(
        chosen[i] >= chosen[j]
        for i in range(len(scores))
        for j in range(len(scores))
        if scores[i] > scores[j]
    )


def test_maps_against_a_search_over_all(hq):
    n, rng = np.array([3, 40, 50, 90, 100, 7]), np.random.default_rng(0)
    for budget in (2.6, 3.0, 4.0):
        for _ in range(4):
            scores = rng.permutation(6) + 1.0
            found = hq.bit_map(scores, n, budget, tolerance=0.05)
            greedy = np.array(sweeps.greedy_bits(scores, n, hq.LEVELS, budget))
            every = [m for m in product(hq.LEVELS, repeat=6) if keeps_order(scores, m)]
            near = [m for m in every if abs(np.dot(m, n) / n.sum() - budget) <= 0.05 * budget]
            assert found in near and {
                tuple(m) for m in hq.maps_of(scores, n, budget, tolerance=0.05).tolist()
            } == set(near)
            assert abs(found - greedy) @ n == min(abs(np.array(m) - greedy) @ n for m in near)


@pytest.mark.parametrize(
    ("budget", "tolerance"), [(3.0, 0.01), (4.0, 0.01), (2.5, 0.04), (3.5, 0.04), (5.0, 0.04)]
)
def test_every_order_meets_the_size(hq, budget, tolerance):
    rng = np.random.default_rng(1)
    for scores in [1 / SIZES, -1 / SIZES, np.arange(11), *(rng.permutation(11) for _ in range(20))]:
        found = hq.bit_map(np.asarray(scores, float), SIZES, budget, tolerance)
        assert abs(sweeps.average(found, SIZES) / budget - 1) <= tolerance and keeps_order(
            scores, found
        )
    with pytest.raises(ValueError, match="another budget"):
        hq.bit_map(np.array([2.0, 1.0]), np.array([1, 1000]), 3.2)


# --- losses of maps ---


def test_losses_of_maps_are_those_of_a_rounded_copy(hq, net, images):
    x, y = images
    sweep, before = hq.sweep_of(net, x, y), copy.deepcopy(net.state_dict())
    bits_of = (8, 2, 3, 4, 2, 8, 3, 2, 4, 3, 8)
    other = copy.deepcopy(net)
    for b, weights in zip(bits_of, resnet20.blocks(other).values()):
        for w in weights.values():
            grid = torch.linspace(float(w.min()), float(w.max()), 2**b, dtype=torch.float64)
            w.copy_(grid[(w[..., None] - grid).abs().argmin(-1)])
    wanted = F.cross_entropy(other(x), y, reduction="none").numpy()
    np.testing.assert_allclose(sweep.loss(bits_of, range(11)), wanted, atol=1e-9)
    alone = sweep.alone(2, 11)
    third = copy.deepcopy(net)
    third.head.weight.copy_(hq.rounded({"w": third.head.weight}, 2)["w"])
    plain = F.cross_entropy(net(x), y, reduction="none")
    np.testing.assert_allclose(
        alone[-1], (F.cross_entropy(third(x), y, reduction="none") - plain).numpy(), atol=1e-9
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# --- fine-tuning ---


def test_fine_tuning_rounds_every_block_and_leaves_the_original(hq, net, images):
    before, seen, bits_of = copy.deepcopy(net.state_dict()), [], (8, 2, 3, 4, 2, 8, 3, 2, 4, 3, 8)
    plain = hq.fine_tune(net, bits_of, [], draw_of(images), 3)
    assert torch.equal(plain.conv.weight, hq.rounded({"w": net.conv.weight}, 8)["w"])
    runs = [
        hq.fine_tune(net, bits_of, [[i] for i in range(11)], draw_of(images, seen), 2)
        for _ in range(2)
    ]
    assert len(seen) == 2 * 11 * 2 and all(
        torch.equal(v, before[k]) for k, v in net.state_dict().items()
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(runs[0].state_dict().values(), runs[1].state_dict().values())
    )
    for b, weights in zip(bits_of, resnet20.blocks(runs[0]).values()):
        assert all(len(w.unique()) <= 2**b for w in weights.values())
    assert not runs[0].training and not any(p.requires_grad for p in runs[0].parameters())
    assert not torch.equal(runs[0].bn.weight, net.bn.weight)  # what is not quantized trains as well


def test_blocks_join_in_the_order_of_the_stages_and_may_be_frozen(hq, net, images):
    asked, bits_of, scope = [], tuple(range(2, 13)), hq.fine_tune.__globals__
    plain = scope["rounded"]
    scope["rounded"] = lambda weights, bits, learn=False: (
        asked.append(bits) if learn else None,
        plain(weights, bits, learn),
    )[1]
    try:
        hq.fine_tune(net, bits_of, [[3], [0], [10, 5]], draw_of(images), 1)
    finally:
        scope["rounded"] = plain
    assert asked == [5, 5, 2, 5, 2, 12, 7]
    first = [
        hq.fine_tune(net, (3,) * 11, stages, draw_of(images), 2, freeze)
        for stages, freeze in (([[1]], True), ([[1], [2]], True), ([[1], [2]], False))
    ]
    weight = [f.residual["1a"].conv1.weight for f in first]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])


def test_fine_tuning_learns(hq, net, images):
    loss = lambda m: float(F.cross_entropy(m(images[0]), images[1]))  # noqa: E731
    rough = hq.fine_tune(net, (3,) * 11, [], draw_of(images), 1)
    assert (
        loss(hq.fine_tune(net, (3,) * 11, [list(range(11))], draw_of(images), 40, rate=1e-2))
        < loss(rough) - 0.1
    )


# --- rescaling ---


def test_rescaling_keeps_the_function_and_omega_and_changes_s(hq, net, images):
    name, c = "residual.2a.conv1.weight", 4.0
    other = hq.rescale(net, {name: c, "conv.weight": 0.1})
    torch.testing.assert_close(other(images[0]), net(images[0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.conv.weight, 0.1 * net.conv.weight)
    lam, damage = [], []
    for m in (net, hq.rescale(net, {name: c})):
        weights = {name: dict(m.named_parameters())[name]}
        lam.append(hq.top(partial(hq.mean_loss, m, *images), weights, 100).value)
        damage.append(lam[-1] * hq.squared_error(weights, 3))
    assert lam[1] * c**2 == pytest.approx(lam[0], rel=1e-3) and damage[1] == pytest.approx(
        damage[0], rel=1e-3
    )


# --- broken on purpose ---


def verdict(claim: str, control: dict[str, list[float]], **arrays: list[float]) -> str:
    """A claim's verdict when its control fails and its gate is met."""
    card = cards.load("hawq")
    name = next(c["id"] for c in roles.of_claim(card, claim))
    rows = engine.decide(card, {claim: arrays, name: control}, {"G1": [0.9] * 5}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


def planted(bit_map, seed: int, score) -> float:
    """Loss of reversed order minus order of `score(lambda, n)`, where the loss is log of the sum of
    lambda 4^-bits.
    """
    lam = np.exp(np.random.default_rng(seed).normal(0, 2, 11))
    loss = lambda bits_of: np.log(lam @ 0.25 ** np.array(bits_of))  # noqa: E731
    s = score(lam, SIZES)
    return loss(bit_map(-s, SIZES, 3.0)) - loss(bit_map(s, SIZES, 3.0))


NOISE = {"before": [1.0, -1.0, 0.5, -0.6, 0.1], "after": [1.0, -1.0, 0.5, -0.6, 0.1]}


def test_a_broken_order_flips_the_verdict(hq):
    right = [planted(hq.bit_map, k, lambda lam, n: lam / n) for k in range(5)]
    assert verdict("C2", NOISE, before=right, after=right) == "reproduced"
    source = (
        "right_map = bit_map\ndef bit_map(scores, n, budget): return right_map(-scores, n, budget)"
    )
    broken = [
        planted(method.load("hawq", source=source).bit_map, k, lambda lam, n: lam / n)
        for k in range(5)
    ]
    assert verdict("C2", NOISE, before=broken, after=broken) == "not reproduced"
