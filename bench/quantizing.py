"""Rows of `make bench` for the quantizers: each against the library that does the same, in one
process, taken in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from layerbook.quantize import gptq
from layerbook.quantize import grids as q

SHAPE = (1536, 576)  # an MLP map of the book's common model
ROUNDS = 15


def in_turns(
    plain: Callable[[], Any], ours: Callable[[], Any], calls: int, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Median seconds of `calls` calls of each, over rounds that take both in turn, after one round
    of warm-up.
    """
    took: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for function, seconds in zip((plain, ours), took):
            began = time.perf_counter()
            for _ in range(calls):
                function()
            if i:
                seconds.append(time.perf_counter() - began)
    return statistics.median(took[0]), statistics.median(took[1])


def columns(w: Tensor, h: Tensor, bits: int) -> Tensor:
    """GPTQ as its definition reads, one grid a row: after each column, all that are still free are
    corrected.
    """
    free, grid = w.clone(), q.fit(w, bits, axis=0, offset=True, stored=torch.float16)
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    for j in range(w.shape[1]):
        rounded = q.fake(free[:, j : j + 1], grid)
        free[:, j + 1 :] -= (free[:, j : j + 1] - rounded) / u[j, j] * u[j, j + 1 :]
        free[:, j : j + 1] = rounded
    return free


def quantizers() -> Iterator[dict[str, Any]]:
    """Fake quantization against torch's own, K-means against scikit-learn's, GPTQ against its
    definition.
    """
    from sklearn.cluster import KMeans

    from bench.machinery import row

    draw = torch.Generator().manual_seed(0)
    w = torch.randn(SHAPE, generator=draw)
    torch_tensor, torch_channel = (
        torch.fake_quantize_per_tensor_affine,
        torch.fake_quantize_per_channel_affine,
    )

    def fitted(x: Tensor) -> Tensor:
        low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        scale = (high - low) / 255
        return torch_channel(x, scale, (-low / scale).round().int(), 0, 0, 255)

    tensor, channel, group = q.fit(w, 8), q.fit(w, 4, axis=0), q.fit(w, 4, group=64)
    rows = w.view(-1, 64)
    pairs = {
        "8 bits, one grid": (
            lambda: torch_tensor(w, float(tensor.scale), int(tensor.zero), 0, 255),
            lambda: q.fake(w, tensor),
        ),
        "4 bits, a grid a row": (
            lambda: torch_channel(
                w, channel.scale.flatten(), channel.zero.flatten().int(), 0, 0, 15
            ),
            lambda: q.fake(w, channel),
        ),
        "4 bits, a grid for 64": (
            lambda: torch_channel(
                rows, group.scale.flatten(), group.zero.flatten().int(), 0, 0, 15
            ),
            lambda: q.fake(w, group),
        ),
        "8 bits a row, range and all": (lambda: fitted(w), lambda: q.fake_quantize(w, 8, axis=0)),
    }
    note = f"{SHAPE[0]} x {SHAPE[1]} weights, 100 times, median of {ROUNDS}; ours also refuses NaN and infinity"
    for name, (plain, ours) in pairs.items():
        a, b = in_turns(plain, ours, 100)
        yield row(
            f"fake quantization, {name}",
            ("torch.fake_quantize", a),
            ("layerbook.quantize.grids", b),
            1,
            note,
        )

    few = w.flatten()[:50_000].contiguous()
    column = few.double().numpy()[:, None]
    a, b = in_turns(
        lambda: KMeans(16, n_init=5, random_state=0).fit(column),
        lambda: q.codebook(few, 16, 0),
        1,
        5,
    )
    yield row(
        "codebook of 16 values",
        ("scikit-learn KMeans", a),
        ("quantizers.codebook", b),
        1,
        "50,000 weights, five starts each, median of 5; in one dimension sorting once makes Lloyd's steps cheap",
    )

    x = torch.randn(1024, SHAPE[1], generator=draw)
    h, block = x.T @ x, w[:512].contiguous()
    a, b = in_turns(lambda: columns(block, h, 4), lambda: gptq.solve(block, h, 4), 1, 5)
    yield row(
        "GPTQ, 512 x 576",
        ("its definition, column by column", a),
        ("gptq.solve", b),
        1,
        "no library to compare with; one group, median of 5",
    )
