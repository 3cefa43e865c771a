"""Formats other than uniform grids: signs, codebooks, 8-bit floating point. Import them from
`layerbook.quantize.grids`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from layerbook.quantize.ranges import Axis, finite, grouped, reduced, working


@dataclass(frozen=True)
class Binary:
    """One pass of signs: scale * (+1 or -1) where `where` is True (None: everywhere).

    signs: booleans of the shape of the weights, True for +1. scale: as `ranges.limits` shapes it.
    where: as it was given.
    """

    signs: Tensor
    scale: Tensor
    where: Tensor | None
    group: int | None = None


def binary(
    w: Float[Tensor, "*shape"],
    *,
    axis: Axis = None,
    group: int | None = None,
    residuals: int = 0,
    where: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*shape"], tuple[Binary, ...]]:
    """Signs times their mean size, mean|w| sign(w), the least-squares choice (Rastegari et al.
    2016, eq. 6).

    Args:
        axis, group: granularity of the scale, see `layerbook.quantize.ranges`.
        residuals: further passes, each on what the passes before it left (Huang et al. 2024, BiLLM,
            eq. 8).
        where: booleans that broadcast against w: only these entries take part, in the scale as
            well; others become 0. Salient columns with a residual: binary(w, residuals=1,
            where=salient)[0] + binary(w, where=~salient)[0].

    Returns:
        the approximation, of shape and format of w, and the passes. The sign of 0 is +1; a unit
        without entries has scale 0.

    Raises:
        ValueError: NaN, infinity, or an impossible axis or group.
    """
    if axis is not None and group is not None:
        raise ValueError("give axis or group: a group is already one range for each row and group")
    left = finite(w, "w").detach().to(working(w))
    keep = (
        torch.ones_like(left)
        if where is None
        else where.to(left.device).expand(w.shape).to(left.dtype)
    )
    if group is not None:
        left, keep = grouped(left, group), grouped(keep, group)
    over = (left.dim() - 1,) if group is not None else reduced(left, axis)
    scalar = axis is None and group is None

    def total(t: Tensor) -> Tensor:
        return t.sum() if scalar else t.sum(over, keepdim=True) if over else t

    left, count, parts, sum_ = left * keep, total(keep).clamp(min=1), [], torch.zeros_like(left)
    for _ in range(residuals + 1):
        scale, positive = total(left.abs()) / count, left >= 0
        step = torch.where(positive, scale, -scale) * keep
        sum_, left = sum_ + step, left - step
        parts.append(Binary(positive.reshape(w.shape), scale, where, group))
    return sum_.reshape(w.shape).to(w.dtype), tuple(parts)


@dataclass(frozen=True)
class Codebook:
    """codes int32, of the shape of the weights; centroids [units, k], ascending, float32 or
    float64.
    """

    codes: Tensor
    centroids: Tensor
    axis: int | None = None
    group: int | None = None

    def decode(self) -> Tensor:
        """The weights that the codes stand for, in the format of the centroids."""
        rows = _rows(self.codes, self.axis, self.group)
        return _like(self.centroids.gather(1, rows.long()), self.codes, self.axis)


def _rows(
    w: Shaped[Tensor, "..."], axis: int | None, group: int | None
) -> Shaped[Tensor, "units entries"]:
    """`w` as [units, entries]."""
    if group is not None:
        return grouped(w, group).reshape(-1, group)
    return w.reshape(1, -1) if axis is None else w.movedim(axis, 0).reshape(w.shape[axis], -1)


def _like(
    rows: Shaped[Tensor, "units entries"], w: Shaped[Tensor, "*shape"], axis: int | None
) -> Shaped[Tensor, "*shape"]:
    """The inverse of `_rows`."""
    return (
        rows.reshape(w.shape)
        if axis is None
        else rows.reshape(w.movedim(axis, 0).shape).movedim(0, axis)
    )


def codebook(
    w: Float[Tensor, "..."],
    k: int,
    seed: int,
    *,
    axis: int | None = None,
    group: int | None = None,
    starts: int = 3,
    iterations: int = 100,
) -> Codebook:
    """The `k` values of each unit of `w` that have the least squared error: K-means in one
    dimension.

    Lloyd's iterations on sorted weights, where a cluster is a stretch and its mean a difference of
    running sums (Lloyd 1982;
    weight sharing: Han et al. 2016, sec. 3). Started from evenly spaced values, from quantiles, and
    `starts` times by
    k-means++ (Arthur and Vassilvitskii 2007); the best of all is kept, for each unit by itself.

    Raises:
        ValueError: NaN, infinity, no entries, k below 1, both axis and group, or either impossible.
    """
    if k < 1 or w.numel() == 0 or (axis is not None and group is not None):
        raise ValueError(
            f"a codebook takes k >= 1 values (given {k}), a tensor that is not empty, and axis or group, not both"
        )
    if axis is not None:
        reduced(w, axis)
    rows = _rows(finite(w, "w").detach().to(working(w)), axis, group)
    x = rows.double().contiguous().sort().values
    # middles of k equal parts
    spot = torch.linspace(0, 1, 2 * k + 1, dtype=torch.float64, device=x.device)[1::2]
    first = [
        x[:, :1] + (x[:, -1:] - x[:, :1]) * spot,
        x[:, (spot * x.shape[1]).long().clamp(max=x.shape[1] - 1)],
    ]
    draw = torch.Generator().manual_seed(seed)
    first += [_spread(x, k, draw) for _ in range(starts)]
    sums = torch.nn.functional.pad(x.cumsum(1), (1, 0))
    found = [_lloyd(x, sums, c, iterations) for c in first]
    best = torch.stack([gain for _, gain in found]).argmax(0)
    centroids = torch.stack([c for c, _ in found])[best, torch.arange(len(x), device=x.device)]
    codes = torch.searchsorted(
        (centroids[:, 1:] + centroids[:, :-1]) / 2, rows.double().contiguous(), out_int32=True
    )
    return Codebook(_like(codes, w, axis), centroids.to(rows.dtype), axis, group)


def _spread(
    x: Float[Tensor, "units entries"], k: int, draw: torch.Generator
) -> Float[Tensor, "units k"]:
    """k-means++: each further centre of [units, k] drawn with odds by squared distance to those
    before it.
    """
    distance, centres = torch.ones_like(x), []
    for _ in range(k):
        mass = distance.cumsum(1)
        at = torch.rand(len(x), 1, generator=draw, dtype=torch.float64).to(x.device) * mass[:, -1:]
        pick = torch.searchsorted(mass, at, right=True).clamp(max=x.shape[1] - 1)
        centres.append(x.gather(1, pick))
        gap = (x - centres[-1]).square_()
        distance = gap if len(centres) == 1 else torch.minimum(distance, gap, out=distance)
    return torch.cat(centres, 1).sort().values


def _lloyd(
    x: Float[Tensor, "units entries"],
    sums: Tensor,
    centres: Float[Tensor, "units k"],
    iterations: int,
) -> tuple[Float[Tensor, "units k"], Float[Tensor, " units"]]:
    """Centres [units, k] that no longer move, and their between-cluster sum of squares [units]; an
    empty one stays put.
    """
    n = torch.full_like(centres[:, :1], x.shape[1], dtype=torch.long)
    for _ in range(iterations):
        cut = torch.searchsorted(x, (centres[:, 1:] + centres[:, :-1]) / 2, right=True)
        bounds = torch.cat([torch.zeros_like(n), cut, n], 1)
        count, total = bounds.diff(dim=1), sums.gather(1, bounds).diff(dim=1)
        old, centres = centres, torch.where(count > 0, total / count.clamp(min=1), centres)
        if torch.equal(old, centres):
            break
    return centres, (total.square() / count.clamp(min=1)).sum(1)


FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def fp8(
    x: Float[Tensor, "*shape"], scale: str | None = "tensor", kind: str = "e4m3"
) -> Float[Tensor, "*shape"]:
    """`x` rounded to 8-bit floating point, in its own shape and format (Micikevicius et al. 2022).

    Args:
        scale: "tensor" brings the greatest |x| to the format's greatest number (448 or 57344),
            "token" that of each row of the last axis; None casts as it is. What lies beyond the
            greatest number saturates.
        kind: "e4m3" (3 bits of mantissa) or "e5m2" (2 bits, wider range).

    Raises:
        ValueError: NaN or infinity, or an unknown scale or kind.
    """
    if kind not in FP8 or scale not in ("tensor", "token", None):
        raise ValueError(
            f"fp8 with scale {scale!r} and kind {kind!r}: there are 'tensor', 'token', None and {sorted(FP8)}"
        )
    top, t = torch.finfo(FP8[kind]).max, finite(x, "x").detach().to(working(x))
    if x.numel() == 0:
        return x.detach().clone()
    if scale is None:
        return t.clamp(-top, top).to(FP8[kind]).to(x.dtype)
    size = (t.abs().amax(-1, keepdim=True) if scale == "token" and t.dim() else t.abs().max()) / top
    size = torch.where(size > 0, size, 1.0)
    return (t / size).clamp_(-top, top).to(FP8[kind]).to(t.dtype).mul_(size).to(x.dtype)
