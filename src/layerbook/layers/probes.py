"""Linear probes: what can be read off the activations of each layer, on groups that the probe has
not seen.

Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes"; the control
for what a probe
learns by itself: Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks". Items
that share a
source (an entity, a template, a text) belong to one group and are never on both sides of a split,
or else a probe would be praised for recognising the source. The classifiers are scikit-learn's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

KINDS = ("logistic", "ridge")
Split = tuple[NDArray[np.intp], NDArray[np.intp]]


def probe(kind: str = "logistic", C: float = 1.0) -> Any:
    """An unfitted linear classifier behind a standardisation that is fitted with it, so on the
    training part only.

    C: inverse strength of the penalty (ridge: 1 / alpha). ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no probe of kind {kind!r}; there are {', '.join(KINDS)}")
    linear = (
        LogisticRegression(C=C, max_iter=2000)
        if kind == "logistic"
        else RidgeClassifier(alpha=1 / C)
    )
    return make_pipeline(StandardScaler(), linear)


def group_splits(
    y: ArrayLike, groups: ArrayLike, splits: int = 5, test: float = 0.4, seed: int = 0
) -> list[Split]:
    """Random splits into (training, test) indices by whole groups; `test` is the share of groups
    that is held out.

    y, groups: [items]. Draws whose training part lacks a class are passed over, as no probe can
    name it; so are draws
    with a test part of one class, on which any constant answer would be perfect. ValueError if too
    few are left.
    """
    y, groups = np.asarray(y), np.asarray(groups)
    if y.shape != groups.shape or y.ndim != 1:
        raise ValueError(
            f"labels {y.shape} and groups {groups.shape} must be two lists of the same length"
        )
    classes, found = len(np.unique(y)), []
    if classes < 2 or len(np.unique(groups)) < 2:
        raise ValueError("a probe needs at least two classes and two groups")
    drawn = GroupShuffleSplit(n_splits=20 * splits, test_size=test, random_state=seed).split(
        y, y, groups
    )
    for train, held_out in drawn:
        if len(np.unique(y[train])) == classes and len(np.unique(y[held_out])) > 1:
            found.append((train, held_out))
        if len(found) == splits:
            return found
    raise ValueError(
        f"{len(np.unique(groups))} groups are too few for {splits} splits with all {classes} classes in training"
    )


def _layers(x: Any, y: NDArray[Any]) -> NDArray[Any]:
    """Activations [layers, items, d] as an array; ValueError for another shape or values that are
    not finite.
    """
    x = x.detach().float().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    if x.ndim != 3 or x.shape[1] != len(y):
        raise ValueError(f"activations must be [layers, {len(y)} items, d], not {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("activations hold values that are not finite")
    return x


def accuracy_by_layer(
    x: Any,
    y: ArrayLike,
    groups: ArrayLike,
    splits: int = 5,
    test: float = 0.4,
    kind: str = "logistic",
    C: float = 1.0,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Accuracy on held-out groups of a probe per layer and split: [splits, layers]. All layers
    share the splits.

    x: activations [layers, items, d], array or tensor. y, groups: [items]. kind: "logistic" or
    "ridge"; C: inverse
    strength of its penalty. Splits overlap, so they are not independent measurements. The best of
    the layers is biased upwards, being picked on the test parts: see nested_best. ValueError for
    shapes that do not fit.
    """
    y = np.asarray(y)
    x, cuts = _layers(x, y), group_splits(y, groups, splits, test, seed)
    return np.array(
        [[probe(kind, C).fit(h[a], y[a]).score(h[b], y[b]) for h in x] for a, b in cuts]
    )


def shuffled(y: ArrayLike, groups: ArrayLike, seed: int = 0) -> NDArray[Any]:
    """Permuted labels [items], the control task: what a probe reaches on them is its own doing.

    If all items of each group share one label, as in the control tasks of Hewitt & Liang, the
    groups exchange labels as a whole; otherwise items do. A group's label is random then, and
    nothing about it can be learnt from others.
    """
    y, groups = np.asarray(y), np.asarray(groups)
    rng = np.random.default_rng(seed)
    _, start, member = np.unique(groups, return_index=True, return_inverse=True)
    per_group = y[start]
    return (
        rng.permutation(per_group)[member] if (y == per_group[member]).all() else rng.permutation(y)
    )


def nested_best(
    x: Any,
    y: ArrayLike,
    groups: ArrayLike,
    splits: int = 5,
    test: float = 0.4,
    kind: str = "logistic",
    C: float = 1.0,
    seed: int = 0,
    inner: int = 3,
    with_layers: bool = False,
) -> Any:
    """Accuracy [splits] at a layer that was chosen inside each training part, by `inner` group
    splits of it.

    The outer splits are those of accuracy_by_layer, so this is one entry of each of its rows,
    picked without a look at the test part; of equal layers the first is taken. The other arguments
    are as there. with_layers: return (accuracy, chosen layers), both [splits]. ValueError also if a
    training part has too few groups to be split.
    """
    y, groups = np.asarray(y), np.asarray(groups)
    x, scores, best = _layers(x, y), [], []
    for train, held_out in group_splits(y, groups, splits, test, seed):
        inside = accuracy_by_layer(
            x[:, train], y[train], groups[train], inner, test, kind, C, seed
        ).mean(0)
        best.append(int(inside.argmax()))
        h = x[best[-1]]
        scores.append(probe(kind, C).fit(h[train], y[train]).score(h[held_out], y[held_out]))
    return (np.array(scores), np.array(best)) if with_layers else np.array(scores)
