"""What a notebook may ask for and hand over."""

import math

import pytest
import torch

from layerbook.notebook import paper
from layerbook.pipeline import method

PARAMS = {"tier": "cpu", "seed": 0, "device": "auto", "shift": 1.0}


def start(house, **changes):
    return paper.start("toy", PARAMS | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speed": 3}, "no parameter 'speed'. It takes tier"),
        ({"tier": "huge"}, "choices: auto, smoke, cpu, gpu, gpu-dry"),
        ({"device": "tpu"}, "choices: auto, cpu, cuda"),
        ({"shift": 11}, r"must lie in \[-10, 10\]"),
        ({"shift": "far"}, "is not a number"),
        ({"seed": -1}, "must lie in"),
        ({"seed": True}, "is not a number"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(house, changes, says):
    with pytest.raises(paper.ParameterError, match=says):
        start(house, **changes)


def test_a_missing_parameter_is_named(house):
    with pytest.raises(paper.ParameterError, match="lacks shift"):
        paper.start("toy", {k: v for k, v in PARAMS.items() if k != "shift"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA (2026-11-23)")
def test_no_gpu_is_said_not_passed_over(house):
    with pytest.raises(paper.ParameterError, match="gpu-dry"):
        start(house, tier="gpu")
    with pytest.raises(paper.ParameterError, match="no CUDA device"):
        start(house, device="cuda")
    dry = start(house, tier="gpu-dry")
    assert dry.dry and dry.tier == "gpu" and dry.pick(smoke=1, cpu=2, gpu=3) == 1


def test_the_environment_overrides_the_tier(house, monkeypatch):
    monkeypatch.setenv(paper.TIER_VARIABLE, "smoke")
    assert start(house).tier == "smoke"
    monkeypatch.setenv(paper.TIER_VARIABLE, "big")
    with pytest.raises(paper.ParameterError, match="big"):
        start(house)


def test_measurements_must_fit_the_card(house):
    run = start(house)
    with pytest.raises(paper.MeasurementError, match="registers no claim 'C9'"):
        run.record("C9", [1.0])
    with pytest.raises(paper.MeasurementError, match="C1 registers gain, got loss"):
        run.record("C1", loss=[1.0])
    with pytest.raises(paper.MeasurementError, match="one number per unit"):
        run.record("C2", torch.zeros(2, 2))
    run.record("C2", torch.zeros(3))
    with pytest.raises(paper.MeasurementError, match="recorded already"):
        run.record("C2", [0.0])
    with pytest.raises(paper.MeasurementError, match="no gate 'G2'"):
        run.gate("G2", 1.0)
    with pytest.raises(paper.MeasurementError, match="not in the card's substrate"):
        run.input("smollm2")


def test_nan_reaches_the_engine_as_nan(house):
    run = start(house)
    run.gate("G1", [0.9])
    run.record("C1", gain=[1.0, math.nan, 1.1, 1.2])
    verdict = {r["id"]: r for r in run.decide()["claims"]}["C1"]
    assert verdict["verdict"] == "undecided" and "NaN" in verdict["reason"]


def test_method_cells_load_without_a_run(house):
    import numpy as np

    m = method.load("toy")
    assert m.draw(np.random.default_rng(0), 5.0).mean() > 4
    broken = method.load(
        "toy", draw="def draw(rng, shift, n=8):\n    return -shift * rng.random(n)"
    )
    assert broken.draw(np.random.default_rng(0), 5.0).mean() < 0


def test_method_cells_do_not_inherit_the_loaders_future_imports(house):
    m = method.load(
        "toy", box="from dataclasses import dataclass\n\n@dataclass\nclass Box:\n    size: int = 1"
    )
    assert m.Box(2).size == 2
    assert m.Box.__annotations__ == {"size": int}  # not the string "int"


def test_a_model_that_does_not_exist_is_refused_before_any_compute(house, monkeypatch):
    from bench.toy import CARD

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    house.paper(
        card=CARD.replace(
            "parameters:\n", 'parameters:\n  model: {{help: "a model", kind: causal-lm}}\n'
        )
    )
    with pytest.raises(paper.ParameterError, match="model = 'no-such/model'"):
        start(house, model="no-such/model")
    with pytest.raises(paper.ParameterError, match="give smollm2"):
        start(house, model=3)
