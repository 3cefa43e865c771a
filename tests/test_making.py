"""How networks are made: rounded before they are examined, whole or not at all, side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from layerbook import cli, paths
from layerbook.networks import making, room, storing

FINE = 2049.0  # the least whole number that half precision does not hold: it becomes 2048


@dataclass(frozen=True)
class Recipe:
    """A network whose weight is its seed plus a number that half precision rounds."""

    seed: int = 0
    seeds: int = 3
    steps: int = 1
    loss: float = 0.0


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value]))
        self.count = nn.Parameter(torch.zeros(1))
        self.again = self.count  # tied


def grow(recipe: Recipe, seed: int, device: torch.device) -> making.Grown:
    log = os.environ.get("GROWN")
    if log:
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{seed} {torch.get_num_threads()}\n")
    if recipe.loss and seed == recipe.seed + 1:
        if recipe.loss > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise FloatingPointError("the loss of step 3 is nan: lower the learning rate")
    if recipe.steps > 1 and seed > recipe.seed:
        time.sleep(60)
    return making.Grown({"": Scalar(FINE + seed)}, {"seen": seed})


def examine(recipe: Recipe, seed: int, grown: making.Grown) -> dict:
    return {"w": grown.models[""].w.item()}


def gate(recipe: Recipe, held_out) -> dict:
    return {"passed": all(one["w"] == FINE + seed for seed, one in held_out.items())}


NETWORK = making.Network(
    "scalar", {"description": "One number."}, Recipe(), grow, examine, gate, members="seeds"
)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A checkout of its own, in which these networks are made; workers find this module."""
    for name, folder in {"ROOT": "", "MODELS": "results/models"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setattr(making, "modules", lambda: {"scalar": __name__})
    return tmp_path


def test_the_gate_judges_what_is_stored(root, monkeypatch):
    card = making.make(NETWORK, root / "fine", processes=1)
    assert card["gate"]["passed"] and card["held_out"]["0"] == {"w": FINE}
    monkeypatch.setattr(sys.modules[__name__], "NETWORK", replace(NETWORK, dtype=torch.float16))
    card = making.make(NETWORK, root / "half", processes=1)
    assert not card["gate"]["passed"] and card["held_out"]["0"] == {"w": 2048.0}
    stored = load_file(root / "half" / "seed0" / room.WEIGHTS)
    assert stored["w"].dtype == torch.float16 and stored["w"].item() == 2048


def test_the_card_says_how_it_was_made_and_tied_weights_are_stored_once(root):
    card = making.make(NETWORK, root / "a", Recipe(seed=5, seeds=2), processes=1)
    assert card == json.loads((root / "a" / "card.json").read_text(encoding="utf-8"))
    assert card["made_by"] == "layerbook train scalar" and card["recipe"]["seed"] == 5
    assert card["training"] == {"5": {"seen": 5}, "6": {"seen": 6}} and card["parameters"] == 2
    assert set(load_file(root / "a" / "seed6" / room.WEIGHTS)) == {"w", "count"}
    model = room.fill(Scalar(0.0), root / "a", "seed6")
    assert model.w.item() == FINE + 6 and model.again is model.count and not model.w.requires_grad
    assert not list((root / "build" / "making").glob("*/*")) and len(list(root.glob("a*"))) == 1


def test_networks_may_share_a_file(root, monkeypatch):
    shared = replace(NETWORK, place=lambda seed, role: ("all", f"{seed}."))
    making.make(shared, root / "a", processes=1)
    assert set(load_file(root / "a" / "all" / room.WEIGHTS)) == {
        f"{k}.{name}" for k in range(3) for name in ("w", "count")
    }
    assert room.fill(Scalar(0.0), root / "a", "all", "2.").w.item() == FINE + 2


def test_one_process_and_two_write_the_same(root, monkeypatch):
    monkeypatch.setenv("GROWN", str(root / "log"))
    making.make(NETWORK, root / "one", processes=1)
    making.make(NETWORK, root / "two", processes=2)
    for file in (root / "one").rglob("*.*"):
        assert file.read_bytes() == (root / "two" / file.relative_to(root / "one")).read_bytes()
    lines = (root / "log").read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted(["0 1", "1 1", "2 1"] * 2)  # each on one thread


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_says_what_to_do_and_loses_nothing(root, monkeypatch, processes):
    monkeypatch.setenv("GROWN", str(root / "log"))
    making.make(NETWORK, root / "a", processes=1)
    before = {f: f.read_bytes() for f in (root / "a").rglob("*.*")}
    with pytest.raises(making.MakingError, match="scalar: the loss of step 3 is nan: lower the le"):
        making.make(NETWORK, root / "a", Recipe(loss=1.0), processes)
    assert before == {f: f.read_bytes() for f in (root / "a").rglob("*.*")}


def test_a_killed_process_is_told_from_a_fault(root):
    with pytest.raises(making.MakingError, match="killed, most often for want of memory"):
        making.make(NETWORK, root / "a", Recipe(loss=2.0), processes=2)
    assert not (root / "a").exists()


SCRIPT = """
import sys, test_making as t
from layerbook import paths
from layerbook.networks import making
from pathlib import Path
paths.ROOT = Path(sys.argv[1])
making.make(t.NETWORK, paths.ROOT / "a", t.Recipe(steps=int(sys.argv[2])), processes=2)
"""


def test_an_interrupted_training_goes_on_where_it_was_and_leaves_no_process(root, monkeypatch):
    """Seed 0 is done at once and the others sleep; then the command is interrupted."""
    monkeypatch.setenv("GROWN", str(root / "log"))
    command = [sys.executable, "-c", SCRIPT, str(root), "2"]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list((root / "build").glob("making/*/0/report.json")) and time.monotonic() < until:
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    alive = lambda: not subprocess.run(["pgrep", "-g", str(child.pid)], check=False).returncode  # noqa: E731
    until = time.monotonic() + 15
    while alive() and time.monotonic() < until:
        time.sleep(0.2)
    assert not alive()
    assert not (root / "a").exists()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    card = making.make(NETWORK, root / "a", Recipe(steps=2), processes=1)
    assert list(card["held_out"]) == ["0", "1", "2"]
    seeds = [line.split()[0] for line in (root / "log").read_text("utf-8").splitlines()]
    assert seeds.count("0") == 1 and seeds.count("2") >= 1


def test_the_folder_that_papers_are_measured_on_is_written_by_its_own_recipe_alone(root, capsys):
    own = root / "results" / "models" / "scalar"
    assert making.command("scalar", processes=1) == 0
    assert room.card(own)["gate"]["passed"] and not (root / "build" / "failed" / "scalar").exists()
    before = (own / "card.json").read_bytes()
    for other in ({"seed": 7}, {"steps": 1}, {"seed": 7, "folder": own}):
        with pytest.raises(making.MakingError, match="layerbook train scalar --s.* --into FOLDER"):
            making.command("scalar", processes=1, **other)
    assert making.command("scalar", root / "other", seed=7, processes=1) == 0
    assert list(room.card(root / "other")["held_out"]) == ["7", "8", "9"]
    assert (own / "card.json").read_bytes() == before


def test_a_network_that_misses_its_gate_does_not_take_the_place_of_one_that_met_it(
    root, monkeypatch, capsys
):
    own = root / "results" / "models" / "scalar"
    making.command("scalar", processes=1)
    before = (own / "card.json").read_bytes()
    monkeypatch.setattr(sys.modules[__name__], "NETWORK", replace(NETWORK, dtype=torch.float16))
    assert making.command("scalar", processes=1) == 1
    assert "nothing may be concluded" in (said := capsys.readouterr().err)
    assert "build/failed/scalar" in said and (own / "card.json").read_bytes() == before
    assert not room.card(root / "build" / "failed" / "scalar")["gate"]["passed"]


def test_a_full_disk_leaves_the_old_network(root, monkeypatch):
    making.make(NETWORK, root / "a", processes=1)
    before = {f: f.read_bytes() for f in (root / "a").rglob("*.*")}

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storing, "assemble", full)
    with pytest.raises(OSError, match="No space"):
        making.make(NETWORK, root / "a", Recipe(seed=9), processes=1)
    assert before == {f: f.read_bytes() for f in (root / "a").rglob("*.*")}


def test_an_unknown_network_is_refused_with_a_guess(capsys):
    assert cli.main(["train", "tiny-gpt"]) != 0
    assert "did you mean tiny-gpt2?" in capsys.readouterr().err


def test_every_network_has_a_recipe_and_its_stored_card_is_that_recipes():
    assert set(making.modules()) == {f.name for f in paths.MODELS.iterdir() if f.is_dir()}
    for name in making.modules():
        network, card = making.find(name), room.card(paths.MODELS / name)
        stored = {k: tuple(v) if isinstance(v, list) else v for k, v in card["recipe"].items()}
        assert stored == vars(network.recipe), name
        several = bool(network.members)
        seeds = network.seeds(network.recipe)
        held_out = {s: card["held_out"][str(s)] if several else card["held_out"] for s in seeds}
        assert network.gate(network.recipe, held_out) == card["gate"] and card["gate"]["passed"]
        assert {k: card[k] for k in network.about} == dict(network.about), name
        files = list((paths.MODELS / name).rglob(room.WEIGHTS))
        kinds = {tensor.dtype for file in files for tensor in load_file(file).values()}
        assert kinds - {torch.int64} == {network.dtype}, name
