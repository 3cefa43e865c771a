"""`layerbook new <slug>`: card, notebook and test of a new paper, red until they are filled in."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from string import Template

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from layerbook import keeping, paths
from layerbook.claims import papersources

EXAMPLES = papersources.EXAMPLES

TEMPLATES = Path(__file__).parent / "templates"


def new(slug: str, paper: str = "") -> list[Path]:
    """Write the three files of a new paper, as a draft; returns them.

    Args:
        slug: its short name: file names, addresses and commands use it.
        paper: where it is published: an identifier or an address, as people paste them; empty to
            fill it in later.

    Raises:
        ValueError: the slug is not lower-case words joined by hyphens, or `paper` names nothing
            that can be linked.
        FileExistsError: one of the files is there already; nothing is overwritten.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(
            f"{slug!r} is no slug: lower-case words joined by hyphens, such as 'relp' or 'concept-depth'"
        )
    field, value = papersources.recognise(paper) if paper.strip() else ("arxiv", "TODO: 2401.00001")
    source = f"{field}: {json.dumps(value)}"
    fill = lambda name: Template((TEMPLATES / name).read_text(encoding="utf-8")).safe_substitute(  # noqa: E731
        slug=slug, year=datetime.date.today().year, source=source
    )
    notebook = nbformat.writes(_notebook(fill("notebook.txt")), indent=1) + "\n"
    files = {
        paths.NOTEBOOKS / f"{slug}.yaml": fill("card.yaml"),
        paths.NOTEBOOKS / f"{slug}.ipynb": notebook,
        paths.ROOT / "tests" / "papers" / f"test_{slug.replace('-', '_')}.py": fill("test.txt"),
    }
    there = [f.relative_to(paths.ROOT).as_posix() for f in files if f.exists()]
    if there:
        raise FileExistsError(f"{', '.join(there)} exists; nothing was written")
    keeping.replace_all({file: text.encode() for file, text in files.items()})
    return list(files)


def _notebook(text: str) -> nbformat.NotebookNode:
    cells = []
    for block in re.split(r"^# %% ", text, flags=re.M)[1:]:
        head, _, body = block.partition("\n")
        markdown, words = head.startswith("[markdown]"), head.removeprefix("[markdown] ").split()
        cell = (new_markdown_cell if markdown else new_code_cell)(body.strip("\n"))
        cell["id"] = words[0]
        for word in words[1:]:
            cell["metadata"]["tags"] = word.removeprefix("tags=").split(",")
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=cells, metadata=metadata)
