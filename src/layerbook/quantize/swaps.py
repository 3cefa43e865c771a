"""A transformer with other weights in some of its linear maps: swapped by pointer, and measured
from where the change begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerbook.layers import transformer as tf
from layerbook.quantize import gptq

Key = tuple[int, str]  # block, and name of a linear map in it
Weights = dict[str, Tensor]  # name of a linear map in its block -> weights [out, in]


def maps(net: tf.Stack) -> list[dict[str, nn.Linear]]:
    """The linear maps of every block, by name."""
    return [
        {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        for block in net.blocks
    ]


@contextmanager
def swapped(net: tf.Stack, new: Mapping[int, Weights]) -> Iterator[None]:
    """Give blocks other weights while the context lasts: block -> name -> weights; no copies are
    made.
    """
    linear = maps(net)
    old = {(i, name): linear[i][name].weight.data for i, weights in new.items() for name in weights}
    try:
        for i, weights in new.items():
            for name, w in weights.items():
                linear[i][name].weight.data = w
        yield
    finally:
        for (i, name), w in old.items():
            linear[i][name].weight.data = w


class Text:
    """Windows `ids` [n, tokens] and the hidden states with which `net` enters each block on them,
    to start again from.
    """

    def __init__(self, net: tf.Stack, ids: Tensor, per_call: int = 8) -> None:
        self.net, self.parts = net, ids.split(per_call)
        self.calls = [tf.entries(net, part) for part in self.parts]

    def losses(self, new: Mapping[int, Weights], n: int | None = None) -> np.ndarray:
        """Mean next-token loss (nats) of each of the first n windows; a token costs at most a
        uniform guess, ln V.

        Blocks below the first that is replaced computed the same before and are not run again.
        """
        first, out, count = min(new, default=self.net.n), [], 0
        with swapped(self.net, new):
            for ids, calls in zip(self.parts, self.calls, strict=True):
                if n is not None and count >= n:
                    break
                start = min(first, self.net.n - 1)
                h, count = tf.resume(self.net, calls[start][0], calls, start), count + len(ids)
                out.append(token_losses(tf.lens(self.net, h[:, :-1]), ids[:, 1:]))
        return np.concatenate(out)[:n]


def token_losses(
    logits: Float[Tensor, "n positions vocabulary"], target: Int[Tensor, "n positions"]
) -> Float[np.ndarray, " n"]:
    """Mean loss [n] (nats) of each row from logits [n, positions, vocabulary], a token's capped at
    ln V.
    """
    loss = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), reduction="none"
    )
    return loss.clamp(max=math.log(logits.shape[-1])).view_as(target).mean(1).double().cpu().numpy()


def moments(
    net: tf.Stack, ids: Int[Tensor, "n positions"], per_call: int = 16
) -> dict[Key, Float[Tensor, "_ _"]]:
    """X X^T [in, in] of the input of every linear map, on windows `ids`; maps that read one tensor
    share theirs.
    """
    readers: dict[Key, list[Key]] = {}
    last: list[Any] = [None, None]

    def keep(key: Key) -> Any:
        def hook(_m: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] is not last[0]:
                last[:] = args[0], key
            readers.setdefault(last[1], []).append(key)

        return hook

    flat = {(i, name): m for i, block in enumerate(maps(net)) for name, m in block.items()}
    hooks = [m.register_forward_pre_hook(keep(key)) for key, m in flat.items()]
    net.model(ids[:1], use_cache=False)
    for hook in hooks:
        hook.remove()
    run = lambda: [net.model.base_model(part, use_cache=False) for part in ids.split(per_call)]  # noqa: E731
    sums = gptq.moments(run, {key: flat[key] for key in readers})
    return {key: sums[source] for source, keys in readers.items() for key in keys}
