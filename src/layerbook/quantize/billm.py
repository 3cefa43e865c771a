"""One-bit weights in BiLLM's manner, for `gptq.solve` (Huang et al. 2024, arXiv 2402.04291)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerbook.quantize import bits, gptq
from layerbook.quantize import grids as q

SALIENT = 0.1  # share of the columns that get a second sign; BiLLM searches for their number
POINTS = 9  # break-points that are tried


def width(n: int) -> int:
    """Columns that share scales: the largest divisor of n inputs up to 128, BiLLM's own number."""
    return max(d for d in range(1, min(n, 128) + 1) if n % d == 0)


def salient(w: Float[Tensor, "out in"], inverse: Float[Tensor, " in"]) -> Bool[Tensor, " in"]:
    """Which columns of w [out, in] get a second sign, booleans [in] (BiLLM, eq. 3). inverse: [in],
    the diagonal of 1 / H.
    """
    score = w.square().sum(0) / inverse.square()
    many = max(1, round(SALIENT * len(score)))
    return torch.zeros_like(score, dtype=torch.bool).index_fill(0, score.topk(many).indices, True)


def split(w: Float[Tensor, "out in"], strong: Bool[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """Scales [out, in] of the columns that are not `strong`: large and small weights of a row have
    one each.

    What is large begins at the same break-point in all rows, the one of nine that leaves the least
    squared error.
    """
    points = torch.linspace(0.1, 0.9, POINTS, device=w.device) * w[:, ~strong].abs().max()
    large, wide = (w.abs() > points[:, None, None]) & ~strong, w.expand(POINTS, *w.shape)
    (a, [most]), (b, [others]) = (
        q.binary(wide, axis=(0, 1), where=where) for where in (large, ~large & ~strong)
    )
    best = (wide - a - b)[..., ~strong].square().sum((1, 2)).argmin()
    return torch.where(large[best], most.scale[best], others.scale[best])


def rounding(
    h: Float[Tensor, "in in"], damp: float = 0.01
) -> Callable[[Tensor, int], gptq.Rounder]:
    """Rounding to signs, for `gptq.solve(w, h, group=width(in), rounding=...)`; h [in, in]: second
    moment of the inputs.

    Scales and groups are fixed when a block of columns is reached, signs are taken after the errors
    of earlier columns have been pushed on.
    """
    n = len(h)
    damped = h.double() + damp * h.diagonal().double().mean() * torch.eye(n, device=h.device)
    inverse = torch.linalg.inv(damped).diagonal().to(h.dtype)

    def start(free: Tensor, first: int) -> gptq.Rounder:
        w = free.T
        strong = salient(w, inverse[first : first + w.shape[1]])
        _, (one, two) = q.binary(w, axis=0, residuals=1, where=strong)
        scales, twice = split(w, strong), strong.tolist()

        def rounded(column: Tensor, j: int) -> Tensor:
            if not twice[j - first]:
                return torch.copysign(scales[:, j - first], column)
            coarse = torch.copysign(one.scale[:, 0], column)
            return coarse + torch.copysign(two.scale[:, 0], column - coarse)

        return rounded

    return start


def stored(shape: Sequence[int]) -> bits.Stored:
    """What a weight [out, in] really takes: signs, four scales a row and block of columns, and the
    maps of both kinds of group.

    The nominal 1.08 bits count the signs alone; a decoder must also know which of the two sizes
    each weight has.
    """
    out, n, g = *shape, width(shape[1])
    strong = max(1, round(SALIENT * g))
    part = bits.Stored(
        out * (g + strong), 4 * out * 16, masks=g + out * (g - strong), number=out * g
    )
    return sum([part] * (n // g), bits.Stored())
