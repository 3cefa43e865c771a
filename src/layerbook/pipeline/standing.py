"""What papers and tests stand on: the files of the checkout by which they can change.

Derived from imports, from the modules that a test names in strings (commands that it starts), and
from the folders that it reads by way of `paths`; nothing is kept by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import deps, method

# Folders and files of the checkout that tests may read as a whole; the rest of the root is told by
# its first part, too.
AREAS = {
    "NOTEBOOKS": {"notebooks"},
    "RESULTS": {"results"},
    "MODELS": {"results"},
    "BOOK": {"book", "notebooks", "results"},  # whose pages are made of notebooks and results
    "DATA": set(),  # pinned by data.dvc, which is shared ground
    "PREPARED": set(),
}
CLI, COMMANDS = "layerbook.cli", "layerbook.commands"
WHOLE = "*"  # a test that walks through the checkout reads all of it


# ---- what a paper stands on


def _inside(files: Iterable[Path]) -> set[str]:
    return {f.relative_to(paths.ROOT).as_posix() for f in files}


def of_paper(slug: str, makers: Mapping[str, str]) -> set[str]:
    """Files of the package that a paper stands on: what its notebook imports, and what makes its
    assets and networks.

    Args:
        slug: the paper.
        makers: stage -> module, as `stages.module_stages` gives them.
    """
    names = deps.imported(deps.code_of(slug))
    todo, seen = list(deps.card(slug)["substrate"]), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if f"train-{name}" in makers:
            todo += deps.read_by(name)
        names |= {makers[s] for s in (f"train-{name}", f"prepare-{name}") if s in makers}
    return _inside(deps.closure(names))


# ---- what a test stands on


@lru_cache(maxsize=256)
def _areas(code: str) -> frozenset[str]:
    """First parts of the paths in the checkout that a test reads; {"*"} where it walks through all
    of it.
    """
    tree, found, joined = method.parsed(code), set(), set()
    is_root = lambda n: (  # noqa: E731
        isinstance(n, ast.Attribute)
        and n.attr == "ROOT"
        or isinstance(n, ast.Name)
        and n.id == "ROOT"
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and is_root(node.left):
            right = node.right
            if isinstance(right, ast.Constant) and isinstance(right.value, str):
                found.add(right.value.split("/")[0])
                joined.add(node.left)
        elif isinstance(node, ast.Assign) and is_root(node.value):
            joined |= {node.value, *node.targets}  # ROOT = paths.ROOT, used below
        elif isinstance(node, ast.Attribute):
            found |= AREAS.get(node.attr, set())
            if node.attr == "slugs" or node.attr == "build_book":
                found |= AREAS["BOOK"]
    alone = any(is_root(node) and node not in joined for node in ast.walk(tree))
    return frozenset({WHOLE} if alone else found)


@lru_cache(maxsize=256)
def _names(code: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules of the package, and others, that a test's source imports or names in a string."""
    ours, others = set(deps.imported(code)), set()
    for node in ast.walk(method.parsed(code)):
        if isinstance(node, ast.Import):
            others |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            others |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"\blayerbook\b", node.value):
                ours |= set(re.findall(r"\blayerbook(?:\.\w+)+", node.value))
            if re.search(r"(^|-m )layerbook( |$)", node.value):
                ours.add("layerbook.cli")  # the command that it starts
    return frozenset(n for n in ours if deps.module_file(n)), frozenset(others)


@lru_cache(maxsize=256)
def _words(code: str) -> frozenset[str]:
    """Words in the strings of a source, among them the commands that it starts."""
    texts = (
        node.value
        for node in ast.walk(method.parsed(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text))


def _of_commands(words: Iterable[str]) -> set[str]:
    """Modules that the commands of these names import inside the functions that carry them out."""
    file, out = deps.module_file(COMMANDS), set()
    for node in method.parsed(file.read_text(encoding="utf-8")).body if file else []:
        if isinstance(node, ast.FunctionDef) and node.name in {*words}:
            out |= deps.imported(ast.unparse(node))
    return out


def _closure(names: set[str], words: Iterable[str]) -> list[Path]:
    """Files of modules and of all that they import; of the command line, what its commands among
    `words` import.
    """
    bare = lambda name: name == COMMANDS  # noqa: E731
    if CLI in deps.modules(names, bare):
        names = names | _of_commands(words)
        return [*deps.closure(names, bare), deps.module_file(COMMANDS)]
    return deps.closure(names, bare)


def _helpers(names: Iterable[str]) -> list[Path]:
    """Files of tests/ and bench/ that go by these names of modules."""
    files = [
        folder / Path(*name.split(".")).with_suffix(".py")
        for name in names
        for folder in (paths.ROOT / "tests", paths.ROOT)
        if name.split(".")[0] not in ("src", deps.PACKAGE)
    ]
    return [f for f in files if f.is_file()]


def of_test(file: Path) -> tuple[set[str], frozenset[str]]:
    """Files that a test file stands on, and the areas of the checkout that it reads."""
    conftest = paths.ROOT / "tests" / "conftest.py"
    todo, seen, ours, areas, words = [file, conftest], set(), set(), set(), set()
    while todo:
        source = todo.pop()
        if source in seen or not source.is_file():
            continue
        seen.add(source)
        code = source.read_text(encoding="utf-8")
        imports, others = _names(code)
        ours |= imports
        words |= _words(code)
        todo += _helpers(others)
        if source != conftest:  # its ROOT is where it finds the code, which imports tell
            areas |= _areas(code)
    return _inside(_closure(ours, words)) | _inside(seen), frozenset(areas)


def test_files() -> list[str]:
    """All test files, however deep, by their path from the root, those of drafts left out: `make
    test` runs these, so that a file which is missing here would never run.
    """
    drafts = {f"test_{slug.replace('-', '_')}.py" for slug in cards.drafts()}
    files = (paths.ROOT / "tests").rglob("test_*.py")
    return sorted(_inside(f for f in files if f.parent.name != "papers" or f.name not in drafts))
