"""The small diffusion transformers: their data, their parts, sampling and judging, and that
training is reproducible.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import linalg
from torch.nn import functional as F

from layerbook import paths
from layerbook.data import loaders
from layerbook.networks import diffusion, tinydit
from layerbook.networks.recipes import tinydit as recipe_of

FOLDER = paths.MODELS / "tiny-dit"
TINY = tinydit.Recipe(seeds=2, width=8, depth=2, heads=2, steps=2, batch=8)


@pytest.fixture
def arrays(monkeypatch) -> dict[str, np.ndarray]:
    """Random images in place of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    made = {
        f"{part}_x": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for part, n in (("train", 200), ("test", 40))
    }
    made |= {
        "train_y": np.arange(200, dtype=np.uint8) % 10,
        "test_y": np.arange(40, dtype=np.uint8) % 10,
    }
    monkeypatch.setattr(loaders, "fashion_mnist", lambda path=None: made)
    return made


@pytest.fixture
def net() -> tinydit.TinyDiT:
    """An untrained network whose zero weights are random, so that every part shows in the output."""
    made = tinydit.build(TINY, 0).requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    for p in made.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=g))
    return made


# --- data ---


def test_captions_are_read_off_the_images(arrays):
    of = tinydit.data()
    assert (
        of.x.shape == (200, 1, 14, 14)
        and of.held_words.shape == (40, 3)
        and of.x.min() >= -1
        and of.x.max() <= 1
    )
    pixels = arrays["train_x"].reshape(200, 14, 2, 14, 2).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(of.x[:, 0], pixels, atol=1e-5)
    light = [np.mean([v for v in ((row + 1) / 2).ravel() if v > 0.1]) for row in pixels]
    wanted = np.searchsorted(np.quantile(light, [1 / 3, 2 / 3]), light)
    assert np.mean(of.words[:, 0].numpy() == wanted) > 0.98  # an image may lie on the border
    assert of.words[:, 2].tolist() == [6 + i % 10 for i in range(200)] and set(
        of.words[:, 1].tolist()
    ) <= {3, 4, 5}
    assert len(tinydit.WORDS) == 16 and tinydit.WORDS[6:] == tinydit.KINDS


def test_attributes_of_a_planted_image():
    x = -torch.ones(1, 1, 14, 14)
    x[0, 0, :7] = 0.0  # half of the frame at half of white
    assert tinydit.attributes(x)[0].tolist() == pytest.approx([0.5, 0.5])
    assert tinydit.attributes(-torch.ones(1, 1, 14, 14))[0].tolist() == [0, 0]


# --- the network ---


def test_layers_and_their_inputs(net):
    layers = tinydit.linears(net)
    assert len(layers) == 2 * 10 and not any(
        name.startswith(("embed", "time", "final", "t_block")) for name in layers
    )
    sites = {tinydit.site_of(name) for name in layers}
    assert {s.split(".", 1)[1] for s in sites} == {
        "attn.qkv",
        "attn.o",
        "cross.q",
        "cross.kv",
        "cross.o",
        "mlp.up",
        "mlp.down",
    }
    seen, inputs_of = {}, {}
    hooks = [
        m.register_forward_pre_hook(lambda m, a, n=n: inputs_of.__setitem__(n, a[0]))
        for n, m in layers.items()
    ]
    with tinydit.watch(net, lambda t, site, x: seen.__setitem__(site, (t, x))):
        net(torch.randn(2, 1, 14, 14), torch.tensor([7, 7]), torch.tensor([[0, 3, 6], [1, 4, 8]]))
    for hook in hooks:
        hook.remove()
    assert set(seen) == sites and all(t == 7 for t, _ in seen.values())
    # one tensor for all layers of a site
    assert all(inputs_of[name] is seen[tinydit.site_of(name)][1] for name in layers)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_modulated_inputs_are_layer_norm_scaled_and_shifted(net):
    seen = {}
    with tinydit.watch(net, lambda t, site, x: seen.__setitem__(site, x)):
        x, t, w = (
            torch.randn(2, 1, 14, 14),
            torch.tensor([300, 300]),
            torch.tensor([[0, 3, 6], [1, 4, 8]]),
        )
        net(x, t, w)
    time = net.time(diffusion.waves(t.float(), 8))
    shift, scale = (net.blocks[0].table + net.t_block(time).view(2, 6, 8))[:, :2].unbind(1)
    h = net.embed(F.unfold(x, 2, stride=2).transpose(1, 2)) + net.places
    normal = (h - h.mean(-1, keepdim=True)) / (
        h.var(-1, unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    wanted = normal * (1 + scale)[:, None] + shift[:, None]
    torch.testing.assert_close(seen["0.attn.qkv"], wanted, rtol=1e-4, atol=1e-4)


def test_caption_time_and_every_pixel_reach_the_output(net):
    x, t, w = torch.randn(1, 1, 14, 14), torch.tensor([100]), torch.tensor([[0, 3, 6]])
    plain = net(x, t, w)
    assert plain.shape == x.shape
    for other in (
        (x, t + 300, w),
        (x, t, torch.tensor([[0, 3, 7]])),
        (x, t, torch.tensor([tinydit.NULL])),
    ):
        assert (net(*other) - plain).abs().max() > 1e-4
    moved = x.clone()
    moved[0, 0, 13, 13] += 1
    assert (net(moved, t, w) - plain)[0, 0, 0, 0].abs() > 1e-6  # the opposite corner
    assert not tinydit.build(TINY, 0)(x, t, w).any()  # the final layer starts at zero


# --- noise levels, sampling, judging ---


def test_noise_levels_and_linear_predictor():
    a = diffusion.alphas()
    assert a[0].item() == pytest.approx(1 - 1e-4) and (a[1:] < a[:-1]).all() and a[-1] < 1e-4
    assert diffusion.levels(4) == [999, 749, 500, 250] and diffusion.levels(1) == [999]
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 3, generator=g, dtype=torch.float64)
    x = torch.randn(200_000, 3, generator=g, dtype=torch.float64) @ mixing + 1
    noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
    noisy = a[300].sqrt() * x + (1 - a[300]).sqrt() * noise
    features = torch.cat([noisy, torch.ones(len(x), 1).double()], 1)
    fitted = features @ torch.linalg.lstsq(features, noise).solution
    found = diffusion.linear_noise(noisy, 300, x.mean(0), x.T.cov())
    assert (found - fitted).square().mean() < 1e-4 * noise.square().mean()


class Oracle(torch.nn.Module):
    """Knows the noise for images that are all alike: x = sqrt(a) clean + sqrt(1 - a) noise."""

    null = tinydit.NULL

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, x, t, words):
        a = diffusion.alphas()[t].float()[:, None, None, None]
        empty = (words == torch.tensor(self.null)).all(1)[:, None, None, None]
        return (x - a.sqrt() * self.clean) / (1 - a).sqrt() + torch.where(empty, 0.0, 0.5)


def test_sampling_with_the_right_noise_arrives_in_any_number_of_steps():
    clean, words = torch.rand(1, 14, 14), torch.tensor([[0, 3, 6]] * 2)
    noise = torch.randn(2, 1, 14, 14)
    for steps in (1, 5, 20):
        visited: list = []
        keep = lambda t, _x, to=visited: to.append(t)  # noqa: E731
        made = diffusion.sample(Oracle(clean), words, noise, steps, 0.0, each=keep)
        torch.testing.assert_close(made, clean.expand(2, 1, 14, 14), rtol=1e-3, atol=1e-3)
        assert visited == diffusion.levels(steps)
    plain, both = (diffusion.guided(Oracle(clean), noise, 500, words, cfg) for cfg in (0.0, 3.0))
    # three times the caption's part
    torch.testing.assert_close(both[0] - plain[0], torch.full_like(noise, 1.5))
    # with the caption first
    torch.testing.assert_close(both[1][:2] - both[1][2:], torch.full_like(noise, 0.5))


def test_psnr_and_frechet_against_closed_forms():
    x = torch.zeros(2, 1, 14, 14)
    assert diffusion.psnr(x + 0.2, x).tolist() == pytest.approx([20, 20], abs=1e-4)
    # both are white
    assert diffusion.psnr(x + 3, x + 2).tolist() == pytest.approx([120 + 10 * np.log10(4)] * 2)
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)),
        rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) + 1,
    )
    S, T = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S + T - 2 * linalg.sqrtm(S @ T).real)
    assert diffusion.frechet(a, b) == pytest.approx(wanted) and diffusion.frechet(
        a, a
    ) == pytest.approx(0, abs=1e-9)


def test_a_judge_agrees_with_its_classifiers_and_sees_no_distance_to_itself():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Linear(196, 10)

        def forward(self, x):
            return self.head(x.flatten(1))

    made, x = Net().requires_grad_(False), torch.rand(300, 1, 14, 14) * 2 - 1
    judge = diffusion.Judge([made, made], x, x, axes=3)
    light = (x + 1) / 2
    p = made((light - light.mean()) / light.std()).softmax(1)
    kinds = torch.arange(300) % 10
    assert judge.agreement(x, kinds) == pytest.approx(
        p[torch.arange(300), kinds].mean().item(), rel=1e-5
    )
    assert judge.distance(x) == pytest.approx(0, abs=1e-9) and judge.distance(x * 0.5) > 0.01
    with ThreadPoolExecutor(4) as pool:  # which share one judge
        found = list(
            pool.map(
                lambda i: (judge.distance(x[i:]), judge.agreement(x[i:], kinds[i:])),
                range(0, 80, 2),
            )
        )
    assert found == [
        (judge.distance(x[i:]), judge.agreement(x[i:], kinds[i:])) for i in range(0, 80, 2)
    ]


# --- training ---


def test_training_is_deterministic_and_leaves_a_frozen_network(arrays, threads):
    of = tinydit.data()
    (a, curve), (b, again), (c, _) = (tinydit.train(TINY, of, seed) for seed in (0, 0, 1))
    assert curve == again and all(
        torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values())
    )
    assert not torch.equal(a.final.weight, c.final.weight) and not any(
        p.requires_grad for p in a.parameters()
    )


def test_training_learns_and_drops_captions(arrays, monkeypatch):
    of, drops, plain = tinydit.data(), [], tinydit.TinyDiT.forward
    recipe, null = (
        tinydit.Recipe(width=16, depth=1, heads=2, steps=80, batch=16),
        torch.tensor(tinydit.NULL),
    )
    monkeypatch.setattr(
        tinydit.TinyDiT,
        "forward",
        lambda *args: (drops.append((args[3] == null).all(1)), plain(*args))[1],
    )
    _, curve = tinydit.train(recipe, of, 0)
    assert np.mean(curve[-10:]) < 0.6 * np.mean(curve[:5])
    assert 0.05 < torch.cat(drops).float().mean() < 0.16


def test_the_command_writes_loadable_networks_and_refuses_poor_ones(arrays, made_twice):
    folder, card = made_twice("tiny-dit", TINY)
    of = tinydit.data()
    for net, row in zip(tinydit.load(folder), card["held_out"].values()):
        assert recipe_of.quality(net, of) == {
            k: row[k] for k in ("loss", "over_linear", "seen_as_wanted")
        }
        assert (
            not any(p.requires_grad for p in net.parameters())
            and net.final.weight.dtype == torch.float32
        )


def test_the_shipped_networks_pass_their_gate_and_say_so():
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    recipe = tinydit.Recipe()
    assert (
        card["gate"]["passed"]
        and card["recipe"] == vars(recipe)
        and len(card["held_out"]) == recipe.seeds
    )
    assert all(
        r["over_linear"] <= recipe.loss_gate and r["seen_as_wanted"] >= recipe.class_gate
        for r in card["held_out"].values()
    )
    assert sum(p.stat().st_size for p in FOLDER.rglob("*.safetensors")) < 4e6
    of, nets = tinydit.data(), tinydit.load(FOLDER)
    found = recipe_of.quality(nets[0], of, images=200, samples=50)
    assert found["over_linear"] < 0.75 and found["seen_as_wanted"] > recipe.class_gate
    assert all(not torch.equal(a.final.weight, b.final.weight) for a, b in zip(nets, nets[1:]))
