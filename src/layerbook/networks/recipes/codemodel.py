"""code-model: a small encoder of Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from layerbook.data import loaders, pycode
from layerbook.networks import codecounts, codemodel, making, training
from layerbook.networks.codemodel import MASK, SPECIAL


def grow(recipe: codemodel.Recipe, seed: int, device: torch.device) -> making.Grown:
    """The encoder with its tokenizer, and functions that it has not seen."""
    packages = {name: loaders.python_code(name) for name in pycode.PACKAGES}
    seen = [name for name in pycode.PACKAGES if name != pycode.APART]
    lines = {name: codemodel.texts({name: packages[name]}, "train") for name in seen}
    every = (line for some in lines.values() for line in some)
    tokenizer = codemodel.learn_tokenizer(every, recipe.vocabulary)
    sources = [[e.ids for e in tokenizer.encode_batch(some)] for some in lines.values()]
    model, curve = codemodel.train(recipe, sources, device)
    held = {
        f"{name} ({part})": codemodel.texts({name: packages[name]}, part, recipe.examined)
        for name in pycode.PACKAGES
        for part in ("probe", "valid", "test")
        if (part == "test") == (name == pycode.APART)
    }
    notes = {
        "loss_nats": training.last(curve),
        "subwords": {name: sum(map(len, some)) for name, some in zip(lines, sources)},
    }
    rows = [row for some in sources for row in some]
    return making.Grown({"encoder": model}, notes, tokenizer, (rows, held))


@torch.no_grad()
def table(
    model: Any,
    tokenizer: Any,
    train_rows: Sequence[Sequence[int]],
    held: Mapping[str, Sequence[str]],
    recipe: codemodel.Recipe,
) -> dict[str, dict[str, float]]:
    """Masked subwords of unseen functions, by part: nats and share of right guesses of the network
    and of the counts.

    Two things flatter the counts: their mixture is fitted to the very places that are examined, and
    they see the true neighbours where the network may see a mask.
    """
    out, spots = {}, []
    for part, lines in held.items():
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        encoded = [tokenizer.encode(line).ids for line in lines]
        ids = codemodel.padded([codemodel.pieces([row], recipe.context)[0] for row in encoded])
        chosen = codemodel.choose(ids, recipe.examined_share, generator)
        masked = torch.where(chosen, SPECIAL.index(MASK), ids)
        logits = codemodel.guesses(model, masked, chosen)
        out[part] = {
            "masked": int(chosen.sum()),
            "network": torch.nn.functional.cross_entropy(logits, ids[chosen]).item(),
            "network_right": (logits.argmax(-1) == ids[chosen]).double().mean().item(),
        }
        spots += [tuple(ids[i, j - 1 : j + 2].tolist()) for i, j in chosen.nonzero().tolist()]
    shares, right = codecounts.counted(train_rows, spots, recipe.vocabulary)
    sizes = [nats["masked"] for nats in out.values()]
    by_part = zip(shares.split(sizes), torch.tensor(right).double().split(sizes))
    for nats, (own, hits) in zip(out.values(), by_part):
        nats |= {"counts": codecounts.mixed_nats(own), "counts_right": hits.mean().item()}
    return {
        part: {name: round(value, 4) for name, value in nats.items()} for part, nats in out.items()
    }


def examine(recipe: codemodel.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Guesses of masked subwords beside those of counts."""
    rows, held = grown.data
    return table(grown.models["encoder"], grown.tokenizer, rows, held, recipe)


def gate(recipe: codemodel.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The network beats the counts in every part."""
    (parts,) = held_out.values()
    worst = min(nats["counts"] - nats["network"] for nats in parts.values())
    right = min(nats["network_right"] - nats["counts_right"] for nats in parts.values())
    return {
        "least_nats_below_counts": recipe.gate,
        "worst": round(worst, 4),
        "worst_gain_in_right_guesses": round(right, 4),
        "passed": worst >= recipe.gate and right > 0,
    }


NETWORK = making.Network(
    name="code-model",
    about={
        "description": "A small encoder of Python functions, trained here on masked and on next "
        "subwords.",
        "architecture": "EuroBERT: LLaMA's blocks (RMSNorm before each sublayer, SwiGLU, rotary "
        "positions), attention to both sides, tied embeddings, no dropout; stored in half precision",
        "data": "functions of django and sympy (BSD; prepared assets python-django, python-sympy) "
        "without three in ten modules; leaves joined by spaces; byte-level BPE of the same text",
        "seconds": "1482 on two cores beside two other jobs",
    },
    recipe=codemodel.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    place=making.by_role,
    dtype=torch.float16,
    threads=2,
)
