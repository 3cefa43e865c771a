"""Linear probes on planted signals."""

import numpy as np
import pytest
import torch

from layerbook.layers import probes

GROUPS, EACH, D = 30, 8, 10


def planted(layers=4, at=(2,), seed=0, strength=3.0):
    """Noise [layers, items, D] with a direction that carries the label in the layers `at`; labels
    balanced in each group.
    """
    rng = np.random.default_rng(seed)
    y, groups = np.tile([0, 1], GROUPS * EACH // 2), np.repeat(np.arange(GROUPS), EACH)
    x, direction = rng.normal(size=(layers, len(y), D)), rng.normal(size=D)
    for layer in at:
        x[layer] += strength * np.outer(y - 0.5, direction / np.linalg.norm(direction))
    return x, y, groups


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_a_planted_signal_is_found_where_it_was_planted_and_nowhere_else(kind):
    x, y, groups = planted(at=(1, 3))
    acc = probes.accuracy_by_layer(x, y, groups, splits=4, kind=kind)
    assert acc.shape == (4, 4)
    assert acc[:, [1, 3]].min() > 0.85 and abs(acc[:, [0, 2]].mean() - 0.5) < 0.1


def test_the_accuracy_is_that_of_a_probe_fitted_by_hand():
    from sklearn.linear_model import LogisticRegression

    x, y, groups = planted(layers=1, at=(0,), strength=1.0)
    x = 5 + 3 * x
    a, b = probes.group_splits(y, groups, splits=1, seed=3)[0]
    mean, sd = x[0][a].mean(0), x[0][a].std(0)
    fit = LogisticRegression(C=0.2, max_iter=2000).fit((x[0][a] - mean) / sd, y[a])
    want = (fit.predict((x[0][b] - mean) / sd) == y[b]).mean()
    assert probes.accuracy_by_layer(x, y, groups, splits=1, C=0.2, seed=3)[0, 0] == pytest.approx(
        want, abs=1e-12
    )


def test_no_group_is_on_both_sides_and_none_is_lost():
    _, y, groups = planted()
    names = np.array([f"entity {g}" for g in np.random.default_rng(5).permutation(GROUPS)[groups]])
    for share in (0.2, 0.5):
        cuts = probes.group_splits(y, names, splits=5, test=share, seed=1)
        for train, held_out in cuts:
            assert not set(names[train]) & set(names[held_out])
            assert sorted([*train, *held_out]) == list(range(len(y)))
            assert len(set(names[held_out])) == round(share * GROUPS)
        assert len({tuple(b) for _, b in cuts}) == 5


def test_a_fingerprint_of_the_group_is_worth_nothing():
    """Each group has a label and a pattern of its own: learnt by heart if rows are split, of no use
    if groups are.
    """
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(GROUPS), EACH)
    y, pattern = rng.permutation(GROUPS)[groups] % 2, rng.normal(size=(GROUPS, 40))
    x = pattern[groups][None] + 0.1 * rng.normal(size=(1, len(y), 40))
    order = rng.permutation(len(y))
    by_row = cross_val_score(probes.probe(), x[0][order], y[order], cv=5).mean()
    assert by_row > 0.95
    assert abs(probes.accuracy_by_layer(x, y, groups, splits=20).mean() - 0.5) < 0.15


def test_shuffled_labels_give_chance():
    x, y, groups = planted(at=(0, 1, 2, 3))
    acc = [
        probes.accuracy_by_layer(x, probes.shuffled(y, groups, seed), groups, splits=2).mean()
        for seed in range(6)
    ]
    assert abs(np.mean(acc) - 0.5) < 0.04 and max(acc) < 0.65
    # labels that belong to groups, and a direction that carries them to unseen groups: chance after
    # the exchange only
    y = (np.arange(GROUPS) % 2)[groups]
    x[:] = np.random.default_rng(1).normal(size=x.shape) + 2 * y[:, None]
    assert probes.accuracy_by_layer(x, y, groups, splits=2).min() > 0.95
    acc = [
        probes.accuracy_by_layer(x, probes.shuffled(y, groups, seed), groups, splits=2).mean()
        for seed in range(12)
    ]
    assert abs(np.mean(acc) - 0.5) < 0.12


def test_shuffling_keeps_the_labels_and_what_they_belong_to():
    _, y, groups = planted()
    mixed = probes.shuffled(y, groups, 0)
    assert sorted(mixed) == sorted(y) and (mixed != y).any()
    assert (probes.shuffled(y, groups, 0) == mixed).all() and (
        probes.shuffled(y, groups, 1) != mixed
    ).any()
    of_group = (np.arange(GROUPS) % 3)[groups]
    mixed = probes.shuffled(of_group, groups, 0)
    assert (
        all(len(set(mixed[groups == g])) == 1 for g in range(GROUPS)) and (mixed != of_group).any()
    )


def test_the_nested_choice_is_never_above_the_best_on_test_and_is_not_biased():
    x, y, groups = planted(layers=12, at=())
    by_layer = probes.accuracy_by_layer(x, y, groups, splits=4, kind="ridge")
    acc, best = probes.nested_best(x, y, groups, splits=4, kind="ridge", with_layers=True)
    assert acc == pytest.approx(by_layer[np.arange(4), best])  # the same splits, one layer of each
    assert (acc <= by_layer.max(1)).all()
    # on noise, the optimum looks like a finding
    assert by_layer.max(1).mean() > 0.55 and abs(acc.mean() - 0.5) < 0.05
    x, y, groups = planted(at=(2,))
    acc, best = probes.nested_best(x, y, groups, splits=3, kind="ridge", with_layers=True)
    assert (best == 2).all() and acc.min() > 0.85
    assert (probes.nested_best(x, y, groups, splits=3, kind="ridge") == acc).all()


def test_the_choice_of_a_layer_does_not_see_the_test_part():
    x, y, groups = planted(at=(2,))
    train, held_out = probes.group_splits(y, groups, splits=1)[0]
    # a layer that is perfect on the test part alone
    x[0][held_out] = 100.0 * (y[held_out, None] - 0.5)
    assert probes.nested_best(x, y, groups, splits=1, with_layers=True)[1] == [2]


def test_tensors_of_any_precision_are_accepted():
    x, y, groups = planted()
    got = probes.accuracy_by_layer(
        torch.tensor(x).bfloat16().requires_grad_(), torch.tensor(y), groups, splits=2, kind="ridge"
    )
    assert got[:, 2].min() > 0.8


def test_what_cannot_be_probed_is_refused():
    x, y, groups = planted()
    with pytest.raises(ValueError, match=r"must be \[layers, 240 items, d\], not \[240, 10\]"):
        probes.accuracy_by_layer(x[0], y, groups)
    with pytest.raises(ValueError, match="not finite"):
        probes.accuracy_by_layer(np.full_like(x, np.nan), y, groups)
    with pytest.raises(ValueError, match="no probe of kind 'svm'; there are logistic, ridge"):
        probes.accuracy_by_layer(x, y, groups, kind="svm")
    with pytest.raises(ValueError, match="at least two classes and two groups"):
        probes.group_splits(np.zeros(240), groups)
    with pytest.raises(ValueError, match="2 groups are too few for 5 splits"):
        # each class has one group
        probes.group_splits(np.repeat([0, 1], 120), np.repeat([0, 1], 120))
    with pytest.raises(ValueError, match="same length"):
        probes.group_splits(y, groups[:-1])
