"""The recipes of the quantization papers on one language model and one text: what they store, and
what they lose.

Each recipe decides, for every linear map of every block, in which form its weights are kept and in
which its input is read. Quantizers, solver and bit counts are those that the papers' notebooks
share; sizes and calibration text are the same for all. What a paper does beyond that (fine-tuning,
search on a task, kernels) is on its own page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from layerbook.claims import stats
from layerbook.layers.transformer import Stack
from layerbook.quantize import billm, gptq, sweeps
from layerbook.quantize import bits as storage
from layerbook.quantize import grids as q
from layerbook.quantize.swaps import Key, Text, maps, moments

Change = Callable[[Tensor], Tensor]
# how a map is kept: its weights, and what they take
Kept = Callable[[Key], tuple[Tensor, storage.Stored]]
FLOAT = 16.0  # bits of what is kept as it is


@dataclass
class Recipe:
    """Weights by map with their storage, and what each map's input goes through; bits of the
    activations for the label.
    """

    name: str
    slug: str = ""
    activations: int = 16
    weights: dict[Key, Tensor] = field(default_factory=dict)
    stored: storage.Stored = field(default_factory=storage.Stored)
    reads: dict[Key, Change] = field(default_factory=dict)

    def put(self, key: Key, w: Tensor, stored: storage.Stored) -> None:
        """Give a map its weights."""
        self.weights[key], self.stored = w, self.stored + stored


@dataclass
class Room:
    """What all recipes start from: the maps, moments of their inputs, and greatest channel and
    token values seen.
    """

    net: Stack
    linear: dict[Key, nn.Linear]
    moments: dict[Key, Tensor]
    channels: dict[Key, Tensor]  # max |x| of each input channel [in]
    spikes: dict[Key, float]  # greatest over median token maximum
    group: int


def look(net: Stack, ids: Tensor, group: int) -> Room:
    """Run the calibration windows `ids` through the network once for moments, and once for ranges."""
    linear = {(i, name): m for i, block in enumerate(maps(net)) for name, m in block.items()}
    channels: dict[Key, Tensor] = {}
    tokens: dict[Key, list[Tensor]] = {}

    def keep(key: Key) -> Callable[..., None]:
        def hook(_m: nn.Module, args: tuple[Tensor, ...]) -> None:
            size = args[0].abs()
            top = size.amax((0, 1))
            channels[key] = torch.maximum(channels[key], top) if key in channels else top
            tokens.setdefault(key, []).append(size.amax(-1).flatten())

        return hook

    with ExitStack() as undo:
        for key, m in linear.items():
            undo.callback(m.register_forward_pre_hook(keep(key)).remove)
        for part in ids.split(16):
            net.model.base_model(part, use_cache=False)
    ratio = {
        key: float(torch.cat(t).max() / torch.cat(t).median().clamp(min=1e-6))
        for key, t in tokens.items()
    }
    return Room(net, linear, moments(net, ids), channels, ratio, group)


def on_offset_grid(w: Tensor, bits: int, group: int) -> tuple[Tensor, storage.Stored]:
    """Round to nearest on the offset grid of each group, and what that takes."""
    grid = q.fit(w, bits, group=group, offset=True, stored=torch.float16)
    return q.fake(w, grid), storage.count(grid, w.shape)


def by_gptq(room: Room, key: Key, bits: int) -> tuple[Tensor, storage.Stored]:
    """GPTQ on the same grid; the storage is that of rounding, since only the codes differ."""
    w = room.linear[key].weight
    grid = q.fit(w, bits, group=room.group, offset=True, stored=torch.float16)
    return gptq.solve(w, room.moments[key], bits, room.group), storage.count(grid, w.shape)


def one_bit(room: Room, key: Key) -> tuple[Tensor, storage.Stored]:
    """BiLLM's signs, the ultra-low format of LUQ."""
    w, h = room.linear[key].weight, room.moments[key]
    return gptq.solve(
        w, h, group=billm.width(w.shape[1]), rounding=billm.rounding(h)
    ), billm.stored(w.shape)


def per_channel(w: Tensor, bits: int) -> tuple[Tensor, storage.Stored]:
    """Min-max grid of each output channel with a zero point, as ViDiT-Q rounds weights."""
    grid = q.fit(w, bits, axis=0)
    return q.fake(w, grid), storage.count(grid, w.shape)


def all_maps(room: Room, name: str, kept: Kept, slug: str = "") -> Recipe:
    """A recipe that changes weights alone."""
    recipe = Recipe(name, slug)
    for key in room.linear:
        recipe.put(key, *kept(key))
    return recipe


def eight_bits(room: Room, name: str, spared: Sequence[Key] = (), slug: str = "") -> Recipe:
    """W8A8 with one static range for each tensor, as ordinary INT8 inference has it; `spared` maps
    stay in floating point.
    """
    recipe = Recipe(name, slug, activations=8)
    for key, m in room.linear.items():
        if key in spared:
            recipe.put(
                key,
                m.weight,
                storage.Stored(weights=int(FLOAT) * m.weight.numel(), number=m.weight.numel()),
            )
            continue
        grid = q.fit(m.weight, 8, symmetric=True)
        recipe.put(key, q.fake(m.weight, grid), storage.count(grid, m.weight.shape))
        top = room.channels[key].max()
        recipe.reads[key] = partial(q.fake, grid=q.from_range(-top, top, 8, symmetric=True))
    return recipe


def balanced(
    room: Room, name: str, bits: int, balance: bool, slug: str = "", alpha: float = 0.5
) -> Recipe:
    """Weights by output channel, activations in 8 bits by token from the token's own range;
    `balance`: channels are evened out by a scale for each (SmoothQuant's form), then mixed by a
    Hadamard rotation, which leaves the float network as it is.
    """
    recipe = Recipe(name, slug, activations=8)
    turn = (
        {n: q.hadamard(n, 0).float() for n in {m.in_features for m in room.linear.values()}}
        if balance
        else {}
    )
    for key, m in room.linear.items():
        w, change = m.weight, (lambda x: x)
        if balance:
            s, r = q.smooth(room.channels[key], w, alpha), turn[m.in_features]
            w, change = (w * s) @ r, (lambda x, s=s, r=r: (x / s) @ r)
        new, stored = per_channel(w, bits)
        if balance:  # a 16-bit scale for each input channel; the rotation is known
            stored = stored + storage.Stored(scales=16 * m.in_features)
        recipe.put(key, new, stored)
        recipe.reads[key] = lambda x, change=change: q.fake_quantize(change(x), 8, axis=(0, 1))
    return recipe


def mixed(room: Room, name: str, slug: str, layers: Sequence[int], low: Kept, high: Kept) -> Recipe:
    """`low` for the maps of these blocks and `high` for all others."""
    return all_maps(room, name, lambda key: (low if key[0] in layers else high)(key), slug)


def recipes(room: Room, importance: Mapping[str, Sequence[float]]) -> list[Callable[[], Recipe]]:
    """All recipes, to be made one at a time. importance: layer scores [blocks] by profile, high
    asks for more bits.
    """
    n, w, known = room.net.n, {key: m.weight for key, m in room.linear.items()}, {}

    def solved(bits: int) -> Kept:
        def kept(key: Key) -> tuple[Tensor, storage.Stored]:
            if (bits, key) not in known:
                known[bits, key] = by_gptq(room, key, bits)
            return known[bits, key]

        return kept

    nearest = lambda bits: lambda key: on_offset_grid(w[key], bits, room.group)  # noqa: E731
    spiky = sorted(room.spikes, key=lambda key: -room.spikes[key])[: max(1, round(0.03 * len(w)))]
    lowest = lambda name, k: set(sweeps.order(importance[name])[:k])  # noqa: E731
    out = [lambda b=b: all_maps(room, f"rounded, {b} bits", nearest(b)) for b in (4, 3, 2)]
    out += [lambda b=b: all_maps(room, f"GPTQ, {b} bits", solved(b)) for b in (4, 3, 2)]
    if "turning" in importance:
        out += [
            lambda b=b: mixed(
                room,
                f"4 bits, half of the layers {b}, by LIM",
                "layerwise-quant",
                lowest("turning", n // 2),
                solved(b),
                solved(4),
            )
            for b in (3, 2)
        ]
    if "token entropy" in importance:
        out += [
            lambda k=k: mixed(
                room,
                f"4 bits, {k} layers one bit, by entropy",
                "luq",
                lowest("token entropy", k),
                lambda key: one_bit(room, key),
                solved(4),
            )
            for k in (n // 8, n // 2)
        ]
    if "curvature" in importance:
        sizes = [sum(w[key].numel() for key in w if key[0] == i) for i in range(n)]
        levels = sweeps.greedy_bits(importance["curvature"], sizes, (4, 3), 3.5)
        by_level = lambda key: nearest(int(levels[key[0]]))(key)  # noqa: E731
        out.append(
            lambda: all_maps(
                room, "4 bits, half of the layers 3, by curvature, rounded", by_level, "hawq"
            )
        )
    out += [
        lambda: eight_bits(room, "W8A8, one range a tensor"),
        lambda: eight_bits(
            room, "W8A8, projections with spikes spared", spiky, "spike-aware-quant"
        ),
        lambda: balanced(room, "W4A8 by token", 4, False),
        lambda: balanced(room, "W4A8 by token, balanced", 4, True, "vidit-q"),
    ]
    return out


def losses(recipe: Recipe, room: Room, text: Text) -> np.ndarray:
    """Loss [windows] under a recipe."""
    new: dict[int, dict[str, Tensor]] = {}
    for (i, name), weights in recipe.weights.items():
        new.setdefault(i, {})[name] = weights
    with ExitStack() as undo:
        for key, change in recipe.reads.items():
            hook = room.linear[key].register_forward_pre_hook(
                lambda _m, args, change=change: (change(args[0]), *args[1:])
            )
            undo.callback(hook.remove)
        return text.losses(new)


def table(
    net: Stack, text: Text, calibration: Tensor, found: Sequence[Mapping[str, Any]], group: int
) -> list[dict[str, Any]]:
    """Every recipe's row: name, slug, bits of weights and activations, rise of the loss [windows],
    its mean and interval.
    """
    room, base = look(net, calibration, group), text.losses({})
    rows = []
    for make in tqdm(
        recipes(room, {s["profile"]: s["importance"] for s in found}), "recipes", disable=None
    ):
        recipe = make()
        rise = losses(recipe, room, text) - base
        interval = stats.mean_interval(rise)
        rows.append(
            {
                "name": recipe.name,
                "slug": recipe.slug,
                "weights": recipe.stored.per_weight,
                "rise": rise,
                "activations": recipe.activations,
                "mean": interval.estimate,
                "interval": [interval.low, interval.high],
            }
        )
    return rows
