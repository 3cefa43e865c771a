"""Small networks that answer questions about drawn scenes, shapes-vlm.

Built like LLaVA (Liu et al. 2023, "Visual Instruction Tuning"): patches of the picture are encoded,
a projector of two layers turns each into one token of a causal decoder in LLaMA's layout, and the
words of the question follow. All parts are trained together, on captions and on questions, in as
many runs as there are seeds.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from layerbook.data import shapes
from layerbook.networks import room, training

NAME = "shapes-vlm"


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped networks."""

    seed: int = 0
    runs: int = 5  # networks, with seeds seed, seed + 1, ...
    width: int = 64
    layers: int = 6
    heads: int = 4
    hidden: int = 160  # of the decoder's gated MLP
    vision_layers: int = (
        0  # blocks of bidirectional attention over the patches, before the projector
    )
    positions: bool = True  # whether the encoder adds an embedding of the patch's position
    steps: int = 1500
    batch: int = 16  # scenes a step
    turns: int = 6  # questions about each scene of a batch
    align_steps: int = 300  # of the encoder by itself, on what patches show
    learning_rate: float = 2e-3
    kinds: tuple[str, ...] = shapes.ATTRIBUTES  # of questions, in turn
    examined: int = 1200  # held-out questions
    gate: float = (
        0.95  # share of right answers that every network must reach for each kind of question
    )


class Encoder(nn.Module):
    """From a picture to one token of width `out` for each patch: linear patch encoder, projector of
    two layers.
    """

    def __init__(self, recipe: Recipe, out: int) -> None:
        super().__init__()
        d = recipe.width
        self.patch = nn.Linear(3 * shapes.CELL**2, d)
        self.place = (
            nn.Parameter(torch.randn(shapes.PATCHES, d) * 0.5) if recipe.positions else None
        )
        self.vision = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d, recipe.heads, 2 * d, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(recipe.vision_layers)
        )
        self.projector = nn.Sequential(
            nn.GELU(), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, out)
        )
        self.length = nn.Parameter(torch.tensor(0.5))  # root mean square of an image token

    def forward(self, images: Tensor) -> Tensor:
        """Image tokens [n, PATCHES, out] of pictures, uint8 [n, SIDE, SIDE, 3]."""
        g, c = shapes.GRID, shapes.CELL
        x = images.to(self.patch.weight) / 127.5 - 1
        x = x.reshape(-1, g, c, g, c, 3).transpose(2, 3).reshape(-1, g * g, c * c * 3)
        x = self.patch(x) if self.place is None else self.patch(x) + self.place
        for block in self.vision:
            x = block(x)
        x = self.projector(x)
        return self.length * nn.functional.rms_norm(x, x.shape[-1:])


class ShapesVLM(nn.Module):
    """Encoder and decoder. `decoder` is a LlamaForCausalLM: give it `embed(...)` as inputs_embeds."""

    def __init__(self, recipe: Recipe) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.see = Encoder(recipe, recipe.width)
        self.decoder = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(shapes.WORDS), hidden_size=recipe.width, intermediate_size=recipe.hidden,
            num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, max_position_embeddings=128,
            initializer_range=recipe.width**-0.5, use_cache=False, tie_word_embeddings=True, pad_token_id=None,
            bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        ))  # fmt: skip

        with (
            torch.no_grad()
        ):  # words as long as image tokens, and logits of moderate size all the same
            self.decoder.get_input_embeddings().weight.normal_(std=0.5)
            self.decoder.base_model.norm.weight.fill_(0.25)
            for block in (
                self.decoder.base_model.layers
            ):  # tokens first attend to what resembles them: meant to shorten training
                block.self_attn.k_proj.weight.copy_(block.self_attn.q_proj.weight)

    def embed(self, images: Tensor, ids: Tensor) -> Tensor:
        """What the decoder reads [n, FIRST + words, d]: "<bos>", the picture, and words given by
        their tokens [n, words].
        """
        ids = torch.nn.functional.pad(
            ids.to(self.see.patch.weight.device), (1, 0), value=shapes.CODE["<bos>"]
        )
        words = self.decoder.get_input_embeddings()(ids)
        return torch.cat([words[:, :1], self.see(images), words[:, 1:]], 1)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [n, FIRST + words, vocabulary]. mask: to be added to attention scores [n or 1, 1,
        positions, positions].
        """
        embeds = self.embed(images, ids)
        return self.decoder(
            inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids
        ).logits


def build(recipe: Recipe) -> ShapesVLM:
    """An untrained network, drawn by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return ShapesVLM(recipe).eval()


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, ShapesVLM]:
    """The trained networks below a folder, frozen, by name. FileNotFoundError if it holds no card."""
    card = room.card(folder)
    recipe, names = Recipe(**card["recipe"]), [f"seed-{seed}" for seed in card["held_out"]]
    return {name: room.fill(build(recipe), folder, name).to(dtype) for name in names}


CAPTION = ("caption", ":")
# words of a caption that are read; the final "." is only predicted
LONGEST = len(CAPTION) + 4 * 3 - 1


def layout(turns: int) -> tuple[Tensor, Tensor]:
    """How one row of a batch holds several texts about one picture: mask [1, 1, T, T] to be added,
    position_ids [1, T].

    Each text sees "<bos>", the picture and itself, and has the positions that it would have without
    the others: the network computes for each of them what it would compute for this text alone.
    """
    sizes = [LONGEST] + [shapes.PROMPT] * turns
    owner = torch.cat([torch.full((n,), i) for i, n in enumerate([shapes.FIRST, *sizes])])
    allowed = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    allowed &= (owner[:, None] == owner) | (owner == 0)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    places = [torch.arange(shapes.FIRST), *(shapes.FIRST + torch.arange(n) for n in sizes)]
    return mask[None, None], torch.cat(places)[None]


def batch(recipe: Recipe, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [n, SIDE, SIDE, 3], tokens and targets (-100: none) [n, words] of a caption and some
    questions on each.
    """
    images, ids, targets = [], [], []
    for _ in range(recipe.batch):
        scene = shapes.draw(rng)
        told = shapes.encode((*CAPTION, *shapes.caption(scene, rng)))
        row, wanted = told[:-1], [-100] + told[2:]
        row, wanted = (x + [v] * (LONGEST - len(x)) for x, v in ((row, 0), (wanted, -100)))
        for i in range(recipe.turns):
            question = shapes.ask(scene, rng, recipe.kinds[i % len(recipe.kinds)])
            prompt = shapes.encode((*question.words, *shapes.SUFFIX))
            row = row + prompt + [0] * (shapes.PROMPT - len(prompt))
            answer = [-100] * shapes.PROMPT
            answer[len(prompt) - 1] = shapes.CODE[question.answer]
            wanted = wanted + answer
        images.append(scene.image)
        ids.append(row)
        targets.append(wanted)
    return torch.from_numpy(np.stack(images)), torch.tensor(ids), torch.tensor(targets)


def align(model: ShapesVLM, recipe: Recipe, rng: random.Random) -> None:
    """Teach the encoder which words fit each patch, scored against the decoder's own word
    embeddings.

    LLaVA's encoder comes from contrastive training on pictures with texts (CLIP); this is the
    counterpart.
    """
    words = model.decoder.get_input_embeddings().weight.detach()

    def loss_of(step: int) -> Tensor:
        scenes = [shapes.draw(rng) for _ in range(2 * recipe.batch)]
        labels = torch.zeros(len(scenes), shapes.PATCHES, len(words))
        for row, scene in zip(labels, scenes):
            for i, cell in enumerate(scene.cells):
                sides = (shapes.place(cell, axis) for axis in (0, 1))
                row[cell, shapes.encode((scene.colours[i], scene.shapes[i], *sides))] = 1
        scores = model.see(torch.from_numpy(np.stack([s.image for s in scenes]))) @ words.T
        return nn.functional.binary_cross_entropy_with_logits(scores - 4, labels)

    training.fit(model.see, loss_of, training.Schedule(recipe.align_steps, 3e-3))
    model.requires_grad_(True)


def train(recipe: Recipe, watch: int = 0) -> tuple[ShapesVLM, list[float]]:
    """Train one network; returns it, frozen, and the loss (nats a predicted word) of every step.

    With `watch`, its progress is written to standard error every so many steps; the weights do not
    depend on it.
    """
    model, rng = build(recipe).train(), random.Random(f"training-{recipe.seed}")
    mask, position_ids = layout(recipe.turns)
    found, recent = (
        shapes.examples(80 * len(recipe.kinds), recipe.seed, "watched", recipe.kinds)
        if watch
        else None,
        [],
    )
    align(model, recipe, rng)

    def loss_of(step: int) -> Tensor:
        if found and step and step % watch == 0:
            shares = {
                kind: round(share, 2)
                for kind, share in by_kind(accuracy(model, found), found).items()
            }
            line = f"{NAME}, seed {recipe.seed}, step {step}: loss {sum(recent[-watch:]) / watch:.3f}, right {shares}"
            print(line, file=sys.stderr, flush=True)
        images, ids, targets = batch(recipe, rng)
        logits = model(images, ids, mask, position_ids)[:, shapes.FIRST :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        recent.append(loss.item())
        return loss

    curve = training.fit(
        model, loss_of, training.Schedule(recipe.steps, recipe.learning_rate, 0.05)
    )
    return model, curve


@torch.no_grad()
def accuracy(model: ShapesVLM, found: shapes.Examples) -> Tensor:
    """Whether each question is answered rightly, greedily: booleans [n]."""
    logits = torch.cat(
        [model(*pair) for pair in zip(found.images.split(256), found.ids.split(256))]
    )
    return logits[torch.arange(len(logits)), found.last].argmax(-1).cpu() == found.answer


def by_kind(right: Tensor, found: shapes.Examples) -> dict[str, float]:
    """Share of right answers for each kind of question."""
    rows: Mapping[str, Sequence[int]] = {
        k: [i for i, q in enumerate(found.questions) if q.kind == k] for k in shapes.KINDS
    }
    return {
        kind: round(right[index].float().mean().item(), 4) for kind, index in rows.items() if index
    }
