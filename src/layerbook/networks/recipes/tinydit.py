"""tiny-dit: five diffusion transformers that differ by their seed alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from layerbook.networks import making, tinydit, training
from layerbook.networks.diffusion import diffuse, levels, linear_noise, sample

SIZE = tinydit.SIZE


def grow(recipe: tinydit.Recipe, seed: int, device: torch.device) -> making.Grown:
    """One network, and the images with captions."""
    images = tinydit.data()
    net, curve = tinydit.train(recipe, images, seed)
    return making.Grown({"": net}, {"loss": training.last(curve)}, data=images)


@torch.no_grad()
def quality(
    net: tinydit.TinyDiT, of: tinydit.Data, images: int = 1000, samples: int = 200, bands: int = 20
) -> dict[str, float]:
    """How a network does on held-out images and captions.

    Returns:
        "loss" (mean squared error of the noise), "over_linear", the same as a multiple of the best
        linear predictor's of each noise level, and "seen_as_wanted", the share of guided samples
        that a classifier of real images takes for what they should show.
    """
    from sklearn.linear_model import LogisticRegression

    flat, generator = of.x.flatten(1).double(), torch.Generator().manual_seed(0)
    mean, cov = flat.mean(0), flat.T.cov()
    losses, linear = [], []
    chunks = (of.held_x[:images].chunk(bands), of.held_words[:images].chunk(bands))
    for t, x, words in zip(levels(bands), *chunks):
        noise, at = torch.randn(x.shape, generator=generator), torch.full((len(x),), t)
        noisy = diffuse(x, at, noise)
        losses.append(F.mse_loss(net(noisy, at, words), noise).item())
        guess = linear_noise(noisy.flatten(1), t, mean, cov).float()
        linear.append(F.mse_loss(guess, noise.flatten(1)).item())
    words = of.held_words[-samples:]
    first = torch.randn(len(words), 1, SIZE, SIZE, generator=generator)
    made = sample(net, words, first, 20, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hundred iterations are near enough to convergence
        judge = LogisticRegression(C=0.1, max_iter=100)
        judge.fit(flat[:6000].numpy(), of.words[:6000, 2].numpy())
    seen = torch.from_numpy(judge.predict(made.clamp(-1, 1).flatten(1).double().numpy()))
    return {
        "loss": round(float(np.mean(losses)), 4),
        "over_linear": round(float(np.mean(losses) / np.mean(linear)), 4),
        "seen_as_wanted": round((seen == words[:, 2]).double().mean().item(), 4),
    }


def examine(recipe: tinydit.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Held-out loss and guided samples."""
    return quality(grown.models[""], grown.data)


def gate(recipe: tinydit.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every network beats linear prediction, and its samples show what they should."""
    worst = {
        "over_linear": max(one["over_linear"] for one in held_out.values()),
        "seen_as_wanted": min(one["seen_as_wanted"] for one in held_out.values()),
    }
    return {
        "most_over_linear": recipe.loss_gate,
        "least_seen_as_wanted": recipe.class_gate,
        "worst": worst,
        "passed": worst["over_linear"] <= recipe.loss_gate
        and worst["seen_as_wanted"] >= recipe.class_gate,
    }


NETWORK = making.Network(
    name="tiny-dit",
    about={
        "description": "Five small text-conditional diffusion transformers that differ by their "
        "seed alone.",
        "architecture": "PixArt-alpha's blocks (adaLN-single, self-attention, cross-attention, "
        "MLP) on 49 tokens, noise prediction",
        "data": "Fashion-MNIST (MIT, prepared asset fashion-mnist), means of 2x2 pixels; captions "
        "read off images and labels",
        "seconds": "about 600 on two cores",
    },
    recipe=tinydit.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="seeds",
    dtype=torch.float16,
)
