"""The cells of a published page: the text and code of the source notebook, with the outputs of the
executed one.

A word mended in a text cell or a comment shows at once, without a run. Tables of claims and
verdicts are drawn from the card and the stored verdicts, not taken from the run, so that they say
what the scoreboard says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbformat import NotebookNode

from layerbook.notebook import tables
from layerbook.pipeline import digests


class CellsDiffer(ValueError):
    """The executed notebook ran other code than the source notebook holds."""


def merged(source: NotebookNode, executed: NotebookNode) -> list[NotebookNode]:
    """Cells of the source with the outputs of the executed cells of the same code, in order.

    The cell with the parameters that a run was given stands where the run put it, behind the
    notebook's own.

    Raises:
        CellsDiffer: the code cells of the two are not the same.
    """
    here, there = digests.of_cells(source.cells), digests.of_cells(executed.cells)
    if [digest for _, digest in here] != [digest for _, digest in there]:
        raise CellsDiffer("its code cells are not those of the source notebook")
    ran = {id(cell): done for (cell, _), (done, _) in zip(here, there, strict=True)}
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    own = any("parameters" in c.metadata.get("tags", []) for c in source.cells)
    out = [] if own else list(injected)
    for cell in source.cells:
        if id(cell) in ran:
            cell["outputs"], cell["execution_count"] = (
                ran[id(cell)].outputs,
                ran[id(cell)].execution_count,
            )
        out.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            out += injected
    return out


def with_current_tables(
    cells: list[NotebookNode], card: Mapping[str, Any], evidence: Mapping[str, Any]
) -> list[NotebookNode]:
    """Put the tables of claims and verdicts as they are now in place of those that the run showed."""
    drawn = {
        'aria-label="registered claims"': lambda: tables.registered(card),
        'aria-label="verdicts"': lambda: tables.verdicts(card, evidence, evidence["findings"]),
    }
    for cell in cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            for mark, draw in drawn.items():
                if mark in html:
                    output["data"]["text/html"] = draw()
    return cells
