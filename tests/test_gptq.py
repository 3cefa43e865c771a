"""GPTQ against its definition column by column in float64, exhaustive search, rounding, and the
notebook it came from.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from layerbook.quantize import gptq
from layerbook.quantize import grids as q

OFFSET = {"offset": True, "stored": torch.float16}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n, rank, seed, tokens=512):
    x = normal(tokens, rank, seed=seed) @ normal(rank, n, seed=seed + 100) + 0.3 * normal(
        tokens, n, seed=seed + 200
    )
    return x.T @ x


def elimination(w, h, bits, group, damp=0.01, rounding=None):
    """Columns one by one, the inverse Hessian of what is left by explicit elimination, float64."""
    w, h = w.double().clone(), h.double().clone()
    inverse = torch.linalg.inv(
        h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    )
    back = torch.zeros_like(w)
    for j in range(w.shape[1]):
        if j % group == 0:
            block = w[:, j : j + group].float()
            grid = q.fit(block, bits, axis=0, **(rounding or OFFSET))
        back[:, j] = q.fake(w[:, j : j + 1].float(), grid)[:, 0].double()
        w -= (w[:, j : j + 1] - back[:, j : j + 1]) / inverse[j, j] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return back


@pytest.mark.parametrize(
    "kind", [OFFSET, {"symmetric": True}, {}], ids=["offset", "symmetric", "affine"]
)
@pytest.mark.parametrize(("bits", "group"), [(3, 16), (4, 48), (2, 48)])
def test_it_is_elimination_in_the_inverse_hessian(bits, group, kind):
    for seed in range(3):
        w, h = normal(16, 48, seed=seed), inputs(48, 8, seed)
        ours = gptq.solve(w, h, None, group, rounding=gptq.offset_grid(bits, **kind)).double()
        theirs = elimination(w, h, bits, group, rounding=kind)
        # a value near a half may round the other way, and its row differs from there on
        off = (ours - theirs).abs() > 1e-3
        assert (~off).all(1).double().mean() >= 0.75
        assert gptq.quadratic(w, ours, h) == pytest.approx(gptq.quadratic(w, theirs, h), rel=0.1)


def test_it_beats_rounding_on_average_and_equals_it_without_correlations():
    ratios = []
    for seed, bits in itertools.product(range(6), (2, 3, 4)):
        w, h = normal(16, 64, seed=seed), inputs(64, 8, seed)
        rounded = q.fake_quantize(w, bits, group=32, **OFFSET)
        ratios.append(
            gptq.quadratic(w, gptq.solve(w, h, bits, 32), h) / gptq.quadratic(w, rounded, h)
        )
    assert np.mean(ratios) < 0.5 and max(ratios) < 1
    diagonal = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1)
    assert torch.equal(gptq.solve(w, diagonal, 3, 32), q.fake_quantize(w, 3, group=32, **OFFSET))


def test_it_lies_between_exhaustive_search_and_rounding():
    for seed in range(5):
        w, h = normal(1, 6, seed=seed), inputs(6, 2, seed)
        grid = q.fit(w, 2, group=6, **OFFSET)
        points = q.decode(torch.arange(4).repeat(6, 1).T.contiguous(), grid)[:, 0].tolist()
        best = min(
            gptq.quadratic(w, torch.tensor([p]), h) for p in itertools.product(points, repeat=6)
        )
        fixed = gptq.solve(
            w,
            h,
            rounding=lambda _free, _start: (
                lambda column, _j: q.fake(
                    column[:, None, None].flatten(1),
                    q.Grid(grid.scale[0, 0], None, 0, 3, grid.offset[0, 0]),  # noqa: B023
                ).flatten()
            ),
        )  # noqa: B023
        assert best * (1 - 1e-6) <= gptq.quadratic(w, fixed, h)
    # the example of two inputs that agree: 0.4 and 0.4 to whole numbers
    whole = gptq.solve(
        torch.tensor([[0.4, 0.4]]), torch.ones(2, 2), rounding=lambda *_: lambda c, _j: c.round()
    )
    assert whole.tolist() == [[0.0, 1.0]]


def test_scale_of_h_format_of_w_and_rows():
    w, h = normal(12, 64), inputs(64, 8, 1)
    whole = gptq.solve(w, h, 3, 32)
    torch.testing.assert_close(gptq.solve(w, h * 4, 3, 32), whole)
    assert gptq.solve(w.double(), h.double(), 3, 32).dtype == torch.float64
    assert torch.equal(gptq.solve(w.T.contiguous().T, h, 3, 32), whole)
    parts = gptq.solve_together({"a": w[:5], "b": w[5:]}, h, 3, 32)
    assert list(parts) == ["a", "b"] and torch.equal(torch.cat(list(parts.values())), whole)
    assert (
        gptq.solve(torch.zeros(3, 8), torch.eye(8), 4).eq(0).all()
        and gptq.solve(w, torch.zeros(64, 64), 3).eq(0).all()
    )
    assert gptq.solve(normal(1, 1), torch.ones(1, 1), 8).shape == (1, 1)


def test_what_cannot_be_solved_is_refused(unchecked):
    w, h = torch.ones(2, 64), torch.eye(64)
    for bad, words in (
        ((w, h, 4, 48), "groups of 48"),
        ((w, torch.eye(8), 4, 8), r"must be \[out, in\]"),
        ((w, h), "bits or rounding"),
        ((w * float("nan"), h, 4), "w holds NaN"),
        ((w, h * float("inf"), 4), "h holds NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            gptq.solve(*bad)
    with pytest.raises(ValueError, match="not positive definite"):
        gptq.solve(w, h - 0.1 * torch.ones(64, 64), 4)


def test_moments_are_sums_over_all_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    a, b = normal(4, 6, 5), normal(2, 6, 5, seed=1)
    found = gptq.moments(lambda: (net(a), net(b)), {"first": net[0], ("last", 1): net[2]})
    x = torch.cat([a, b]).flatten(0, 1)
    hidden = net[0](x).relu().detach()
    torch.testing.assert_close(found["first"], x.T @ x)
    torch.testing.assert_close(found["last", 1], hidden.T @ hidden)
    assert not found["last", 1].requires_grad and not net[0]._forward_pre_hooks
    with pytest.raises(ValueError, match="never called: .*'other'|never called"):
        gptq.moments(lambda: None, {"other": net[0]})
    with pytest.raises(ZeroDivisionError):
        gptq.moments(lambda: 1 / 0, {"first": net[0]})
    assert not net[0]._forward_pre_hooks  # taken off after a failure too
