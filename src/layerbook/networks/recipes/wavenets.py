"""wave-nets: surrogates of a wave solver with ordinary, separated and crippled convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerbook.networks import making, wavenets


def grow(recipe: wavenets.Recipe, seed: int, device: torch.device) -> making.Grown:
    """Every arm for one seed, on data of its own."""
    parts = wavenets.data(recipe, seed, ("train", "test"))
    models = {
        name: wavenets.train(recipe, arm, seed, parts["train"])
        for name, arm in wavenets.ARMS.items()
    }
    return making.Grown(models, data=parts["test"])


def examine(recipe: wavenets.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Mean relative error of every arm on the seed's test data."""
    return {
        name: round(wavenets.errors(model, grown.data).mean().item(), 4)
        for name, model in grown.models.items()
    }


def gate(recipe: wavenets.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every ordinary network has learnt the solver."""
    worst = max(one["dense"] for one in held_out.values())
    return {"most_error": recipe.gate, "worst": worst, "passed": worst <= recipe.gate}


def more(recipe: wavenets.Recipe) -> dict[str, Any]:
    """The arms and how many weights they have, for the card."""
    names = ("filter_weights", "parameters")
    return {
        "arms": {
            name: vars(arm) | dict(zip(names, wavenets.counts(wavenets.build(recipe, arm, 0))))
            for name, arm in wavenets.ARMS.items()
        }
    }


def place(seed: int, role: str) -> tuple[str, str]:
    """One file for each arm, the seeds side by side in it."""
    return role, f"{seed - wavenets.Recipe.seed}."


NETWORK = making.Network(
    name="wave-nets",
    about={
        "description": "Surrogates of a wave solver with ordinary and with separated convolutions, "
        "thin, grouped and crippled ones, trained here.",
        "architecture": "linear layer, three 3-D convolutions with SiLU and upsampling, pointwise "
        "read-out to sub-positions",
        "data": "layerbook.data.wavefem (linear triangles, Newmark), drawn anew for each seed",
        "seconds": "about 450 on two cores",
    },
    recipe=wavenets.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="seeds",
    place=place,
    more=more,
    dtype=torch.float16,
)
