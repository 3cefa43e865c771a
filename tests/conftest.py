"""A small house to test the machinery in: its own root with two tiny papers, nothing shared with the real one."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from layerbook import assets, claims, datastore, manifest, paths, prepare  # noqa: F401 - bound before any root is patched

CARD = """\
slug: {slug}
title: "A paper for tests"
authors: ["A. Author"]
year: 2024
arxiv: "2401.00001"
cite: test2024
code: {{url: null, licence: null, note: "none"}}
family: training
summary: "Numbers are drawn."
substrate: []
parameters:
  shift: {{help: "how far the numbers lie from zero", min: -10, max: 10}}
gates:
  - {{id: G1, statement: "it trained", metric: "accuracy", unit: "seed", test: {{every: {{above: 0.5}}}}}}
claims:
  - id: C1
    kind: effect
    statement: "The shift is positive."
    paper: "not known"
    metric: "shift"
    unit: "seed"
    tests:
      - {{of: gain, above: 0}}
    smallest: 0.1
    tier: cpu
    twin: N1
    requires: [G1]
    differs: "nothing"
  - id: C2
    kind: identity
    statement: "One is one."
    paper: "exact"
    metric: "difference"
    unit: "seed"
    tests:
      - {{every: {{below: 1.0e-3}}}}
    tier: smoke
  - id: N1
    kind: control
    statement: "Numbers without the shift."
    metric: "shift"
    unit: "seed"
    tier: cpu
    fails: C1
"""
CELLS = [
    ("markdown", "title", "# A paper for tests", ""),
    ("code", "params", 'tier = "auto"\nseed = 0\ndevice = "auto"\nshift = 1.0', "parameters"),
    ("code", "setup", 'import numpy as np\nfrom layerbook import paper\n\nrun = paper.start("{slug}", globals())', ""),
    ("code", "method", "def draw(rng, shift, n=8):\n    return shift + 0.2 * rng.normal(size=n)", "method"),
    ("code", "work", "rng = np.random.default_rng(run.seed)\n{extra}\n"
     'run.record("C1", gain=draw(rng, shift))\nrun.record("N1", gain=draw(rng, 0.0))\n'
     'run.record("C2", [0.0] * 5)\nrun.gate("G1", [0.9])', ""),
    ("code", "fact", 'run.fact("one is one", True)', "nbval-check-output"),
    ("code", "end", "run.finish()", ""),
]


class House:
    """A root folder with papers in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def paper(self, slug: str = "toy", card: str = CARD, extra: str = "pass") -> None:
        """Write card and notebook of a paper; `extra` goes into its working cell."""
        (self.root / "notebooks" / f"{slug}.yaml").write_text(card.format(slug=slug), encoding="utf-8")
        cells = []
        for kind, name, source, tag in CELLS:
            text = source.replace("{slug}", slug).replace("{extra}", textwrap.dedent(extra))
            cell = (new_code_cell if kind == "code" else new_markdown_cell)(text)
            cell["id"] = name
            if tag:
                cell["metadata"]["tags"] = [tag]
            cells.append(cell)
        metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.write(new_notebook(cells=cells, metadata=metadata), self.root / "notebooks" / f"{slug}.ipynb")

    def record(self, slug: str = "toy", tier: str = "cpu") -> dict:
        """The stored record."""
        return json.loads((self.root / "results" / tier / f"{slug}.json").read_text(encoding="utf-8"))

    def results(self) -> dict[str, bytes]:
        """Every file under results/, by its path."""
        folder = self.root / "results"
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """An isolated root: this process and every kernel it starts see it in place of the checkout."""
    (tmp_path / "src").symlink_to(paths.ROOT / "src")
    for name in ("notebooks", "results", "build", "data"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    monkeypatch.setenv("LAYERBOOK_TIER", "")
    for name, folder in {"ROOT": "", "DATA": "data", "PREPARED": "build/prepared", "NOTEBOOKS": "notebooks",
                         "RESULTS": "results", "BOOK": "book", "MODELS": "results/models"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    made = House(tmp_path)
    made.paper()
    return made


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess]:
    """Run a command in a folder and capture what it prints."""
    def run(*command: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False, **kwargs)
    return run
