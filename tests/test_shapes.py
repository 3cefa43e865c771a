"""The hints of tensors' shapes are held against what is handed over and returned, in tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import shapecheck
import torch

from layerbook import paths
from layerbook.layers import curvature, interventions
from layerbook.quantize import billm, bits, formats, gptq, grids, ranges, rotations, swaps

SQUARE = torch.eye(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: interventions.first(torch.zeros(2, 3)),  # no batch
        lambda: interventions.chosen(None, torch.zeros(4, 3)),
        lambda: curvature.hvp(torch.zeros(2), [SQUARE], [SQUARE]),  # a loss is one number
        lambda: billm.salient(SQUARE, torch.ones(4)),
        lambda: billm.split(SQUARE, torch.ones(3)),  # booleans are wanted
        lambda: bits.pack(torch.zeros(3), 2),  # whole numbers are wanted
        lambda: formats.fp8(torch.zeros(3, dtype=torch.long)),  # as those of weights
        lambda: gptq.solve(SQUARE, torch.eye(4), 4),
        lambda: gptq.quadratic(SQUARE, torch.zeros(3, 2), SQUARE),
        lambda: grids.from_range(torch.zeros(2), torch.ones(3), 4),
        lambda: grids.decode(SQUARE, grids.fit(SQUARE, 4)),
        lambda: ranges.grouped(torch.zeros(()), 2),
        lambda: rotations.smooth(torch.ones(2), SQUARE, 0.5),
        lambda: swaps.token_losses(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)),
    ],
)
def test_wrong_shapes_and_formats_are_refused_at_the_call(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_a_wrong_hint_of_a_result_is_seen(tmp_path):
    """A function of one of the rooms that returns what it does not say."""
    room = tmp_path / "layerbook_wrong"
    room.mkdir()
    (room / "__init__.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n\n\n"
        'def turned(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:\n'
        "    return x.T\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with jaxtyping.install_import_hook("layerbook_wrong", "beartype.beartype"):
            import layerbook_wrong
    finally:
        sys.path.remove(str(tmp_path))
    assert layerbook_wrong.turned(SQUARE) is not None
    with pytest.raises(jaxtyping.TypeCheckError):
        layerbook_wrong.turned(torch.zeros(2, 3))


def test_a_run_checks_nothing():
    code = (
        "import torch; from layerbook.layers import interventions as i; "
        "i.first(torch.zeros(2, 3)); import sys; assert 'beartype' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=paths.ROOT, check=False).returncode == 0


def _public(room: str) -> list[tuple[str, str]]:
    """(module, function) of the room's public functions whose hints name a bare tensor."""
    out = []
    folder = Path(interventions.__file__).parents[1] / room.rpartition(".")[2]
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                hints = [a.annotation for a in [*node.args.args, *node.args.kwonlyargs]]
                for hint in [*hints, node.returns]:
                    if hint is not None and ast.unparse(hint) in ("Tensor", "Tensor | None"):
                        out.append((file.stem, node.name))
    return out


def test_every_public_function_says_its_shapes():
    bare = [found for room in shapecheck.ROOMS for found in _public(room)]
    assert bare == [("interventions", "indices")]  # booleans or indices, as they are given
