"""Small diffusion transformers of the PixArt kind, trained on Fashion-MNIST, tiny-dit.

Networks that differ by their seed alone, for papers about what quantization does to diffusion
transformers. They have the parts of PixArt-alpha (Chen et al. 2023) that such papers turn on: one
modulation by time shared by all blocks plus a learned table in each block (adaLN-single),
self-attention, separate cross-attention to the words of a caption, and an MLP. The
caption of an image is three words: how bright its ink is, how much of the frame it covers, and what
it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerbook.data import loaders
from layerbook.networks import room, training
from layerbook.networks.diffusion import STEPS, diffuse, waves

SIZE, PATCH = 14, 2  # pixels a side of an image, and of a token
KINDS = (
    "shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "blouse",
    "sneaker",
    "bag",
    "boot",
)
WORDS = ("dark", "grey", "bright", "slim", "medium", "wide", *KINDS)
NULL = (16, 17, 18)  # the empty caption: three learned words of its own
INK = 0.1  # a pixel above this share of white is not background


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the shipped networks."""

    seed: int = 0  # seeds are seed, seed + 1, ...
    seeds: int = 5
    width: int = 64
    depth: int = 5
    heads: int = 4
    steps: int = 2400
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    drop: float = 0.1  # share of captions replaced by the empty one, for guidance
    # greatest held-out loss, as a multiple of that of the best linear predictor of each noise level
    loss_gate: float = 0.9
    # least share of guided samples that a classifier of real images sees as what they should show
    class_gate: float = 0.6


class Data(NamedTuple):
    """Images in [-1, 1], float32 [n, 1, 14, 14], and captions, int64 [n, 3] of indices of WORDS."""

    x: Tensor
    words: Tensor
    held_x: Tensor
    held_words: Tensor


def attributes(x: Tensor) -> Tensor:
    """Mean of the ink and share of the frame that has ink, of images in [-1, 1]: [n, 2]."""
    light = (x.flatten(1) + 1) / 2
    ink = light > INK
    return torch.stack([(light * ink).sum(1) / ink.sum(1).clamp(min=1), ink.float().mean(1)], 1)


def data(path: str | Path | None = None) -> Data:
    """All training and held-out images, as means of 2x2 pixels; words for light and size go by
    thirds of the training images.
    """
    arrays = loaders.fashion_mnist(path)
    x, held = (
        F.avg_pool2d(torch.from_numpy(np.array(arrays[k])).float()[:, None] / 127.5 - 1, 2)
        for k in ("train_x", "test_x")
    )
    y, held_y = (torch.from_numpy(np.array(arrays[k])).long() for k in ("train_y", "test_y"))
    thirds = torch.quantile(attributes(x)[:50_000], torch.tensor([1 / 3, 2 / 3]), dim=0).T

    def words(images: Tensor, kinds: Tensor) -> Tensor:
        light, size = (
            torch.bucketize(a.contiguous(), t.contiguous())
            for a, t in zip(attributes(images).T, thirds)
        )
        return torch.stack([light, 3 + size, 6 + kinds], 1)

    return Data(x, words(x, y), held, words(held, held_y))


class Attention(nn.Module):
    """Attention of x to y (to itself without y), with four linear layers of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """[n, tokens, width] and [n, words, width] to [n, tokens, width]."""
        y = x if y is None else y
        q, k, v = (
            f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.q, x), (self.k, y), (self.v, y))
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width]."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, times 1 + scale, plus shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention, cross-attention and MLP; the first and the last are modulated and gated by
    table + time.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        # shift, scale, gate of attention, then of the MLP
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn, self.cross, self.mlp = (
            Attention(width, heads),
            Attention(width, heads),
            MLP(width),
        )
        nn.init.zeros_(self.cross.o.weight)
        nn.init.zeros_(self.cross.o.bias)

    def forward(self, x: Tensor, y: Tensor, time: Tensor) -> Tensor:
        """Tokens [n, tokens, width], words [n, words, width], time [n, 6, width] to tokens."""
        a, b, c, d, e, f = (self.table + time)[:, :, None].unbind(1)
        x = x + c * self.attn(modulate(x, a, b))
        x = x + self.cross(x, y)
        return x + f * self.mlp(modulate(x, d, e))


class TinyDiT(nn.Module):
    """Predicts the noise in an image from the image, the noise level and a caption."""

    null = NULL

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH**2, width)
        self.words = nn.Embedding(len(WORDS) + len(NULL), width)
        self.caption = nn.Sequential(
            nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.final = nn.Linear(width, PATCH**2)
        nn.init.normal_(self.t_block[1].weight, std=0.02)
        for p in self.final.parameters():
            nn.init.zeros_(p)
        side = torch.arange(SIZE // PATCH).float()
        rows, columns = (
            waves(s.flatten(), width // 2, 100) for s in torch.meshgrid(side, side, indexing="ij")
        )
        self.register_buffer("places", torch.cat([rows, columns], 1), persistent=False)

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Images [n, 1, 14, 14], noise levels int64 [n], captions [n, 3] to noise [n, 1, 14, 14]."""
        h = self.embed(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)) + self.places
        y, time = self.caption(self.words(words)), self.time(waves(t.float(), self.places.shape[1]))
        six = self.t_block(time).unflatten(1, (6, -1))
        for block in self.blocks:
            h = block(h, y, six)
        shift, scale = (self.table + time[:, None])[:, :, None].unbind(1)
        return F.fold(
            self.final(modulate(h, shift, scale)).transpose(1, 2), SIZE, PATCH, stride=PATCH
        )


def linears(net: TinyDiT) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, in order: "2.cross.k" and so on. Embedders, time and final
    layer are not among them.
    """
    return {name: m for name, m in net.blocks.named_modules() if isinstance(m, nn.Linear)}


def site_of(layer: str) -> str:
    """The input that a linear layer reads, by name: query, key and value read one ("2.attn.qkv"),
    as do key and value of words.
    """
    part, last = layer.rsplit(".", 1)
    if part.endswith("attn") and last in "qkv":
        return f"{part}.qkv"
    return f"{part}.kv" if part.endswith("cross") and last in "kv" else layer


def watch(net: TinyDiT, take: Callable[[int, str, Tensor], None]) -> ExitStack:
    """Inside a `with`, every call of `net` hands take(noise level, site, x [n, tokens, channels])
    the input of each site.
    """
    undo, clock = ExitStack(), {}
    undo.callback(
        net.register_forward_pre_hook(lambda m, args: clock.update(t=int(args[1][0]))).remove
    )
    for site, m in {site_of(name): m for name, m in reversed(linears(net).items())}.items():
        undo.callback(
            m.register_forward_pre_hook(lambda m, args, s=site: take(clock["t"], s, args[0])).remove
        )
    return undo


def build(recipe: Recipe, seed: int) -> TinyDiT:
    """An untrained network."""
    torch.manual_seed(seed)
    return TinyDiT(recipe.width, recipe.depth, recipe.heads)


def train(recipe: Recipe, of: Data, seed: int) -> tuple[TinyDiT, list[float]]:
    """Train one network on where `of` lies; returns it, frozen, and the loss of every step."""
    net, generator = (
        build(recipe, seed).to(of.x.device),
        torch.Generator().manual_seed(10_000 + seed),
    )
    null = torch.tensor(NULL, device=of.x.device)

    def loss_of(step: int) -> Tensor:
        at = torch.randint(len(of.x), (recipe.batch,), generator=generator)
        t = torch.randint(STEPS, (recipe.batch,), generator=generator).to(of.x.device)
        noise = torch.randn(recipe.batch, 1, SIZE, SIZE, generator=generator).to(of.x.device)
        dropped = (torch.rand(recipe.batch, generator=generator) < recipe.drop).to(of.x.device)
        words = torch.where(dropped[:, None], null, of.words[at])
        return F.mse_loss(net(diffuse(of.x[at], t, noise), t, words), noise)

    return net, training.fit(
        net,
        loss_of,
        training.Schedule(recipe.steps, recipe.learning_rate, recipe.weight_decay, 0.05),
    )


def load(folder: Path, device: torch.device | str = "cpu") -> list[TinyDiT]:
    """The networks of a folder in the order of their seeds, in float32, evaluation mode and frozen."""
    card = room.card(folder)
    sizes = [card["recipe"][k] for k in ("width", "depth", "heads")]
    return [
        room.fill(TinyDiT(*sizes), folder, f"seed{seed}").to(device) for seed in card["held_out"]
    ]
