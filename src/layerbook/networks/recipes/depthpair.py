"""depth-pair: a shallow and a deep network that saw the same text in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from layerbook.data import loaders
from layerbook.networks import depthpair, making, training


def grow(recipe: depthpair.Recipe, seed: int, device: torch.device) -> making.Grown:
    """Both networks, on the prepared Bible without the held-out books."""
    text, held = depthpair.texts(loaders.bible())
    tokenizer = depthpair.learn_tokenizer(text, recipe.vocabulary)
    ids = tokenizer.encode(text).ids
    models, losses = {}, {}
    for name, layers in zip(depthpair.NAMES, recipe.depths, strict=True):
        models[name], curve = depthpair.train(recipe, layers, torch.tensor(ids))
        losses[name] = training.last(curve)
    notes = {
        "loss_nats": losses,
        "tokens": {
            "training_text": len(ids),
            "drawn": recipe.steps * recipe.batch * recipe.context,
        },
    }
    return making.Grown(models, notes, tokenizer, (ids, held))


@torch.no_grad()
def table(
    models: Mapping[str, Any],
    tokenizer: Any,
    train_ids: Sequence[int],
    held: Mapping[str, str],
    recipe: depthpair.Recipe,
) -> dict[str, dict[str, float]]:
    """Nats a token on every held-out book: book -> {"shallow", "deep", "unigram", "bigram"}."""
    batches = {
        book: depthpair.windows(tokenizer.encode(text).ids, recipe.context, recipe.examined)
        for book, text in held.items()
    }
    every = torch.cat(list(batches.values()))
    counted = depthpair.baselines(train_ids, every, recipe.vocabulary)
    out = {}
    for k, (book, batch) in enumerate(batches.items()):
        rows = slice(k * recipe.examined, (k + 1) * recipe.examined)
        nats = {
            name: depthpair.token_nats(model, batch).mean().item() for name, model in models.items()
        }
        nats |= {name: sum(values[rows]) / recipe.examined for name, values in counted.items()}
        out[book] = {name: round(value, 4) for name, value in nats.items()}
    return out


def examine(recipe: depthpair.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Loss on the held-out books beside that of counts."""
    ids, held = grown.data
    return table(grown.models, grown.tokenizer, ids, held, recipe)


def gate(recipe: depthpair.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Both networks beat the bigrams on every book."""
    (books,) = held_out.values()
    worst = min(nats["bigram"] - nats[name] for nats in books.values() for name in depthpair.NAMES)
    return {
        "least_nats_below_bigram": recipe.gate,
        "worst": round(worst, 4),
        "passed": worst >= recipe.gate,
    }


NETWORK = making.Network(
    name="depth-pair",
    about={
        "description": "Two GPT-2 of equal width, with 4 and with 8 blocks, trained here on the "
        "same text in the same order.",
        "architecture": "GPT-2: LayerNorm, GELU (tanh form), biases, learned positions, tied "
        "embeddings",
        "data": "World English Bible (public domain, prepared asset web-bible), all books but the "
        "held-out ones; byte-level BPE",
        "seconds": "about 200 on two cores",
    },
    recipe=depthpair.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    place=making.by_role,
    dtype=torch.float16,
    threads=2,
)
