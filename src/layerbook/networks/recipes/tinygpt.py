"""tiny-gpt2: one network, trained on indirect-object sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerbook.networks import making, tinygpt, training


def grow(recipe: tinygpt.Recipe, seed: int, device: torch.device) -> making.Grown:
    """The network, and its word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unknown = tinygpt.UNKNOWN
    tokenizer = Tokenizer(models.WordLevel(tinygpt.vocabulary(), unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=unknown
    )
    model, curve = tinygpt.train(recipe)
    return making.Grown({"": model}, {"answer_loss_nats": training.last(curve)}, wrapped)


@torch.no_grad()
def accuracy(model: Any, recipe: tinygpt.Recipe, n: int = 100) -> dict[str, float]:
    """Share of right answers on held-out name pairs by template, `n` sentences each."""
    import random

    ids, rng = tinygpt.vocabulary(), random.Random(recipe.seed + 1)
    _, held_out = tinygpt.name_pairs(recipe.seed)
    shares = {}
    for template in tinygpt.TEMPLATES:
        rows = torch.stack([tinygpt.draw(rng, held_out, template, ids) for _ in range(n)])
        right = model(input_ids=rows[:, :-1]).logits[:, -1].argmax(-1) == rows[:, -1]
        shares[template] = right.float().mean().item()
    return shares


def examine(recipe: tinygpt.Recipe, seed: int, grown: making.Grown) -> dict[str, Any]:
    """Right answers to pairs of names that training did not hold, by template."""
    shares = accuracy(grown.models[""], recipe)
    return {"accuracy": {template: round(share, 4) for template, share in shares.items()}}


def gate(recipe: tinygpt.Recipe, held_out: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Every template is answered."""
    worst = min(min(one["accuracy"].values()) for one in held_out.values())
    return {"least_accuracy": recipe.gate, "worst": worst, "passed": worst >= recipe.gate}


NETWORK = making.Network(
    name="tiny-gpt2",
    about={
        "description": "A GPT-2 of 6 layers and width 128 that names the indirect object of "
        "synthetic sentences; trained here from nothing.",
        "architecture": "GPT-2: LayerNorm, GELU (tanh form), biases, learned positions, tied "
        "embeddings",
        "data": "synthetic sentences; word-level vocabulary",
    },
    recipe=tinygpt.Recipe(),
    grow=grow,
    examine=examine,
    gate=gate,
    place=making.by_role,
    dtype=torch.float16,
    threads=2,
)
