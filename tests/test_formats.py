"""Signs, codebooks, 8-bit floats and changes of basis, against brute force, scikit-learn, scipy and
the definition.
"""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cluster import KMeans

from layerbook.quantize import grids as q


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def test_signs_are_the_least_squares_choice():
    for seed in range(5):
        w = normal(1, 6, seed=seed)
        ours = (w - q.binary(w, axis=0)[0]).square().sum()
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
        scale = (signs @ w[0]) / 6
        assert ours == pytest.approx(float((w - scale[:, None] * signs).square().sum(1).min()))


def test_residuals_masks_and_granularities():
    w = normal(4, 12)
    w[2] = 0
    sizes = [(w - q.binary(w, axis=0, residuals=r)[0]).norm().item() for r in range(5)]
    assert sizes == sorted(sizes, reverse=True) and sizes[4] < sizes[0] / 2
    found, parts = q.binary(w, group=4, residuals=1)
    left = w.view(-1, 4)
    for part in parts:  # by definition, pass after pass
        s = left.abs().mean(1, keepdim=True)
        torch.testing.assert_close(part.scale.view(-1, 1), s)
        assert torch.equal(part.signs.view(-1, 4), left >= 0)
        left = left - torch.where(left >= 0, s, -s)
    torch.testing.assert_close(found, w - left.view(4, 12))
    assert torch.equal(found[2], torch.zeros(12, dtype=torch.float64))
    assert q.binary(w)[1][0].scale.shape == () and torch.equal(q.binary(w, axis=(0, 1))[0], w)

    salient = torch.zeros(12, dtype=torch.bool)
    salient[[1, 7]] = True
    two, one = (
        q.binary(w, axis=0, residuals=1, where=salient)[0],
        q.binary(w, axis=0, where=~salient)[0],
    )
    assert not two[:, ~salient].any() and not one[:, salient].any()
    torch.testing.assert_close(two[:, salient], q.binary(w[:, salient], axis=0, residuals=1)[0])
    torch.testing.assert_close(one[:, ~salient], q.binary(w[:, ~salient], axis=0)[0])
    assert not q.binary(w, where=torch.zeros(12, dtype=torch.bool))[0].any()  # no entries: nothing
    assert q.binary(w.half(), axis=0)[0].dtype == torch.float16
    with pytest.raises(ValueError, match="w holds NaN"):
        q.binary(w / 0)
    with pytest.raises(ValueError, match="axis or group"):
        q.binary(w, axis=0, group=4)


def inertia(x, centres):
    return float((x[:, None] - np.asarray(centres)[None]).__abs__().min(1).__pow__(2).sum())


def best_cuts(x, k):
    """K-means in one dimension by dynamic programming: the least possible inertia."""
    x, n = np.sort(x), len(x)
    cost = np.full((n + 1, n + 1), np.inf)
    for i, j in itertools.combinations(range(n + 1), 2):
        cost[i, j] = ((x[i:j] - x[i:j].mean()) ** 2).sum()
    best = cost[0].copy()
    best[0] = 0
    for _ in range(k - 1):
        best = np.array(
            [
                min(best[i] + (cost[i, j] if i < j else 0) for i in range(j + 1))
                for j in range(n + 1)
            ]
        )
    return best[n]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_codebooks_against_the_optimum_and_scikit_learn(k):
    for seed in range(4):
        x = normal(40, seed=seed)
        ours = inertia(x.numpy(), q.codebook(x, k, seed, starts=10).centroids[0])
        assert best_cuts(x.numpy(), k) * (1 - 1e-9) <= ours <= best_cuts(x.numpy(), k) * 1.05
    w = torch.cat([normal(3000), normal(300, seed=1) * 6])
    book = q.codebook(w, 8, 0)
    theirs = KMeans(8, n_init=5, random_state=0).fit(w.numpy()[:, None])
    assert inertia(w.numpy(), book.centroids[0]) <= 1.01 * theirs.inertia_
    nearest = (w[:, None] - book.centroids).abs().argmin(1)
    assert torch.equal(nearest.int(), book.codes)
    # started where scikit-learn starts, and run as long, Lloyd's iterations end where
    # scikit-learn's end
    start = np.quantile(w.numpy(), np.linspace(0.05, 0.95, 8))
    theirs = KMeans(8, init=start[:, None], n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(
        w.numpy()[:, None]
    )
    from layerbook.quantize.formats import _lloyd

    x = w[None].sort().values
    ours, _ = _lloyd(
        x, torch.nn.functional.pad(x.cumsum(1), (1, 0)), torch.from_numpy(start)[None], 300
    )
    np.testing.assert_allclose(ours[0].numpy(), np.sort(theirs.cluster_centers_[:, 0]), atol=1e-6)


def test_codebooks_of_rows_groups_and_odd_ones():
    w = normal(4, 6, 8)
    for options, rows in (
        ({"axis": 0}, w.flatten(1)),
        ({"axis": 1}, w.transpose(0, 1).flatten(1)),
        ({"axis": -1}, w.flatten(0, 1).T),
        ({"group": 4}, w.reshape(-1, 4)),
        ({}, w.reshape(1, -1)),
    ):
        book = q.codebook(w, 3, 0, **options)
        assert (
            book.codes.shape == w.shape
            and book.centroids.shape == (len(rows), 3)
            and book.decode().shape == w.shape
        )
        each = torch.stack([q.codebook(row, 3, 0, starts=0).decode() for row in rows])
        alike = {
            0: lambda t: t.flatten(1),
            1: lambda t: t.transpose(0, 1).flatten(1),
            -1: lambda t: t.flatten(0, 1).T,
        }
        ours = (
            alike[options["axis"]](book.decode())
            if "axis" in options
            else book.decode().reshape(rows.shape)
        )
        # more starts never hurt
        assert ((ours - rows).square().sum(1) <= (each - rows).square().sum(1) + 1e-12).all()
    few = torch.tensor([0.0] * 90 + [1.0, 5.0])
    assert torch.equal(q.codebook(few, 3, 0).decode(), few) and torch.equal(
        q.codebook(few, 7, 0).decode(), few
    )
    assert torch.equal(q.codebook(torch.zeros(5), 2, 0).decode(), torch.zeros(5))
    assert q.codebook(torch.tensor([[2.0]]), 1, 0).decode().item() == 2
    assert torch.equal(q.codebook(w, 4, 3).codes, q.codebook(w, 4, 3).codes)
    assert q.codebook(w.half(), 4, 3).decode().dtype == torch.float32
    for wrong in (
        {"k": 0},
        {"k": 2, "axis": 0, "group": 2},
        {"k": 2, "axis": 5},
        {"k": 2, "group": 3},
    ):
        with pytest.raises(ValueError, match="codebook|axis|groups"):
            q.codebook(w, seed=0, **wrong)
    with pytest.raises(ValueError, match="w holds NaN"):
        q.codebook(w / 0, 2, 0)


@pytest.mark.parametrize(("kind", "bits", "bias"), [("e4m3", 3, 7), ("e5m2", 2, 15)])
def test_eight_bit_floats_are_the_nearest_of_those_that_exist(kind, bits, bias):
    codes, exponents = range(2**bits), range(2 ** (7 - bits))
    points = {(m / 2**bits + (e > 0)) * 2.0 ** (max(e, 1) - bias) for e in exponents for m in codes}
    points = sorted(p for p in points if p <= {"e4m3": 448, "e5m2": 57344}[kind])
    points = np.array([-p for p in points[:0:-1]] + points)
    for seed in range(3):
        x = normal(400, seed=seed) * 10.0 ** (2 * seed - 3)
        x = x.clamp(points[0], points[-1])
        ours, at = q.fp8(x, None, kind).numpy(), x.numpy()
        np.testing.assert_allclose(
            np.abs(ours - at), np.abs(points[None] - at[:, None]).min(1), rtol=1e-6, atol=1e-12
        )
        top = float(x.abs().max()) / points[-1]
        scaled = q.fp8(x, "tensor", kind).numpy()
        nearest = np.abs(points[None] - at[:, None] / top).min(1)
        np.testing.assert_allclose(np.abs(scaled - at), top * nearest, rtol=1e-5, atol=1e-9 * top)
    rows = normal(5, 8) * torch.tensor([1e-3, 1, 1e3, 0, 1e6]).double()[:, None]
    token = q.fp8(rows, "token", kind)
    torch.testing.assert_close(token, torch.stack([q.fp8(r, "tensor", kind) for r in rows]))
    bound = rows.abs() * 2.0 ** -(bits + 1) + rows.abs().amax(1, keepdim=True) * 1e-3
    assert not token[3].any() and ((token - rows).abs() <= bound).all()


def test_eight_bit_floats_saturate_and_refuse():
    assert q.fp8(torch.tensor([1e6, -1e6]), None).tolist() == [448, -448]
    assert q.fp8(torch.tensor([1e6, -1e6]), None, "e5m2").tolist() == [57344, -57344]
    assert q.fp8(normal(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16 and q.fp8(
        torch.ones(0, 3), "token"
    ).shape == (0, 3)
    assert q.fp8(torch.tensor(3.0)).item() == 3 and q.fp8(torch.tensor(3.0), "token").item() == 3
    for wrong in ({"kind": "e3m4"}, {"scale": "row"}):
        with pytest.raises(ValueError, match="fp8"):
            q.fp8(torch.ones(2), **wrong)
    with pytest.raises(ValueError, match="x holds NaN"):
        q.fp8(torch.tensor([float("nan")]))


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 64, 96, 128, 384, 576, 1536])
def test_hadamard_matrices_are_orthogonal(n):
    h = q.hadamard(n, 1)
    torch.testing.assert_close(h @ h.T, torch.eye(n).double(), rtol=0, atol=1e-12)
    assert torch.allclose(h.abs(), torch.full_like(h, n**-0.5))
    assert torch.equal(h, q.hadamard(n, 1)) and (
        n == 1 or not torch.equal(h, q.hadamard(n, 2)) or n < 12
    )
    if n & (n - 1) == 0:
        np.testing.assert_allclose(
            q.hadamard(n).numpy() * n**0.5, scipy.linalg.hadamard(n), atol=1e-9
        )


def test_rotations_and_scales_change_no_output():
    x, w = normal(50, 96), normal(24, 96, seed=1)
    x[:, 5] *= 100
    s = q.smooth(x.abs().amax(0), w, 0.5)
    torch.testing.assert_close(s, x.abs().amax(0).sqrt() / w.abs().amax(0).sqrt())
    m = w.abs().amax(0) ** 0.3 / x.abs().amax(0) ** 0.7  # ViDiT-Q's mask
    torch.testing.assert_close(1 / q.smooth(x.abs().amax(0), w, 0.7), m)
    for r in (q.hadamard(96, 0), q.random_rotation(96, 0), torch.eye(96).double()):
        torch.testing.assert_close((x / s @ r) @ (w * s @ r).T, x @ w.T, rtol=0, atol=1e-9)
        torch.testing.assert_close(r @ r.T, torch.eye(96).double(), rtol=0, atol=1e-12)

    def error(a, b):
        product = q.fake_quantize(a, 4, axis=0) @ q.fake_quantize(b, 4, axis=0).T
        return float((product - x @ w.T).norm())

    r = q.hadamard(96, 0)
    assert error(x / s, w * s) < error(x, w) / 2 and error(x @ r, w @ r) < error(x, w)
    assert error(x * s, w / s) > error(x, w)  # the wrong way round hurts
    zero = w.clone()
    zero[:, 3] = 0
    assert (
        q.smooth(torch.ones(96).double(), zero, 0.5)[3] == 1
        and q.smooth(torch.zeros(96).double(), w, 0.5).eq(1).all()
    )
    torch.testing.assert_close(q.smooth(x.abs().amax(0), w, 1.0), x.abs().amax(0))


def test_what_cannot_be_rotated_or_scaled_is_refused(unchecked):
    for n in (0, 3, 7, 30, 6):
        with pytest.raises(ValueError, match="Hadamard"):
            q.hadamard(n)
    with pytest.raises(ValueError, match="0 channels"):
        q.random_rotation(0, 0)
    for x, alpha in ((torch.ones(3), 0.5), (-torch.ones(4), 0.5), (torch.ones(4), 2)):
        with pytest.raises(ValueError, match="x_absmax"):
            q.smooth(x, torch.ones(2, 4), alpha)
    with pytest.raises(ValueError, match="w holds NaN"):
        q.smooth(torch.ones(4), torch.ones(2, 4) / 0, 0.5)
    # uniform: no preferred direction
    rotation = torch.stack([q.random_rotation(3, s) for s in range(400)])
    assert rotation.mean(0).abs().max() < 0.15
