"""shapes-vlm: networks like LLaVA in the small, equal but for the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from layerbook.data import shapes
from layerbook.networks import making, shapesvlm, training

SAMPLES = {
    "query": "what color is the circle ? (or: what shape is the red object ?)",
    "choose": "is the circle red or blue ?",
    "verify": "is the circle red ?",
    "place": "is the circle left or right ?",
}


def grow(recipe: shapesvlm.Recipe, seed: int, device: torch.device) -> making.Grown:
    """One network."""
    model, curve = shapesvlm.train(replace(recipe, seed=seed), watch=100)
    return making.Grown({"": model}, {"loss_nats": training.last(curve)})


def examine(recipe: shapesvlm.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Right answers to held-out questions, in all and by kind."""
    asked = shapes.examples(recipe.examined, seed, kinds=recipe.kinds)
    right = shapesvlm.accuracy(grown.models[""], asked)
    return {
        "accuracy": round(right.float().mean().item(), 4),
        "by_kind": shapesvlm.by_kind(right, asked),
    }


def gate(recipe: shapesvlm.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every network answers every kind of question."""
    worst = min(min(one["by_kind"].values()) for one in held_out.values())
    return {
        "least_accuracy_of_a_kind": recipe.gate,
        "worst": worst,
        "passed": worst >= recipe.gate,
    }


def more(recipe: shapesvlm.Recipe) -> dict[str, Any]:
    """What pictures, sequences and questions are, for the card."""
    side, grid, cell = shapes.SIDE, shapes.GRID, shapes.CELL
    return {
        "images": f"uint8 [n, {side}, {side}, 3], RGB; {grid} x {grid} patches of {cell} x {cell} "
        "pixels, row by row, one token each",
        "sequence": f"<bos>, {shapes.PATCHES} patches, words of the question, "
        f"{' '.join(shapes.SUFFIX)}; the answer is one word, read at the last of them",
        "questions": {kind: SAMPLES[kind] for kind in recipe.kinds},
    }


NETWORK = making.Network(
    name="shapes-vlm",
    about={
        "description": "Networks like LLaVA in the small, equal but for the seed, which answer "
        "questions about drawn scenes.",
        "architecture": "linear patch encoder with positions, MLP projector, LLaMA decoder "
        "(RMSNorm, rotary positions, gated MLP)",
        "data": "scenes with captions and questions by layerbook.data.shapes, drawn anew at each "
        "step",
        "seconds": "about 480 on two cores",
    },
    recipe=shapesvlm.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    members="runs",
    place=lambda seed, role: (f"seed-{seed}", ""),
    more=more,
    dtype=torch.float16,
)
