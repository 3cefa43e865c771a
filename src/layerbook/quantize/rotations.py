"""Changes of basis that leave X W^T as it is and even out what is quantized. Import them from
`layerbook.quantize.grids`.

Scaling: X diag(1/s) and W diag(s); rotation: X R and W R with R R^T = I. Scale first, then rotate
(ViDiT-Q, sec. 4.2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from layerbook.quantize.ranges import finite


def smooth(
    x_absmax: Float[Tensor, " in"], w: Float[Tensor, "out in"], alpha: float
) -> Float[Tensor, " in"]:
    """Scales s [in] of SmoothQuant: s = max|X|^alpha / max|W|^(1 - alpha) by input channel (Xiao et
    al. 2023, eq. 4).

    Divide the inputs by s and multiply the columns of w [out, in] by it, then fit the weights' grid
    anew. ViDiT-Q's later code multiplies X by m = max|W|^a / max|X|^(1 - a), which is 1 /
    smooth(x_absmax, w, 1 - a).

    Args:
        x_absmax: [in], the greatest |X| of each input channel over calibration tokens.
        w: [out, in].
        alpha: 0 leaves the difficulty to the inputs, 1 moves it all into the weights.

    A channel that is zero in either gets s = 1. Raises ValueError for NaN, infinity, a negative
    x_absmax, other shapes, or alpha outside 0..1.
    """
    finite(x_absmax, "x_absmax"), finite(w, "w")
    if x_absmax.shape != w.shape[1:] or w.dim() != 2 or (x_absmax < 0).any() or not 0 <= alpha <= 1:
        raise ValueError(
            f"x_absmax {list(x_absmax.shape)} must be [in] of w {list(w.shape)}, not negative; alpha {alpha} in 0..1"
        )
    x, m = x_absmax.detach().double(), w.detach().abs().amax(0).double()
    return torch.where((x > 0) & (m > 0), x**alpha / m ** (1 - alpha), 1.0).to(x_absmax.dtype)


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _paley(n: int) -> Float64[Tensor, "n n"] | None:
    """A Hadamard matrix of order n = q + 1 (q a prime, 3 mod 4) or 2 (q + 1) (1 mod 4), else None
    (Paley 1933).
    """
    for q, second in ((n - 1, False), (n // 2 - 1, True)):
        if n % 4 == 0 and _prime(q) and q % 4 == (1 if second else 3):
            squares = {i * i % q for i in range(1, q)}
            sign = torch.tensor(
                [0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float64
            )
            s = torch.ones(q + 1, q + 1, dtype=torch.float64)
            s[0, 0] = 0.0
            s[1:, 1:] = sign[(torch.arange(q)[:, None] - torch.arange(q)) % q]
            if second:
                a, b = (
                    torch.tensor([[1.0, 1], [1, -1]]).double(),
                    torch.tensor([[1.0, -1], [-1, -1]]).double(),
                )
                return torch.kron(s, a) + torch.kron(torch.eye(q + 1).double(), b)
            s[1:, 0] = -1.0
            return s + torch.eye(q + 1).double()
    return None


def hadamard(n: int, seed: int | None = None) -> Float64[Tensor, "n n"]:
    """An orthogonal matrix [n, n], float64, of entries +-1 / sqrt(n): it spreads an outlier evenly
    over all channels.

    Args:
        n: 2^k times 1, or times an order of Paley's: 12 (so 96, 384, 1536), 20, 28, 36 (so 576) and
            more.
        seed: multiplies the rows by random signs (QuIP#, QuaRot's randomized Hadamard); None leaves
            them.

    Raises:
        ValueError: no construction for n; take random_rotation.
    """
    core, order = None, n
    while n > 0 and core is None:
        core = (
            torch.ones(1, 1, dtype=torch.float64)
            if order == 1
            else _paley(order)
            if n & (n - 1)
            else None
        )
        if core is None and order % 2:
            break
        order //= 2
    if core is None:
        raise ValueError(
            f"no Hadamard matrix of order {n} is built here: take 2^k, 12, 20, 28 or 36 times 2^k, or random_rotation"
        )
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(core) < n:
        core = torch.kron(two, core)
    if seed is not None:
        core = core * (
            2.0 * torch.randint(2, (n, 1), generator=torch.Generator().manual_seed(seed)) - 1.0
        )
    return core / n**0.5


def random_rotation(n: int, seed: int) -> Float64[Tensor, "n n"]:
    """An orthogonal matrix [n, n], float64, uniform over all of them (QR of Gaussians with the
    signs fixed: Mezzadri 2007).
    """
    if n < 1:
        raise ValueError(f"{n} channels cannot be rotated")
    q, r = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return q * r.diagonal().sign()
