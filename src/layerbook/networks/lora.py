"""Low-rank adaptation of all linear layers (Hu et al. 2021, "LoRA"), and its control: a random
change of the same size.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layerbook.layers import transformer as tf
from layerbook.networks import training

Row = tuple[list[int], int]  # token ids, and the index of the first that is learnt


class LowRank(nn.Module):
    """Adds 2 B A to a weight [out, in]; A is random and B zero at the start, so that nothing
    changes at first.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(
            torch.randn(rank, weight.shape[1]).to(weight) / math.sqrt(weight.shape[1])
        )
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.b @ self.a


def _matrices(model: Any) -> dict[str, nn.Module]:
    """Modules in the blocks of a network whose weight is a matrix, by the weight's name."""
    inside = {id(m) for block in tf.Stack(model).blocks for m in block.modules()}
    return {
        f"{name}.weight": m
        for name, m in model.named_modules()
        if id(m) in inside and getattr(m, "weight", None) is not None and m.weight.ndim == 2
    }


def attach(model: Any, rank: int) -> dict[str, nn.Module]:
    """Add factors to every matrix in every block of a network: embeddings and unembedding are left.

    Returns:
        the modules whose weight is adapted, by the weight's name.
    """
    parts = _matrices(model)
    for m in parts.values():
        parametrize.register_parametrization(m, "weight", LowRank(m.weight, rank))
    return parts


def factors(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The factors of adapted modules, by the weight's name and ".a" [rank, in] or ".b" [out, rank]."""
    out: dict[str, Tensor] = {}
    for name, m in parts.items():
        low = m.parametrizations.weight[0]
        out |= {f"{name}.a": low.a.detach().clone(), f"{name}.b": low.b.detach().clone()}
    return out


@torch.no_grad()
def merged(network: Any, changes: dict[str, Tensor]) -> Any:
    """A frozen copy of a network with factors, as `factors` names them, added to its weights."""
    model = copy.deepcopy(network)
    for name, a in changes.items():
        if name.endswith(".a"):
            weight = name.removesuffix(".a")
            model.get_parameter(weight).add_(2 * changes[f"{weight}.b"] @ a)
    return model.eval().requires_grad_(False)


def tune(
    network: Any,
    head: list[int],
    rows: Sequence[Row],
    steps: int,
    seed: int,
    rank: int = 8,
    rate: float = 1e-3,
    batch: int = 16,
) -> Any:
    """A frozen copy of the network, tuned on rows that each follow the token ids `head`; the
    factors are merged.

    Every matrix in every block is adapted: embeddings and unembedding are not.
    """
    torch.manual_seed(seed)
    model, rng = copy.deepcopy(network).requires_grad_(False), random.Random(seed)
    parts = attach(model, rank).values()
    device = next(model.parameters()).device

    def loss(step: int) -> Tensor:
        some = rng.sample(list(rows), min(batch, len(rows)))
        ids = nn.utils.rnn.pad_sequence([torch.tensor(head + x) for x, _ in some], batch_first=True)
        at = torch.arange(ids.shape[1])
        learnt = torch.stack(
            [(at >= len(head) + start) & (at < len(head) + len(x)) for x, start in some]
        )
        labels = ids.masked_fill(~learnt, -100)[:, 1:].to(device)
        return nn.functional.cross_entropy(
            model(input_ids=ids.to(device)).logits[:, :-1].transpose(1, 2), labels
        )

    training.fit(model, loss, training.Schedule(steps, rate, weight_decay=0.0))
    for m in parts:
        parametrize.remove_parametrizations(m, "weight")
    return model.requires_grad_(False)


@torch.no_grad()
def perturbed(expert: Any, amateur: Any, seed: int) -> Any:
    """A copy of the expert, each weight tensor moved in a random direction, as far as the amateur's
    lies from it.
    """
    model, generator = copy.deepcopy(expert), torch.Generator().manual_seed(seed)
    for (
        name,
        e,
    ) in (
        expert.named_parameters()
    ):  # by name: after tuning, a module's weights may stand in another order
        p, a = model.get_parameter(name), amateur.get_parameter(name)
        noise = torch.randn(p.shape, generator=generator).to(p)
        p.add_(noise * (a - e).norm() / noise.norm())
    return model
