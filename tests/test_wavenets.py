"""The surrogates: their data, their weight counts, and that training them is reproducible and
shares what it must.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from layerbook import paths
from layerbook.data import wavefem
from layerbook.networks import separable, training, wavenets

NETS = paths.MODELS / "wave-nets"
TINY = wavenets.Recipe(
    seeds=2,
    nodes=9,
    frames=8,
    zone=8,
    train=6,
    test=4,
    far=3,
    channels=(8, 8, 4, 4),
    steps=2,
    batch=3,
)


@pytest.fixture(scope="module")
def sets() -> dict[int, dict]:
    return {seed: wavenets.data(TINY, seed) for seed in (0, 1)}


def test_parameters_lie_in_their_boxes_and_seeds_do_not_share_them():
    p, far = wavenets.draw(400, 3), wavenets.draw(400, 3, far=True)
    assert (
        (p >= wavenets.LOW).all()
        and (p <= wavenets.HIGH).all()
        and (np.ptp(p, 0) > 0.95 * (wavenets.HIGH - wavenets.LOW)).all()
    )
    near = np.minimum(far[:, :2], 1 - far[:, :2])
    assert (near >= 0.08).all() and (near <= 0.2).all()
    assert {tuple(c) for c in far[:, :2] > 0.5} == set(np.ndindex(2, 2))  # all corners
    assert not np.intersect1d(p, wavenets.draw(400, 4)).size and np.array_equal(
        p, wavenets.draw(400, 3)
    )


def test_fields_are_the_solvers_at_the_stored_times(sets):
    p, u = sets[0]["test"]
    assert u.shape == (4, 8, 8, 8) and u.dtype == torch.float32
    membrane = wavefem.assemble(9)
    whole = wavefem.solve(membrane, wavefem.bumps(membrane.points, p.double().numpy()), 1 / 16, 16)
    window = wavefem.restrict(membrane, wavefem.grid(8, *wavenets.ZONE))
    assert np.allclose(u[2, 3].reshape(-1), window @ whole[8, :, 2], atol=1e-6)
    again = wavenets.fields(TINY, p.double().numpy(), chunk=3)
    assert torch.allclose(again, u, atol=1e-6)
    assert torch.equal(wavenets.data(TINY, 0, ("test",))["test"][0], p)


def test_arms_differ_in_their_filters_alone():
    nets = {name: wavenets.build(wavenets.Recipe(), arm, 0) for name, arm in wavenets.ARMS.items()}
    filters = {name: wavenets.counts(net)[0] for name, net in nets.items()}
    assert filters["dense"] == 27 * (32 * 32 + 32 * 16 + 16 * 16)
    assert filters["A"] * 3 == filters["dense"] and filters["pointwise"] * 27 == filters["dense"]
    assert filters["B"] == 3 * (3 * 32 * 32 + (32 * 16 + 2 * 16 * 16) + 3 * 16 * 16)
    assert (
        filters["B"] <= filters["thin"] < 1.08 * filters["B"] and filters["grouped"] < filters["B"]
    )
    # so that the thin network can pass the separated one's test
    assert filters["dense"] / filters["thin"] > 3
    same = [nets[name].head.weight for name in ("dense", "A", "B", "grouped", "one-axis")]
    assert all(w.shape == same[0].shape for w in same)
    with pytest.raises(ValueError, match="unknown form 'C'"):
        wavenets.layer(wavenets.Arm("C"), 2, 2, 3)


def test_the_readout_puts_eight_values_where_they_belong():
    net = wavenets.build(TINY, wavenets.ARMS["dense"], 0)
    assert net.latent == (8, 1, 1, 1) and net.positions() == [1, 8, 64]
    p = torch.from_numpy(wavenets.draw(2, 0)).float()
    x = net.read(net.maps(p)[-1])
    y = net(p)
    for t, i, j in ((0, 0, 0), (5, 2, 7), (7, 7, 6)):
        assert torch.equal(
            y[:, t, i, j], x[:, 4 * (t % 2) + 2 * (i % 2) + j % 2, t // 2, i // 2, j // 2]
        )


def test_arms_of_a_seed_see_the_same_batches_and_training_is_deterministic(sets, monkeypatch):
    seen, plain = [], training.fit

    def fit(model, loss_of, schedule):
        seen.append([loss_of(i).item() for i in range(2)])
        return plain(model, loss_of, schedule)

    monkeypatch.setattr(training, "fit", fit)
    pair = sets[0]["train"]
    a, b = (wavenets.train(TINY, wavenets.ARMS["B"], 0, pair) for _ in range(2))
    assert (
        all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
        and seen[0] == seen[1]
    )
    other = wavenets.train(TINY, wavenets.ARMS["B"], 1, pair)
    assert not torch.equal(a.head.weight, other.head.weight) and not any(
        p.requires_grad for p in a.parameters()
    )
    wrong = wavenets.train(TINY, wavenets.ARMS["shuffled"], 0, pair)
    assert seen[3][0] != seen[0][0] and not torch.equal(a.read.weight, wrong.read.weight)
    further = wavenets.train(TINY, wavenets.ARMS["B"], 0, pair, model=a)
    assert (
        further is a
        and not torch.equal(a.read.weight, b.read.weight)
        and a.scale.item() == pytest.approx(pair[1].std().item())
    )


def test_errors_are_relative_to_each_samples_own_norm(sets):
    p, u = sets[0]["test"]
    assert torch.allclose(
        wavenets.errors(lambda q: torch.zeros_like(u), (p, u)), torch.ones(4).double()
    )
    assert torch.allclose(wavenets.relative(1.5 * u, u), torch.full((4,), 0.5).double())


def test_making_them_writes_loadable_networks_and_refuses_poor_ones(made_twice):
    folder, card = made_twice("wave-nets", TINY)
    recipe, nets = wavenets.load(folder)
    assert recipe == TINY and [len(n) for n in nets.values()] == [2] * len(wavenets.ARMS)
    assert card["arms"]["thin"]["filter_weights"] >= card["arms"]["B"]["filter_weights"]
    test = wavenets.data(recipe, 1, ("train", "test"))["test"]
    for name in ("A", "dense"):  # the gate judged what is stored
        examined = round(wavenets.errors(nets[name][1], test).mean().item(), 4)
        assert examined == card["held_out"]["1"][name]


def test_the_shipped_networks_pass_their_gate_and_say_so():
    card = json.loads((NETS / "card.json").read_text(encoding="utf-8"))
    assert (
        card["gate"]["passed"]
        and max(one["dense"] for one in card["held_out"].values())
        == card["gate"]["worst"]
        <= wavenets.Recipe.gate
    )
    assert sum(p.stat().st_size for p in NETS.rglob("*.safetensors")) < 8e6
    recipe, nets = wavenets.load(NETS)
    assert recipe == wavenets.Recipe()
    test = wavenets.data(recipe, 1, ("test",))["test"]
    for name in ("dense", "B"):
        assert wavenets.errors(nets[name][1], test).mean().item() == pytest.approx(
            card["held_out"]["1"][name], rel=0.02
        )
        filters = sum(separable.weights(conv) for conv in nets[name][1].convs)
        assert wavenets.counts(nets[name][1])[0] == card["arms"][name]["filter_weights"] == filters
