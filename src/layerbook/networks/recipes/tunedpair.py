"""tuned-pair: per seed a base network, its tuned descendant, and one trained on on plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerbook.data import loaders
from layerbook.data.instructions import World
from layerbook.networks import making, training, tunedpair


def grow(recipe: tunedpair.Recipe, seed: int, device: torch.device) -> making.Grown:
    """The three networks of a seed, and the world whose words they speak."""
    world = World(loaders.bible())
    models, curves = tunedpair.train(recipe, world, seed)
    losses = {name: training.last(curve) for name, curve in curves.items()}
    return making.Grown(models, {"loss_nats": losses}, data=world)


def examine(recipe: tunedpair.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Right answers to held-out instructions, and loss on plain text."""
    return tunedpair.examine(grown.models, grown.data, seed, recipe.examined)


def gate(recipe: tunedpair.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every tuned network follows instructions, and no base does."""
    worst = {
        "tuned": min(one["tuned"]["right"] for one in held_out.values()),
        "base": max(one["base"]["right"] for one in held_out.values()),
    }
    return {
        "least_tuned": recipe.gate,
        "most_base": recipe.chance,
        "worst": worst,
        "passed": worst["tuned"] >= recipe.gate and worst["base"] <= recipe.chance,
    }


def more(recipe: tunedpair.Recipe) -> dict[str, Any]:
    """The vocabulary, for the card."""
    return {"vocabulary": list(World(loaders.bible()).words)}


NETWORK = making.Network(
    name="tuned-pair",
    about={
        "description": "Per seed a small base network, its instruction-tuned descendant, and one "
        "trained on for equally many steps on plain text.",
        "architecture": "LLaMA: RMSNorm, rotary positions, grouped keys and values, SwiGLU, tied "
        "embeddings, no biases",
        "data": "short clauses of the World English Bible (public domain, prepared asset "
        "web-bible), templated sentences, and synthetic instructions among distractors",
        "seconds": "about 500 on two cores",
    },
    recipe=tunedpair.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="seeds",
    more=more,
    dtype=torch.float16,
)
