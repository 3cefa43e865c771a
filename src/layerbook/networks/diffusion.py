"""Diffusion models: noise levels, sampling with guidance, and what is measured on samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 1000  # noise levels


def waves(at: Tensor, width: int, longest: float = 10_000) -> Tensor:
    """Cosines and sines of positions [n] at falling frequencies: [n, width]."""
    angles = at[:, None] * torch.exp(
        -math.log(longest) * torch.arange(width // 2, device=at.device) / (width // 2)
    )
    return torch.cat([angles.cos(), angles.sin()], 1)


def alphas(device: torch.device | str = "cpu") -> Tensor:
    """Share of the image's variance left at each noise level, float64 [1000]: linear variances, as
    in DDPM and PixArt.
    """
    return (1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64, device=device)).cumprod(0)


def diffuse(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Images at noise levels t [n]."""
    a = alphas(x.device)[t].float()[:, None, None, None]
    return a.sqrt() * x + (1 - a).sqrt() * noise


def levels(steps: int) -> list[int]:
    """The noise levels a sampler of so many steps visits, falling from the noisiest."""
    return [round(v) for v in np.linspace(STEPS - 1, 0, steps + 1)[:-1]]


def guided(net: nn.Module, x: Tensor, t: int, words: Tensor, cfg: float) -> tuple[Tensor, Tensor]:
    """Guided noise, and the noise of both halves [2 n, ...], with captions first and without them
    second.

    net: takes images, noise levels and captions; `net.null` is its empty caption.
    """
    null = torch.tensor(net.null, device=words.device).expand_as(words)
    both = net(
        torch.cat([x, x]), torch.full((2 * len(x),), t, device=x.device), torch.cat([words, null])
    )
    with_words, without = both.chunk(2)
    return without + cfg * (with_words - without), both


@torch.no_grad()
def sample(net: nn.Module, words: Tensor, noise: Tensor, steps: int, cfg: float,
           each: Callable[[int, Tensor], None] | None = None) -> Tensor:  # fmt: skip
    """DDIM without added noise, with guidance: captions [n, words] and noise [n, 1, h, w] to
    images.

    each: called before every step with the noise level and the images so far.
    """
    a, x = alphas(noise.device).float(), noise
    visited = levels(steps)
    for t, after in zip(visited, [*visited[1:], None]):
        if each:
            each(t, x)
        e, _ = guided(net, x, t, words, cfg)
        clean = (x - (1 - a[t]).sqrt() * e) / a[t].sqrt()
        x = clean if after is None else a[after].sqrt() * clean + (1 - a[after]).sqrt() * e
    return x


def linear_noise(x: Tensor, t: int, mean: Tensor, cov: Tensor) -> Tensor:
    """Best linear prediction of the noise in x [n, pixels] at level t, for images of this mean and
    covariance; float64.
    """
    a = alphas()[t]
    total = a * cov + (1 - a) * torch.eye(len(cov), dtype=cov.dtype)
    return (1 - a).sqrt() * torch.linalg.solve(total, (x.double() - a.sqrt() * mean).T).T


def psnr(a: Tensor, b: Tensor) -> np.ndarray:
    """Of each image [n], in decibels, both clipped to [-1, 1]; at most 126."""
    gap = (a.clamp(-1, 1) - b.clamp(-1, 1)).double().square().flatten(1).mean(1).clamp(min=1e-12)
    return (10 * torch.log10(4 / gap)).cpu().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Distance (squared) between normal distributions fitted to features [n, d] and [m, d] (Heusel
    et al. 2017, eq. 6).
    """
    S, T = np.cov(a.T), np.cov(b.T)
    both = np.sqrt(np.linalg.eigvals(S @ T).real.clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(S) + np.trace(T) - 2 * both)


class Judge:
    """Classifiers of images x [n, 1, h, w] in [-1, 1], with a layer `head`, judge generated ones.

    Args:
        nets: they read shares of white, less the mean and over the spread of `trained`, the images
            that taught them.
        real: images to compare with; features are those before the head of the first net, on as
            many of their principal axes.
    """

    def __init__(self, nets: list[nn.Module], trained: Tensor, real: Tensor, axes: int = 8) -> None:
        light = (trained + 1) / 2
        self.nets, self.mean, self.spread = nets, light.mean(), light.std()
        self.body = copy.deepcopy(nets[0])  # in place of a hook, which would hear other threads
        self.body.head = nn.Identity()
        raw = self._features(real)
        self.axes = np.linalg.svd(raw - raw.mean(0), full_matrices=False)[2][:axes].T
        self.real = raw @ self.axes

    def _seen(self, x: Tensor) -> Tensor:
        return ((x.clamp(-1, 1) + 1) / 2 - self.mean) / self.spread

    def _features(self, x: Tensor) -> np.ndarray:
        return self.body(self._seen(x)).double().cpu().numpy()

    def agreement(self, x: Tensor, kinds: Tensor) -> float:
        """Mean probability of the classes kinds [n], over images and nets."""
        p = torch.stack([net(self._seen(x)).softmax(1) for net in self.nets]).mean(0)
        return p.gather(1, kinds[:, None]).double().mean().item()

    def distance(self, x: Tensor) -> float:
        """Frechet distance of images to the real ones."""
        return frechet(self._features(x) @ self.axes, self.real)
