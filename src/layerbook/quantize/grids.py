"""Quantizers: uniform grids over a tensor, its channels, tokens or groups, and by import the other
formats.

A grid stands for the real numbers that integer codes can name, and x is taken to the nearest of
them: code = clip(round((x - offset) / scale) + zero, low, high) and value = scale * (code - zero) +
offset. Halves round to even. Three kinds, made by
`fit` from a tensor or by `from_range` from a range:

- affine (default): integer zero point, codes 0..2^b - 1 (Jacob et al. 2018, eq. 1). The range is
  widened to hold zero, so that zero is exact (`zero_in_range`, as ViDiT-Q's code does; one-sided
  data lose resolution by it);
- symmetric: no zero point, codes -2^(b-1)..2^(b-1) - 1, scale = max|x| / (2^(b-1) - 1);
- offset: a real offset, the least value, in place of the zero point (Quanto's and GGUF's Q4_1;
  HAWQ's equal bins).

Dynamic quantization fits at each call (`fake_quantize`); static keeps the grid of a calibration
(`Range`, `from_range`). Everything is worked out in float32, half precision too, or in float64 for
float64, and returned in the format of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from layerbook.quantize.formats import Binary, Codebook, binary, codebook, fp8
from layerbook.quantize.ranges import Axis, Range, finite, grouped, limits, working
from layerbook.quantize.rotations import hadamard, random_rotation, smooth

__all__ = [
    "Binary",
    "Codebook",
    "Grid",
    "Range",
    "binary",
    "codebook",
    "decode",
    "encode",
    "fake",
    "fake_quantize",
    "fit",
    "fp8",
    "from_range",
    "hadamard",
    "limits",
    "random_rotation",
    "smooth",
    "ternary",
]


@dataclass(frozen=True)
class Grid:
    """A uniform grid: value = scale * (code - zero) + offset for integer codes in low..high.

    scale, zero (whole numbers; None: 0) and offset (None: 0) are of one shape, which broadcasts
    against the tensor or, with a `group`, against the tensor as [..., d / group, group].
    """

    scale: Tensor
    zero: Tensor | None
    low: int
    high: int
    offset: Tensor | None = None
    group: int | None = None

    @property
    def bits(self) -> int:
        """Bits that a code takes."""
        return (self.high - self.low).bit_length()


def from_range(
    low: Float[Tensor, "*units"] | float,
    high: Float[Tensor, "*units"] | float,
    bits: int,
    *,
    symmetric: bool = False,
    offset: bool = False,
    zero_in_range: bool = True,
    stored: torch.dtype | None = None,
    group: int | None = None,
) -> Grid:
    """The grid of `bits` bits that covers low..high, tensors of one shape, or numbers.

    Args:
        stored: the format in which scale and offset are kept (torch.float16, say): they are rounded
            to it before use.
        group: as low and high were found, for instance by a Range.

    A range of one value: the affine grid is widened to hold zero, the others have it as one of
    their points. A range of
    zeros: scale 1. Raises ValueError for NaN, infinity, low above high, less than 1 bit (symmetric:
    2) or more than 16,
    symmetric with offset, a range that the stored format cannot hold, or one with an offset that
    overflows.
    """
    if symmetric and offset:
        raise ValueError("a grid is symmetric or has an offset, not both")
    if not (2 if symmetric else 1) <= bits <= 16:
        raise ValueError(
            f"{bits} bits: a grid has {2 if symmetric else 1} to 16; for one bit and a sign see binary"
        )
    low, high = torch.as_tensor(low), torch.as_tensor(high)
    low, high = low.to(working(low)), high.to(working(high))
    if not (torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all():
        raise ValueError("range must be finite, with low at most high")
    steps = 2**bits - 1
    if symmetric:
        scale = _kept(torch.maximum(-low, high) / (steps // 2), stored)
        return Grid(
            torch.where(scale > 0, scale, 1.0), None, -(steps // 2) - 1, steps // 2, None, group
        )
    if offset:
        low = _kept(low, stored)
        if (high - low).isinf().any():
            raise ValueError(
                f"range {float(low.min()):.3g} to {float(high.max()):.3g} overflows once its offset is subtracted"
            )
    elif zero_in_range:
        low, high = low.clamp(max=0), high.clamp(min=0)
    else:
        one = low == high
        low, high = (
            torch.where(one, low.clamp(max=0), low),
            torch.where(one, high.clamp(min=0), high),
        )
    scale = (high - low) / steps
    # the difference may overflow
    scale = _kept(torch.where(scale.isinf(), high / steps - low / steps, scale), stored)
    scale = torch.where(scale > 0, scale, 1.0)
    if offset:
        return Grid(scale, None, 0, steps, low, group)
    zero = (-low / scale).round()
    return Grid(scale, zero.clamp(0, steps) if zero_in_range else zero, 0, steps, None, group)


def _kept(t: Tensor, stored: torch.dtype | None) -> Tensor:
    if stored is None:
        return t
    rounded = t.to(stored).to(t.dtype)
    if not torch.isfinite(rounded).all():
        raise ValueError(
            f"range up to {float(t.abs().max()):.3g} is beyond {stored}, in which scales are stored"
        )
    return rounded


def fit(
    x: Float[Tensor, "..."],
    bits: int,
    *,
    axis: Axis = None,
    group: int | None = None,
    range: tuple[Tensor | float, Tensor | float] | None = None,
    **kind: Any,
) -> Grid:
    """The grid that covers `x` at the granularity of axis or group (see
    `layerbook.quantize.ranges`), or the given `range`.

    Args:
        range: (low, high) in place of the tensor's own, to clip it; numbers, or tensors of the
            shape that `limits` returns.
        kind: symmetric, offset, zero_in_range, stored: see `from_range`.

    Raises:
        ValueError: as `limits` and `from_range`.
    """
    low, high = limits(x, axis, group)
    if range is not None:
        low, high = (
            torch.as_tensor(r, dtype=low.dtype, device=low.device).expand_as(low) for r in range
        )
    return from_range(low, high, bits, group=group, **kind)


def ternary(w: Float[Tensor, "..."], *, axis: Axis = None, group: int | None = None) -> Grid:
    """The grid of -s, 0 and s with s the mean |w| of each unit (BitNet b1.58: Ma et al. 2024, eq.
    1-3).
    """
    low, _ = limits(w, axis, group, "w")
    size = (w if group is None else grouped(w, group)).detach().abs().to(low.dtype)
    over = [a for a, n in enumerate(low.shape) if n == 1] if low.dim() else None
    scale = size.mean(over, keepdim=True) if low.dim() else size.mean()
    return Grid(torch.where(scale > 0, scale, 1.0), None, -1, 1, None, group)


def _map(x: Tensor, grid: Grid, back: bool, mask: bool = False) -> tuple[Tensor, Tensor | None]:
    """Codes of `x` as float numbers, or the values that they stand for (`back`); with `mask`, where
    nothing was clipped.

    One new tensor, then steps in place on it.
    """
    work = working(x)
    rows = x.detach() if grid.group is None else grouped(x.detach(), grid.group)
    rows = rows.to(work)
    scale, zero, offset = (
        None if p is None else p.to(device=x.device, dtype=work)
        for p in (grid.scale, grid.zero, grid.offset)
    )
    try:
        fits = torch.broadcast_shapes(rows.shape, scale.shape) == rows.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"a grid of shape {list(scale.shape)} does not fit x of shape {list(rows.shape)}"
        )
    t = (rows / scale if offset is None else (rows - offset).div_(scale)).round_()
    if zero is not None:
        t.add_(zero)
    before = t.clone() if mask else None
    # by numbers: bounds that are tensors, zero point included, take longer than adding it
    t.clamp_(grid.low, grid.high)
    inside = before.eq(t).reshape(x.shape) if mask else None
    if back:
        t = (t if zero is None else t.sub_(zero)).mul_(scale)
        t = t if offset is None else t.add_(offset)
    return t.reshape(x.shape), inside


def encode(
    x: Float[Tensor, "*shape"], grid: Grid, dtype: torch.dtype = torch.int32
) -> Shaped[Tensor, "*shape"]:
    """Codes of `x`, of its shape, in grid.low..grid.high. ValueError for NaN or infinity, or a grid
    of another shape.
    """
    return _map(finite(x, "x"), grid, back=False)[0].to(dtype)


def decode(codes: Integer[Tensor, "*shape"], grid: Grid) -> Float[Tensor, "*shape"]:
    """The values that integer `codes` stand for, in the format of the grid's scale."""
    t = codes.to(grid.scale.dtype)
    t = t if grid.group is None else grouped(t, grid.group)
    t = t * grid.scale if grid.zero is None else (t - grid.zero).mul_(grid.scale)
    t = t if grid.offset is None else t.add_(grid.offset)
    return t if grid.group is None else t.flatten(-2)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        value, inside = _map(x, grid, back=True, mask=True)
        ctx.save_for_backward(inside)
        return value.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def fake(
    x: Float[Tensor, "*shape"], grid: Grid, straight_through: bool = False
) -> Float[Tensor, "*shape"]:
    """Fake quantization: `x` at its nearest grid points, in the shape and format of x.

    Args:
        straight_through: pass gradients to x unchanged where x was not clipped, and none where it
            was (Bengio et al. 2013; as torch.fake_quantize_per_tensor_affine). Otherwise the result
            carries no gradient.

    Raises:
        ValueError: NaN or infinity in x, or a grid whose shape does not fit.
    """
    finite(x, "x")
    return _Straight.apply(x, grid) if straight_through else _map(x, grid, back=True)[0].to(x.dtype)


def fake_quantize(
    x: Float[Tensor, "*shape"], bits: int, straight_through: bool = False, **options: Any
) -> Float[Tensor, "*shape"]:
    """`x` on the grid that is fitted to it: `fit` and `fake` in one, for dynamic quantization and
    for weights.
    """
    grid = fit(x, bits, **options)  # which refuses what is not finite
    return _Straight.apply(x, grid) if straight_through else _map(x, grid, back=True)[0].to(x.dtype)
