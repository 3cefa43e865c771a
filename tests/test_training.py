"""What the training of all small networks shares."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from layerbook.networks import training


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(3))


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    steps: int = 4


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


def test_half_precision_is_stored_and_the_network_left_alone(tmp_path):
    net = Line()
    training.save(
        {"a": net, "b": Line()}, {"gate": {"passed": True}}, tmp_path, dtype=torch.float16
    )
    assert (
        load_file(tmp_path / "b/model.safetensors")["slope"].dtype == torch.float16
        and net.slope.dtype == torch.float32
    )
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["gate"]["passed"]


def test_a_folder_whose_writing_was_interrupted_has_no_card(tmp_path, monkeypatch):
    training.save({"a": Line()}, {"gate": {}}, tmp_path)
    monkeypatch.setattr(Path, "chmod", lambda *args: (_ for _ in ()).throw(OSError("interrupted")))
    with pytest.raises(OSError, match="interrupted"):
        training.save({"a": Line()}, {"gate": {}}, tmp_path)
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("passed", [True, False])
def test_the_command_takes_seed_and_steps_and_ends_with_the_gate(tmp_path, capsys, passed):
    seen = []

    def make(recipe: Recipe, folder: Path) -> dict:
        seen.append((recipe, folder))
        return {"gate": {"passed": passed}}

    threads = torch.get_num_threads()
    try:
        assert training.main("net", Recipe(), make, [str(tmp_path), "--steps", "7"]) == (not passed)
    finally:
        torch.set_num_threads(threads)
    assert seen == [(Recipe(0, 7), tmp_path)]
    assert ("nothing may be concluded" in capsys.readouterr().err) != passed
