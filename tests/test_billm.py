"""One-bit weights: signs and scales, salient columns, the break-point, and what all of it takes."""

import numpy as np
import pytest
import torch

from layerbook.quantize import billm, gptq
from layerbook.quantize import grids as q


def a_map(out=24, n=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(400, n, generator=g) @ torch.randn(n, n, generator=g)
    return torch.randn(out, n, generator=g), x.T @ x


def solved(w, h, g=None):
    return gptq.solve(w, h, group=g or billm.width(w.shape[1]), rounding=billm.rounding(h))


@pytest.mark.parametrize(
    ("n", "width"), [(576, 96), (1536, 128), (64, 64), (97, 97), (131, 1), (160, 80)]
)
def test_blocks_of_columns_divide_the_width(n, width):
    assert billm.width(n) == width


def test_a_row_holds_four_values_of_ordinary_columns_and_four_of_salient_ones():
    w, h = a_map()
    for row in solved(w, h):
        values = {round(float(v), 5) for v in row}
        sizes = {abs(v) for v in values}
        assert len(values) <= 8 and len(sizes) <= 4


def test_the_salient_columns_are_those_whose_loss_would_cost_most():
    w, h = a_map()
    inverse = torch.linalg.inv(h.double()).diagonal().float()
    found = billm.salient(w, inverse)
    by_hand = sorted(range(32), key=lambda j: -float((w[:, j] ** 2).sum() / inverse[j] ** 2))[:3]
    assert sorted(found.nonzero()[:, 0].tolist()) == sorted(by_hand)
    w[:, 5] *= 30
    new = solved(w, torch.eye(32))
    # two signs; one alone leaves 0.6 of a normal column
    assert float((new - w)[:, 5].norm() / w[:, 5].norm()) < 0.5


def test_the_break_point_is_the_best_of_nine_by_brute_force():
    w, strong = a_map()[0], torch.arange(32) < 3
    rest, error = w[:, 3:], []
    for share in np.linspace(0.1, 0.9, 9):
        large = rest.abs() > share * rest.abs().max()
        sizes = [
            (rest.abs() * part).sum(1, keepdim=True) / part.sum(1, keepdim=True).clamp(min=1)
            for part in (large, ~large)
        ]
        error.append(float((rest - torch.where(large, *sizes) * rest.sign()).square().sum()))
    found = billm.split(w, strong)[:, 3:]
    assert float((rest - found * rest.sign()).square().sum()) == pytest.approx(min(error), rel=1e-5)
    assert min(error) < float((rest - q.binary(rest, axis=0)[0]).square().sum())


def test_pushing_errors_on_beats_signs_alone_in_the_outputs():
    for seed in range(3):
        w, h = a_map(seed=seed)
        plain = q.binary(w, axis=0)[0]
        assert gptq.quadratic(w, solved(w, h), h) < gptq.quadratic(w, plain, h)


def test_storage_is_counted_by_hand():
    kept = billm.stored((10, 256))  # two blocks of 128 columns with 13 salient ones each
    assert kept.weights == 2 * 10 * (128 + 13) and kept.scales == 2 * 10 * 4 * 16
    assert kept.masks == 2 * (128 + 10 * 115) and kept.number == 2560 and kept.per_weight > 2


def by_hand(w: np.ndarray, h: np.ndarray, share: float = 0.1) -> np.ndarray:
    """One block of columns in BiLLM's manner without any error passed on, in float64."""
    n = w.shape[1]
    inverse = np.diag(np.linalg.inv(h + 0.01 * np.diag(h).mean() * np.eye(n)))
    strong = np.zeros(n, bool)
    strong[np.argsort(-(w**2 / inverse**2).sum(0))[: max(1, round(share * n))]] = True
    out, sign = np.zeros_like(w), lambda t: np.where(t >= 0, 1.0, -1.0)
    first = abs(w[:, strong]).mean(1, keepdims=True) * sign(w[:, strong])
    left = w[:, strong] - first
    out[:, strong] = first + abs(left).mean(1, keepdims=True) * sign(left)
    rest, best = w[:, ~strong], (np.inf, None)
    for point in np.linspace(0.1, 0.9, 9) * abs(rest).max():
        made = np.zeros_like(rest)
        for mask in (abs(rest) > point, abs(rest) <= point):
            size = (abs(rest) * mask).sum(1, keepdims=True) / np.maximum(
                mask.sum(1, keepdims=True), 1
            )
            made += mask * size * sign(rest)
        if ((rest - made) ** 2).sum() < best[0]:
            best = ((rest - made) ** 2).sum(), made
    out[:, ~strong] = best[1]
    return out


def weight(out: int = 24, n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed))


def test_billm_equals_its_definition_where_no_error_is_passed_on():
    w = weight()
    # inputs without correlation
    h = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.5)
    want = by_hand(w.double().numpy(), h.double().numpy())
    np.testing.assert_allclose(gptq.solve(w, h, rounding=billm.rounding(h)), want, atol=1e-5)


def test_billm_keeps_outputs_closer_than_its_parts_do():
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(2)) @ weight(64, 64, 3) / 8
    w, h = weight(), x.T @ x
    ours = gptq.solve(w, h, rounding=billm.rounding(h))
    unpassed = torch.tensor(by_hand(w.double().numpy(), h.double().numpy())).float()
    plain = q.binary(w, axis=0)[0]
    errors = [gptq.quadratic(w, other, h) for other in (ours, unpassed, plain)]
    assert errors[0] < errors[1] < errors[2]
    # four for salient columns, two times two for the others
    assert all(len(row.unique()) <= 8 for row in ours)


def test_salient_columns_weigh_the_hessian():
    w, inverse = torch.ones(3, 20), torch.ones(20)
    inverse[7], inverse[4] = 0.1, 0.2
    assert billm.salient(w, inverse).nonzero()[:, 0].tolist() == [4, 7]
    w[:, 11] = 30.0
    assert billm.salient(w, inverse).nonzero()[:, 0].tolist() == [7, 11]
