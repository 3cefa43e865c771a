"""resnet20: five narrow residual networks that differ by their seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerbook.networks import making, resnet20, training


def grow(recipe: resnet20.Recipe, seed: int, device: torch.device) -> making.Grown:
    """One network, and the images that it saw and did not see."""
    images = resnet20.data(recipe)
    net, curve = resnet20.train(recipe, images, seed)
    return making.Grown({"": net}, {"loss_nats": training.last(curve)}, data=images)


def examine(recipe: resnet20.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Accuracy and loss on training and held-out images."""
    net, images = grown.models[""], grown.data
    return resnet20.examine(net, images.held_x, images.held_y) | {
        "training": resnet20.examine(net, images.x, images.y)
    }


def gate(recipe: resnet20.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every network is better than a linear classifier."""
    worst = min(one["accuracy"] for one in held_out.values())
    return {"least_accuracy": recipe.gate, "worst": worst, "passed": worst >= recipe.gate}


NETWORK = making.Network(
    name="resnet20",
    about={
        "description": "Five narrow ResNet-20 that differ by their seed alone, in full precision.",
        "architecture": "ResNet-20 for small images (He et al. 2016, option A), 8, 16 and 32 "
        "channels, batch norm",
        "data": "Fashion-MNIST (MIT, prepared asset fashion-mnist), first training images, means "
        "of 2x2 pixels, mirrored at random",
        "seconds": "about 200 on two cores",
    },
    recipe=resnet20.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="seeds",
)
