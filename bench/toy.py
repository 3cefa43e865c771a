"""A paper of the smallest kind, for tests and benchmarks of the machinery: it draws numbers around
a shift.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

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
    (
        "code",
        "setup",
        'import numpy as np\nfrom layerbook.notebook import paper\n\nrun = paper.start("{slug}", globals())',
        "",
    ),
    (
        "code",
        "method",
        "def draw(rng, shift, n=8):\n    return shift + 0.2 * rng.normal(size=n)",
        "method",
    ),
    (
        "code",
        "work",
        "rng = np.random.default_rng(run.seed)\n{extra}\n"
        'run.record("C1", gain=draw(rng, shift))\nrun.record("N1", gain=draw(rng, 0.0))\n'
        'run.record("C2", [0.0] * 5)\nrun.gate("G1", [0.9])',
        "",
    ),
    ("code", "fact", 'run.fact("one is one", True)', "nbval-check-output"),
    ("code", "end", "run.finish()", ""),
]
FOLDERS = ("notebooks", "results", "build", "data")


def house(root: Path, source: Path) -> None:
    """Make `root` a checkout without papers, whose `src` is that of the checkout `source`."""
    (root / "src").symlink_to(source / "src")
    for name in FOLDERS:
        (root / name).mkdir()
    bibliography(root)


def bibliography(root: Path) -> None:
    """The entry that the toy's card cites, in the checkout `root`."""
    (root / "book").mkdir(exist_ok=True)
    (root / "book" / "references.bib").write_text(
        "@misc{test2024,\n  title = {A paper for tests}\n}\n", encoding="utf-8"
    )


def write(root: Path, slug: str, card: str = CARD, extra: str = "pass") -> None:
    """Write card and notebook of a paper into the checkout `root`; `extra` goes into its working
    cell.
    """
    (root / "notebooks" / f"{slug}.yaml").write_text(card.format(slug=slug), encoding="utf-8")
    cells = []
    for kind, name, source, tag in CELLS:
        cell = (new_code_cell if kind == "code" else new_markdown_cell)(
            source.replace("{slug}", slug).replace("{extra}", extra)
        )
        cell["id"] = name
        if tag:
            cell["metadata"]["tags"] = [tag]
        cells.append(cell)
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(
        new_notebook(cells=cells, metadata=metadata), root / "notebooks" / f"{slug}.ipynb"
    )
