"""What counts of neighbouring tokens tell about a masked one: the least that a network trained on
the same text must beat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def counted(
    rows: Sequence[Sequence[int]], spots: Sequence[tuple[int, int, int]], size: int
) -> tuple[Tensor, list[bool]]:
    """What counts in training `rows` say about (token before, token, token after) of unseen text.

    Returns the token's share by both neighbours, by the one before, by the one after and by add-one
    frequency, [spots, 4], and whether the first of these that knows the context would have guessed
    it.
    """
    tables: list[dict[Any, Counter[int]]] = [{(a, b): Counter() for a, _, b in spots}, {a: Counter() for a, _, _ in spots},
                                             {b: Counter() for _, _, b in spots}]  # fmt: skip
    single: Counter[int] = Counter()
    for row in rows:
        single.update(row)
        for a, x, b in zip(row, row[1:], row[2:]):
            for table, key in zip(tables, ((a, b), a, b)):
                if key in table:
                    table[key][x] += 1
    shares, right = [], []
    for a, x, b in spots:
        found = [table[key] for table, key in zip(tables, ((a, b), a, b))]
        shares.append(
            [t[x] / max(1, t.total()) for t in found] + [(single[x] + 1) / (single.total() + size)]
        )
        guess = next((t for t in found if t), single)
        right.append(max(guess, key=lambda k: (guess[k], -k)) == x)
    return torch.tensor(shares, dtype=torch.float64), right


def mixed_nats(shares: Tensor) -> float:
    """Mean nats of the mixture of the columns of `shares` [n, 4] whose weights suit these very
    places best (by EM).
    """
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(200):
        weights = (weights * shares / (shares @ weights)[:, None]).mean(0)
    return -(shares @ weights).log().mean().item()
