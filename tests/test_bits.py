"""Storage: counts by hand, packed bytes, and weights that come back from them bit for bit."""

import numpy as np
import pytest
import torch

from layerbook.quantize import bits
from layerbook.quantize import grids as q


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_counts_by_hand():
    w = normal(2, 128)
    offset = bits.count(q.fit(w, 3, group=64, offset=True, stored=torch.float16), w.shape)
    assert (
        offset == bits.Stored(weights=2 * 128 * 3, scales=4 * 16, zeros=4 * 16, number=256)
        and offset.per_weight == 3.5
    )
    assert bits.count(q.fit(w, 8, axis=0, symmetric=True), w.shape).total == 256 * 8 + 2 * 16
    # a zero point is one of the codes
    assert bits.count(q.fit(w, 4, axis=0), w.shape).zeros == 2 * 4
    # one far below them is not
    assert bits.count(q.fit(w + 100, 4, zero_in_range=False), w.shape).zeros > 4
    assert bits.count(q.fit(w, 4), w.shape, real=32).scales == 32
    assert bits.count(q.ternary(w), w.shape).weights == 512
    assert (offset + offset).per_weight == 3.5 and sum(
        [offset, offset], bits.Stored()
    ).total == 2 * offset.total
    book = bits.count(q.codebook(w, 16, 0, axis=0))
    assert (
        book == bits.Stored(indices=256 * 4, codebooks=2 * 16 * 16, number=256)
        and book.weights == 0
    )
    assert (
        bits.count(q.codebook(w, 9, 0)).indices == 256 * 4
        and bits.count(q.codebook(w, 1, 0)).indices == 0
    )


def test_binary_passes_with_their_masks():
    w, salient = normal(4, 100), torch.arange(100) < 10
    plain = bits.count(q.binary(w, axis=0)[1])
    assert plain == bits.Stored(weights=400, scales=4 * 16, number=400)
    two, one = (
        q.binary(w, axis=0, residuals=1, where=salient)[1],
        q.binary(w, axis=0, where=~salient)[1],
    )
    both = bits.count([*two, *one])
    # one mask and its complement
    assert both == bits.Stored(weights=2 * 40 + 360, scales=3 * 64, masks=100, number=400)
    assert bits.count(q.binary(w, where=w.abs() > 1)[1]).masks == 400
    for wrong in ([], [*two, *q.binary(w[:2])[1]]):
        with pytest.raises(ValueError, match="passes"):
            bits.count(wrong)
    with pytest.raises(ValueError, match="shape"):
        bits.count(q.fit(w, 4))
    with pytest.raises(ValueError, match="no weights"):
        _ = bits.Stored().per_weight


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 11, 16])
def test_packed_codes_come_back(width):
    for seed in range(4):
        codes = torch.randint(
            0, 2**width, (3, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.int32
        )
        packed = bits.pack(codes, width)
        assert packed.dtype == np.uint8 and packed.nbytes == -(-21 * width // 8)
        assert torch.equal(bits.unpack(packed, width, (3, 7)), codes)
    with pytest.raises(ValueError, match="do not fit"):
        bits.pack(torch.tensor([2**width]), width)
    with pytest.raises(ValueError, match="do not fit"):
        bits.pack(torch.tensor([-1]), width)
    assert bits.pack(torch.tensor([], dtype=torch.int32), width).nbytes == 0


@pytest.mark.parametrize(
    "kind", [{}, {"symmetric": True}, {"offset": True}, {"zero_in_range": False}], ids=str
)
def test_weights_come_back_from_what_is_counted(kind):
    w = normal(8, 64) + 0.5
    for granularity in ({}, {"axis": 0}, {"group": 16}):
        grid = q.fit(w, 3, **granularity, **kind, stored=torch.float16)
        kept = bits.arrays(q.encode(w, grid), grid)
        assert torch.equal(bits.restore(kept, w.shape, grid), q.fake(w, grid))
        counted = bits.count(grid, w.shape)
        for part, array in kept.items():
            assert 0 <= 8 * array.nbytes - getattr(counted, part) < 8
    with pytest.raises(ValueError, match="float16"):
        bits.arrays(q.encode(w, q.fit(w, 3, axis=0)), q.fit(w, 3, axis=0))
