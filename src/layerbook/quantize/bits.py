"""What quantized weights really take: every code, scale, offset, codebook entry and mask, counted
and packed.

Scales, offsets and centroids count 16 bits unless said otherwise, a code the bits that its grid
needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Integer, UInt8
from torch import Tensor

from layerbook.quantize.grids import Binary, Codebook, Grid, decode


@dataclass(frozen=True)
class Stored:
    """Bits on disk by what they are for; `number` of weights. Sums of these add up (start:
    Stored()).
    """

    weights: int = 0  # codes and signs
    scales: int = 0
    zeros: int = 0  # zero points and offsets
    codebooks: int = 0
    indices: int = 0  # which codebook entry each weight takes
    masks: int = 0  # which entries a binary pass is for
    number: int = 0

    @property
    def total(self) -> int:
        """All bits."""
        return self.weights + self.scales + self.zeros + self.codebooks + self.indices + self.masks

    @property
    def per_weight(self) -> float:
        """Bits a weight; ValueError when there are none."""
        if not self.number:
            raise ValueError("no weights were counted")
        return self.total / self.number

    def __add__(self, other: Stored) -> Stored:
        return Stored(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _zero_bits(grid: Grid) -> int:
    """Bits of a zero point: a code's, if all lie among the codes, else those of a signed number."""
    if grid.zero is None or ((grid.zero >= grid.low) & (grid.zero <= grid.high)).all():
        return grid.bits
    return int(grid.zero.abs().max()).bit_length() + 1


def count(
    parts: Grid | Codebook | Binary | Sequence[Binary],
    shape: Sequence[int] | None = None,
    real: int = 16,
) -> Stored:
    """Bits that a weight of `shape` takes when kept as `parts`.

    Args:
        parts: a grid (which needs the shape), a codebook, or the passes of one or several calls of
            `binary` on one weight. Signs count only where a pass is made; a mask and its complement
            are one mask, of the shape in which it was given, so that salient columns cost one bit a
            column.
        real: bits of a scale, offset or centroid.

    Raises:
        ValueError: a grid without a shape, or passes on weights of different shapes.
    """
    if isinstance(parts, Grid):
        if shape is None:
            raise ValueError("a grid does not know the weight's shape: give it")
        n, scales = int(np.prod(shape)), parts.scale.numel()
        zeros = 0 if parts.zero is None else scales * _zero_bits(parts)
        return Stored(
            n * parts.bits,
            scales * real,
            zeros + (0 if parts.offset is None else scales * real),
            number=n,
        )
    if isinstance(parts, Codebook):
        n, k = parts.codes.numel(), parts.centroids.shape[1]
        return Stored(
            codebooks=parts.centroids.numel() * real, indices=n * (k - 1).bit_length(), number=n
        )
    passes = [parts] if isinstance(parts, Binary) else list(parts)
    if not passes or len({p.signs.shape for p in passes}) > 1:
        raise ValueError("passes must be given, and be on one weight")
    full, masks, signs = passes[0].signs.shape, {}, 0
    for where in (p.where for p in passes):
        signs += full.numel() if where is None else int(where.expand(full).sum())
        if where is not None:
            kept = pack(torch.where(where.flatten()[0], where, ~where).flatten(), 1).tobytes()
            masks[tuple(where.shape), kept] = where.numel()
    return Stored(
        signs,
        sum(p.scale.numel() for p in passes) * real,
        masks=sum(masks.values()),
        number=full.numel(),
    )


def pack(
    codes: Integer[Tensor, "..."] | Bool[Tensor, "..."], bits: int
) -> UInt8[np.ndarray, " bytes"]:
    """Codes 0..2^bits - 1 as a dense stream: uint8 bytes, the least significant bit of each code
    first.

    Raises ValueError for a code that does not fit.
    """
    flat = codes.detach().flatten().cpu().numpy()
    flat = flat.astype(np.uint8) if flat.dtype == bool else flat
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit {bits} unsigned bits")
    return np.packbits((flat[:, None] >> np.arange(bits) & 1).astype(np.uint8))


def unpack(
    packed: UInt8[np.ndarray, " bytes"], bits: int, shape: Sequence[int]
) -> Int32[Tensor, "..."]:
    """The int32 codes of `shape` that `pack` made a stream of."""
    n = int(np.prod(shape))
    stream = np.unpackbits(packed, count=n * bits).reshape(n, bits).astype(np.int32)
    return torch.from_numpy(stream @ (1 << np.arange(bits, dtype=np.int32))).reshape(tuple(shape))


def arrays(codes: Integer[Tensor, "..."], grid: Grid) -> dict[str, np.ndarray]:
    """Codes and grid as they would be written, by the fields of `Stored`: streams of codes, float16
    scales and offsets.

    Their bytes are what `count` says, up to the last byte of a stream; `restore` proves that
    nothing is missing. ValueError for scales or offsets that float16 does not hold exactly (fit
    with stored=torch.float16).
    """

    def real(t: Tensor) -> np.ndarray:
        if not torch.equal(t.half().to(t.dtype), t):
            raise ValueError(
                "scales or offsets are not float16 numbers: fit the grid with stored=torch.float16"
            )
        return t.half().cpu().numpy()

    kept = {"weights": pack(codes - grid.low, grid.bits), "scales": real(grid.scale)}
    if grid.offset is not None:
        kept["zeros"] = real(grid.offset)
    elif grid.zero is not None:
        width, low = (
            _zero_bits(grid),
            grid.low if _zero_bits(grid) == grid.bits else -(1 << _zero_bits(grid) - 1),
        )
        kept["zeros"] = pack(grid.zero.long() - low, width)
    return kept


def restore(kept: dict[str, np.ndarray], shape: Sequence[int], grid: Grid) -> Float[Tensor, "..."]:
    """The weights [shape], from `arrays` and of `grid` only what a format fixes: low, high, group,
    and which parts it has.
    """
    scale = torch.from_numpy(kept["scales"]).to(grid.scale.dtype)
    zero = offset = None
    if grid.offset is not None:
        offset = torch.from_numpy(kept["zeros"]).to(scale.dtype)
    elif grid.zero is not None:
        width, low = (
            _zero_bits(grid),
            grid.low if _zero_bits(grid) == grid.bits else -(1 << _zero_bits(grid) - 1),
        )
        zero = (unpack(kept["zeros"], width, scale.shape) + low).to(scale.dtype)
    codes = unpack(kept["weights"], grid.bits, shape) + grid.low
    return decode(codes, Grid(scale, zero, grid.low, grid.high, offset, grid.group))
