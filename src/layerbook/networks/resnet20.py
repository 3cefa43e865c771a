"""Narrow ResNet-20 networks trained on Fashion-MNIST in full precision, resnet20.

Five networks that differ by their seed alone, for papers about what single blocks of a
convolutional network bear. The architecture is that of He et al. (2016) for small images, a stem,
three stages of three residual blocks, and a linear head, with half the usual width and images at
half their size, so that every measurement can be made on five networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerbook.data import loaders
from layerbook.networks import room, training


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped networks."""

    seed: int = 0  # seeds are seed, seed + 1, ...
    seeds: int = 5
    widths: tuple[int, int, int] = (8, 16, 32)  # channels of the three stages
    images: int = (
        12_000  # of the 60,000, so that the networks come near a minimum of their training loss
    )
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.05
    gate: float = 0.86  # least held-out accuracy of every network; a linear classifier stays below


class Data(NamedTuple):
    """Standardised images, float32 [n, 1, 14, 14], and labels, int64 [n]."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut without parameters (He et al. 2016,
    option A).
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, before, h, w] to [n, width, h / stride, w / stride]."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(
            inner + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        )


class ResNet20(nn.Module):
    """Stem, three stages of three residual blocks, mean over positions, linear head."""

    def __init__(self, widths: tuple[int, int, int], classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        before, self.residual = widths[0], nn.ModuleDict()
        for stage, width in enumerate(widths):
            for k in range(3):
                self.residual[f"{stage + 1}{'abc'[k]}"] = Residual(
                    before, width, 2 if stage and not k else 1
                )
                before = width
        self.head = nn.Linear(before, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, h, w] to logits [n, classes]."""
        x = F.relu(self.bn(self.conv(x)))
        for block in self.residual.values():
            x = block(x)
        return self.head(x.mean((2, 3)))


def blocks(net: ResNet20) -> dict[str, dict[str, Tensor]]:
    """Weights of convolutions and head by block, in depth order: block -> name of the parameter in
    `net` -> weight.

    Blocks are stem, 1a to 3c, and head. Batch norm and biases belong to none.
    """
    parts: dict[str, dict[str, Tensor]] = {"stem": {"conv.weight": net.conv.weight}}
    for name, block in net.residual.items():
        parts[name] = {
            f"residual.{name}.conv{k}.weight": block.get_submodule(f"conv{k}").weight
            for k in (1, 2)
        }
    return parts | {"head": {"head.weight": net.head.weight}}


def data(recipe: Recipe, path: str | Path | None = None) -> Data:
    """The recipe's training images and all 10,000 held-out ones: means of 2x2 pixels, scaled as the
    training images ask.
    """
    arrays = loaders.fashion_mnist(path)
    x, held = (
        torch.from_numpy(np.array(a)).float()[:, None] / 255
        for a in (arrays["train_x"][: recipe.images], arrays["test_x"])
    )
    x, held = F.avg_pool2d(x, 2), F.avg_pool2d(held, 2)
    mean, spread = x.mean(), x.std()
    y, held_y = (
        torch.from_numpy(np.array(a)).long()
        for a in (arrays["train_y"][: recipe.images], arrays["test_y"])
    )
    return Data((x - mean) / spread, y, (held - mean) / spread, held_y)


def build(recipe: Recipe, seed: int) -> ResNet20:
    """An untrained network."""
    torch.manual_seed(seed)
    return ResNet20(recipe.widths)


def batches(of: Data, size: int, seed: int, augment: bool = True) -> Any:
    """A function of no arguments that draws training images x [size, 1, h, w] and labels y [size],
    by `seed` alone.

    With `augment`, each image is mirrored with even odds.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        at = torch.randint(len(of.x), (size,), generator=generator)
        x, y = of.x[at], of.y[at]
        if augment:
            mirrored = (torch.rand(size, generator=generator) < 0.5).to(x.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return x, y

    return draw


def train(recipe: Recipe, of: Data, seed: int) -> tuple[ResNet20, list[float]]:
    """Train one network; returns it, frozen and in evaluation mode, and the loss (nats) of every
    step.
    """
    net, draw = build(recipe, seed).train(), batches(of, recipe.batch, seed)

    def loss_of(step: int) -> Tensor:
        x, y = draw()
        return F.cross_entropy(net(x), y)

    schedule = training.Schedule(recipe.steps, recipe.learning_rate, recipe.weight_decay)
    return net, training.fit(net, loss_of, schedule)


@torch.no_grad()
def examine(net: nn.Module, x: Tensor, y: Tensor, some: int = 1000) -> dict[str, float]:
    """Accuracy (share) and loss (nats an image) of a network in evaluation mode."""
    logits = torch.cat([net(part) for part in x.split(some)])
    right = (logits.argmax(1) == y).double().mean()
    return {"accuracy": round(float(right), 4), "loss": round(float(F.cross_entropy(logits, y)), 4)}


def load(folder: Path, device: torch.device | str = "cpu") -> list[ResNet20]:
    """The networks of a folder in the order of their seeds, in evaluation mode and frozen."""
    card = room.card(folder)
    widths = tuple(card["recipe"]["widths"])
    return [
        room.fill(ResNet20(widths), folder, f"seed{seed}").to(device) for seed in card["held_out"]
    ]
