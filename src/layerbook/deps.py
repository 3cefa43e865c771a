"""What a result depends on, derived from what its notebook imports and its card names."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from layerbook import cards, method, paths

PACKAGE = "layerbook"
# Read at run time by cards.py, so no import statement shows it.
DATA_FILES = {"cards": ["card.schema.json"], "manifest": ["assets.yaml"]}


def _module_file(name: str) -> Path | None:
    base = paths.ROOT / "src" / Path(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported(code: str) -> set[str]:
    """Names of this package's modules that a piece of source imports, wherever the statement stands."""
    return {n for n in _imported(code) if _module_file(n)}


@lru_cache(maxsize=512)
def _imported(code: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == PACKAGE:
            names.add(node.module or "")
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return frozenset(names)


def closure(names: Iterable[str]) -> list[Path]:
    """Files of the modules and of everything of this package that they import, sorted."""
    todo, seen = list(names), {PACKAGE}
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imported(_module_file(name).read_text(encoding="utf-8"))
    files = {_module_file(n) for n in seen}
    files |= {_module_file(n).parent / f for n in seen for f in DATA_FILES.get(n.removeprefix(f"{PACKAGE}."), [])}
    return sorted(f for f in files if f)


def code_of(slug: str) -> str:
    """All code of a notebook as one Python source, IPython magics and shell lines removed."""
    cells = [c.source for c in method.read(paths.NOTEBOOKS / f"{slug}.ipynb").cells if c.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return "\n".join(lines)


def helpers(slug: str) -> list[Path]:
    """The helper modules that a paper's notebook really imports, directly or not."""
    return closure(imported(code_of(slug)))


def fast_yaml(text: str) -> Any:
    """Plain data of a YAML text, by the parser that knows no lines, which is in C. Raises ValueError."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None


def card(slug: str) -> dict[str, Any]:
    """A paper's card, to be read only: parsed and validated once for each content. Raises cards.CardError."""
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    return _card(slug, file.read_text(encoding="utf-8")) if file.is_file() else cards.load(slug)


@lru_cache(maxsize=128)
def _card(slug: str, _text: str) -> dict[str, Any]:
    return cards.load(slug)


def substrates(slug: str) -> list[Path]:
    """Folders of the prepared assets and trained models that a paper's card lists."""
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    try:
        names = fast_yaml(file.read_text(encoding="utf-8"))["substrate"]
    except (OSError, ValueError, KeyError, TypeError):
        names = cards.load(slug)["substrate"]  # which says what is wrong
    return [paths.MODELS / n if n in trained() else paths.PREPARED / n for n in names]


def trained() -> dict[str, str]:
    """Trained small networks: name -> the module whose `main` trains it."""
    return {"code-model": "layerbook.codemodel", "depth-pair": "layerbook.depthpair", "fact-world": "layerbook.factworld",
            "resnet20": "layerbook.resnet20", "shapes-vlm": "layerbook.shapesvlm", "tiny-dit": "layerbook.tinydit",
            "tiny-gpt2": "layerbook.tinygpt", "tuned-pair": "layerbook.tunedpair", "wave-nets": "layerbook.wavenets"}


def read_by(network: str) -> list[str]:
    """Prepared assets that the training of a small network reads."""
    python = ["python-django", "python-networkx", "python-sympy"]
    bible, fashion = ["web-bible"], ["fashion-mnist"]
    read = {"code-model": python, "depth-pair": bible, "resnet20": fashion, "tiny-dit": fashion, "tuned-pair": bible}
    return read.get(network, [])


def of_paper(slug: str) -> list[str]:
    """All inputs of a paper's stage, as paths from the root with forward slashes, sorted."""
    files = [paths.NOTEBOOKS / f"{slug}.ipynb", paths.NOTEBOOKS / f"{slug}.yaml", *helpers(slug), *substrates(slug)]
    return sorted(f.relative_to(paths.ROOT).as_posix() for f in files)
