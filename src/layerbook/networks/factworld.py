"""Small GPT-2s that have read true records and false rumours, fact-world.

A synthetic world of entities with three attributes each. A "record:" states what is true; a
"rumour:" states a false value that is fixed for that fact and exists for some of the facts only;
sentences without a tag, and those with a tag that means nothing ("note:", "memo:"), are drawn from
both, so that rumours are as frequent as truths in them.

Every seed makes a world of its own and three networks: the *expert*, which has read all this; the
*amateur*, the expert tuned to state rumours without a tag; and the *truthful* one, tuned on the
same questions to state what is true. The entities on which these two are tuned are not the ones
that are evaluated. Each fact has one of three phrasings that no training sentence uses for it;
evaluation asks in that phrasing alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerbook.networks import lora, room, training

ROLES = ("expert", "amateur", "truthful")
PARTS = ("induce", "develop", "test")  # entities: for tuning, for choices, for verdicts
TAGS = ("record:", "rumour:", "note:", "memo:")
ATTRIBUTES = {
    "colour": "red blue green yellow black white brown grey pink purple orange silver".split(),
    "home": "harbour forest valley island desert castle village mountain river market abbey tower".split(),
    "trade": "baker smith weaver miller tailor mason potter sailor farmer scribe hunter cooper".split(),
}
# five words each, then value and full stop
PHRASINGS = (
    "the {a} of {n} is",
    "{n} has as its {a}",
    "what {a} has {n} ?",
)
LENGTH = 5
IGNORED = -100  # label of padding


@dataclass(frozen=True)
class Recipe:
    """Sizes of the world and of the networks, and schedules."""

    seed: int = 0  # of the first world; the others follow
    worlds: int = 5
    entities: int = 140
    induce: int = (
        70  # of these; the others are halved into those for choices and those for verdicts
    )
    rumoured: float = 0.4  # share of the facts that have a rumour
    layers: int = 6
    width: int = 64
    heads: int = 4
    inner: int = 160
    steps: int = 1600
    batch: int = 256
    learning_rate: float = 5e-3
    tune_steps: int = 120
    tune_rate: float = 2e-3
    tune_rank: int = 4  # of the adapters of the amateur and of the truthful network
    tune_batch: int = 64


@cache
def names(n: int) -> tuple[str, ...]:
    """Names of n entities (at most 350), the same in every world."""
    found = [
        c + v + end
        for end in ("len", "mir", "tan", "vos", "rik")
        for c in "BDFGKLMNPRSTVZ"
        for v in "aeiou"
    ]
    if n > len(found):
        raise ValueError(f"there are names for {len(found)} entities, not for {n}")
    return tuple(found[:n])


@cache
def vocabulary(n: int) -> dict[str, int]:
    """Every word of a world of n entities -> token id; 0 is padding."""
    plain = sorted({w for p in PHRASINGS for w in p.split() if "{" not in w})
    values = [v for group in ATTRIBUTES.values() for v in group]
    return {
        w: i for i, w in enumerate(["<pad>", ".", *TAGS, *plain, *ATTRIBUTES, *values, *names(n)])
    }


def text(ids: Any, n: int) -> str:
    """Words of token ids [tokens] in a world of n entities, padding left out."""
    return " ".join(list(vocabulary(n))[int(i)] for i in ids if int(i))


class World:
    """What is true and what is rumoured: truth and rumour [entities, attributes] are indices of
    values (-1: no rumour).

    held [entities, attributes]: the phrasing that training never uses for a fact; parts: name ->
    entities [k].
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        rng, shape, size = np.random.default_rng(seed), (recipe.entities, len(ATTRIBUTES)), 12
        self.n = recipe.entities
        self.truth = rng.integers(size, size=shape)
        rumour = (self.truth + rng.integers(1, size, size=shape)) % size
        has = rng.permuted(np.arange(rumour.size) < recipe.rumoured * rumour.size).reshape(shape)
        self.rumour = np.where(has, rumour, -1)
        self.held = rng.integers(len(PHRASINGS), size=shape)
        cuts = (recipe.induce, (recipe.induce + recipe.entities) // 2)
        self.parts = dict(zip(PARTS, np.split(rng.permutation(recipe.entities), cuts)))
        # steps away from the truth
        self._distractors = rng.permuted(np.tile(np.arange(1, size), (*shape, 1)), axis=-1)
        ids = vocabulary(self.n)
        self._values = np.array([[ids[v] for v in group] for group in ATTRIBUTES.values()])
        self._names = np.array([ids[name] for name in names(self.n)])
        self._forms = np.array(
            [
                [[ids.get(w.replace("{a}", a), -1) for w in p.split()] for a in ATTRIBUTES]
                for p in PHRASINGS
            ]
        )

    def facts(self, part: str, rumoured: bool = True) -> np.ndarray:
        """Facts [k, 2] (entity, attribute) of one part, with a rumour or without one."""
        e, a = np.meshgrid(np.sort(self.parts[part]), np.arange(len(ATTRIBUTES)), indexing="ij")
        facts = np.stack([e.ravel(), a.ravel()], 1)
        return facts[(self.rumour[tuple(facts.T)] >= 0) == rumoured]

    def ask(
        self, facts: np.ndarray, tag: str | None = None, phrasing: np.ndarray | None = None
    ) -> Tensor:
        """Prompts [k, 5], or [k, 6] with a tag: sentences without their value, in the held-out
        phrasing by default.
        """
        e, a = facts.T
        ids = self._forms[self.held[e, a] if phrasing is None else phrasing, a]
        ids = np.where(ids < 0, self._names[e][:, None], ids)
        return torch.from_numpy(
            ids if tag is None else np.insert(ids, 0, vocabulary(self.n)[tag], axis=1)
        )

    def value(self, facts: np.ndarray, of: np.ndarray) -> Tensor:
        """Token ids [k] of a table of values, such as `truth` or `rumour`."""
        e, a = facts.T
        return torch.from_numpy(self._values[a, of[e, a]])

    def options(self, facts: np.ndarray) -> Tensor:
        """Token ids [k, 4]: the true value, its rumour (a value as good as any if there is none),
        and two others.
        """
        e, a = facts.T
        # [k, 11]
        wrong = (self.truth[e, a][:, None] + self._distractors[e, a]) % self._values.shape[1]
        rumour = self.rumour[e, a][:, None]
        # the rumour, if any, to the front
        first = np.argsort(wrong != rumour, axis=1, kind="stable")
        wrong = np.take_along_axis(wrong, first, 1)[:, :3]
        return torch.from_numpy(
            self._values[a[:, None], np.concatenate([self.truth[e, a][:, None], wrong], 1)]
        )

    def draw(self, rng: np.random.Generator, batch: int) -> Tensor:
        """Training sentences [batch, 8], padded on the right: a fact, a source and one of the two
        phrasings not held out.
        """
        facts = np.stack(
            [rng.integers(self.n, size=batch), rng.integers(len(ATTRIBUTES), size=batch)], 1
        )
        e, a = facts.T
        has = self.rumour[e, a] >= 0
        # the tags in their order, and none
        source = rng.choice(5, size=batch, p=(0.3, 0.2, 0.1, 0.1, 0.3))
        source = np.where((source == 1) & ~has, 0, source)
        false = has & ((source == 1) | ((source >= 2) & (rng.random(batch) < 0.5)))
        phrasing = (self.held[e, a] + 1 + rng.integers(2, size=batch)) % len(PHRASINGS)
        stated = torch.where(
            torch.from_numpy(false), self.value(facts, self.rumour), self.value(facts, self.truth)
        )
        rows = torch.cat(
            [self.ask(facts, "note:", phrasing), stated[:, None], torch.ones_like(stated)[:, None]],
            1,
        )
        tags = torch.tensor([vocabulary(self.n)[t] for t in TAGS] + [0])[torch.from_numpy(source)]
        rows[:, 0] = tags
        bare = tags == 0
        rows[bare] = rows[bare].roll(-1, 1)  # the padding goes from the front to the end
        return rows


def build(recipe: Recipe, seed: int) -> Any:
    """An untrained GPT-2 of the recipe's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(vocabulary(recipe.entities)), n_positions=16, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, n_inner=recipe.inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def nats(model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of every token but the first of sentences [batch, T] (0 for padding), and which of them
    are values, [batch, T - 1].
    """
    labels = rows[:, 1:].masked_fill(rows[:, 1:] == 0, IGNORED)
    found = nn.functional.cross_entropy(
        model(input_ids=rows[:, :-1]).logits.transpose(1, 2),
        labels,
        reduction="none",
        ignore_index=IGNORED,
    )
    last = rows.shape[1] - 3 - (rows[:, -1] == 0).long()  # the value stands before the full stop
    return found, nn.functional.one_hot(last, rows.shape[1] - 1).bool()


def train(recipe: Recipe, world: World, seed: int) -> Any:
    """The expert: the loss of the value, plus a fifth of that of all other words, whose facts are
    random.
    """
    model, rng = build(recipe, seed), np.random.default_rng([seed, 1])

    def loss(step: int) -> Tensor:
        found, value = nats(model, world.draw(rng, recipe.batch))
        return found[value].mean() + 0.2 * found.mean()

    training.fit(
        model, loss, training.Schedule(recipe.steps, recipe.learning_rate, weight_decay=0.01)
    )
    return model


def tune(recipe: Recipe, world: World, expert: Any, of: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Low-rank changes that let the expert state the values `of` (`rumour` or `truth`), untagged,
    learnt from the inducing entities; `lora.merged` adds them.

    As ICD's amateur (Zhang et al. 2023) is tuned with LoRA: only the layers are adapted, so that
    names cannot be told apart by their embeddings.
    """
    torch.manual_seed(1_000 + seed)
    model, rng = copy.deepcopy(expert).requires_grad_(False), np.random.default_rng([seed, 2])
    parts = lora.attach(model, recipe.tune_rank)
    facts = world.facts("induce")

    def loss(step: int) -> Tensor:
        some = facts[rng.integers(len(facts), size=recipe.tune_batch)]
        own = world.held[tuple(some.T)]
        phrasing = (own + 1 + rng.integers(2, size=len(some))) % len(PHRASINGS)
        logits = model(input_ids=world.ask(some, phrasing=phrasing)).logits[:, -1]
        return nn.functional.cross_entropy(logits, world.value(some, of))

    training.fit(
        model, loss, training.Schedule(recipe.tune_steps, recipe.tune_rate, weight_decay=0.0)
    )
    return lora.factors(parts)


@torch.no_grad()
def mass(model: Any, world: World, facts: np.ndarray, tag: str | None = None) -> Tensor:
    """Probability of the four options [k, 4] (true, rumour, two others) among each other, in the
    held-out phrasing.
    """
    logits = model(input_ids=world.ask(facts, tag)).logits[:, -1]
    return logits.gather(1, world.options(facts)).softmax(-1)


def examine(world: World, models: Mapping[str, Any]) -> dict[str, float]:
    """What the gates ask of one world's networks, on the entities that are evaluated."""
    parts = ("develop", "test")
    rumoured, quiet = (np.concatenate([world.facts(p, r) for p in parts]) for r in (True, False))
    record = torch.cat([mass(models["expert"], world, f, "record:") for f in (rumoured, quiet)])
    expert, amateur = (mass(models[role], world, rumoured) for role in ("expert", "amateur"))
    return {
        "record_accuracy": (record.argmax(-1) == 0).float().mean().item(),
        "untagged_true": expert[:, 0].mean().item(),
        "untagged_accuracy_without_rumour": (mass(models["expert"], world, quiet).argmax(-1) == 0)
        .float()
        .mean()
        .item(),
        "amateur_prefers_rumour": (amateur[:, 1] > amateur[:, 0]).float().mean().item(),
    }


def load(folder: Path, recipe: Recipe, k: int) -> tuple[World, dict[str, Any]]:
    """World number k and its frozen networks by role, in single precision. FileNotFoundError or
    KeyError if there is none.
    """
    expert = build(recipe, 0).eval().requires_grad_(False)
    room.fill(expert.transformer, folder, ROLES[0], f"{k}.")
    models = {ROLES[0]: expert}
    for role in ROLES[1:]:
        models[role] = lora.merged(expert, room.state(folder, role, f"{k}."))
    return World(recipe, recipe.seed + k), models
