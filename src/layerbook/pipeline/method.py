"""Load the method of a notebook without running it: its cells tagged `method`."""

from __future__ import annotations

import ast
import linecache
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from layerbook import paths
from layerbook.claims import cards

_parsing = threading.Lock()


def parsed(code: str) -> ast.Module:
    """The syntax tree of a source. Raises SyntaxError.

    One at a time: in Python 3.11 two threads that parse at once may both fail with "AST constructor
    recursion depth mismatch", and papers that run side by side are read in threads.
    """
    with _parsing:
        return ast.parse(code)


def source(slug: str) -> str:
    """Path-free Python source of a notebook's method cells, in order."""
    cards.path(slug)
    return "\n\n".join(
        c.source
        for c in read(paths.NOTEBOOKS / f"{slug}.ipynb").cells
        if c.cell_type == "code" and "method" in c.metadata.get("tags", [])
    )


def read(file: Path) -> nbformat.NotebookNode:
    """A notebook, format 4. Raises ValueError when the file is not one."""
    try:
        return nbformat.read(file, as_version=4)
    except Exception as error:  # nbformat raises several unrelated types for a broken file
        raise ValueError(f"{file.name} is not a readable notebook: {error}") from None


def defaults(slug: str) -> dict[str, Any]:
    """Parameters of a notebook as its cell tagged `parameters` gives them.

    Raises:
        ValueError: that cell holds something else than names and literals, or there is none.
    """
    code = "\n".join(
        c.source
        for c in read(paths.NOTEBOOKS / f"{slug}.ipynb").cells
        if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])
    )
    found: dict[str, Any] = {}
    try:
        for node in parsed(code).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            found |= {target.id: ast.literal_eval(value) for target in targets}
    except (SyntaxError, ValueError, AttributeError, TypeError):
        raise ValueError(
            f"notebooks/{slug}.ipynb: the cell tagged 'parameters' must hold lines 'name = literal' only"
        ) from None
    return found


def load(slug: str, **replace: str) -> SimpleNamespace:
    """Execute the method cells alone and return what they define.

    Args:
        slug: the paper.
        replace: name=source pairs run after the cells, to break a definition on purpose in a test.

    Raises:
        ValueError: the notebook has no cell tagged `method`.
    """
    code = source(slug)
    if not code.strip():
        raise ValueError(f"{slug}.ipynb has no cell tagged 'method'")
    code = "\n\n".join([code, *replace.values()])
    name = f"<method of {slug}>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    scope: dict[str, object] = {"__name__": f"layerbook_method_{slug.replace('-', '_')}"}
    # dont_inherit: this module's own __future__ imports are not the cells' (string annotations
    #     break their dataclasses).
    exec(compile(code, name, "exec", dont_inherit=True), scope)  # noqa: S102 - this project's own notebook
    return SimpleNamespace(**{k: v for k, v in scope.items() if not k.startswith("__")})
