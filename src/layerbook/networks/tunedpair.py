"""Base networks and their instruction-tuned descendants, tuned-pair.

For each of several seeds three networks with the layout of LLaMA: `base`, trained on plain text;
`tuned`, which goes on from it with instructions, the loss on answers alone; and `control`, which
goes on from it for equally many steps on plain text. Base and tuned differ by the tuning alone.
Text: `layerbook.data.instructions`, in which a seed also decides which verbs become instructions.
Vocabulary: whole words, listed in card.json.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerbook import paths
from layerbook.data.instructions import (
    LONGEST,
    STOP,
    TASKS,
    WIDEST,
    Example,
    Roles,
    World,
    roles,
)
from layerbook.networks import room, training

KINDS = ("base", "tuned", "control")
IGNORED = -100  # label of tokens without loss


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped networks."""

    seed: int = 0  # seeds are seed, seed + 1, ...
    seeds: int = 5
    layers: int = 4
    width: int = 64
    inner: int = 128
    heads: int = 4
    kv_heads: int = 2
    start: int = (
        250  # first steps of the base with many repeated lists, so that heads that copy form early
    )
    steps: int = 900  # of the base
    further: int = 2400  # of the tuning, and of the control
    batch: int = 16
    learning_rate: float = 8e-3
    tuning_rate: float = 5e-3
    examined: int = 140  # held-out instructions for the gate
    gate: float = 0.8  # least share of right answers of every tuned network
    chance: float = 0.05  # greatest share of right answers of every base


def build(recipe: Recipe, seed: int, words: int) -> Any:
    """An untrained network (RMSNorm, rotary positions, grouped keys, SwiGLU, tied embeddings)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=words, hidden_size=recipe.width, intermediate_size=recipe.inner, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads, max_position_embeddings=2 * LONGEST,
        # with transformers' 0.02 no copying head forms within the minute
        initializer_range=recipe.width**-0.5,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=None, use_cache=False,
    ))  # fmt: skip


def plain_rows(world: World, seed: int, n: int, start: int = 0) -> Tensor:
    """`n` rows of plain text [n, LONGEST], a part of them drills: 70 % of the first `start` and 25
    % of the others.
    """
    rng = random.Random(f"plain-{seed}")
    return torch.tensor(
        [world.row(rng, rng.random() < (0.7 if i < start else 0.25)) for i in range(n)]
    )


def tuning_rows(world: World, role: Roles, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """`n` instructions with their answers, padded on the right: ids and labels [n, length]."""
    rng, ids, labels = random.Random(f"tuning-{seed}"), [], []
    for _ in range(n):
        example = world.example(rng, role, held_out=False)
        prompt, response = world.encode(example.words), world.encode(example.response)
        ids.append(torch.tensor(prompt + response))
        labels.append(torch.tensor([IGNORED] * len(prompt) + response))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True, 0), pad(labels, True, IGNORED)


def loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean loss in nats of the labelled tokens; logits are formed at those places alone."""
    wanted = labels[:, 1:] != IGNORED
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[wanted]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][wanted])


def fit(
    model: Any, ids: Tensor, labels: Tensor, batch: int, steps: int, rate: float
) -> list[float]:
    """Train on rows [steps * batch, length] in their order, and round the weights to what half
    precision stores.
    """
    model.requires_grad_(True).train()
    ids, labels = ids.to(model.device), labels.to(model.device)
    schedule = training.Schedule(steps, rate, weight_decay=0.05)
    part = lambda rows, i: rows[i * batch : (i + 1) * batch]  # noqa: E731
    curve = training.fit(model, lambda i: loss(model, part(ids, i), part(labels, i)), schedule)
    model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    return curve


def train(
    recipe: Recipe, world: World, seed: int, device: Any = "cpu"
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The three networks of one seed, frozen, and the loss of every step."""
    base = build(recipe, seed, len(world.words)).to(device)
    text = plain_rows(
        world, seed, recipe.batch * (recipe.steps + recipe.further), recipe.batch * recipe.start
    )
    first, more = text[: recipe.batch * recipe.steps], text[recipe.batch * recipe.steps :]
    curves = {"base": fit(base, first, first, recipe.batch, recipe.steps, recipe.learning_rate)}
    models = {"base": base}
    stages = {
        "tuned": tuning_rows(world, roles(seed), seed, recipe.batch * recipe.further),
        "control": (more, more),
    }
    for name, (ids, labels) in stages.items():
        model = build(recipe, seed, len(world.words)).to(device)
        model.load_state_dict(base.state_dict())
        curves[name] = fit(model, ids, labels, recipe.batch, recipe.further, recipe.tuning_rate)
        models[name] = model
    return models, curves


def examples(world: World, seed: int, n: int, draw: int = 0) -> list[Example]:
    """`n` held-out instructions of a seed, tasks and places in turn."""
    rng, role = random.Random(f"held-out-{seed}-{draw}"), roles(seed)
    return [
        world.example(rng, role, True, TASKS[i % len(TASKS)], (i // len(TASKS)) % 4)
        for i in range(n)
    ]


@torch.no_grad()
def respond(
    model: Any, world: World, prompts: Sequence[Sequence[str]], most: int = WIDEST
) -> list[list[str]]:
    """Greedy answers, each up to its first full stop or `most` tokens."""
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.zeros(
        len(prompts), int(lengths.max()) + most, dtype=torch.long, device=model.device
    )
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = torch.tensor(world.encode(prompt))
    rows = torch.arange(len(prompts))
    for k in range(most):
        hidden = model.model(input_ids=ids[:, : int(lengths.max()) + k]).last_hidden_state[
            rows, lengths + k - 1
        ]
        ids[rows, lengths + k] = model.lm_head(hidden).argmax(-1)
    found = []
    for row, n in zip(ids.tolist(), lengths.tolist()):
        words = [world.words[i] for i in row[n : n + most]]
        found.append(words[: words.index(STOP) + 1] if STOP in words else words)
    return found


def right(model: Any, world: World, questions: Sequence[Example]) -> list[bool]:
    """Which answers are the right ones, word for word."""
    return [
        tuple(got) == q.response
        for got, q in zip(respond(model, world, [q.words for q in questions]), questions)
    ]


def examine(models: Mapping[str, Any], world: World, seed: int, n: int) -> dict[str, Any]:
    """Share of right answers of each network to held-out instructions, that of the tuned one by
    task, and plain-text loss.
    """
    questions, found = examples(world, seed, n), {}
    text = plain_rows(world, seed + 10_000, 50)
    for name, model in models.items():
        hits = right(model, world, questions)
        with torch.no_grad():
            nats = loss(model, text.to(model.device), text.to(model.device)).item()
        found[name] = {"right": round(sum(hits) / n, 4), "plain_nats": round(nats, 4)}
        if name == "tuned":
            by = {t: [h for h, q in zip(hits, questions) if q.task == t] for t in TASKS}
            found[name]["by_task"] = {t: round(sum(h) / len(h), 3) for t, h in by.items()}
    return found


def load(folder: Path | None = None) -> tuple[list[int], dict[str, list[Any]]]:
    """The shipped networks in single precision: seeds, and kind -> one network for each seed."""
    folder = paths.MODELS / "tuned-pair" if folder is None else Path(folder)
    seeds = [int(seed) for seed in room.card(folder)["held_out"]]

    def get(seed: int, kind: str) -> Any:
        return room.transformers_model(
            "LlamaForCausalLM", folder, f"seed{seed}-{kind}", attn_implementation="eager"
        )

    return seeds, {kind: [get(seed, kind) for seed in seeds] for kind in KINDS}
