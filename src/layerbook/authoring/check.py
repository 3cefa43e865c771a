"""Hold a notebook and its card against the book's conventions, in seconds and without running it."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import nbformat

from layerbook import paths, yamlfile
from layerbook.claims import cards, discussions, lint
from layerbook.pipeline import method, record, registration, substrates

HEADINGS = [
    "Parameters",
    "Setup",
    "Data",
    "Method",
    "Experiment",
    "Controls",
    "Verdicts",
    "What differs",
    "At the paper's scale",
    "Cite",
]
COMMON = ("tier", "seed", "device")
# Statements, however many lines the formatter lays them out on; a median of 10 is aimed at.
CELLS, MEDIAN_STATEMENTS, MAX_STATEMENTS = (12, 25), 13, 40
PROSE = (4, 30)  # words of markdown per statement: aimed at 8 to 15, refused outside this range


def check(slug: str) -> list[str]:
    """Every way in which a paper departs from the conventions; an empty list when it does not.

    What a draft still has to fill in (TODO) counts as such a departure, too.
    """
    found, source = [], None
    try:
        source = cards.path(slug)
        card = cards.read(source, finished=True)
    except cards.CardError as error:
        found += str(error).split("\n")
        try:
            card = cards.load(slug)  # a draft can be looked at further
        except cards.CardError:
            return found
    try:
        discussions.read(paths.BOOK / "discussion" / source.name, card)
    except discussions.DiscussionError as error:
        found += str(error).split("\n")
    found += _asks(source, card) + substrates.faults(card, source)
    return found + _notebook(slug, card)


def _asks(source: Path, card: dict) -> list[str]:
    """What a card of the second edition may not ask, and tests that changed after their record."""
    if card.get("edition") != 2:
        return []
    try:
        measured = record.read(source.stem, "cpu")["measured"]
    except (ValueError, FileNotFoundError):
        measured = None  # not run yet, or a damaged record, which `layerbook status` reports
    faults = lint.faults(card, measured)
    if not registration.unknown():
        number = {c["id"]: k for k, c in enumerate(card["claims"])}
        undated = registration.undated(source.stem)
        faults += [(["claims", number[claim]], f"{claim}: {text}") for claim, text in undated]
    if not faults:
        return []
    document = yamlfile.read(source)
    return [f"{source.name}:{document.line(where)}: {text}" for where, text in faults]


def notes(slug: str) -> list[str]:
    """What is to be known of a paper and is no fault: tests of a first-edition card that changed
    after their record, and whether git can tell.
    """
    why = registration.unknown()
    if why:
        return [why]
    try:
        card = cards.load(slug)
        if card.get("edition") == 2:
            return []
        claims = [claim for claim, _ in registration.undated(slug)]
    except cards.CardError:
        return []
    if not claims:
        return []
    return [f"{slug}: tests of {', '.join(claims)} changed after their first record, no date said"]


def _notebook(slug: str, card: dict) -> list[str]:
    """What a paper's notebook and test file lack."""
    file = paths.NOTEBOOKS / f"{slug}.ipynb"
    if not file.is_file():
        return [f"{file.name} is missing beside its card"]
    try:
        notebook = method.read(file)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"{file.name}: {error}"]
    faults = _cells(notebook) + _order(notebook) + _text(notebook)
    broken = _no_python([*_tagged(notebook, "parameters"), *_tagged(notebook, "method")])
    faults += broken or [*_parameters(notebook, card), *_uses(notebook, card)]
    tests = paths.ROOT / "tests" / "papers" / f"test_{slug.replace('-', '_')}.py"
    if not tests.is_file() or "def test_" not in tests.read_text(
        encoding="utf-8", errors="replace"
    ):
        faults.append(f"tests/papers/{tests.name} is missing or holds no test")
    return [f"{file.name}: {fault}" for fault in faults]


def _no_python(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Cells of a notebook that are no Python by themselves, which others of these checks need."""
    faults = []
    for cell in cells:
        try:
            ast.parse(cell.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            faults.append(f"cell {cell.id} is not plain Python: {error}")
    return faults


def leftovers() -> list[str]:
    """Departures that belong to no paper alone: drafts with evidence, discussions without a paper."""
    return cards.draft_faults() + discussions.orphans(paths.BOOK / "discussion")


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def _statements(source: str) -> int:
    """Statements of a cell, nested ones counted, docstrings not; IPython's magics count as one."""
    lines = [ln for ln in source.splitlines() if not ln.lstrip().startswith(("%", "!"))]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return len(source.splitlines())  # said elsewhere, with its place
    docstrings = sum(
        isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in ast.walk(tree)
    )
    magics = len(source.splitlines()) - len(lines)
    return sum(isinstance(n, ast.stmt) for n in ast.walk(tree)) - docstrings + magics


def _tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [c for c in _code(notebook) if tag in c.metadata.get("tags", [])]


def _cells(notebook: nbformat.NotebookNode) -> list[str]:
    faults, code = [], _code(notebook)
    if not CELLS[0] <= len(code) <= CELLS[1]:
        faults.append(f"{len(code)} code cells, {CELLS[0]} to {CELLS[1]} are wanted")
    sizes = [_statements(c.source) for c in code] or [0]
    median = statistics.median(sizes)
    if median > MEDIAN_STATEMENTS:
        faults.append(
            f"the median code cell has {median:g} statements, at most {MEDIAN_STATEMENTS} are wanted"
        )
    faults += [
        f"cell {c.id}: {n} statements, at most {MAX_STATEMENTS}"
        for c, n in zip(code, sizes, strict=True)
        if n > MAX_STATEMENTS
    ]
    for cell in code:
        if cell.get("outputs") or cell.get("execution_count"):
            faults.append(
                f"cell {cell.id} holds an output; source notebooks hold none: run layerbook clean"
            )
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        faults.append("its kernelspec is not python3: run layerbook clean")
    return faults


def _order(notebook: nbformat.NotebookNode) -> list[str]:
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    found = re.findall(r"^## +(.+?) *$", text, flags=re.M)
    faults = []
    if found != HEADINGS:
        faults.append(
            f"its sections are {', '.join(found) or 'none'}; wanted, in order: {', '.join(HEADINGS)}"
        )
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        faults.append("the first cell is not the title")
    return faults


def _parameters(notebook: nbformat.NotebookNode, card: dict) -> list[str]:
    cells = _tagged(notebook, "parameters")
    if len(cells) != 1:
        return [f"{len(cells)} cells are tagged parameters, one is wanted"]
    names = []
    for node in ast.parse(cells[0].source).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if not isinstance(target, ast.Name) or not _literal(node.value):
            return [f"the parameters cell holds more than literals: {ast.unparse(node)}"]
        names.append(target.id)
    wanted = [*COMMON, *card.get("parameters", {})]
    if sorted(names) == sorted(wanted):
        return []
    return [f"the parameters cell sets {', '.join(names)}; the card asks for {', '.join(wanted)}"]


def _literal(node: ast.AST | None) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def _uses(notebook: nbformat.NotebookNode, card: dict) -> list[str]:
    faults = []
    everything = "\n".join(c.source for c in _code(notebook))
    methods = _tagged(notebook, "method")
    if not methods:
        faults.append("no cell is tagged method")
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for cell in methods:
        for node in ast.parse(cell.source).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not isinstance(node, allowed) and not docstring:
                faults.append(
                    f"method cell {cell.id} does more than define: {ast.unparse(node)[:60]}"
                )
    for claim in card["claims"]:
        if f'"{claim["id"]}"' not in everything:
            faults.append(f"claim {claim['id']} is never recorded")
    for gate in card.get("gates", []):
        if f'"{gate["id"]}"' not in everything:
            faults.append(f"gate {gate['id']} is never measured")
    for call in ("paper.start(", "run.claims()", "run.finish()", "plots.show("):
        if call not in everything:
            faults.append(f"{call} is never called")
    checked = _tagged(notebook, "nbval-check-output")
    if not any("run.fact(" in c.source for c in checked):
        faults.append("no cell tagged nbval-check-output states a fact")
    faults += [
        f"cell {c.id} states a fact but is not tagged nbval-check-output"
        for c in _code(notebook)
        if "run.fact(" in c.source and c not in checked
    ]
    return faults


def _text(notebook: nbformat.NotebookNode) -> list[str]:
    faults = []
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    size = sum(_statements(c.source) for c in _code(notebook)) or 1
    if not PROSE[0] <= words / size <= PROSE[1]:
        faults.append(f"{words / size:.1f} words of prose per statement; 8 to 15 are aimed at")
    for cell in notebook.cells:
        if re.search(r"\b(TODO|FIXME|XXX)\b", cell.source):
            faults.append(f"cell {cell.id} is unfinished (TODO)")
        if re.search(r"[\"'](/home|/tmp|/root|/work|[A-Z]:\\\\)", cell.source):
            faults.append(f"cell {cell.id} names an absolute path")
    return faults
