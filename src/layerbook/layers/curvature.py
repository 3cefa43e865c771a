"""Curvature of a loss in a block of parameters, without its Hessian: products, top eigenvalue,
trace.

`loss_fn()` computes the loss, a scalar, anew from the parameters, or is a sequence of such
functions (batches), whose mean is the loss. It must be a function of the parameters alone: networks
in eval mode, since batch norm in training mode changes the Hessian and its own statistics, and
dropout the loss. Both are refused. Attention needs the "eager" or "math" kernel: the fused ones
have no second derivative. `params` is the block: tensors that require gradients, other parameters
being constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Loss = Callable[[], Tensor] | Sequence[Callable[[], Tensor]]


class Top(NamedTuple):
    """The eigenvalue of greatest size, with its sign; its unit vector, in the shapes of params;
    ||Hv - value v|| / |value|; and the products that were taken. Some eigenvalue lies within
    residual * |value| of the value.
    """

    value: float
    vector: list[Tensor]
    residual: float
    products: int


class Trace(NamedTuple):
    """Mean of the samples, its standard error, and the samples themselves."""

    value: float
    error: float
    samples: list[float]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum(dtype=torch.float64) for x, y in zip(a, b)))


def _nodes(loss: Float[Tensor, ""]) -> Iterator[object]:
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [n for n, _ in node.next_functions]


def _gradients(
    loss: Float[Tensor, ""], params: Sequence[Float[Tensor, "..."]]
) -> list[Float[Tensor, "..."] | None]:
    if loss.numel() != 1 or not torch.isfinite(loss).all():
        raise ValueError(f"loss must be one finite number, not {loss.detach()}")
    if not loss.requires_grad:
        raise ValueError("loss does not depend on params, or was computed without gradients")
    for node in _nodes(loss):
        if (
            getattr(node, "_saved_training", False) is True
            and getattr(node, "_saved_running_mean", None) is not None
        ):
            raise ValueError(
                "the loss goes through batch norm in training mode, which has another Hessian and changes its "
                "running statistics: call eval() on the network first"
            )
    return list(torch.autograd.grad(loss, params, create_graph=True, allow_unused=True))


def _checked(params: Sequence[Tensor]) -> list[Tensor]:
    found = [params] if isinstance(params, Tensor) else list(params)
    if not found or not all(p.requires_grad and p.is_floating_point() for p in found):
        raise ValueError("params must be tensors that require gradients, at least one")
    return found


def _product(
    gradients: Sequence[Tensor | None], params: Sequence[Tensor], v: Sequence[Tensor]
) -> list[Tensor]:
    pairs = [(g, x) for g, x in zip(gradients, v) if g is not None and g.requires_grad]
    if not pairs:  # the loss is linear in the block
        return [torch.zeros_like(p) for p in params]
    found = torch.autograd.grad(
        [g for g, _ in pairs], params, [x for _, x in pairs], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(p) if h is None else h.detach() for h, p in zip(found, params)]


def hvp(
    loss: Float[Tensor, ""],
    params: Sequence[Float[Tensor, "..."]],
    v: Sequence[Float[Tensor, "..."]],
) -> list[Float[Tensor, "..."]]:
    """H v of a `loss` computed with gradients, for `v` in the shapes of params (Pearlmutter 1994).
    ValueError as above.
    """
    params = _checked(params)
    with torch.enable_grad():
        return _product(_gradients(loss, params), params, [v] if isinstance(v, Tensor) else v)


class _Hessian:
    """Products with the Hessian of the mean loss; the graph of a single loss function is kept
    between them.
    """

    def __init__(self, loss_fn: Loss, params: Sequence[Tensor]) -> None:
        self.functions, self.params = (
            [loss_fn] if callable(loss_fn) else list(loss_fn),
            _checked(params),
        )
        if not self.functions:
            raise ValueError("loss_fn is an empty sequence")
        with torch.enable_grad():
            loss = self.functions[0]()
            self.kept = _gradients(loss, self.params)
            again = self.functions[0]()
        if not torch.equal(loss.detach(), again.detach()):
            raise ValueError(
                "loss_fn gives another loss when it is called again: dropout or new data? call eval() on the "
                "network and fix the batch"
            )
        if len(self.functions) > 1:
            self.kept = None

    def __call__(self, v: Sequence[Tensor]) -> list[Tensor]:
        if self.kept is not None:
            return _product(self.kept, self.params, v)
        total = [torch.zeros_like(p) for p in self.params]
        for function in self.functions:
            for t, h in zip(total, hvp(self._loss(function), self.params, v)):
                t.add_(h, alpha=1 / len(self.functions))
        return total

    @staticmethod
    def _loss(function: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            return function()

    def draw(self, generator: torch.Generator, signs: bool = False) -> list[Tensor]:
        """Gaussian numbers, or random signs, in the shapes of params, the same on every device."""
        made = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in self.params]
        return [(x.sign() if signs else x).to(p) for x, p in zip(made, self.params)]


def top_eigenvalue(
    loss_fn: Loss,
    params: Sequence[Float[Tensor, "..."]],
    iterations: int = 100,
    seed: int = 0,
    tolerance: float | None = None,
    method: str = "power",
) -> Top:
    """The Hessian's eigenvalue of greatest size, with its sign.

    Args:
        method: "power", power iteration (Dong et al. 2019, HAWQ, alg. 1; PyHessian). Where
            eigenvalues of both signs and about one size lead, as in nets that are not trained, it
            does not settle: look at the residual, and at a second seed. "lanczos" makes the most of
            the same products (Golub and Van Loan, ch. 10, with full reorthogonalization), settles
            there too and several times sooner, and keeps one copy of params for each product.
        tolerance: stop once the residual is at most this; None takes all iterations. That two
            values in a row agree proves little where the spectrum is dense; a residual bounds the
            error.

    Raises:
        ValueError: no iterations, another method, params without gradients, batch norm in training
            mode, or a loss that is not finite or changes from call to call.
    """
    if iterations < 1 or method not in ("power", "lanczos"):
        raise ValueError(
            f"{iterations} iterations of {method!r}: at least one, of 'power' or 'lanczos'"
        )
    product = _Hessian(loss_fn, params)
    v = product.draw(torch.Generator().manual_seed(seed))
    size = _dot(v, v) ** 0.5
    v = [x / size for x in v]
    return (_power if method == "power" else _lanczos)(product, v, iterations, tolerance or 0.0)


def _power(product: _Hessian, v: list[Tensor], iterations: int, tolerance: float) -> Top:
    for step in range(1, iterations + 1):
        hv = product(v)
        value, size = _dot(v, hv), _dot(hv, hv) ** 0.5
        if size == 0:
            return Top(0.0, v, 0.0, step)
        off = [h - value * x for h, x in zip(hv, v)]
        residual = _dot(off, off) ** 0.5 / abs(value) if value else float("inf")
        if step == iterations or residual <= tolerance:
            break
        v = [x / size for x in hv]
    return Top(value, v, residual, step)


def _lanczos(product: _Hessian, v: list[Tensor], iterations: int, tolerance: float) -> Top:
    basis, diagonal, beside = [v], [], []
    for _ in range(min(iterations, sum(x.numel() for x in v))):
        left = product(basis[-1])
        diagonal.append(_dot(basis[-1], left))
        for _ in range(2):  # once leaves traces of the leading vectors
            for b in basis:
                along = _dot(b, left)
                left = [x - along * y for x, y in zip(left, b)]
        size = _dot(left, left) ** 0.5
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, b in enumerate(beside):
            small[i, i + 1] = small[i + 1, i] = b
        values, vectors = torch.linalg.eigh(small)
        at = int(values.abs().argmax())
        value, weights = float(values[at]), vectors[:, at].tolist()
        residual = size * abs(weights[-1]) / abs(value) if value else 0.0
        # the other end of the spectrum, which may still grow past this one
        rival = -1 if at == 0 else 0
        settled = len(diagonal) > 1 and abs(float(values[rival])) + size * abs(
            float(vectors[-1, rival])
        ) <= abs(value)
        if (
            size <= 1e-12 * abs(value)
            or (settled and residual <= max(tolerance, 1e-12))
            or not value
        ):
            break
        beside.append(size)
        basis.append([x / size for x in left])
    found = [sum(w * b[i] for w, b in zip(weights, basis)) for i in range(len(v))]
    return Top(value, found, residual, len(diagonal))


def trace(
    loss_fn: Loss, params: Sequence[Float[Tensor, "..."]], samples: int = 100, seed: int = 0
) -> Trace:
    """Trace of the Hessian: the mean of v^T H v over random signs v (Hutchinson 1989; HAWQ-V2).
    ValueError as above.

    A diagonal Hessian is exact with one sample; the variance is twice the sum of its squared
    off-diagonal entries.
    """
    if samples < 1:
        raise ValueError(f"{samples} samples")
    product, generator = _Hessian(loss_fn, params), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(samples):
        v = product.draw(generator, signs=True)
        found.append(_dot(v, product(v)))
    mean = sum(found) / samples
    spread = sum((x - mean) ** 2 for x in found) / max(1, samples - 1)
    return Trace(mean, (spread / samples) ** 0.5 if samples > 1 else float("nan"), found)


def dense(
    loss_fn: Loss, params: Sequence[Float[Tensor, "..."]], most: int = 4096
) -> Float64[Tensor, "n n"]:
    """The Hessian [n, n] of the block, float64, one product a column: for tests and small blocks of
    at most `most` numbers.

    ValueError beyond that, and as above.
    """
    product = _Hessian(loss_fn, params)
    sizes = [p.numel() for p in product.params]
    if sum(sizes) > most:
        raise ValueError(f"a block of {sum(sizes)} numbers: more than {most}")
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        v = [u.view(p.shape).to(p) for u, p in zip(unit.split(sizes), product.params)]
        columns.append(torch.cat([h.flatten().double() for h in product(v)]))
    return torch.stack(columns, 1)
