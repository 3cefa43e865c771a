"""Separated convolutions against sums written out, the ordinary kernels to which they amount, and a
counter of operations.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layerbook.networks import separable

CASES = [(3, 4, 3, 2), (2, 3, 5, 2), (4, 2, 3, 3), (2, 3, 5, 3)]  # c_in, c_out, d, axes


def grid(axes: int) -> tuple[int, ...]:
    return (6, 5, 7)[:axes]


def brute(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A convolution as a sum over shifts of the zero-padded input."""
    d, sizes = kernel.shape[-1], x.shape[2:]
    padded = torch.nn.functional.pad(x, [d // 2, d // 2] * len(sizes))
    y = bias.view(1, -1, *[1] * len(sizes)).expand(len(x), -1, *sizes).clone()
    for shift in itertools.product(range(d), repeat=len(sizes)):
        window = padded[
            (slice(None), slice(None), *(slice(s, s + n) for s, n in zip(shift, sizes)))
        ]
        y += torch.einsum("oi,bi...->bo...", kernel[(slice(None), slice(None), *shift)], window)
    return y


def layers(c_in: int, c_out: int, d: int, axes: int) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    maps = (5, 6)[: axes - 1]
    found = [
        separable.Dense(c_in, c_out, (d,) * axes),
        separable.PerKernel(c_in, c_out, d, 1, axes),
        # fmt: skip
        separable.PerKernel(c_in, c_out, d, 3, axes),
        separable.Shared(c_in, c_out, d, maps, axes),
    ]
    for layer in found:
        layer.double().bias.data.normal_()
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_form_equals_the_sum_over_shifts_by_its_kernel_and_by_its_chain(case):
    x = torch.randn(2, case[0], *grid(case[3]), dtype=torch.float64)
    for layer in layers(*case):
        wanted = brute(x, layer.kernel(), layer.bias)
        assert torch.allclose(layer(x), wanted, atol=1e-12) and torch.allclose(
            layer.chain(x), wanted, atol=1e-12
        )


def test_kernels_are_the_products_that_the_formulas_say():
    a = separable.PerKernel(2, 3, 3, 2)
    u, v, w = a.factors
    wanted = sum(u[1, 0, r][:, None, None] * v[1, 0, r][:, None] * w[1, 0, r] for r in range(2))
    assert torch.allclose(a.kernel()[1, 0], wanted, atol=1e-6)
    b = separable.Shared(2, 3, 3, (4, 5))
    u, v, w = (f.flatten(2) for f in b.factors)
    assert torch.allclose(b.kernel(), torch.einsum("onz,nmy,mix->oixyz", w, v, u), atol=1e-6)
    rank_1 = torch.linalg.matrix_rank(separable.PerKernel(2, 3, 5, 1, axes=2).kernel())
    assert (rank_1 == 1).all() and (
        torch.linalg.matrix_rank(separable.PerKernel(2, 3, 5, 2, axes=2).kernel()) == 2
    ).all()
    unfolded = separable.Shared(4, 6, 3, (2,), axes=2).kernel().permute(1, 2, 3, 0).reshape(12, 18)
    assert torch.linalg.matrix_rank(unfolded) == 2


@pytest.mark.parametrize("case", CASES)
def test_weights_and_multiplications_are_counted_as_an_independent_counter_does(case, monkeypatch):
    (c_in, c_out, d, axes), plain, seen = case, separable.convolve, []

    def watched(x, *args, **options):
        y = plain(x, *args, **options)
        seen.append(x.numel() + y.numel())
        return y

    monkeypatch.setattr(separable, "convolve", watched)
    positions = torch.tensor(grid(axes)).prod().item()
    for layer in [*layers(*case), separable.Dense(4, 8, (d,) * axes, groups=4)]:
        layer = layer.float()
        assert separable.weights(layer) == sum(p.numel() for p in layer.parameters()) - len(
            layer.bias
        )
        x = torch.randn(1, layer.shape[0], *grid(axes))
        with FlopCounterMode(display=False) as counter:
            layer.chain(x)
        assert counter.get_total_flops() == 2 * separable.macs(layer, positions)
        seen.clear()
        layer.chain(x)
        assert separable.live(layer, positions) == max(seen)
    assert (
        separable.weights(separable.PerKernel(c_in, c_out, d, 2, axes))
        == 2 * axes * d * c_in * c_out
    )
    maps = separable.Shared(8, 8, d, (8,) * (axes - 1), axes)
    assert separable.weights(maps) * d ** (axes - 1) == axes * separable.weights(
        separable.Dense(8, 8, (d,) * axes)
    )


def test_all_forms_start_with_the_variance_of_an_ordinary_layer():
    torch.manual_seed(1)
    x = torch.randn(4, 16, 12, 12, 12)
    forms = [separable.Dense(16, 16, (3, 3, 3)), separable.PerKernel(16, 16, 3), separable.PerKernel(16, 16, 3, 3),
             separable.Shared(16, 16, 3, (16, 16)), separable.Dense(16, 16, (3, 1, 1)),
             separable.Dense(16, 16, (3, 3, 3), groups=4)]  # fmt: skip
    for layer in forms:
        inside = layer(x)[..., 2:-2, 2:-2, 2:-2]
        assert inside.var().item() == pytest.approx(2, rel=0.25), layer


def test_gradients_reach_every_factor_and_are_those_of_the_chain():
    for layer in layers(3, 4, 3, 3)[1:]:
        x = torch.randn(2, 3, 6, 5, 7, dtype=torch.float64)
        grads = [
            torch.autograd.grad(way(x).square().sum(), list(layer.parameters()))
            for way in (layer.forward, layer.chain)
        ]
        assert all(torch.allclose(a, b, atol=1e-9) and a.abs().max() > 0 for a, b in zip(*grads))


def test_wrong_numbers_of_maps_are_refused_and_factors_can_be_given():
    with pytest.raises(ValueError, match="2 sets of intermediate maps"):
        separable.Shared(2, 2, 3, (4,))
    first = separable.Shared(2, 3, 3, (4, 5))
    again = separable.Shared.of(list(first.factors), first.bias)
    x = torch.randn(1, 2, 4, 4, 4)
    assert (
        torch.equal(first(x), again(x))
        and again.factors[0].data_ptr() != first.factors[0].data_ptr()
    )
