"""What the measurements of `make bench` depend on, so that none is shown as today's when that has
changed since.

results/bench.json holds, for each part, the commit and the machine of the measurement and a digest
of each of its inputs: modules of the package, the benchmark's own code, pinned versions of the
tools, notebooks, the number of papers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import digests

OWN = ("bench/machinery.py",)  # how everything is timed
PAPERS = "the number of papers"


@dataclass(frozen=True)
class Part:
    """Inputs of one part of the benchmark.

    Attributes:
        modules: of the package; all that they import counts, too.
        files: from the root, besides those of every part.
        tools: packages whose pinned versions count.
        papers: the number of papers counts.
        notebooks: the code of every paper's notebook counts.
        whole: the part depends on the whole checkout, so that it is only ever of its commit.
    """

    modules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    papers: bool = False
    notebooks: bool = False
    whole: bool = False


KERNELS = ("layerbook.pipeline.kernels", "layerbook.pipeline._warm", "layerbook.notebook.paper")
# The cheap ones first: a measurement that is stopped has them.
PARTS = {
    "quantizers": Part(
        ("layerbook.quantize.grids", "layerbook.quantize.gptq"),
        ("bench/quantizing.py",),
        ("torch", "scikit-learn"),
    ),
    "notebooks": Part(
        (*KERNELS, "layerbook.pipeline.runner"),
        ("bench/toy.py",),
        ("ipykernel", "jupyter-client", "nbclient", "papermill"),
    ),
    "book": Part(
        ("layerbook.pages.build",), tools=("jupyter-book", "sphinx", "myst-nb"), papers=True
    ),
    "runs": Part((*KERNELS, "layerbook.pipeline.driver"), ("bench/toy.py",), ("dvc",)),
    "published": Part(KERNELS, tools=("nbval", "pytest-xdist"), papers=True, notebooks=True),
    "suite": Part(whole=True),
}


def _pin(tool: str) -> str:
    """The version of a package that requirements.lock pins; "" where there is none."""
    file = paths.ROOT / "requirements.lock"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(rf"^{re.escape(tool)}==([^\s;]+)", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def _of_file(name: str) -> str:
    file = paths.ROOT / name
    return digests.of_code(file.read_text(encoding="utf-8")) if file.is_file() else ""


def inputs(name: str) -> dict[str, str]:
    """Digest of each input of a part as it is now; {} for one that depends on the whole checkout.

    Args:
        name: one of PARTS; KeyError for another.
    """
    part = PARTS[name]
    if part.whole:
        return {}
    found = {file: _of_file(file) for file in (*OWN, *part.files)}
    found |= digests.of_modules(part.modules)
    if part.notebooks:
        found |= {
            f"notebooks/{slug}.ipynb": digests.of_notebook(paths.NOTEBOOKS / f"{slug}.ipynb")
            for slug in cards.slugs()
        }
    found = {name: digest[:16] for name, digest in found.items()}
    found |= {tool: _pin(tool) for tool in part.tools}
    return found | ({PAPERS: str(len(cards.slugs()))} if part.papers else {})


def of_all() -> dict[str, Any]:
    """The inputs of all parts, upon which the page that shows them depends."""
    out: dict[str, Any] = {}
    for name in PARTS:
        try:
            out[name] = inputs(name)
        except (ValueError, SyntaxError, FileNotFoundError) as error:
            out[name] = {"fault": str(error)}
    return out


def changed_since(measured: dict[str, Any] | None, now: dict[str, str]) -> list[str]:
    """Names of the inputs that are not what they were when a part was measured.

    Args:
        measured: the part's entry in results/bench.json.
        now: its inputs as they are.
    """
    before = (measured or {}).get("inputs", {})
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _named(names: list[str]) -> str:
    """Inputs in words, at most three of them."""
    words = [
        n.removeprefix("src/").removesuffix(".py").replace("/", ".") if "src/" in n else n
        for n in names
    ]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more


def standing(part: str, stored: dict[str, Any]) -> tuple[bool, str]:
    """Whether a stored measurement is that of the checkout as it is, and since when or at which
    commit in words.

    Args:
        part: its name.
        stored: the content of results/bench.json.
    """
    measured = stored.get("parts", {}).get(part)
    if not measured or not measured.get("commit") or part not in PARTS:
        return (
            False,
            "measured before commits and inputs were noted, so it speaks of no known state",
        )
    commit = measured["commit"] + (" with uncommitted changes" if measured.get("dirty") else "")
    if PARTS[part].whole:
        return False, f"measured at {commit}; it depends on the whole checkout as it was then"
    changed = changed_since(measured, inputs(part))
    if changed:
        return False, f"measured at {commit}, before later changes to {_named(changed)}"
    return True, f"measured at {commit}, and nothing that it depends on has changed since"
