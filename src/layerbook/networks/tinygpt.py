"""A small GPT-2 (LayerNorm, GELU, biases) trained on indirect-object sentences, tiny-gpt2.

It is the second network of the patching notebooks: small enough to patch every component by brute
force, and built from the elements (LayerNorm, GELU) that the RMSNorm/SiLU network smollm2 lacks.
Vocabulary: whole words.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerbook.networks import training

# One template is one family of prompts. {a}, {b}: the two names in order of appearance; {s}: the
# one named again (the giver). The sentence breaks off before the indirect object, which is the
# other name.
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} left the {place}, {s} handed the {thing} to",
    "Then {a} and {b} had lunch at the {place}, and {s} offered a {thing} to",
    "While {a} and {b} were working at the {place}, {s} passed the {thing} to",
    "Friends {a} and {b} found a {thing} at the {place}, and {s} gave it to",
    "Yesterday {a} and {b} met near the {place}, where {s} showed the {thing} to",
    "Afterwards {a} and {b} got a {thing} from the {place}, but {s} decided to give it to",
    "The {place} was busy when {a} and {b} arrived, so {s} sold the {thing} to",
    "Once {a} and {b} were back from the {place}, {s} sent a {thing} to",
    "As {a} and {b} walked through the {place}, {s} threw the {thing} to",
)
PLACES = (
    "store",
    "park",
    "school",
    "station",
    "office",
    "garden",
    "house",
    "hospital",
    "market",
    "beach",
)
THINGS = ("book", "drink", "ring", "bag", "ball", "letter", "box", "key", "computer", "basket")
NAMES = tuple(
    "John Mary Tom James Dan Martin Amy Paul Alice Peter Anna David Sarah Mark Emma Jack Kate Robert Laura Michael "
    "Lisa George Jane Henry Helen Simon Rachel Frank Susan Adam Julia Daniel Maria Thomas Emily Richard".split()
)
UNKNOWN = "<unk>"
IGNORED = -100  # label of padding
HELD_OUT = 0.2  # share of the name pairs that training never sees


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped network."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    heads: int = 4
    steps: int = 1300
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    sentence_weight: float = (
        0.2  # of the words before the answer, whose names and places are random
    )
    gate: float = 0.95  # least accuracy on held-out name pairs


def words(text: str) -> list[str]:
    """Split a sentence into words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def vocabulary() -> dict[str, int]:
    """Every word that a template, slot or name can produce, in alphabetical order after the unknown
    word.
    """
    seen = {w for t in TEMPLATES for w in words(re.sub(r"\{\w+\}", " ", t))}
    return {
        w: i
        for i, w in enumerate([UNKNOWN, *sorted(seen | set(PLACES) | set(THINGS) | set(NAMES))])
    }


def name_pairs(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Unordered pairs of names, shuffled by `seed` and divided into (training, held-out)."""
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    random.Random(seed).shuffle(pairs)
    cut = round(HELD_OUT * len(pairs))
    return pairs[cut:], pairs[:cut]


def sentence(template: str, a: str, b: str, s: str, place: str, thing: str) -> tuple[str, str]:
    """Fill a template; returns (prompt, answer), the answer being the name that is not `s`."""
    return template.format(a=a, b=b, s=s, place=place, thing=thing), b if s == a else a


def draw(
    rng: random.Random, pairs: list[tuple[str, str]], template: str, ids: dict[str, int]
) -> torch.Tensor:
    """One random sentence of a template with its answer, as ids [words + 1]."""
    a, b = rng.sample(rng.choice(pairs), 2)
    prompt, answer = sentence(
        template, a, b, rng.choice((a, b)), rng.choice(PLACES), rng.choice(THINGS)
    )
    return torch.tensor([ids[w] for w in [*words(prompt), answer]])


def build(recipe: Recipe) -> Any:
    """An untrained GPT-2 of the recipe's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(recipe.seed)
    size = len(vocabulary())
    config = GPT2Config(
        vocab_size=size, n_positions=32, n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, use_cache=True,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train(recipe: Recipe) -> tuple[Any, list[float]]:
    """Train on the training pairs; returns the network and the answer loss (nats) of every step.

    Sentences of all templates share a batch, padded on the right, where a causal network cannot see
    it.
    """
    model, ids = build(recipe), vocabulary()
    rng, (pairs, _), curve = random.Random(recipe.seed), name_pairs(recipe.seed), []

    def loss_of(step: int) -> Tensor:
        rows = [draw(rng, pairs, rng.choice(TEMPLATES), ids) for _ in range(recipe.batch)]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        logits, wanted = model(input_ids=batch[:, :-1].clamp(min=0)).logits, batch[:, 1:]
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED
        )
        answer = nats[torch.arange(len(rows)), torch.tensor([len(r) - 2 for r in rows])].mean()
        curve.append(answer.item())
        return answer + recipe.sentence_weight * nats.sum() / (wanted != IGNORED).sum()

    schedule = training.Schedule(recipe.steps, recipe.learning_rate, recipe.weight_decay)
    training.fit(model, loss_of, schedule, bar="tiny-gpt2")
    return model, curve
