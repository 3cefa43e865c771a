"""Orders, maps of one size and sweeps, against definitions, brute force, the notebook they came
from and a fake network.
"""

import itertools
from collections import Counter

import numpy as np
import pytest

from layerbook.quantize import sweeps


def test_orders(unchecked):
    scores = [3.0, 1.0, 2.0, 1.0]
    # ties by depth
    assert sweeps.order(scores) == [1, 3, 2, 0] and sweeps.order(scores, descending=True) == [
        0,
        2,
        1,
        3,
    ]
    assert sweeps.reversed_([1, 3, 2]) == [2, 3, 1]
    for bad in ([1.0, float("nan")], [1.0, float("inf")], [[1.0]]):
        with pytest.raises(ValueError, match="scores"):
            sweeps.order(bad)
    found = sweeps.random_orders(6, 4, 3, paired=True)
    assert (
        found[1] == found[0][::-1]
        and found[3] == found[2][::-1]
        and all(sorted(o) == list(range(6)) for o in found)
    )
    assert (
        found
        == sweeps.random_orders(6, 4, 3, paired=True)
        != sweeps.random_orders(6, 4, 4, paired=True)
    )
    assert (
        sweeps.random_orders(6, 5, [3, 1])[0]
        == np.random.default_rng([3, 1]).permutation(6).tolist()
    )
    with pytest.raises(ValueError, match="paired"):
        sweeps.random_orders(6, 3, 0, paired=True)


def test_greedy_bits():
    for seed in range(30):
        draw = np.random.default_rng(seed)
        scores, sizes, budget = (
            draw.standard_normal(7),
            draw.integers(1, 100, 7),
            draw.uniform(2.1, 8.5),
        )
        for by in ("layer", "level"):
            found = sweeps.greedy_bits(scores, sizes, (2, 3, 4, 8), budget, by)
            assert sweeps.average(found, sizes) <= budget
            ranked = np.array(found)[np.argsort(scores)]
            assert (np.diff(ranked) >= 0).all()  # never more bits for a lower score
            above = [i for i in np.argsort(scores) if found[i] < 8]
            if above:  # the last move was needed
                last = (
                    above[-1] if by == "layer" else [i for i in above if found[i] == min(found)][-1]
                )
                back = list(found)
                back[last] = {2: 3, 3: 4, 4: 8}[int(found[last])]
                assert sweeps.average(back, sizes) > budget
    assert sweeps.greedy_bits([1, 2, 3, 4], [1] * 4, (4, 8), 6) == [4, 4, 8, 8]
    assert sweeps.greedy_bits([2, 2, 1], [1] * 3, (2, 4.25), 4) == [4.25, 4.25, 2]
    assert sweeps.greedy_bits([1, 2, 3], [1] * 3, (2, 4, 8), 4, "level") == [4, 4, 4]
    assert sweeps.greedy_bits([1, 2, 3], [1] * 3, (2, 4, 8), 4) == [2, 2, 8]
    assert sweeps.greedy_bits([1], [5], (8,), 9) == [8]
    for wrong in (
        ([1, 2], [1], (2,), 3),
        ([1], [1], (4,), 3),
        ([1], [0], (2,), 3),
        ([1], [1], (2,), 3, "size"),
        ([1], [1], (), 3),
    ):
        with pytest.raises(ValueError, match="budget|scores"):
            sweeps.greedy_bits(*wrong)


def test_maps_of_one_size():
    sizes = np.array([3, 10, 10, 20, 40, 40, 80, 5])
    maps = sweeps.size_matched(sizes, (2, 3, 4, 8), 3.5, 30, 0)
    assert len({tuple(m) for m in maps}) == 30 and maps == sweeps.size_matched(
        sizes, (2, 3, 4, 8), 3.5, 30, 0
    )
    assert all(
        abs(sweeps.average(m, sizes) - 3.5) <= 0.035 and set(m) <= {2, 3, 4, 8} for m in maps
    )
    assert all(len({m[i] for m in maps}) > 1 for i in range(8))  # every layer varies
    # equal layers: half of them, all twenty ways
    two = sweeps.size_matched([1] * 6, (4, 8), 6, 20, 1)
    assert {tuple(m) for m in two} == {
        m for m in itertools.product((4, 8), repeat=6) if sum(m) == 36
    }
    counts = Counter(tuple(sweeps.size_matched([1] * 4, (4, 8), 6, 1, s)[0]) for s in range(600))
    assert len(counts) == 6 and min(counts.values()) > 60  # with nearly equal odds
    with pytest.raises(ValueError, match="only .* of 21"):
        sweeps.size_matched([1] * 6, (4, 8), 6, 21, 0, tries=2000)
    with pytest.raises(ValueError, match="budget"):
        sweeps.size_matched([1] * 6, (4, 8), 3, 1, 0)


class Fake:
    """A loss in closed form: each unit adds up what the layers at a level cost it."""

    def __init__(self):
        self.calls = []
        self.cost = np.random.default_rng(0).random((6, 8))

    def __call__(self, level, layers, n):
        self.calls.append((level, layers, n))
        return (
            1.0
            + sum((self.cost[i] for i in layers), np.zeros(8))[:n]
            * {"low": 1, "lower": 2, None: 0}[level]
        )


def test_a_sweep_evaluates_each_set_once():
    net = Fake()
    sweep = sweeps.Sweep(net, 8)
    order = [3, 1, 0, 5, 2, 4]
    curve = sweep.curve("low", order, [1, 2, 6])
    np.testing.assert_allclose(
        curve, [0.0, *(net.cost[order[:k]].sum(0).mean() for k in (1, 2, 6))]
    )
    calls = len(net.calls)
    assert calls == 4  # the network as it stands, and three sets
    sweep.curve("low", [1, 3, 0, 5, 2, 4], [2, 6])  # the same sets in another order
    assert len(net.calls) == calls
    np.testing.assert_allclose(
        sweep.reversal("lower", order, 2, 5), 2 * (net.cost[[4, 2]] - net.cost[[3, 1]]).sum(0)[:5]
    )
    np.testing.assert_allclose(sweep.alone("low", 6, 3), net.cost[:, :3])
    few = len(net.calls)
    # fewer units than are known
    assert len(sweep.rise("lower", [4, 2], 3)) == 3 and len(net.calls) == few
    assert len(sweep.rise("lower", [4, 2])) == 8 and len(net.calls) == few + 1
    np.testing.assert_allclose(sweep.rise("low", []), 0)


def test_what_a_sweep_refuses():
    for n in (0, 9):
        with pytest.raises(ValueError, match="units of 8"):
            sweeps.Sweep(Fake(), 8).loss("low", [1], n)
    with pytest.raises(ValueError, match="returned shape"):
        sweeps.Sweep(lambda *_: np.ones(3), 8).loss("low", [1])
