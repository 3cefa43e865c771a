"""The quantizers' benchmark at a tiny size: that both sides of each row compute the same thing, and
in turns.
"""

import torch

from bench import machinery, quantizing
from layerbook.quantize import gptq


def test_rows_name_a_library_and_an_aim(monkeypatch):
    def once(plain, ours, *_):
        a, b = plain(), ours()
        if isinstance(a, torch.Tensor) and isinstance(
            b, torch.Tensor
        ):  # the same numbers, but for halves that fall either way
            assert (
                a.numel() == b.numel()
                and ((a.flatten() - b.flatten()).abs() > 1e-4).double().mean() < 0.05
            )
        return 2.0, 1.0

    monkeypatch.setattr(quantizing, "SHAPE", (800, 64))
    monkeypatch.setattr(quantizing, "in_turns", once)
    rows = list(machinery.MEASURE["quantizers"]())
    assert len(rows) == 6 and all(
        r["ratio"] == 2 and r["goal"] == 1 and r["met"] and r["note"] for r in rows
    )
    assert [r["baseline"].split(".")[0].split(" ")[0] for r in rows] == ["torch"] * 4 + [
        "scikit-learn",
        "its",
    ]


def test_both_take_turns_after_a_warm_up():
    calls = []
    quantizing.in_turns(lambda: calls.append("a"), lambda: calls.append("b"), 2, 3)
    assert calls == ["a", "a", "b", "b"] * 4


def test_the_definition_that_gptq_is_timed_against_gives_what_it_gives():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(400, 48, generator=draw), torch.randn(8, 48, generator=draw)
    h = x.T @ x
    same = (quantizing.columns(w, h, 4) - gptq.solve(w, h, 4)).abs() < 1e-4
    assert same.double().mean() > 0.95
