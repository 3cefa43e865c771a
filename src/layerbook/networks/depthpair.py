"""A shallow and a deep GPT-2 trained on the same text in the same order, depth-pair.

What differs between the two is the number of blocks alone: width, vocabulary, batches, schedule and
seed are shared. The text is the World English Bible; whole books are held out, so that a later
measurement can take each of them as a text that neither network has seen. Vocabulary: byte-level
BPE, learnt from the training books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerbook.networks import training

NAMES = ("shallow", "deep")
# Narrative, poetry, prophecy, gospel and letters, each long enough for a few thousand tokens.
HELD_OUT = ("Ruth", "Ezra", "Ecclesiastes", "Lamentations", "Daniel", "Amos", "Jonah", "Malachi", "Mark", "Philippians",
            "James", "I John")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped pair."""

    seed: int = 0
    depths: tuple[int, int] = (4, 8)  # blocks of the shallow and of the deep network
    width: int = 96
    heads: int = 4
    context: int = 64
    vocabulary: int = 512
    steps: int = 900
    batch: int = 24
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    examined: int = 16  # windows of each held-out book
    gate: float = (
        0.1  # nats a token by which both must beat the bigram model on every held-out book
    )


def texts(books: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, str]]:
    """The training text and the held-out books, one verse a line. KeyError if a held-out book is
    missing.
    """
    held = {name: "\n".join(books[name]) for name in HELD_OUT}
    return "\n".join("\n".join(verses) for name, verses in books.items() if name not in held), held


def learn_tokenizer(text: str, size: int) -> Any:
    """A byte-level BPE tokenizer with `size` entries (at least 257), the same on every run."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def windows(ids: Sequence[int], context: int, n: int) -> Tensor:
    """`n` disjoint windows [n, context], spread evenly over the text. ValueError if it is too
    short.
    """
    free = len(ids) // context
    if free < n:
        raise ValueError(f"{len(ids)} tokens hold {free} windows of {context}; {n} are wanted")
    starts = [context * (i * free // n) for i in range(n)]
    return torch.tensor([list(ids[s : s + context]) for s in starts])


def build(recipe: Recipe, layers: int, seed: int | None = None) -> Any:
    """An untrained network of the recipe's width with `layers` blocks; `seed` replaces the
    recipe's.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(recipe.seed if seed is None else seed)
    config = GPT2Config(
        vocab_size=recipe.vocabulary, n_positions=recipe.context, n_embd=recipe.width, n_layer=layers, n_head=recipe.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def token_nats(model: Any, batch: Tensor) -> Tensor:
    """Loss of every token but the first of each window [n, context - 1], in nats."""
    logits = model(input_ids=batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")


def train(recipe: Recipe, layers: int, ids: Tensor) -> tuple[Any, list[float]]:
    """Train one network on token ids [tokens]; returns it, frozen, and the loss (nats) of every
    step.

    Windows are drawn by the recipe's seed alone, so that networks of any depth see the same ones in
    the same order.
    """
    model = build(recipe, layers)
    generator, offsets = torch.Generator().manual_seed(recipe.seed), torch.arange(recipe.context)

    def loss_of(step: int) -> Tensor:
        starts = torch.randint(
            len(ids) - recipe.context + 1, (recipe.batch, 1), generator=generator
        )
        return token_nats(model, ids[starts + offsets]).mean()

    schedule = training.Schedule(recipe.steps, recipe.learning_rate, recipe.weight_decay)
    return model, training.fit(model, loss_of, schedule, bar=f"{layers} blocks")


def baselines(ids: Sequence[int], batch: Tensor, size: int) -> dict[str, list[float]]:
    """What counting alone achieves: nats a token on each window [n, context], from token ids of the
    training text.

    "unigram": add-one frequencies. "bigram": the same interpolated with the frequency after the
    token before, by the weight that suits `batch` best, which flatters the baseline.
    """
    single, pairs = Counter(ids), Counter(zip(ids, ids[1:]))
    before, after = batch[:, :-1].flatten().tolist(), batch[:, 1:].flatten().tolist()
    p1 = torch.tensor([(single[b] + 1) / (len(ids) + size) for b in after], dtype=torch.float64)
    p2 = torch.tensor(
        [pairs[a, b] / max(1, single[a]) for a, b in zip(before, after)], dtype=torch.float64
    )
    shares = [w * p2 + (1 - w) * p1 for w in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)]
    best = min(shares, key=lambda p: -p.log().sum())
    return {
        name: (-p.log()).view(len(batch), -1).mean(1).tolist()
        for name, p in (("unigram", p1), ("bigram", best))
    }
