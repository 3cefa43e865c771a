"""Surrogates of a wave solver, alike but for their convolutions, wave-nets.

A network reads four numbers, the centre, width and amplitude of a bump, and returns the space-time
field that the finite-element solver finds in a zone of interest. Every seed has training and test
data, first weights and batches of its own; within a seed all arms share them. Each network trains
on one thread, two of them at a time: the weights do not depend on how many run, and two small
networks side by side are faster than one on two threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from layerbook.data import wavefem
from layerbook.networks import room, separable, training

# centre x and y, width, amplitude
LOW, HIGH = (
    np.array([0.2, 0.2, 0.05, 0.5]),
    np.array([0.8, 0.8, 0.12, 1.5]),
)
ZONE = (0.5, 0.95)  # the square of interest; its border is no wall
CORNERS = (0.08, 0.2)  # distance from both walls of a corner, for data that training never shows
Pair = tuple[Tensor, Tensor]  # parameters [n, 4] and fields [n, frames, zone, zone]


@dataclass(frozen=True)
class Arm:
    """What a network's convolutions are.

    form: "dense", "A" (factors of each kernel), "B" (shared intermediate maps), "grouped",
    "pointwise" (1 x 1 x 1) or
    "one-axis" (along time). rank: of A. maps: intermediate maps of B, as a multiple of the layer's
    outputs. width: factor on all channels, None for the dense network with as many weights as B.
    shuffled: trained on pairs that do not belong
    together, dealt anew for every batch.
    """

    form: str
    rank: int = 1
    maps: float = 1.0
    width: float | None = 1.0
    shuffled: bool = False


ARMS = {
    "dense": Arm("dense"),
    "A": Arm("A"),
    "B": Arm("B"),
    "thin": Arm("dense", width=None),
    "grouped": Arm("grouped"),
    # fmt: skip
    "pointwise": Arm("pointwise"),
    "one-axis": Arm("one-axis"),
    "shuffled": Arm("B", shuffled=True),
}


@dataclass(frozen=True)
class Recipe:
    """Sizes of the solver, of the data and of the networks, and the schedule of training."""

    seed: int = 0  # the first
    seeds: int = 5
    nodes: int = 33  # of the mesh, on each side
    frames: int = 32  # stored times up to `horizon`
    every: int = 2  # solver steps between two of them
    horizon: float = 1.0  # the wave speed is 1 and so is the side of the square
    zone: int = 16  # points of the zone on each side
    train: int = 320
    test: int = 80
    far: int = 40  # samples with centres near corners
    channels: tuple[int, ...] = (32, 32, 16, 16)
    d: int = 3
    steps: int = 800
    batch: int = 16
    learning_rate: float = 2e-2
    gate: float = 0.35  # greatest relative test error allowed to any ordinary network


# --- data ---


def draw(n: int, seed: int, far: bool = False) -> np.ndarray:
    """Parameters [n, 4], uniform in the box; with `far`, centres near a random corner of the square
    instead.
    """
    g = np.random.default_rng([seed, int(far)])
    p = g.uniform(LOW, HIGH, (n, 4))
    if far:
        near = g.uniform(*CORNERS, (n, 2))
        p[:, :2] = np.where(g.random((n, 2)) < 0.5, near, 1 - near)
    return p


def fields(recipe: Recipe, parameters: np.ndarray, chunk: int = 80) -> Tensor:
    """Finite-element fields in the zone, float32 [n, frames, zone, zone], without the initial
    state.
    """
    membrane, steps = wavefem.assemble(recipe.nodes), recipe.frames * recipe.every
    window = wavefem.restrict(membrane, wavefem.grid(recipe.zone, *ZONE))
    found = []
    for part in np.split(parameters, range(chunk, len(parameters), chunk)):
        u = wavefem.solve(
            membrane, wavefem.bumps(membrane.points, part), recipe.horizon / steps, steps
        )
        found.append(np.stack([window @ frame for frame in u[recipe.every :: recipe.every]]))
    stacked = np.concatenate(found, -1).transpose(2, 0, 1)
    return torch.from_numpy(
        stacked.astype(np.float32).reshape(-1, recipe.frames, recipe.zone, recipe.zone)
    )


def data(
    recipe: Recipe, seed: int, parts: Sequence[str] = ("train", "test", "far")
) -> dict[str, Pair]:
    """The named parts of a seed's data: parameters and fields."""
    p = draw(recipe.train + recipe.test, seed)
    drawn = {
        "train": p[: recipe.train],
        "test": p[recipe.train :],
        "far": draw(recipe.far, seed, far=True),
    }
    together = fields(recipe, np.concatenate([drawn[part] for part in parts]))
    sizes = [len(drawn[part]) for part in parts]
    return {
        part: (torch.from_numpy(drawn[part]).float(), u)
        for part, u in zip(parts, together.split(sizes))
    }


# --- networks ---


class Decoder(nn.Module):
    """Four numbers -> a field: a linear layer to a coarse grid, three convolutions with upsampling
    by two in between, and a pointwise layer whose eight outputs are the eight finer positions of
    each place (Shi et al. 2016).
    """

    def __init__(self, layers: Sequence[nn.Module], latent: Sequence[int]) -> None:
        super().__init__()
        self.latent = (layers[0].shape[0], *latent)
        self.head = nn.Linear(4, math.prod(self.latent))
        self.convs = nn.ModuleList(layers)
        self.read = nn.Conv3d(layers[-1].shape[1], 8, 1)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer(
            "middle", torch.tensor((LOW + HIGH) / 2, dtype=torch.float32), persistent=False
        )
        self.register_buffer(
            "span", torch.tensor((HIGH - LOW) / 2, dtype=torch.float32), persistent=False
        )

    def maps(self, p: Tensor) -> list[Tensor]:
        """What enters each convolution, and last what enters the pointwise layer."""
        x = nn.functional.silu(self.head((p - self.middle) / self.span)).view(-1, *self.latent)
        found = [x]
        for k, conv in enumerate(self.convs):
            x = nn.functional.silu(conv(found[-1]))
            found.append(
                x if k == len(self.convs) - 1 else nn.functional.interpolate(x, scale_factor=2)
            )
        return found

    def forward(self, p: Tensor) -> Tensor:
        """Parameters [n, 4] -> fields [n, frames, zone, zone] in the units of the data."""
        x = self.read(self.maps(p)[-1])
        n, _, *grid = x.shape
        x = x.view(n, 2, 2, 2, *grid).permute(0, 4, 1, 5, 2, 6, 3)
        return self.scale * x.reshape(n, *(2 * g for g in grid))

    def positions(self) -> list[int]:
        """Places of the grid on which each convolution works."""
        return [math.prod(self.latent[1:]) * 8**k for k in range(len(self.convs))]


def layer(arm: Arm, c_in: int, c_out: int, d: int) -> nn.Module:
    """One convolution of an arm. ValueError for an unknown form."""
    sizes = {
        "dense": (d, d, d),
        "grouped": (d, d, d),
        "pointwise": (1, 1, 1),
        "one-axis": (d, 1, 1),
    }
    if arm.form == "A":
        return separable.PerKernel(c_in, c_out, d, arm.rank)
    if arm.form == "B":
        return separable.Shared(c_in, c_out, d, [max(1, round(arm.maps * c_out))] * 2)
    if arm.form not in sizes:
        raise ValueError(f"unknown form {arm.form!r}; there are A, B, {', '.join(sizes)}")
    return separable.Dense(c_in, c_out, sizes[arm.form], groups=4 if arm.form == "grouped" else 1)


def build(recipe: Recipe, arm: Arm, seed: int) -> Decoder:
    """An untrained network; all arms of a seed draw from the same random numbers."""
    if arm.width is None:
        arm = replace(arm, width=thinned(recipe))
    torch.manual_seed(10_000 + seed)
    c = [max(1, round(width * arm.width)) for width in recipe.channels]
    layers = [layer(arm, a, b, recipe.d) for a, b in zip(c, c[1:])]
    return Decoder(layers, [n // 8 for n in (recipe.frames, recipe.zone, recipe.zone)])


def thinned(recipe: Recipe) -> float:
    """The smallest width, in steps of 1 / 96, at which an ordinary network has no fewer filter
    weights than B.
    """
    wanted = counts(build(recipe, ARMS["B"], 0))[0]
    return next(
        k / 96
        for k in range(1, 97)
        if counts(build(recipe, Arm("dense", width=k / 96), 0))[0] >= wanted
    )


def counts(model: Decoder) -> tuple[int, int]:
    """Weights of the convolutions' filters, and all parameters."""
    return sum(separable.weights(c) for c in model.convs), sum(
        p.numel() for p in model.parameters()
    )


def train(recipe: Recipe, arm: Arm, seed: int, pair: Pair, model: Decoder | None = None) -> Decoder:
    """Train one network on parameters and fields, where these lie; returns it frozen.

    model: an already trained one, to be trained further with the same data and schedule.
    """
    p, u = pair
    model = build(recipe, arm, seed) if model is None else model.train().requires_grad_(True)
    model.to(p.device).scale.copy_(u.std())
    generator = torch.Generator().manual_seed(20_000 + seed)

    def loss_of(step: int) -> Tensor:
        chosen, other = torch.randint(len(p), (2, recipe.batch), generator=generator)
        target = u[other if arm.shuffled else chosen]
        return ((model(p[chosen]) - target) / model.scale).square().mean()

    training.fit(
        model, loss_of, training.Schedule(recipe.steps, recipe.learning_rate, weight_decay=0.0)
    )
    return model


@torch.no_grad()
def errors(model: nn.Module, pair: Pair) -> Tensor:
    """Relative L2 error over the whole space-time field of each sample [n], on the CPU in double
    precision.
    """
    p, u = pair
    return relative(torch.cat([model(part) for part in p.split(128)]), u)


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Norm of the difference over the norm of `wanted`, for each entry of the first axis."""
    found, wanted = (x.flatten(1).double().cpu() for x in (found, wanted))
    return (found - wanted).norm(dim=1) / wanted.norm(dim=1)


# --- the networks of record ---


def load(folder: Path) -> tuple[Recipe, dict[str, list[Decoder]]]:
    """The stored networks and their recipe: arm -> one frozen network for each seed."""
    stored = room.card(folder)["recipe"]
    recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    models = {
        name: [room.fill(build(recipe, arm, 0), folder, name, f"{k}.") for k in range(recipe.seeds)]
        for name, arm in ARMS.items()
    }
    return recipe, models
