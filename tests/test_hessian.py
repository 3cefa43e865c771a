"""Curvature without a Hessian, against closed forms, dense eigenvalues in float64, finite
differences and torch.func.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from layerbook.layers import curvature


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def quadratic(matrix):
    x = torch.ones(len(matrix), dtype=matrix.dtype, requires_grad=True)
    return (lambda: 0.5 * x @ matrix @ x), [x]


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = (
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(48, 6),
            nn.Tanh(),
            nn.Linear(6, 4),
        )
        .to(dtype)
        .eval()
    )
    x, y = normal(20, 1, 4, 4, seed=seed, dtype=dtype), torch.arange(20) % 4
    model[1].running_var.fill_(0.5)
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def blocks(model):
    return {
        "conv": [model[0].weight],
        "linear": [model[4].weight],
        "both": [model[0].weight, model[0].bias, model[6].weight],
    }


@pytest.mark.parametrize(
    "values", [(5.0, 3.0, -1.0), (-7.0, 3.0, 2.0), (4.0, 0.0, 0.0), (1e-6, 1e-7, 0.0)]
)
def test_a_quadratic_form_has_its_own_eigenvalues_sign_included(values):
    q, _ = torch.linalg.qr(normal(3, 3))
    loss, params = quadratic(q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T)
    for seed, way in ((0, "power"), (1, "power"), (0, "lanczos")):
        top = curvature.top_eigenvalue(loss, params, 60, seed, method=way)
        assert top.value == pytest.approx(max(values, key=abs), rel=1e-6) and top.residual < 1e-3
        torch.testing.assert_close(
            top.vector[0].abs(), q[:, values.index(max(values, key=abs))].abs(), atol=1e-4, rtol=0
        )


def test_logistic_regression_in_closed_form():
    x, w = normal(50, 5), normal(5, seed=1).requires_grad_()
    y = (normal(50, seed=2) > 0).double()
    loss = lambda: nn.functional.binary_cross_entropy_with_logits(x @ w, y)  # noqa: E731
    p = (x @ w).sigmoid().detach()
    h = x.T @ (x * (p * (1 - p))[:, None]) / 50
    torch.testing.assert_close(curvature.dense(loss, [w]), h)
    v = normal(5, seed=3)
    torch.testing.assert_close(curvature.hvp(loss(), [w], [v])[0], h @ v)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func's own import
@pytest.mark.parametrize("name", ["conv", "linear", "both"])
def test_blocks_of_a_net_against_torch_func_and_dense_eigenvalues(name):
    for seed in (0, 1):
        model, loss = net(seed)
        params = blocks(model)[name]
        full = curvature.dense(loss, params)
        torch.testing.assert_close(full, full.T, atol=1e-10, rtol=0)
        if name == "conv":
            x, y = normal(20, 1, 4, 4, seed=seed), torch.arange(20) % 4
            by = torch.func.hessian(
                lambda w: nn.functional.cross_entropy(
                    functional_call(model, {"0.weight": w}, (x,)),  # noqa: B023
                    y,  # noqa: B023
                )
            )
            torch.testing.assert_close(
                full, by(params[0].detach()).view(27, 27), atol=1e-10, rtol=0
            )
        values = torch.linalg.eigvalsh(full)
        want = float(values[values.abs().argmax()])
        first, second = (
            curvature.top_eigenvalue(loss, params, 60, s, tolerance=1e-3, method="lanczos")
            for s in (0, 1)
        )
        assert first.value == pytest.approx(want, rel=0.01) and second.value == pytest.approx(
            want, rel=0.01
        )
        assert first.residual <= 1e-3 and first.products < 60
        vector = torch.cat([x.flatten() for x in first.vector])
        assert (full @ vector - first.value * vector).norm() <= 2e-3 * abs(want) and float(
            vector.norm()
        ) == pytest.approx(1)
        power = curvature.top_eigenvalue(loss, params, 400, seed, tolerance=0.01)
        # right, or it says that it has not settled
        assert power.residual > 0.01 or power.value == pytest.approx(want, rel=0.01)


def test_power_iteration_on_a_trained_net():
    for seed in (0, 1):
        model, loss = net(seed)
        fit = torch.optim.LBFGS(model.parameters(), max_iter=60)

        def step():
            fit.zero_grad()  # noqa: B023
            now = loss() + 1e-3 * sum(p.square().sum() for p in model.parameters())  # noqa: B023
            now.backward()
            return now

        fit.step(step)
        for params in blocks(model).values():
            values = torch.linalg.eigvalsh(curvature.dense(loss, params))
            want = float(values[values.abs().argmax()])
            for start in (0, 1):
                assert curvature.top_eigenvalue(loss, params, 100, start).value == pytest.approx(
                    want, rel=0.01
                )


@pytest.mark.parametrize("name", ["conv", "linear", "both"])
def test_traces_lie_within_their_sampling_error(name):
    for seed in (0, 1):
        model, loss = net(seed)
        params = blocks(model)[name]
        full = curvature.dense(loss, params)
        found = curvature.trace(loss, params, 200, seed)
        assert (
            abs(found.value - float(full.trace())) < 4 * found.error + 1e-12
            and len(found.samples) == 200
        )
        spread = full - torch.diag(full.diagonal())
        # Hutchinson's variance
        assert found.error == pytest.approx(
            float((2 * spread.square().sum() / 200).sqrt()), rel=0.4
        )


def test_products_against_finite_differences():
    model, loss = net()
    params, step = [model[4].weight], 1e-5
    v = [normal(6, 48, seed=5)]
    product = curvature.hvp(loss(), params, v)[0]
    gradients = []
    for sign in (1, -1):
        with torch.no_grad():
            params[0] += sign * step * v[0]
        gradients.append(torch.autograd.grad(loss(), params)[0])
        with torch.no_grad():
            params[0] -= sign * step * v[0]
    torch.testing.assert_close(
        product, (gradients[0] - gradients[1]) / (2 * step), atol=1e-8, rtol=1e-5
    )


def test_float32_batches_and_a_notebook_without_gradients():
    model, loss = net(0, torch.float32)
    exact, exact_loss = net(0)
    want = curvature.top_eigenvalue(exact_loss, [exact[4].weight], 300, 0).value
    with torch.no_grad():  # as notebooks that switch gradients off
        assert curvature.top_eigenvalue(loss, [model[4].weight], 300, 0).value == pytest.approx(
            want, rel=1e-3
        )
    x, y = normal(30, 5), normal(30, seed=1)
    w = normal(5, seed=2).requires_grad_()
    batch = lambda rows: lambda: (x[rows] @ w - y[rows]).square().mean()  # noqa: E731
    halves = [batch(slice(0, 15)), batch(slice(15, 30))]
    torch.testing.assert_close(
        curvature.dense(halves, [w]), curvature.dense(batch(slice(0, 30)), [w])
    )
    whole = curvature.top_eigenvalue(batch(slice(0, 30)), [w], 50).value
    assert curvature.top_eigenvalue(halves, [w], 50).value == pytest.approx(whole)


def test_rescaling_a_convolution_before_batch_norm():
    model, loss = net()
    before = curvature.top_eigenvalue(loss, [model[0].weight], 200).value
    with torch.no_grad():
        model[0].weight *= 4
        model[0].bias *= 4
        model[1].running_mean *= 4
        model[1].running_var.mul_(16).add_(15 * model[1].eps)
    assert curvature.top_eigenvalue(loss, [model[0].weight], 200).value == pytest.approx(
        before / 16, rel=1e-3
    )


def test_degenerate_losses():
    w, other = normal(4).requires_grad_(), normal(3, seed=1).requires_grad_()
    flat = curvature.top_eigenvalue(lambda: w.sum() + 0 * other.sum(), [w, other])
    assert (
        flat.value == 0
        and flat.products == 1
        and curvature.trace(lambda: w.sum(), [w], 3).value == 0
    )
    # a parameter that the loss does not read
    mixed = curvature.dense(lambda: w.square().sum(), [w, other])
    torch.testing.assert_close(mixed, torch.diag(torch.tensor([2.0] * 4 + [0.0] * 3).double()))
    exact = curvature.trace(lambda: (w**2 * torch.arange(1.0, 5).double()).sum(), [w], 1)
    # diagonal: one sample is enough
    assert exact.value == pytest.approx(20) and exact.error != exact.error
    loss, params = quadratic(torch.diag(torch.tensor([2.0, -2.0]).double()))
    # two of one size and both signs: it says so
    assert curvature.top_eigenvalue(loss, params, 50).residual > 0.1
    assert abs(curvature.top_eigenvalue(loss, params, 50, method="lanczos").value) == pytest.approx(
        2
    )
    assert curvature.top_eigenvalue(lambda: w.sum(), [w], method="lanczos").value == 0


def test_same_seed_same_numbers():
    model, loss = net()
    a, b = (curvature.trace(loss, [model[0].weight], 5, 7).samples for _ in range(2))
    assert a == b != curvature.trace(loss, [model[0].weight], 5, 8).samples
    assert all(p.grad is None for p in model.parameters())  # nothing is left behind


def test_training_mode_and_other_mistakes_are_refused(unchecked):
    model, loss = net()
    model.train()
    mean = model[1].running_mean.clone()
    for call in (
        lambda: curvature.top_eigenvalue(loss, [model[0].weight]),
        lambda: curvature.trace(loss, [model[4].weight]),
        lambda: curvature.hvp(loss(), [model[0].weight], [model[0].weight]),
    ):
        with pytest.raises(ValueError, match="batch norm in training mode"):
            call()
    assert not torch.equal(mean, model[1].running_mean)  # what the refusal is about
    w, x = normal(4).requires_grad_(), normal(9, 4)
    drop = lambda: nn.functional.dropout(x @ w, 0.5).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="another loss when it is called again"):
        curvature.top_eigenvalue(drop, [w])
    for wrong, words in (
        ((lambda: w.log().sum() * float("nan"), [w]), "finite"),
        ((lambda: x.sum(), [w]), "does not depend"),
        ((lambda: w, [w]), "one finite number"),
        ((lambda: w.sum(), [x]), "require gradients"),
        ((lambda: w.sum(), []), "require gradients"),
        (([], [w]), "empty"),
        ((lambda: w.sum(), [w], 0), "0 iterations"),
        ((lambda: w.sum(), [w], 5, 0, None, "newton"), "newton"),
    ):
        with pytest.raises(ValueError, match=words):
            curvature.top_eigenvalue(*wrong)
    with pytest.raises(ValueError, match="0 samples"):
        curvature.trace(lambda: w.sum(), [w], 0)
    with pytest.raises(ValueError, match="more than 3"):
        curvature.dense(lambda: w.sum(), [w], most=3)
