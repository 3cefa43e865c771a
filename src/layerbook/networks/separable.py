"""Convolutions whose kernels are products of one-way filters, one filter for each axis, and what
they cost.

Two readings of such a layer stand beside the ordinary one. All three map [batch, c_in, *grid] to
[batch, c_out, *grid] with zero padding axis by axis, one bias on the last factor, and nothing
between the factors. Every layer has

- `kernel()`, the ordinary kernel [c_out, c_in, d, ...] to which it amounts, differentiable in its
  factors,
- `chain(x)`, the succession of one-way convolutions, which never forms that kernel,
- `steps()`, for each convolution of the chain: maps in, maps out, groups, taps of its filter.

`forward` takes the cheaper way on a CPU; both give the same values up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONV = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
Step = tuple[int, int, int, int]


def along(axis: int, axes: int, d: int) -> tuple[int, ...]:
    """Shape of a filter of `d` taps along one of `axes` axes: (1, d, 1) for the second of three."""
    return tuple(d if k == axis else 1 for k in range(axes))


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Convolution that keeps the grid: zero padding by half the (odd) length of the filter on each
    axis.
    """
    size = kernel.shape[2:]
    return CONV[len(size)](x, kernel, bias, padding=tuple(s // 2 for s in size), groups=groups)


class Dense(nn.Module):
    """An ordinary convolution with kernels of any odd shape `size`, such as (3, 3, 3) or (3, 1, 1).

    Weights start with He's variance 2 / fan-in. `groups` > 1 lets each output see only its share of
    the inputs.
    """

    def __init__(self, c_in: int, c_out: int, size: Sequence[int], groups: int = 1) -> None:
        super().__init__()
        self.shape, self.size, self.groups = (c_in, c_out), tuple(size), groups
        fan_in = c_in // groups * math.prod(size)
        self.weight = nn.Parameter(
            torch.randn(c_out, c_in // groups, *size) * math.sqrt(2 / fan_in)
        )
        self.bias = nn.Parameter(torch.zeros(c_out))

    def kernel(self) -> Tensor:
        """The kernel itself [c_out, c_in / groups, *size]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c_in, *grid] -> [batch, c_out, *grid]."""
        return convolve(x, self.weight, self.bias, self.groups)

    chain = forward

    def steps(self) -> list[Step]:
        """One convolution."""
        return [(*self.shape, self.groups, math.prod(self.size))]


class PerKernel(nn.Module):
    """Reading A: every kernel by itself is a sum of `rank` products of one-way filters.

    factors: for each axis [c_out, c_in, rank, d]. Inner filters start with gain 1 and the last with
    He's gain, so that
    the kernel's entries have the variance of an ordinary layer's.
    """

    def __init__(self, c_in: int, c_out: int, d: int, rank: int = 1, axes: int = 3) -> None:
        super().__init__()
        self.shape, self.d, self.rank, self.axes = (c_in, c_out), d, rank, axes
        scale = [1 / d] * (axes - 1) + [2 / (c_in * rank * d)]
        self.factors = nn.ParameterList(
            torch.randn(c_out, c_in, rank, d) * math.sqrt(s) for s in scale
        )
        self.bias = nn.Parameter(torch.zeros(c_out))

    def kernel(self) -> Tensor:
        """Sum over the rank of the outer products."""
        found = self.factors[0]
        for factor in self.factors[1:]:
            found = torch.einsum("oir...,oirz->oir...z", found, factor)
        return found.sum(2)

    def forward(self, x: Tensor) -> Tensor:
        """By the ordinary kernel: the chain's c_in * c_out * rank maps would slow training down
        many times over.
        """
        return convolve(x, self.kernel(), self.bias)

    def chain(self, x: Tensor) -> Tensor:
        """One convolution for each axis; between the first and the last there are c_in * c_out *
        rank maps.
        """
        (c_in, c_out), n = self.shape, math.prod(self.shape) * self.rank
        for axis, factor in enumerate(self.factors):
            taps = along(axis, self.axes, self.d)
            if axis < self.axes - 1:  # maps in the order input, output, rank
                weight = factor.transpose(0, 1).reshape(n, 1, *taps)
                x = convolve(x, weight, groups=c_in if axis == 0 else n)
        grid = x.shape[2:]
        # output, input, rank
        x = x.view(-1, c_in, c_out, self.rank, *grid).transpose(1, 2).reshape(-1, n, *grid)
        return convolve(x, factor.reshape(c_out, c_in * self.rank, *taps), self.bias, groups=c_out)

    def steps(self) -> list[Step]:
        """From c_in maps to c_in * c_out * rank, on these, and summed into c_out."""
        (c_in, c_out), n = self.shape, math.prod(self.shape) * self.rank
        return [
            (c_in, n, c_in, self.d),
            *[(n, n, n, self.d)] * (self.axes - 2),
            (n, c_out, c_out, self.d),
        ]


class Shared(nn.Module):
    """Reading B: one convolution for each axis, with intermediate maps that all kernels share.

    maps: their number after each axis but the last. factors: for axis k [maps after, maps before,
    ..., d, ...].
    """

    def __init__(self, c_in: int, c_out: int, d: int, maps: Sequence[int], axes: int = 3) -> None:
        super().__init__()
        if len(maps) != axes - 1:
            raise ValueError(
                f"{axes} axes have {axes - 1} sets of intermediate maps between them, got {len(maps)}"
            )
        self.shape, self.d, self.axes, width = (c_in, c_out), d, axes, (c_in, *maps, c_out)
        gain = [1.0] * (axes - 1) + [2.0]
        self.factors = nn.ParameterList(
            torch.randn(b, a, *along(k, axes, d)) * math.sqrt(gain[k] / (a * d))
            for k, (a, b) in enumerate(zip(width, width[1:]))
        )
        self.bias = nn.Parameter(torch.zeros(c_out))

    @classmethod
    def of(cls, factors: Sequence[Tensor], bias: Tensor) -> Shared:
        """The layer that has these factors and this bias (copied)."""
        maps = [len(f) for f in factors]
        layer = cls(
            factors[0].shape[1], maps[-1], max(factors[0].shape[2:]), maps[:-1], len(factors)
        )
        for own, given in zip(layer.factors, factors):
            own.data = given.detach().clone()
        layer.bias.data = bias.detach().clone()
        return layer

    def kernel(self) -> Tensor:
        """Contraction over the intermediate maps."""
        c_in, c_out = self.shape
        found = self.factors[0].reshape(-1, c_in, self.d)
        for factor in self.factors[1:]:
            found = torch.einsum(
                "nmz,mi...->ni...z", factor.reshape(*factor.shape[:2], self.d), found
            )
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The succession of one-way convolutions."""
        for factor in self.factors[:-1]:
            x = convolve(x, factor)
        return convolve(x, self.factors[-1], self.bias)

    chain = forward

    def steps(self) -> list[Step]:
        """One convolution for each axis."""
        return [(f.shape[1], f.shape[0], 1, self.d) for f in self.factors]


def weights(layer: nn.Module) -> int:
    """Weights of a layer's filters, the bias left out."""
    return sum(b * a // groups * taps for a, b, groups, taps in layer.steps())


def macs(layer: nn.Module, positions: int) -> int:
    """Multiply-adds of the chain for one sample on a grid of so many positions; taps that meet
    padding count.
    """
    return weights(layer) * positions


def live(layer: nn.Module, positions: int) -> int:
    """Most values that the chain holds at once for one sample: input and output of its widest
    convolution.
    """
    return max(a + b for a, b, _, _ in layer.steps()) * positions
