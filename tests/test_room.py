"""What is stored of networks: read whole, or refused with the way to get it back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layerbook import paths
from layerbook.networks import room


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net" / "part").mkdir(parents=True)
    save_file(
        {
            "a.weight": torch.full((2, 3), 0.1, dtype=torch.float16),
            "a.bias": torch.zeros(2, dtype=torch.float16),
            "b.steps": torch.tensor([7]),
        },
        tmp_path / "net" / "part" / room.WEIGHTS,
    )
    (tmp_path / "net" / "card.json").write_text('{"name": "net"}', encoding="utf-8")
    return tmp_path / "net"


def test_parts_are_read_in_single_precision_and_whole_numbers_stay(folder):
    found = room.state(folder, "part")
    assert found["a.weight"].dtype == torch.float32 and found["b.steps"].dtype == torch.int64
    assert found["a.weight"][0, 0].item() == torch.tensor(0.1).half().item()
    assert set(room.state(folder, "part", "a.")) == {"weight", "bias"}
    model = room.fill(nn.Linear(3, 2), folder, "part", "a.")
    assert not model.training and not model.weight.requires_grad and not model.bias.any()


def test_what_is_missing_or_damaged_says_how_to_get_it_back(folder):
    with pytest.raises(KeyError, match="no part 'c' in 'part'"):
        room.state(folder, "part", "c.")
    with pytest.raises(FileNotFoundError, match="git checkout -- results/models/net.*layerbook tr"):
        room.state(folder, "other")
    with pytest.raises(room.NetworkError, match="another architecture.*size mismatch"):
        room.fill(nn.Linear(4, 2), folder, "part", "a.")
    with pytest.raises(room.NetworkError, match=r"another architecture \(has bias besides\)"):
        room.fill(nn.Linear(3, 2, bias=False), folder, "part", "a.")
    with pytest.raises(room.NetworkError, match=r"another architecture \(lacks 0.weight\)"):
        room.fill(nn.Sequential(nn.Linear(3, 2)), folder, "part")
    weights = folder / "part" / room.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(room.NetworkError, match="damaged.*layerbook train net"):
        room.state(folder, "part")
    (folder / "card.json").write_text('{"name": ', encoding="utf-8")
    with pytest.raises(room.NetworkError, match="card.json is damaged"):
        room.card(folder)
    (folder / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match="card.json is missing"):
        room.card(folder)


def test_a_damaged_transformers_model_says_how_to_get_it_back(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(room.NetworkError, match="cannot be read.*layerbook train net"):
        room.transformers_model("LlamaForCausalLM", tmp_path / "net")
    with pytest.raises(FileNotFoundError, match="missing"):
        room.transformers_model("LlamaForCausalLM", tmp_path / "other")


def test_networks_stay_within_their_room():
    """All together, so that a clone stays small."""
    sizes = {f: f.stat().st_size for f in paths.MODELS.rglob("*") if f.is_file()}
    assert sum(sizes.values()) < 30e6
