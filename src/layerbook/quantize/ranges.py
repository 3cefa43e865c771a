"""Ranges of tensors: what a quantization grid has to cover. Import them from
`layerbook.quantize.grids`.

Granularity, wherever asked for: `axis=None` is one range for the tensor, an axis or tuple of axes
one for each index of
them (0: output channels of a weight [out, in]; (0, 1): tokens of activations [batch, tokens, d];
-1: channels), and `group=g` one for every g consecutive entries of the last axis, which g must
divide.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Axis = int | tuple[int, ...] | None


def finite(x: Shaped[Tensor, "*shape"], name: str) -> Float[Tensor, "*shape"]:
    """`x` itself; ValueError, naming it, if it is not floating point or holds NaN or infinity."""
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}; only floating-point tensors are quantized")
    if (
        not torch.isfinite(x.sum()) and not torch.isfinite(x).all()
    ):  # a sum is quicker, and may only overflow
        raise ValueError(f"{name} holds NaN or infinity: nothing to quantize")
    return x


def working(x: Shaped[Tensor, "..."]) -> torch.dtype:
    """The format in which `x` is worked on: float64 if it is that, else float32, also for half
    precision.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def grouped(x: Shaped[Tensor, "*rest d"], group: int) -> Shaped[Tensor, "*rest groups group"]:
    """`x` [..., d] as [..., d / group, group]; ValueError unless group divides d."""
    if x.dim() == 0 or group < 1 or x.shape[-1] % group:
        last = x.shape[-1] if x.dim() else "no"
        raise ValueError(
            f"{last} entries cannot be cut into groups of {group}: choose another group"
        )
    return x.unflatten(-1, (x.shape[-1] // group, group))


def reduced(x: Shaped[Tensor, "..."], axis: Axis) -> tuple[int, ...]:
    """The axes of `x` that share a range: all but `axis`. ValueError for an axis that x lacks."""
    kept = (axis,) if isinstance(axis, int) else axis or ()
    if any(not -x.dim() <= a < x.dim() for a in kept):
        raise ValueError(f"axis {axis} is not among the {x.dim()} axes of x")
    return tuple(a for a in range(x.dim()) if a not in {k % x.dim() for k in kept})


def limits(
    x: Shaped[Tensor, "..."], axis: Axis = None, group: int | None = None, name: str = "x"
) -> tuple[Float[Tensor, "*units"], Float[Tensor, "*units"]]:
    """Least and greatest value of each unit of `x`, at the module's granularity.

    Returns:
        two tensors, float64 for float64 and else float32: of shape [] for a whole tensor; with all
        axes of x, those that share a range of length 1; [..., d / group, 1] for groups.

    Raises:
        ValueError: NaN, infinity or integers in x, a range over no entries, both axis and group, or
            either impossible.
    """
    if axis is not None and group is not None:
        raise ValueError("give axis or group: a group is already one range for each row and group")
    if not x.is_floating_point():
        finite(x, name)
    x = x.detach()
    if group is not None:
        x, over = grouped(x, group), (-1,)
    else:
        over = reduced(x, axis)
    if any(x.shape[a] == 0 for a in over):
        raise ValueError(
            f"{name} of shape {list(x.shape)} is empty: there is no range over no entries"
        )
    if axis is None and group is None:
        low, high = x.aminmax()
    else:
        low, high = (x.amin(over, keepdim=True), x.amax(over, keepdim=True)) if over else (x, x)
    low, high = low.to(working(x)), high.to(working(x))
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError(f"{name} holds NaN or infinity: nothing to quantize")
    return low, high


class Range:
    """The range of a stream of batches, for static grids: `Range(axis=-1).update(x)` a batch, then
    `from_range(*r.limits, bits)`.

    By default the least and greatest values of all batches. `momentum` m instead keeps r <- m r +
    (1 - m) r_batch, from the first batch on (Jacob et al. 2018, sec. 3.1, activation ranges by
    exponential moving averages); `percentile` p takes the p-th and (100 - p)-th percentile of each
    unit of a batch, linear between entries, averaged over batches or by momentum. Batches need the
    same sizes only along the axes that have ranges of their own.
    """

    def __init__(
        self,
        axis: Axis = None,
        group: int | None = None,
        *,
        momentum: float | None = None,
        percentile: float | None = None,
    ) -> None:
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} is not within 0 (the last batch alone) and 1")
        if percentile is not None and not 50 < percentile <= 100:
            raise ValueError(f"percentile {percentile} is not above 50 and at most 100")
        self.axis, self.group, self.momentum, self.percentile = axis, group, momentum, percentile
        self.batches, self._limits = 0, None

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Low and high so far, of the shapes of the function `limits`; ValueError before the first
        batch.
        """
        if self._limits is None:
            raise ValueError("no batch was seen yet: call update first")
        return self._limits

    def update(self, x: Tensor) -> Range:
        """Take in a batch; returns this range. ValueError as for `limits`, or for a batch of other
        sizes.
        """
        new = limits(x, self.axis, self.group) if self.percentile is None else self._percentiles(x)
        old, self.batches = self._limits, self.batches + 1
        if old is None:
            self._limits = new
        elif old[0].shape != new[0].shape:
            raise ValueError(
                f"a batch with ranges of shape {list(new[0].shape)} after {list(old[0].shape)}"
            )
        elif self.momentum is None and self.percentile is None:
            self._limits = (torch.minimum(old[0], new[0]), torch.maximum(old[1], new[1]))
        else:
            share = 1 / self.batches if self.momentum is None else 1 - self.momentum
            self._limits = (old[0] + share * (new[0] - old[0]), old[1] + share * (new[1] - old[1]))
        return self

    def _percentiles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # which also refuses what cannot be quantized
        shape = limits(x, self.axis, self.group)[0].shape
        x = x.detach().to(working(x))
        x = x if self.group is None else grouped(x, self.group)
        over = (x.dim() - 1,) if self.group is not None else reduced(x, self.axis)
        rows = x.permute(*(a for a in range(x.dim()) if a not in over), *over).reshape(
            max(1, shape.numel()), -1
        )
        rows = rows.sort().values  # torch.quantile takes no more than 16 million entries
        at = (rows.shape[1] - 1) * self.percentile / 100
        below, part = int(at), at - int(at)
        above = min(below + 1, rows.shape[1] - 1)
        high = rows[:, below].lerp(rows[:, above], part)
        low = rows[:, -1 - below].lerp(rows[:, -1 - above], part)
        return low.view(shape), high.view(shape)
