"""GPTQ: rounding that keeps a linear map's outputs close (Frantar et al. 2022, arXiv 2210.17323,
algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerbook.quantize.grids import Grid, finite, from_range

Key = TypeVar("Key", bound=Hashable)
Rounder = Callable[[Tensor, int], Tensor]


def moments(
    call: Callable[[], Any], readers: Mapping[Key, nn.Module]
) -> dict[Key, Float[Tensor, "_ _"]]:
    """X X^T [in, in], float32, of the inputs [..., in] that each module of `readers` gets while
    `call` runs, by its key.

    Calls of one module add up. Maps that read the same input need only one of them watched. Raises
    ValueError for a module that was not called.
    """
    sums: dict[Key, Tensor] = {}

    def watch(key: Key) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2).float()
            sums[key] = x.T @ x if key not in sums else sums[key].addmm_(x.T, x)

        return hook

    hooks = [module.register_forward_pre_hook(watch(key)) for key, module in readers.items()]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    if set(readers) - set(sums):
        raise ValueError(f"never called: {sorted(map(str, set(readers) - set(sums)))}")
    return {key: sums[key] for key in readers}


def offset_grid(bits: int, **kind: Any) -> Callable[[Tensor, int], Rounder]:
    """The usual rounding of `solve`: for each group a grid of `from_range` with float16 offsets, or
    of another `kind`.
    """
    kind = kind or {"offset": True, "stored": torch.float16}

    def start(free: Tensor, _column: int) -> Rounder:
        grid = from_range(free.amin(0), free.amax(0), bits, **kind)
        return lambda column, _j: _round(column, grid)

    return start


def _round(column: Float[Tensor, " out"], grid: Grid) -> Float[Tensor, " out"]:
    t = (
        column / grid.scale if grid.offset is None else (column - grid.offset) / grid.scale
    ).round_()
    if grid.zero is not None:
        return t.add_(grid.zero).clamp_(grid.low, grid.high).sub_(grid.zero).mul_(grid.scale)
    t.clamp_(grid.low, grid.high).mul_(grid.scale)
    return t if grid.offset is None else t.add_(grid.offset)


def solve(
    w: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    bits: int | None = None,
    group: int | None = None,
    damp: float = 0.01,
    *,
    rounding: Callable[[Tensor, int], Rounder] | None = None,
) -> Float[Tensor, "out in"]:
    """Weights near `w` in the outputs that they give, not in value: columns are rounded from left
    to right, and the error of each is pushed on to the columns that are still free.

    Args:
        w: [out, in].
        h: [in, in], the second moment X X^T of its inputs; any factor is without effect.
        bits: of the offset grid that each row and group gets when the group's first column is
            reached.
        group: columns that share a grid, which must divide `in`; None: all of them.
        damp: share of the mean of h's diagonal that is added to it.
        rounding: another quantizer in place of bits. Called as rounding(free [group, out], first
            column) at each group, it returns a function of a column [out] and its index, which
            gives the rounded column [out].

    Returns:
        the dequantized weights [out, in], in the format of w; worked out in float32. Columns whose
        input is always zero are 0 before they are rounded.

    Raises:
        ValueError: NaN or infinity, shapes that do not fit, both or neither of bits and rounding,
            or an h that is not positive definite once damped.
    """
    n = w.shape[-1]
    group = group or n
    if w.dim() != 2 or h.shape != (n, n) or n % group:
        raise ValueError(
            f"{n} inputs cannot be cut into groups of {group}: choose another group"
            if w.dim() == 2 and n % group
            else f"w {list(w.shape)} must be [out, in] and h {list(h.shape)} [in, in]"
        )
    if (bits is None) == (rounding is None):
        raise ValueError("give bits or rounding, and not both")
    finite(w, "w"), finite(h, "h")
    rounding = rounding or offset_grid(bits)
    # a row of `free` is a column of w: contiguous
    h, free = (
        h.float().clone(),
        w.detach().T.float().contiguous().clone(),
    )
    dead = h.diagonal() == 0  # inputs that are always zero: their weights do not matter
    h.diagonal()[dead], free[dead] = 1.0, 0.0
    h.diagonal().add_(damp * h.diagonal().mean())
    try:
        u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"h is not positive definite with damp {damp}: raise it, or gather more inputs"
        ) from None
    for start in range(0, n, group):
        end = start + group
        rounded_by = rounding(free[start:end], start)
        errors = torch.empty_like(free[start:end])
        for j in range(start, end):
            rounded = rounded_by(free[j], j)
            errors[j - start] = (free[j] - rounded) / u[j, j]
            free[j + 1 : end].addr_(u[j, j + 1 : end], errors[j - start], alpha=-1.0)
            free[j] = rounded
        free[end:].addmm_(u[start:end, end:].T, errors, alpha=-1.0)  # the other groups, all at once
    return free.T.contiguous().to(w.dtype)


def solve_together(
    weights: Mapping[Key, Float[Tensor, "_ in"]],
    h: Float[Tensor, "in in"],
    *args: Any,
    **options: Any,
) -> dict[Key, Float[Tensor, "_ in"]]:
    """`solve` for several maps [out_i, in] of one input, name -> weights; rows do not interact, so
    it is one solution.
    """
    solved = solve(torch.cat(list(weights.values())), h, *args, **options).split(
        [len(w) for w in weights.values()]
    )
    return dict(zip(weights, solved, strict=True))


def quadratic(
    w: Float[Tensor, "out in"], other: Float[Tensor, "out in"], h: Float[Tensor, "in in"]
) -> float:
    """||(W - W') X||^2 for h = X X^T, in float64: what GPTQ minimizes."""
    d = (w - other).detach().double()
    return float(((d @ h.double()) * d).sum())
