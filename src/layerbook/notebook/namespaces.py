"""Which of a notebook's variables are its parameters, in the first run of a kernel and in every
later one.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from layerbook.claims import cards

INJECTED = "# Parameters"  # how papermill begins the cell with the values that it was given
PLAIN = (bool, int, float, str, list, dict, tuple)


def parameters(namespace: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The parameters that a notebook sets, known ones and others, so that a misspelt one is seen.

    In a notebook, a name counts as a parameter if the parameters cell that was run last sets it, or
    a cell that papermill put behind it; a literal counts as it is written there. What other cells
    have left behind, be it in an earlier run, is no parameter. Elsewhere every plain value counts.

    Args:
        namespace: the notebook's globals.
        known: names of the card's parameters.
    """
    written = _written(list(namespace.get("In", ())))
    if written is None:
        return {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_")
            and name not in ("In", "Out", "exit", "quit")
            and (value is None or isinstance(value, PLAIN))
        }
    given = {}
    for name in (*known, *sorted(set(written) - set(known))):
        if name in written or name in namespace:
            given[name] = _value(written.get(name), namespace.get(name))
    return given


def _written(history: list[str]) -> dict[str, ast.AST] | None:
    """What the last parameters cell of a history of cells sets, and what papermill added behind it.

    None without a parameters cell: one that sets all parameters which every notebook has.
    """
    for at in range(len(history) - 1, -1, -1):
        found = _assignments(history[at])
        if set(found) >= set(cards.COMMON_PARAMETERS):
            for later in history[at + 1 :]:
                if later.lstrip().startswith(INJECTED):
                    found |= _assignments(later)
            return found
    return None


def _assignments(code: str) -> dict[str, ast.AST]:
    """Names that a cell assigns at its top level, with what it assigns; none if it is not plain
    Python.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return {}
    pairs = [(t, node.value) for node in body if isinstance(node, ast.Assign) for t in node.targets]
    pairs += [(node.target, node.value) for node in body if isinstance(node, ast.AnnAssign)]
    return {t.id: value for t, value in pairs if isinstance(t, ast.Name) and value is not None}


def _value(written: ast.AST | None, current: Any) -> Any:
    """A literal as it is written, since later cells may use the name anew; else the variable's
    value.
    """
    try:
        return current if written is None else ast.literal_eval(written)
    except (ValueError, TypeError):
        return current
