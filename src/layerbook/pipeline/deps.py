"""What a result depends on, derived from what its notebook imports and its card names."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import method

PACKAGE = "layerbook"
RECIPES = "layerbook.networks.recipes"  # whose modules make the networks trained here
LOADERS = "layerbook.data.loaders"  # whose functions read the prepared assets


def _home() -> Path:
    return paths.ROOT / "src"


def module_file(name: str) -> Path | None:
    """The file of a module of this package; None when there is none."""
    base = _home() / Path(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def module_name(file: Path) -> str:
    """Dotted name of a module of this package, from its file."""
    parts = file.relative_to(_home()).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parents(name: str) -> list[str]:
    """The packages whose __init__ is run before the module: layerbook and layerbook.a of
    layerbook.a.b.
    """
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def imported(code: str, inside: str = PACKAGE) -> set[str]:
    """Names of this package's modules that a piece of source imports, wherever the statement
    stands.

    Args:
        code: Python source.
        inside: the package that the source belongs to, from which its relative imports count.
    """
    return {n for n in _imported(code, inside) if module_file(n)}


@lru_cache(maxsize=512)
def _imported(code: str, inside: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(method.parsed(code)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names.add(base)
            names |= {f"{base}.{a.name}" for a in node.names}
    ours = {n for n in names if n.split(".")[0] == PACKAGE}
    return frozenset(ours | {parent for n in ours for parent in _parents(n)})


def modules(names: Iterable[str], without: Callable[[str], bool] = lambda _: False) -> list[str]:
    """The modules named and all of this package that they import, directly or not, sorted.

    Args:
        without: names for which it is true are left out, with what only they import.
    """
    todo, seen = [PACKAGE, *names], set()
    while todo:
        name = todo.pop()
        file = module_file(name)
        if name in seen or file is None or without(name):
            continue
        seen.add(name)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        todo += [*_parents(name), *imported(file.read_text(encoding="utf-8"), package)]
    return sorted(seen)


def closure(names: Iterable[str], without: Callable[[str], bool] = lambda _: False) -> list[Path]:
    """Files of `modules`, and the files beside them that they name in their source, sorted."""
    files: set[Path] = set()
    for name in modules(names, without):
        file = module_file(name)
        files |= {file, *_read_beside(file)}
    return sorted(files)


def _read_beside(file: Path) -> set[Path]:
    """Files that lie beside a module and that it names in a string: no import statement shows them."""
    found: set[Path] = set()
    for text in _strings(file.read_text(encoding="utf-8")):
        there = file.parent / text
        if there.is_file():
            found.add(there)
        elif there.is_dir() and not (there / "__init__.py").is_file():
            found |= {f for f in there.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    return found


@lru_cache(maxsize=512)
def _strings(code: str) -> frozenset[str]:
    """Strings of a source that may be names of files or folders: those of one word without a
    folder.
    """
    texts = {
        n.value
        for n in ast.walk(method.parsed(code))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    return frozenset(t for t in texts if re.fullmatch(r"[A-Za-z0-9_][\w.-]*", t))


def code_of(slug: str) -> str:
    """All code of a notebook as one Python source, IPython magics and shell lines removed."""
    cells = [
        c.source
        for c in method.read(paths.NOTEBOOKS / f"{slug}.ipynb").cells
        if c.cell_type == "code"
    ]
    lines = [
        line
        for cell in cells
        for line in cell.splitlines()
        if not line.lstrip().startswith(("%", "!"))
    ]
    return "\n".join(lines)


def fast_yaml(text: str) -> Any:
    """Plain data of a YAML text, by the parser that knows no lines, which is in C. Raises
    ValueError.
    """
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None


def card(slug: str) -> dict[str, Any]:
    """A paper's card, to be read only: parsed and validated once for each content. Raises
    cards.CardError.
    """
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    return _card(slug, file.read_text(encoding="utf-8")) if file.is_file() else cards.load(slug)


@lru_cache(maxsize=128)
def _card(slug: str, text: str) -> dict[str, Any]:
    """The card, validated unless this very text was found good before: finding the lines of faults
    takes a second a card.
    """
    rules = [Path(cards.__file__), Path(cards.__file__).with_name("card.schema.json")]
    content = "\0".join([text, *(f.read_text(encoding="utf-8") for f in rules)])
    stamp = hashlib.sha256(content.encode()).hexdigest()
    seen = paths.ROOT / "build" / "checked" / slug
    if seen.is_file() and seen.read_bytes() == stamp.encode():
        return fast_yaml(text)
    card = cards.load(slug)
    try:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(stamp, encoding="utf-8")
    except OSError:
        pass  # it is only there to save time
    return card


def substrates(slug: str) -> list[Path]:
    """Folders of the prepared assets and trained models that a paper's card lists."""
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    try:
        names = fast_yaml(file.read_text(encoding="utf-8"))["substrate"]
        folders = [paths.MODELS / n if n in trained() else paths.PREPARED / n for n in names]
    except (OSError, ValueError, KeyError, TypeError):
        names = cards.load(slug)["substrate"]  # which says what is wrong
        folders = [paths.MODELS / n if n in trained() else paths.PREPARED / n for n in names]
    if not all(folder.exists() for folder in folders):
        from layerbook.pipeline import substrates

        substrates.refuse(cards.load(slug), file)
    return folders


@lru_cache(maxsize=512)
def _declared(code: str) -> str | None:
    """The name that a source gives to the network it makes: NETWORK = making.Network(name="...")."""
    for node in method.parsed(code).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if [getattr(t, "id", "") for t in targets] == ["NETWORK"]:
            call = node.value if isinstance(node.value, ast.Call) else None
            for keyword in call.keywords if call else []:
                if keyword.arg == "name":
                    return ast.literal_eval(keyword.value)
    return None


def trained() -> dict[str, str]:
    """Trained small networks: name -> the module that tells how it is made."""
    out: dict[str, str] = {}
    for file in sorted((_home() / Path(*RECIPES.split("."))).glob("*.py")):
        code = file.read_text(encoding="utf-8")
        name = _declared(code) if "NETWORK = " in code else None
        if name in out:
            raise ValueError(
                f"{module_name(file)} and {out[name]} both declare the network {name}: rename one of them"
            )
        if name:
            out[name] = module_name(file)
    return dict(sorted(out.items()))


@lru_cache(maxsize=64)
def _calls(code: str, module: str) -> frozenset[str]:
    """Functions of `module` that a source uses: called, passed on or imported by name."""
    home, _, last = module.rpartition(".")
    names, used = set(), set()
    tree = method.parsed(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            used |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == home:
            names |= {a.asname or a.name for a in node.names if a.name == last}
        elif isinstance(node, ast.ImportFrom) and node.level and node.module in (None, last):
            if node.module is None:
                names |= {a.asname or a.name for a in node.names if a.name == last}
            else:
                used |= {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name for a in node.names if a.name == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            used.add(node.attr)
    return frozenset(used)


def _assets_of_loaders() -> dict[str, set[str]]:
    """Loader -> the prepared assets that it names in its code; a formatted name stands for all that
    fit it.
    """
    from layerbook.data import (
        prepare,
    )  # numpy, which most of what asks for dependencies does without

    file, known = module_file(LOADERS), sorted(prepare.MAKERS)
    found: dict[str, set[str]] = {}
    for node in method.parsed(file.read_text(encoding="utf-8")).body if file else []:
        if isinstance(node, ast.FunctionDef):
            patterns = {
                _pattern(part)
                for part in ast.walk(node)
                if isinstance(part, ast.Constant | ast.JoinedStr)
            }
            found[node.name] = {
                name for name in known for p in patterns if p and fnmatch.fnmatchcase(name, p)
            }
    return found


def _pattern(node: ast.Constant | ast.JoinedStr) -> str:
    """A string as a pattern: what is filled in at run time may be anything, but some letters must
    stand there.
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and "*" not in node.value else ""
    parts = [p.value if isinstance(p, ast.Constant) else "*" for p in node.values]
    return "".join(parts) if re.match(r"[a-z][\w-]{2}", "".join(parts)) else ""


def read_by(network: str) -> list[str]:
    """Prepared assets that the training of a small network reads: those of the loaders that its own
    modules use.
    """
    loaders = _assets_of_loaders()
    found: set[str] = set()
    for name in modules([trained()[network]], without=lambda n: n == LOADERS):
        used = _calls(module_file(name).read_text(encoding="utf-8"), LOADERS)
        found |= {asset for loader in used for asset in loaders.get(loader, set())}
    return sorted(found)
