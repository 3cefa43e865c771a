"""Digests of what a result depends on, blind to what cannot change it: comments, layout, wording.

    layerbook digests

writes build/digests/<stage>.json; it is a stage of the pipeline.

Python is taken by its syntax tree, without docstrings; a notebook by its code cells; a card by the
fields that measuring, or deciding, depends on. Data and networks are taken by the bytes. DVC's
stages depend on the files written here and not on the sources, so that a comma in a comment runs
nothing again.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import deps, method

FOLDER = "build/digests"
ENGINE = "layerbook.claims.engine"  # turns measurements into verdicts

# What a notebook imports but no measured number depends on: the engine (its verdicts are decided
# again in seconds), where things lie, the reading of cards (their measuring fields are counted by
# themselves), and all that only shows. Whatever only these import is left out with them; what a
# notebook or a method imports directly, such as stats, counts. Whether a model is fit for a method
# is asked before a run and answered by yes or no: a run that was refused has no numbers. Names of
# modules as fnmatch patterns.
NOT_MEASURING = (
    "layerbook",
    "layerbook.paths",
    "layerbook.keeping",
    "layerbook.endings",
    "layerbook.terminal",
    "layerbook.yamlfile",
    "layerbook.claims.engine",
    "layerbook.claims.rows",
    "layerbook.claims.zones",
    "layerbook.claims.testwords",
    "layerbook.claims.comparisons",
    "layerbook.claims.inference",
    "layerbook.claims.power",
    "layerbook.claims.roles",
    "layerbook.claims.cards",
    "layerbook.claims.card_rules",
    "layerbook.claims.varying",
    "layerbook.claims.papersources",
    "layerbook.claims.discussions",
    "layerbook.models.*",
    "layerbook.notebook.tables",
    "layerbook.notebook.plots",
    "layerbook.pages*",
)
TAGS = ("method", "parameters")  # of a notebook's cells: they decide how a cell is used
# Fields of a syntax tree that change nothing. Annotations of parameters and results are among them:
# they tell a reader shapes and types. Those of a dataclass's fields, which do change what it is,
# belong to other nodes and count.
SKIPPED = ("type_comment", "type_ignores", "kind")
HINTS = {"arg": "annotation", "FunctionDef": "returns", "AsyncFunctionDef": "returns"}
SHAPES = "jaxtyping"  # what is imported from it stands in hints alone


def sha256(value: Any) -> str:
    """SHA-256 of a JSON-ready value, hex."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _form(node: Any) -> Any:
    """A syntax tree as lists: no positions, docstrings or hints, no empty fields (which differ
    between Python versions).
    """
    if isinstance(node, list):
        return [_form(n) for n in node if getattr(n, "module", None) != SHAPES]
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__} {node!r}"
    out: list[Any] = [type(node).__name__]
    documented = isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    )
    for name, value in ast.iter_fields(node):
        if HINTS.get(out[0]) == name:
            continue
        if documented and name == "body" and value and _is_text(value[0]):
            value = value[1:]
        if (
            value not in (None, [])
            and name not in SKIPPED
            or isinstance(node, ast.Constant)
            and name == "value"
        ):
            out.append([name, _form(value)])
    return out


@lru_cache(maxsize=2048)
def of_code(code: str) -> str:
    """Digest of Python source. IPython's magics and shell lines count as they stand; so does what
    is no Python.
    """
    lines = code.splitlines()
    magics = [line.strip() for line in lines if line.lstrip().startswith(("%", "!"))]
    plain = (
        "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
        if magics
        else code
    )
    try:
        return sha256([magics, _form(method.parsed(plain))])
    except (SyntaxError, ValueError):
        return sha256(code)


EMPTY = of_code("")  # of a cell that holds nothing but comments


def of_cells(cells: Iterable[Any]) -> list[tuple[Any, str]]:
    """The code cells that do something and were not put in by a run, each with its digest."""
    out = []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if (
            cell.cell_type == "code"
            and "injected-parameters" not in tags
            and of_code(cell.source) != EMPTY
        ):
            out.append((cell, sha256([of_code(cell.source), [t for t in TAGS if t in tags]])))
    return out


def of_notebook(file: Path) -> str:
    """Digest of a notebook's code cells in order; its text cells and outputs count for nothing.
    Raises ValueError.
    """
    return sha256([digest for _, digest in of_cells(method.read(file).cells)])


def _file(file: Path) -> str:
    """Digest of a module by its code, of any other file by its bytes."""
    if file.suffix == ".py":
        return of_code(file.read_text(encoding="utf-8"))
    from layerbook.pipeline import record

    return record.sha256(file)


def of_modules(names: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """Digest of each module in the closure of some, by its path from the root.

    Args:
        without: patterns of names that are left out, with what only they import.
    """
    patterns = tuple(without)
    left_out = lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)  # noqa: E731
    return {f.relative_to(paths.ROOT).as_posix(): _file(f) for f in deps.closure(names, left_out)}


def measuring_fields(card: dict[str, Any]) -> dict[str, Any]:
    """What a run reads of its card before and while it measures; no wording, no tests."""
    parameters = {
        name: {k: v for k, v in spec.items() if k != "help"}
        for name, spec in card.get("parameters", {}).items()
    }
    arrays = {claim: sorted(names) for claim, names in cards.registered_arrays(card).items()}
    return {
        "slug": card["slug"],
        "substrate": card["substrate"],
        "parameters": parameters,
        "arrays": arrays,
        "gates": [g["id"] for g in card.get("gates", [])],
    }


# Fields of claims, gates and tests that the engine does not read: wording, and what was planned.
WORDING = (
    "statement",
    "title",
    "paper",
    "metric",
    "unit",
    "differs",
    "changed",
    "shows",
    "speaks_of",
    "asked_by",
    "varies",
    "expect",
    "underpowered",
)


def deciding_fields(card: dict[str, Any]) -> dict[str, Any]:
    """What the engine reads of a card: all of its claims and gates but their wording.

    Where a claim was decided (`on` of a claim) is wording; mean or median (`on` of a test) is not.
    """

    def bare(item: dict[str, Any], *without: str) -> dict[str, Any]:
        out = {k: v for k, v in item.items() if k not in (*WORDING, *without)}
        if "tests" in out:
            out["tests"] = [bare(test) for test in out["tests"]]
        return out

    claims, gates = card["claims"], card.get("gates", [])
    return {"claims": [bare(c, "on") for c in claims], "gates": [bare(g) for g in gates]}


def method_of(slug: str) -> dict[str, str]:
    """That part of *measured by* which is written by hand: notebook, card, and the modules that the
    notebook uses.
    """
    own = {
        f"notebooks/{slug}.ipynb": of_notebook(paths.NOTEBOOKS / f"{slug}.ipynb"),
        f"notebooks/{slug}.yaml": sha256(measuring_fields(deps.card(slug))),
    }
    return own | of_modules(deps.imported(deps.code_of(slug)), NOT_MEASURING)


def engine() -> dict[str, str]:
    """That part of *decided by* which all papers share: the engine and the statistics that it uses."""
    return of_modules([ENGINE])


def decided_by(slug: str) -> dict[str, str]:
    """Digests of all that the verdicts of a paper follow from, but for its measurements."""
    return {f"notebooks/{slug}.yaml": sha256(deciding_fields(deps.card(slug)))} | engine()


def of_stages() -> dict[str, dict[str, Any]]:
    """Stage -> the digests that it depends on besides data: of papers, networks, prepared assets
    and verdicts, and of what was timed.

    A paper whose card or notebook cannot be read has its fault in place of digests, so that it
    alone fails.
    """
    from layerbook.pipeline import benchmarks, stages

    out: dict[str, dict[str, Any]] = {}
    for stage, module in stages.module_stages().items():
        out[stage] = of_modules([module], NOT_MEASURING)
    decided: dict[str, Any] = {}
    for slug in cards.slugs():
        try:
            out[slug], decided[slug] = method_of(slug), decided_by(slug)
        except (ValueError, SyntaxError, FileNotFoundError) as error:
            out[slug] = decided[slug] = {"fault": str(error)}
    return out | {"decide": decided, "bench": benchmarks.of_all()}


def write() -> list[Path]:
    """Write the digests of every stage; an equal file stays as it is. Returns their paths."""
    from layerbook.pipeline import record

    folder, out = paths.ROOT / FOLDER, []
    for stage, found in of_stages().items():
        file, text = (
            folder / f"{stage}.json",
            (json.dumps(found, indent=1, sort_keys=True) + "\n").encode(),
        )
        if not file.is_file() or file.read_bytes() != text:
            record.replace(file, text)
        out.append(file)
    for old in set(folder.glob("*.json")) - set(out):
        old.unlink()
    return sorted(out)
