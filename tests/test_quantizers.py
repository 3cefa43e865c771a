"""Uniform grids and ranges, against torch's own quantizers and observers, gguf, float64 loops, and
the definition.
"""

import math
import warnings

import gguf
import numpy as np
import pytest
import torch

from layerbook.quantize import grids as q

KINDS = (
    {},
    {"symmetric": True},
    {"offset": True},
    {"zero_in_range": False},
    {"offset": True, "stored": torch.float16},
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: "+".join(k) or "affine")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def by_hand(row, bits, kind):
    """One unit, number by number in float64: the values that it is rounded to, and the step."""
    low, high, steps = min(row), max(row), 2**bits - 1
    if kind.get("symmetric"):
        scale, zero, offset, bottom, top = (
            max(abs(low), abs(high)) / (2 ** (bits - 1) - 1),
            0,
            0.0,
            -(2 ** (bits - 1)),
            steps // 2,
        )
    else:
        if kind.get("offset"):
            low = float(np.float16(low)) if kind.get("stored") else low
        elif kind.get("zero_in_range", True) or low == high:
            low, high = min(low, 0.0), max(high, 0.0)
        scale, bottom, top = (high - low) / steps, 0, steps
        scale = float(np.float16(scale)) if kind.get("stored") else scale
        offset = low if kind.get("offset") else 0.0
        zero = 0 if kind.get("offset") or scale <= 0 else int(np.rint(-low / scale))
    scale = scale if scale > 0 else 1.0
    return [
        scale * (min(max(int(np.rint((x - offset) / scale)) + zero, bottom), top) - zero) + offset
        for x in row
    ], scale


@kinds
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_granularity_equals_a_loop_in_float64(kind, bits):
    for seed in range(4):
        x = normal(3, 4, 12, seed=seed, dtype=torch.float64) * 10.0 ** (seed - 2) + seed
        for where, units in (
            ({}, [x.flatten()]),
            ({"axis": 0}, list(x.flatten(1))),
            ({"axis": (0, 1)}, list(x.flatten(0, 1))),
            ({"axis": -1}, list(x.flatten(0, 1).T)),
            ({"group": 4}, list(x.reshape(-1, 4))),
        ):
            ours = q.fake_quantize(x, bits, **where, **kind)
            if where == {"axis": -1}:
                ours = ours.flatten(0, 1).T
            ours = ours.reshape(len(units), -1)
            theirs = torch.tensor(
                [by_hand(u.tolist(), bits, kind)[0] for u in units], dtype=torch.float64
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@kinds
def test_what_any_grid_must_do(kind):
    for seed in range(12):
        draw = np.random.default_rng(seed)
        shape, bits = tuple(draw.integers(1, 9, 2)), int(draw.integers(2, 9))
        x = torch.from_numpy(draw.standard_normal(shape) * 10.0 ** draw.integers(-4, 4))
        grid = q.fit(x, bits, axis=0, **kind)
        codes, once = q.encode(x, grid), q.fake(x, grid)
        assert (
            codes.dtype == torch.int32
            and codes.min() >= grid.low
            and codes.max() <= grid.high
            and grid.bits == bits
        )
        torch.testing.assert_close(q.decode(codes, grid), once, rtol=1e-12, atol=0)
        # a grid point stays where it is
        torch.testing.assert_close(q.fake(once, grid), once, rtol=1e-12, atol=1e-14)
        slack = 2e-3 * x.abs().amax(1, keepdim=True) if "stored" in kind else 1e-9 * grid.scale
        # a rounded zero point: half more
        bound = grid.scale * (0.5 if "offset" in kind or "symmetric" in kind else 1.0) + slack
        assert ((once - x).abs() <= bound).all()
        rise = once.gather(1, x.argsort(1)).diff(dim=1)
        assert (rise >= -1e-12).all()  # monotone


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tensors_and_channels_equal_torchs_fake_quantization(bits):
    for seed in range(5):
        x = normal(37, 65, seed=seed) * 3 + seed / 2
        for kind in ({}, {"symmetric": True}):
            grid = q.fit(x, bits, **kind)
            theirs = torch.fake_quantize_per_tensor_affine(
                x, float(grid.scale), int(grid.zero or 0), grid.low, grid.high
            )
            off = (q.fake(x, grid) - theirs).abs()
            # halves may fall either way
            assert (off > 1e-5).double().mean() < 1e-3 and off.max() <= grid.scale * 1.001
            for axis in (0, 1):
                grid = q.fit(x, bits, axis=axis, **kind)
                scale = grid.scale.flatten()
                zero = torch.zeros_like(scale) if grid.zero is None else grid.zero.flatten()
                theirs = torch.fake_quantize_per_channel_affine(
                    x, scale, zero.int(), axis, grid.low, grid.high
                )
                off = (q.fake(x, grid) - theirs).abs()
                assert (off > 1e-5).double().mean() < 1e-3 and (off <= grid.scale * 1.001).all()


def test_grids_and_ranges_equal_those_of_torchs_observers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import observer

        batches = [normal(6, 16, seed=s) * (s + 1) + 1 for s in range(5)]
        pairs = (
            (observer.MinMaxObserver(dtype=torch.quint8), q.Range()),
            (
                observer.MovingAverageMinMaxObserver(averaging_constant=0.1, dtype=torch.quint8),
                q.Range(momentum=0.9),
            ),
            (observer.PerChannelMinMaxObserver(ch_axis=0, dtype=torch.quint8), q.Range(axis=0)),
        )
        for theirs, ours in pairs:
            for x in batches:
                theirs(x), ours.update(x)
            scale, zero = theirs.calculate_qparams()
            grid = q.from_range(*ours.limits, 8)
            torch.testing.assert_close(grid.scale.flatten(), scale.flatten())
            assert torch.equal(grid.zero.flatten().int(), zero.flatten().int())


def test_percentiles_equal_numpys():
    x, y = normal(5, 101), normal(5, 101, seed=1)
    low, high = q.Range(axis=0, percentile=97.3).update(x).update(y).limits
    for found, p in ((low, 2.7), (high, 97.3)):
        want = (np.percentile(x.numpy(), p, axis=1) + np.percentile(y.numpy(), p, axis=1)) / 2
        np.testing.assert_allclose(found.flatten().numpy(), want, rtol=1e-5)
    whole = q.Range(group=5, percentile=100).update(torch.arange(10.0)).limits
    assert whole[0].flatten().tolist() == [0, 5] and whole[1].flatten().tolist() == [4, 9]
    with pytest.raises(ValueError, match="no batch"):
        _ = q.Range().limits
    with pytest.raises(ValueError, match="a batch with ranges of shape"):
        q.Range(axis=0).update(x).update(x[:2])
    for wrong in ({"momentum": 1.0}, {"percentile": 40.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            q.Range(**wrong)


def ggufs(w, name):
    kind = gguf.GGMLQuantizationType[name]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(w.numpy(), kind), kind))


def test_ggufs_q8_0_q4_0_and_q4_1():
    w = normal(4, 128, seed=3)
    rows = ggufs(w, "Q8_0")
    ours = q.fake_quantize(w, 8, symmetric=True, group=32, stored=torch.float16)
    step = q.fit(w, 8, symmetric=True, group=32).scale.amax()
    off = (ours - rows).abs()  # gguf takes the codes from the scale before it is rounded to float16
    assert (off > 1e-5).double().mean() < 0.1 and off.max() < 1.001 * step

    rows = ggufs(w, "Q4_1")
    ours, grid = (
        q.fake_quantize(w, 4, offset=True, group=32, stored=torch.float16),
        q.fit(w, 4, offset=True, group=32),
    )
    off = (ours - rows).abs()
    # which rounds the scale to float16 last
    assert (off > 5e-3).double().mean() < 0.02 and off.max() < 1.02 * grid.scale.max()

    g = w.view(-1, 32)
    # Q4_0: the entry of greatest size gets code 0
    d = g.gather(1, g.abs().argmax(1, keepdim=True)) / -8
    grid = q.Grid(d.half().float().view(4, 4, 1), torch.full((4, 4, 1), 8.0), 0, 15, None, 32)
    rows = ggufs(w, "Q4_0")
    off = (q.fake(w, grid) - rows).abs()
    assert (off > 1e-5).double().mean() < 0.02 and off.max() < 1.001 * d.abs().max()

    exact = (
        torch.randint(-127, 128, (4, 64), generator=torch.Generator().manual_seed(0)).float() / 16
    )
    exact[:, ::32] = 127 / 16
    rows = ggufs(exact, "Q8_0")
    assert torch.equal(q.fake_quantize(exact, 8, symmetric=True, group=32), rows)
    exact = (
        torch.randint(0, 16, (4, 64), generator=torch.Generator().manual_seed(0)).float() / 8 - 1
    )
    exact[:, ::32], exact[:, 1::32] = -1, 15 / 8 - 1
    assert torch.equal(
        q.fake_quantize(exact, 4, offset=True, group=32, stored=torch.float16), ggufs(exact, "Q4_1")
    )


@kinds
def test_odd_units(kind):
    x = torch.zeros(5, 8)
    x[1], x[2], x[3, 2], x[4] = 0.25, -3.0, 100.0, torch.linspace(-1, 1, 8)
    back = q.fake_quantize(x, 4, axis=0, **kind)
    # all zero, constants of both signs
    torch.testing.assert_close(back[:3], x[:3], rtol=1e-6, atol=0)
    # an outlier leaves only itself
    assert back[3, 2] == pytest.approx(100, rel=1e-3) and back[3].count_nonzero() == 1
    assert torch.isfinite(back).all()
    for one in (torch.tensor(0.7), torch.tensor([0.7]), torch.tensor([[-0.7]])):
        torch.testing.assert_close(q.fake_quantize(one, 8, **kind), one, rtol=1e-3, atol=0)
    for alone in ({"axis": 0}, {"group": 1}):
        single = torch.tensor([0.7, -2.0, 0.0])
        torch.testing.assert_close(
            q.fake_quantize(single, 8, **alone, **kind), single, rtol=1e-3, atol=0
        )


def test_huge_and_tiny_numbers():
    for top in (3e38, 1e30, 1e-30):
        x = torch.tensor([[-top, top / 3, top]])
        for kind in KINDS[:4]:
            if "offset" in kind and top == 3e38:
                with pytest.raises(ValueError, match="overflows"):
                    q.fit(x, 8, **kind)
                continue
            back = q.fake_quantize(x, 8, **kind)
            assert torch.isfinite(back).all() and ((back / top - x / top).abs() < 1 / 127).all(), (
                kind
            )
    with pytest.raises(ValueError, match=r"beyond torch.float16"):
        q.fit(torch.tensor([0.0, 1e8]), 4, offset=True, stored=torch.float16)
    static = q.fit(torch.tensor([-1.0, 1.0]), 8)
    assert q.fake(torch.tensor([1e30, -1e30]), static).abs().max() < 1.01  # a static grid saturates


def test_zero_is_exact_unless_told_otherwise():
    # one-sided: zero costs resolution
    x = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 3
    wide, narrow = q.fit(x, 4), q.fit(x, 4, zero_in_range=False)
    assert q.fake(torch.zeros(1), wide).item() == 0 and wide.zero.item() == 0
    assert wide.scale.item() == pytest.approx(x.max().item() / 15)
    assert narrow.scale.item() == pytest.approx((x.max() - x.min()).item() / 15)
    assert (q.fake(x, narrow) - x).square().mean() < (q.fake(x, wide) - x).square().mean() / 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad):
    x = torch.ones(4, 8)
    x[2, 3] = bad
    for granularity in ({}, {"axis": 0}, {"group": 4}):
        with pytest.raises(ValueError, match="x holds NaN or infinity"):
            q.fit(x, 4, **granularity)
    grid = q.fit(torch.ones(4, 8), 4)
    for call in (q.fake, q.encode):
        with pytest.raises(ValueError, match="x holds NaN or infinity"):
            call(x, grid)
    with pytest.raises(ValueError, match="w holds NaN or infinity"):
        q.ternary(x)
    q.finite(torch.full((8,), 3e38), "x")  # whose sum overflows
    with pytest.raises(ValueError, match="finite"):
        q.from_range(bad, 1.0, 4)


def test_impossible_requests_are_refused(unchecked):
    x = torch.ones(4, 6)
    for wrong, words in (
        ({"group": 4}, "groups of 4"),
        ({"group": 0}, "groups of 0"),
        ({"axis": 2}, "axis 2"),
        ({"axis": 0, "group": 2}, "axis or group"),
        ({"symmetric": True, "offset": True}, "not both"),
        ({"range": (2.0, 1.0)}, "low at most high"),
    ):
        with pytest.raises(ValueError, match=words):
            q.fit(x, 4, **wrong)
    for bits, kind in ((0, {}), (17, {}), (1, {"symmetric": True})):
        with pytest.raises(ValueError, match="bits"):
            q.fit(x, bits, **kind)
    with pytest.raises(ValueError, match="empty"):
        q.fit(torch.ones(3, 0), 4)
    with pytest.raises(ValueError, match=r"int64"):
        q.fit(torch.arange(4), 4)
    with pytest.raises(ValueError, match="does not fit"):
        q.fake(x, q.fit(torch.ones(5, 6), 4, axis=0))
    with pytest.raises(ValueError, match="groups of 4"):
        q.fake(x, q.fit(torch.ones(4, 8), 4, group=4))
    # no tokens, no ranges: nothing to do
    assert q.fake_quantize(torch.ones(0, 6), 4, axis=0).shape == (
        0,
        6,
    )


def test_strides_and_formats_do_not_matter():
    x = normal(30, 40, 8)
    for granularity in ({}, {"axis": 0}, {"axis": (0, 1)}, {"axis": -1}, {"axis": 1}, {"group": 4}):
        for kind in KINDS:
            whole = q.fake_quantize(x, 4, **granularity, **kind)
            strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            assert not strided.is_contiguous() and torch.equal(
                q.fake_quantize(strided, 4, **granularity, **kind), whole
            )
            for dtype in (torch.bfloat16, torch.float16):
                half = q.fake_quantize(x.to(dtype), 4, **granularity, **kind)
                want = q.fake_quantize(x.to(dtype).float(), 4, **granularity, **kind).to(dtype)
                assert half.dtype == dtype and torch.equal(half, want)


def test_a_token_is_rounded_alike_in_every_batch():
    x = normal(3, 5, 16)
    x[1] *= 50
    token = q.fake_quantize(x, 4, axis=(0, 1))
    assert torch.equal(token[:1], q.fake_quantize(x[:1], 4, axis=(0, 1)))
    # one grid for the tensor: not so
    assert not torch.equal(q.fake_quantize(x, 4)[:1], q.fake_quantize(x[:1], 4))


def test_gradients_pass_where_nothing_is_clipped():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    pull = normal(61, dtype=torch.float64)
    for kind in KINDS[:4]:
        grid = q.fit(x, 4, range=(-1.0, 2.0), **kind)
        leaf = x.clone().requires_grad_()
        out = q.fake(leaf, grid, straight_through=True)
        out.backward(pull)
        code = ((x - (0 if grid.offset is None else grid.offset)) / grid.scale).round() + (
            0 if grid.zero is None else grid.zero
        )
        inside = (code >= grid.low) & (code <= grid.high)
        assert torch.equal(leaf.grad, pull * inside) and 0 < inside.sum() < 61
        assert torch.equal(out.detach(), q.fake(x, grid)) and not q.fake(leaf, grid).requires_grad
    grid, twin = q.fit(x.float(), 4, range=(-1.0, 2.0)), x.float().requires_grad_()
    torch.fake_quantize_per_tensor_affine(twin, float(grid.scale), int(grid.zero), 0, 15).backward(
        pull.float()
    )
    leaf = x.float().requires_grad_()
    q.fake(leaf, grid, straight_through=True).backward(pull.float())
    assert torch.equal(leaf.grad, twin.grad)
    leaf = normal(4, 32).requires_grad_()
    q.fake_quantize(leaf, 4, straight_through=True, axis=0).sum().backward()
    assert torch.equal(leaf.grad, torch.ones(4, 32))  # a grid that was fitted clips nothing


def test_ternary_is_the_mean_size_and_its_signs():
    w = normal(6, 12, dtype=torch.float64)
    w[3] = 0
    for granularity, units in (
        ({"axis": 0}, w),
        ({"group": 4}, w.view(-1, 4)),
        ({}, w.view(1, -1)),
    ):
        s = units.abs().mean(1, keepdim=True)
        want = torch.where(
            s > 0, s * (units / s.clamp(min=1e-30)).round().clamp(-1, 1), 0.0
        ).view_as(w)
        torch.testing.assert_close(q.fake(w, q.ternary(w, **granularity)), want)
    assert q.ternary(w).bits == 2 and q.ternary(torch.tensor([[2.0]]), axis=0).scale.item() == 2.0
