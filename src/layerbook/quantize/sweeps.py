"""Which layers get fewer bits: orders by a score, orders by chance, maps of one size, and loss
along the way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

Seed = int | Sequence[int]
Order = list[int]


def _numbers(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} must be a row of finite numbers")
    return found


def order(scores: Sequence[float] | np.ndarray, descending: bool = False) -> Order:
    """Layers by score, least first or greatest first; equal scores keep their depth order.
    ValueError for NaN or infinity.
    """
    found = _numbers(scores, "scores")
    return np.argsort(-found if descending else found, kind="stable").tolist()


def reversed_(of: Sequence[int] | np.ndarray) -> Order:
    """The order from its end: the twin that must do worse, if an order is worth anything."""
    return list(of)[::-1]


def random_orders(n: int, count: int, seed: Seed, paired: bool = False) -> list[Order]:
    """`count` random orders of n layers; `paired` has each followed by its own reverse (an even
    count).

    Pairs are balanced: every layer stands as often early as late. Raises ValueError for an odd
    count of pairs.
    """
    if paired and count % 2:
        raise ValueError(f"{count} orders cannot be paired with their reverses")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(n).tolist() for _ in range(count // 2 if paired else count)]
    return [o for one in drawn for o in ((one, one[::-1]) if paired else (one,))]


def average(levels: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray) -> float:
    """Bits a weight of layers of `sizes` weights at `levels` bits, one for each layer."""
    return float(np.dot(levels, sizes) / np.sum(sizes))


def _plan(
    sizes: Sequence[float] | np.ndarray, levels: Sequence[float] | np.ndarray, budget: float
) -> tuple[np.ndarray, list[float]]:
    found, steps = _numbers(sizes, "sizes"), sorted({float(b) for b in levels}, reverse=True)
    if not found.size or (found <= 0).any() or not steps or steps[-1] > budget:
        raise ValueError(
            f"a budget of {budget} bits a weight cannot be met: least level {min(steps, default=None)}, sizes "
            "must be positive"
        )
    return found, steps


def greedy_bits(
    scores: Sequence[float] | np.ndarray,
    sizes: Sequence[float] | np.ndarray,
    levels: Sequence[float] | np.ndarray,
    budget: float,
    by: str = "layer",
) -> list[float]:
    """Bits of each layer: all start at the highest level, and the least score is lowered first
    until the budget is met.

    HAWQ (Dong et al. 2019, sec. 3.2) fixes only the order; LUQ (alg. 1) and the mixed precision of
    ViDiT-Q (sec. 4.3) are this with two levels. More bits never go to a lower score.

    Args:
        scores: importance [layers]; equal scores are lowered in depth order.
        sizes: weights [layers].
        levels: bits to choose from; true costs may be given, scales included (4.25, say).
        budget: bits a weight on average, at most.
        by: "layer" lowers a layer all the way before the next; "level" lowers all by one level
            before any goes further.

    Raises:
        ValueError: scores that are not finite or as many as sizes, an unknown `by`, or a budget
            below the least level.
    """
    found, steps = _plan(sizes, levels, budget)
    ranked = order(scores)
    if len(ranked) != len(found) or by not in ("layer", "level"):
        raise ValueError(
            f"{len(ranked)} scores for {len(found)} sizes, by {by!r}: 'layer' or 'level'"
        )
    moves = (
        [(i, b) for i in ranked for b in steps[1:]]
        if by == "layer"
        else [(i, b) for b in steps[1:] for i in ranked]
    )
    chosen = [steps[0]] * len(found)
    for i, b in moves:
        if average(chosen, found) <= budget:
            break
        chosen[i] = b
    return chosen


def size_matched(
    sizes: Sequence[float] | np.ndarray,
    levels: Sequence[float] | np.ndarray,
    budget: float,
    count: int,
    seed: Seed,
    tolerance: float = 0.01,
    tries: int = 10_000,
) -> list[list[float]]:
    """`count` random maps of bits, different ones, whose size is that of `budget` bits a weight
    within `tolerance` of it.

    Each is a random walk: layers drawn with equal odds move one level towards the budget until it
    is crossed; maps that end
    further off than the tolerance are drawn again. Half of the walks start from random levels, and
    half from the highest, so that even and uneven maps both occur.

    Raises:
        ValueError: a budget outside the levels, or fewer maps than `count` in that many tries: the
            layers are too few or too unequal, so take a wider tolerance.
    """
    found, steps = _plan(sizes, levels, budget)
    rng, maps = np.random.default_rng(seed), {}
    for t in range(tries):
        if len(maps) == count:
            break
        at = np.zeros(len(found), dtype=int) if t % 2 else rng.integers(len(steps), size=len(found))
        levels_of = np.asarray(steps)
        down = average(levels_of[at], found) > budget
        while (average(levels_of[at], found) > budget) == down:
            free = np.flatnonzero(at < len(steps) - 1 if down else at > 0)
            if not free.size:
                break
            at[rng.choice(free)] += 1 if down else -1
        if abs(average(levels_of[at], found) - budget) <= tolerance * budget:
            maps[tuple(levels_of[at].tolist())] = None
    if len(maps) < count:
        raise ValueError(
            f"only {len(maps)} of {count} maps within {tolerance:.1%} of {budget} bits found: widen the tolerance"
        )
    return [list(m) for m in maps]


def area(fractions: np.ndarray, loss: np.ndarray) -> float:
    """Mean of `loss` over the moved `fractions` (trapezoids); both [points], the fractions
    ascending.
    """
    return float(np.trapezoid(loss, fractions) / (fractions[-1] - fractions[0]))


class Sweep:
    """Losses of a network with sets of layers changed, each set evaluated once: orders share what
    their prefixes share.

    evaluate(level, layers, n) returns the losses [n] of the first n units (windows, images) with
    the frozenset `layers` put to `level`, whatever that means to it ("rtn3", 4 bits, "dropped"),
    and undoes the change. It must give the same numbers for the same arguments, and the losses of
    fewer units must be the first of those of more.
    """

    def __init__(
        self, evaluate: Callable[[Hashable, frozenset[int], int], np.ndarray], units: int
    ) -> None:
        self.evaluate, self.units = evaluate, units
        self.memory: dict[tuple[Hashable, frozenset[int]], np.ndarray] = {}

    def loss(self, level: Hashable, layers: Iterable[int], n: int | None = None) -> np.ndarray:
        """Losses [n] of the first n units (all) with `layers` at `level`; no layers: as the network
        stands.

        Raises ValueError for more units than there are, or if evaluate returns something else than
        [n].
        """
        n, chosen = self.units if n is None else n, frozenset(layers)
        if not 0 < n <= self.units:
            raise ValueError(f"{n} units of {self.units}")
        key = (level if chosen else None, chosen)
        if len(self.memory.get(key, ())) < n:
            found = np.asarray(self.evaluate(level, chosen, n), dtype=np.float64)
            if found.shape != (n,):
                raise ValueError(f"evaluate returned shape {list(found.shape)} for {n} units")
            self.memory[key] = found
        return self.memory[key][:n]

    def rise(self, level: Hashable, layers: Iterable[int], n: int | None = None) -> np.ndarray:
        """Losses [n] with `layers` at `level`, minus those of the network as it stands."""
        return self.loss(level, layers, n) - self.loss(None, (), n)

    def curve(
        self, level: Hashable, order: Sequence[int], counts: Sequence[int], n: int | None = None
    ) -> np.ndarray:
        """Mean rise [1 + len(counts)] when an order's first 0 and then k of `counts` layers are at
        `level`.
        """
        return np.array([0.0] + [self.rise(level, order[:k], n).mean() for k in counts])

    def reversal(
        self, level: Hashable, order: Sequence[int], count: int, n: int | None = None
    ) -> np.ndarray:
        """Losses [n] with the last `count` layers of an order at `level`, minus those with its
        first.
        """
        return self.loss(level, reversed_(order)[:count], n) - self.loss(level, order[:count], n)

    def alone(self, level: Hashable, layers: int, n: int | None = None) -> np.ndarray:
        """Rise [layers, n] when each layer is at `level` by itself: the measured sensitivity."""
        return np.stack([self.rise(level, (i,), n) for i in range(layers)])
