"""What the training of all small networks shares."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layerbook.networks import training


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(3))


def test_a_convex_loss_is_minimised_and_the_network_frozen():
    net, target = Line(), torch.tensor([1.0, -2.0, 0.5])
    curve = training.fit(
        net,
        lambda step: (net.slope - target).square().sum(),
        training.Schedule(300, 0.1, weight_decay=0.0),
    )
    assert len(curve) == 300 and curve[-1] < 1e-4 < curve[0]
    assert (
        torch.allclose(net.slope, target, atol=1e-2)
        and not net.slope.requires_grad
        and not net.training
    )


def test_steps_grow_for_a_tenth_of_the_time_and_then_shrink_to_nothing():
    net, seen = Line(), []

    def loss_of(step: int) -> torch.Tensor:
        seen.append(net.slope.detach().clone())
        return net.slope.sum()  # a constant gradient: Adam's step is the learning rate

    training.fit(net, loss_of, training.Schedule(100, 0.01, weight_decay=0.0))
    moved = (torch.stack([*seen[1:], net.slope.detach()]) - torch.stack(seen)).abs()[:, 0]
    assert moved[0] == pytest.approx(0.001, rel=0.02) and moved[9] == pytest.approx(0.01, rel=0.05)
    assert moved.argmax() in range(8, 12) and moved[99] < 1e-5
    assert moved[55] == pytest.approx(0.005 * (1 + math.cos(math.pi * 0.55)), rel=0.02)


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_step():
    net = Line()
    with pytest.raises(FloatingPointError, match="step 2 is nan"):
        training.fit(
            net,
            lambda step: net.slope.sum() * (float("nan") if step == 2 else 1.0),
            training.Schedule(5, 0.1),
        )


@pytest.mark.parametrize(
    "schedule",
    [
        training.Schedule(9, 0.05, weight_decay=0.1, optimiser="adamw", clip=0.5),
        training.Schedule(9, 0.05, weight_decay=0.1, optimiser="sgd", momentum=0.9),
        training.Schedule(9, 0.05, weight_decay=0.0, optimiser="sgd", momentum=0.0, pace="linear"),
    ],
)
def test_steps_are_those_of_torch_at_the_rate_of_the_schedule(schedule):
    """Against a loop written out, with rates and clipping by hand."""
    target = torch.tensor([1.0, -2.0, 0.5])
    net, plain = Line(), Line()
    curve = training.fit(net, lambda step: (net.slope - target).square().sum(), schedule)
    if schedule.optimiser == "adamw":
        mover = torch.optim.AdamW(plain.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    else:
        mover = torch.optim.SGD(
            plain.parameters(),
            momentum=schedule.momentum,
            nesterov=schedule.momentum > 0,
            weight_decay=schedule.weight_decay,
        )
    losses = []
    for step in range(9):
        if schedule.pace == "linear":
            share = min((step + 1) / 0.9, 1, max(0.02, 2 * (1 - step / 9)))
        else:
            share = min(step + 1, (1 + math.cos(math.pi * step / 9)) / 2)
        mover.param_groups[0]["lr"] = 0.05 * share
        loss = (plain.slope - target).square().sum()
        mover.zero_grad()
        loss.backward()
        norm = plain.slope.grad.norm()
        if norm > schedule.clip:
            plain.slope.grad *= schedule.clip / (norm + 1e-6)
        mover.step()
        losses.append(loss.item())
    assert curve == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(net.slope, plain.slope, atol=1e-6)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.LayerNorm(6)])
        self.head = nn.Linear(6, 5)


def test_muon_moves_hidden_matrices_by_their_orthogonalised_gradient_and_the_rest_by_adamw():
    net, other = Layers(), Layers()
    hidden = [n for n, p in net.named_parameters() if training.is_hidden_matrix(n, p)]
    assert hidden == ["layers.0.weight"]
    wanted = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    every = lambda m: [p for n, p in m.named_parameters() if n not in hidden]  # noqa: E731

    def loss_of(model: nn.Module) -> torch.Tensor:
        return (model.layers[0].weight * wanted).sum() + sum(p.square().sum() for p in every(model))

    schedule = training.Schedule(
        1, 0.01, 0.0, optimiser="muon", matrix_rate=0.1, momentum=0.0, clip=1e9
    )
    training.fit(net, lambda step: loss_of(net), schedule)
    moved = (other.layers[0].weight - net.layers[0].weight).double()
    u, _, v = torch.linalg.svd(wanted.double())  # the gradient's
    inside = u.T @ moved @ v.T / 0.1  # five steps of Newton-Schulz: near to one, not equal
    assert ((inside.diag() > 0.6) & (inside.diag() < 1.4)).all()
    assert (inside - inside.diag().diag()).abs().max() < 0.1
    mover = torch.optim.AdamW(every(other), lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    loss_of(other).backward()
    mover.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(every(net), every(other)))


def test_what_a_schedule_does_not_know_is_named():
    with pytest.raises(ValueError, match="optimiser 'adam' is not known: choose adamw, sgd, muon"):
        training.Schedule(1, 0.1, optimiser="adam")
    with pytest.raises(ValueError, match="pace 'step'"):
        training.Schedule(1, 0.1, pace="step")
    with pytest.raises(ValueError, match="has none"):
        training.fit(Line(), lambda step: None, training.Schedule(1, 0.1, optimiser="muon"))
