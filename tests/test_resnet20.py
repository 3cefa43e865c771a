"""The narrow ResNet-20 networks: their data, their architecture, and that training them is
reproducible.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from layerbook import paths
from layerbook.data import loaders
from layerbook.networks import resnet20

FOLDER = paths.MODELS / "resnet20"
TINY = resnet20.Recipe(seeds=2, widths=(2, 2, 4), images=40, steps=2, batch=8)


@pytest.fixture
def arrays(monkeypatch) -> dict[str, np.ndarray]:
    """Random images in place of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    made = {
        f"{part}_x": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for part, n in (("train", 60), ("test", 20))
    }
    made |= {
        "train_y": np.arange(60, dtype=np.uint8) % 10,
        "test_y": np.arange(20, dtype=np.uint8) % 10,
    }
    monkeypatch.setattr(loaders, "fashion_mnist", lambda path=None: made)
    return made


def test_images_are_means_of_four_pixels_scaled_as_the_training_images_ask(arrays):
    of = resnet20.data(TINY)
    assert (
        of.x.shape == (40, 1, 14, 14)
        and of.held_x.shape == (20, 1, 14, 14)
        and of.y.tolist() == [i % 10 for i in range(40)]
    )
    assert of.x.mean() == pytest.approx(0, abs=1e-4) and of.x.std() == pytest.approx(1, abs=1e-4)
    x, held = (
        arrays[k][:n].reshape(n, 14, 2, 14, 2).mean((2, 4)) / 255
        for k, n in (("train_x", 40), ("test_x", 20))
    )
    wanted = (held - x.mean()) / x.std(ddof=1)
    np.testing.assert_allclose(of.held_x[:, 0], wanted, atol=1e-4)


def test_the_architecture_is_resnet_20():
    net = resnet20.build(resnet20.Recipe(), 0)
    parts = resnet20.blocks(net)
    sizes = {name: sum(w.numel() for w in weights.values()) for name, weights in parts.items()}
    assert list(sizes.values()) == [
        72,
        1152,
        1152,
        1152,
        3456,
        4608,
        4608,
        13824,
        18432,
        18432,
        320,
    ]
    assert list(sizes) == ["stem", *(f"{s}{k}" for s in (1, 2, 3) for k in "abc"), "head"]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    # and the head: 20
    assert len(convolutions) == 19 and sum(isinstance(m, nn.Linear) for m in net.modules()) == 1
    named = dict(net.named_parameters())
    assert all(named[name] is w for weights in parts.values() for name, w in weights.items())
    norms = sum(2 * m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(p.numel() for p in net.parameters()) == sum(sizes.values()) + norms + 10
    x = torch.randn(2, 8, 14, 14)
    assert net.residual["1a"](x).shape == (2, 8, 14, 14) and net.residual["2a"](x).shape == (
        2,
        16,
        7,
        7,
    )


def test_a_shortcut_drops_pixels_and_adds_empty_channels():
    block = resnet20.Residual(2, 5, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(3, 2, 7, 7)
    found = block(x)
    assert torch.equal(found[:, :2], x[:, :, ::2, ::2].relu()) and not found[:, 2:].any()


def test_batches_are_drawn_by_the_seed_and_mirrored_at_most(arrays):
    of = resnet20.data(TINY)
    first, again, other = (resnet20.batches(of, 8, seed) for seed in (3, 3, 4))
    for _ in range(4):
        (x, y), (x2, y2), (x3, _) = first(), again(), other()
        assert torch.equal(x, x2) and torch.equal(y, y2) and not torch.equal(x, x3)
        plain, mirrored = (
            [(of.x[of.y == c] == i).all((1, 2, 3)).any() for i, c in zip(z, y)]
            for z in (x, x.flip(-1))
        )
        assert all(a or b for a, b in zip(plain, mirrored)) and any(plain) and any(mirrored)
    x, y = resnet20.batches(of, 8, 0, augment=False)()
    assert all((of.x[of.y == label] == image).all((1, 2, 3)).any() for image, label in zip(x, y))


def test_training_is_deterministic_and_leaves_a_frozen_network(arrays, threads):
    of = resnet20.data(TINY)
    (a, curve), (b, again), (c, _) = (resnet20.train(TINY, of, seed) for seed in (0, 0, 1))
    assert curve == again and all(
        torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values())
    )
    assert not torch.equal(a.conv.weight, c.conv.weight)
    assert (
        not a.training
        and not any(p.requires_grad for p in a.parameters())
        and a.bn.num_batches_tracked == 2
    )


def test_the_command_writes_loadable_networks_and_refuses_poor_ones(arrays, made_twice):
    folder, card = made_twice("resnet20", TINY)
    of = resnet20.data(TINY)
    nets = resnet20.load(folder)
    assert [resnet20.examine(net, of.held_x, of.held_y) for net in nets] == [
        {k: one[k] for k in ("accuracy", "loss")} for one in card["held_out"].values()
    ]
    assert not any(p.requires_grad or net.training for net in nets for p in net.parameters())


def test_examine_is_the_mean_over_images():
    net = lambda x: x  # noqa: E731
    logits, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 0])
    found = resnet20.examine(net, logits, y, some=2)
    assert found["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), abs=1e-4)


def test_the_shipped_networks_pass_their_gate_and_say_so():
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    assert card["gate"]["passed"] and card["gate"]["worst"] >= resnet20.Recipe.gate
    assert sum(p.stat().st_size for p in FOLDER.rglob("*.safetensors")) < 8e6
    of, nets = resnet20.data(resnet20.Recipe()), resnet20.load(FOLDER)
    assert len(nets) == len(card["held_out"]) == resnet20.Recipe.seeds
    found = resnet20.examine(nets[0], of.held_x, of.held_y)
    assert found["accuracy"] == pytest.approx(card["held_out"]["0"]["accuracy"], abs=0.002)
    assert all(not torch.equal(a.conv.weight, b.conv.weight) for a, b in zip(nets, nets[1:]))
