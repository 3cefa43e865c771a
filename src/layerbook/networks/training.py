"""Training of small networks: optimisers, schedules, and one loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

OPTIMISERS = ("adamw", "sgd", "muon")
PACES = ("cosine", "linear")


@dataclass(frozen=True)
class Schedule:
    """Optimiser and pace of a training.

    Attributes:
        steps: how many.
        learning_rate: at its highest; with "muon" that of what is no hidden matrix.
        weight_decay: decoupled ("adamw", "muon") or added to the gradient ("sgd").
        warmup: share of the steps over which the rate grows from nothing.
        clip: greatest norm of the gradient.
        optimiser: "adamw" (Loshchilov and Hutter 2019), "sgd" (with Nesterov's momentum), or
            "muon" (Jordan et al. 2024): hidden matrices move by their orthogonalised momentum, all
            else by AdamW without decay.
        pace: "cosine", falling to zero, or "linear", level until half-way and falling to `floor`.
        betas: AdamW's.
        momentum: of "sgd" and of "muon".
        matrix_rate: Muon's learning rate.
        floor: least share of the rate ("linear").
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.1
    warmup: float = 0.1
    clip: float = 1.0
    optimiser: str = "adamw"
    pace: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    matrix_rate: float = 0.02
    floor: float = 0.02

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("pace", PACES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not known: choose {', '.join(known)}"
                )

    def share(self, step: int) -> float:
        """Share of the highest rate at a step, from 0."""
        if self.pace == "linear":
            rise = (step + 1) / (self.warmup * self.steps)
            return min(rise, 1.0, max(self.floor, 2 * (1 - step / self.steps)))
        rise = (step + 1) / max(1, round(self.steps * self.warmup))
        return min(rise, 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))))


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix inside a list of layers: no embedding, head, bias or scale."""
    return parameter.ndim == 2 and re.search(r"\.\d+\.", f".{name}") is not None


def optimisers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """The optimisers of a schedule over the parameters of a model that require a gradient.

    Raises:
        ValueError: "muon" for a model without hidden matrices.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    if schedule.optimiser == "sgd":
        momentum = {"momentum": schedule.momentum, "nesterov": schedule.momentum > 0}
        return [torch.optim.SGD([p for _, p in named], lr=rate, weight_decay=decay, **momentum)]
    if schedule.optimiser == "adamw":
        every = [p for _, p in named]
        return [torch.optim.AdamW(every, lr=rate, betas=schedule.betas, weight_decay=decay)]
    matrices = [p for n, p in named if is_hidden_matrix(n, p)]
    rest = [p for n, p in named if not is_hidden_matrix(n, p)]
    if not matrices:
        raise ValueError("Muon moves matrices of hidden layers, and this model has none")
    return [
        torch.optim.Muon(
            matrices, lr=schedule.matrix_rate, momentum=schedule.momentum, weight_decay=decay
        ),
        torch.optim.AdamW(rest, lr=rate, betas=schedule.betas, weight_decay=0.0),
    ]


def fit(
    model: nn.Module, loss_of: Callable[[int], Tensor], schedule: Schedule, bar: str = ""
) -> list[float]:
    """Minimise the scalar `loss_of(step)` over the parameters of `model` that require a gradient.

    Args:
        bar: name of a progress bar, which is drawn in a terminal only; "" for none.

    Returns:
        The loss of every step; the model is left frozen and in evaluation mode.

    Raises:
        FloatingPointError: a loss is not finite; the message names the step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    movers = optimisers(model, schedule)
    paces = [torch.optim.lr_scheduler.LambdaLR(mover, schedule.share) for mover in movers]
    curve = []
    for step in tqdm(range(schedule.steps), desc=bar, disable=None if bar else True):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss.item()}: lower the learning rate"
            )
        for mover in movers:
            mover.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        for mover in (*movers, *paces):
            mover.step()
        curve.append(loss.item())
    model.eval().requires_grad_(False)
    return curve


def last(curve: list[float], steps: int = 50) -> float:
    """Mean of the last losses of a training."""
    return round(sum(curve[-steps:]) / len(curve[-steps:]), 4)
