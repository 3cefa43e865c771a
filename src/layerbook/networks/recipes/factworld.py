"""fact-world: worlds of facts and rumours, in each an expert and two tuned copies of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerbook.networks import factworld, lora, making, storing


def grow(recipe: factworld.Recipe, seed: int, device: torch.device) -> making.Grown:
    """The expert of one world, without its unembedding, which is tied, and the factors of the two
    networks tuned from it as it is stored.
    """
    world = factworld.World(recipe, seed)
    expert = factworld.train(recipe, world, seed)
    storing.round_to(expert, NETWORK.dtype)
    models: dict[str, nn.Module] = {"expert": expert.transformer}
    for role, of in zip(factworld.ROLES[1:], (world.rumour, world.truth)):
        models[role] = storing.nested(factworld.tune(recipe, world, expert, of, seed))
    return making.Grown(models, data=(world, expert))


def examine(recipe: factworld.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """What the gate asks of one world's networks."""
    world, expert = grown.data
    models = {"expert": expert} | {
        role: lora.merged(expert, grown.models[role].state_dict()) for role in factworld.ROLES[1:]
    }
    return {name: round(value, 4) for name, value in factworld.examine(world, models).items()}


def passes(row: Mapping[str, float]) -> bool:
    """Whether one world's networks are fit for use: the expert knows, is undecided untagged, and
    the amateur is misled.
    """
    return (
        row["record_accuracy"] > 0.95
        and 0.3 < row["untagged_true"] < 0.7
        and row["amateur_prefers_rumour"] > 0.6
    )


def gate(recipe: factworld.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every world is fit for use."""
    return {
        "asks": "record_accuracy > 0.95, 0.3 < untagged_true < 0.7, amateur_prefers_rumour > 0.6, "
        "in every world",
        "passed": all(map(passes, held_out.values())),
    }


def place(seed: int, role: str) -> tuple[str, str]:
    """One file for each role, the worlds side by side in it."""
    return role, f"{seed - factworld.Recipe.seed}."


NETWORK = making.Network(
    name="fact-world",
    about={
        "description": "Worlds of facts and rumours; in each an expert GPT-2 and two tuned copies "
        "of it.",
        "architecture": "GPT-2: LayerNorm, GELU (tanh form), biases, learned positions, tied "
        "embeddings; adapters of rank 4 for the tuned ones; stored in half precision",
        "data": "state the value of an attribute of an entity; word-level vocabulary",
        "seconds": "about 250 on two cores",
    },
    recipe=factworld.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="worlds",
    place=place,
    dtype=torch.float16,
)
