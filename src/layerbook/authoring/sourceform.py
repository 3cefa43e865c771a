"""The form in which source notebooks are stored: no outputs, and no metadata but what the book
reads.

An ordinary save from Jupyter adds time stamps, the state of widgets and the version of Python, and
may change how the file is laid out. None of it matters to what a notebook computes, so nothing
complains about it, and `layerbook clean` takes it away.
"""

from __future__ import annotations

import copy

import nbformat

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}


def text(notebook: nbformat.NotebookNode) -> str:
    """A notebook, format 4, as its source file has it, byte for byte whatever editor saved it.

    Cells keep kind, name, source, tags, and attached pictures where there are some.
    """
    clean = copy.deepcopy(notebook)
    clean.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    clean.nbformat, clean.nbformat_minor = 4, 5
    for cell in clean.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = cell.source.replace("\r\n", "\n")
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if not cell.get("attachments"):
            cell.pop("attachments", None)
    return nbformat.writes(clean, indent=1) + "\n"
