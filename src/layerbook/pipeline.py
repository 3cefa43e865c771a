"""dvc.yaml, written from cards and imports, so that no dependency is kept by hand."""

from __future__ import annotations

import difflib
import io
from typing import Any

from ruamel.yaml import YAML

from layerbook import cards, deps, layerscores, paths, record

HEADER = """# Written by `layerbook sync` from the cards and from what each notebook imports; do not edit.
# prepare-<asset> -> train-<network> -> one stage per paper -> collect and compare layer scores -> report
"""
COMPARISON = "results/comparison/quantization.json"


def stages() -> dict[str, Any]:
    """All stages of the pipeline, in order."""
    from layerbook import prepare

    out: dict[str, Any] = {}
    for name in sorted(prepare.MAKERS):
        raw = [] if name == prepare.PHOTOS else [f"data/{name}"]
        out[f"prepare-{name}"] = {
            "desc": f"raw asset {name} into the form that notebooks read",
            "cmd": f"python -m layerbook.prepare {name}",
            "deps": sorted([*raw, *_modules("layerbook.prepare")]),
            "outs": [{f"build/prepared/{name}": {"cache": False}}],
        }
    for name, module in sorted(deps.trained().items()):
        folder = f"results/models/{name}"
        out[f"train-{name}"] = {
            "desc": f"train the small network {name}",
            "cmd": f"python -m {module} {folder}",
            "deps": sorted([*_modules(module), *(f"build/prepared/{asset}" for asset in deps.read_by(name))]),
            "outs": [{folder: {"cache": False, "persist": True}}],
        }
    out |= {slug: of_paper(slug) for slug in cards.slugs()}
    pages = [f"results/{tier}/{s}{e}" for tier in record.TIERS for s in cards.slugs() for e in (".ipynb", ".json")
             if tier == "cpu" or record.file_of(s, tier, e).is_file()]
    compared = sorted({s.slug for s in layerscores.SCORES})
    measured = [COMPARISON] if set(compared) <= set(cards.slugs()) else []
    if measured:
        out |= of_comparison(compared)
    trained = [f"results/models/{name}" for name in deps.trained()]
    listed = ["book/discussion", "book/references.bib", "book/toc.yml", *(f"notebooks/{s}.yaml" for s in cards.slugs())]
    listed += [f"book/{f.name}" for f in sorted((paths.ROOT / "book").glob("family-*.md"))]
    measured += ["results/bench.json"] if (paths.RESULTS / "bench.json").is_file() else []
    out["report"] = {
        "desc": "executed notebooks and records into pages, tables and metrics",
        "cmd": "python -m layerbook.report",
        "deps": sorted([*_modules("layerbook.report"), *listed, *trained, *measured, *pages]),
        "outs": [{name: {"cache": False}} for name in ("book/papers", "book/_generated", "book/_toc.yml", "results/overview.svg")],
        "metrics": [{"results/metrics.json": {"cache": False}}],
    }
    return out


def of_paper(slug: str) -> dict[str, Any]:
    """The stage of one paper."""
    outs = [record.file_of(slug, "cpu", s).relative_to(paths.ROOT).as_posix() for s in (".ipynb", ".json")]
    return {"desc": cards.load(slug)["title"], "cmd": f"python -m layerbook rerun {slug} --tier cpu", "deps": deps.of_paper(slug),
            "params": [f"papers.{slug}"], "outs": [{name: {"cache": False, "persist": True}} for name in outs]}


def of_comparison(slugs: list[str]) -> dict[str, Any]:
    """The stages that set the quantization papers side by side: the records' scores alone, then what is measured with them."""
    records = [record.file_of(slug, "cpu").relative_to(paths.ROOT).as_posix() for slug in slugs]
    inputs = [layerscores.FILE, "build/prepared/smollm2", "build/prepared/web-bible"]
    kept = {"cache": False, "persist": True}
    return {
        "collect-layer-scores": {
            "desc": "the quantization papers' layer scores, out of their records",
            "cmd": f"python -m layerbook.layerscores {layerscores.FILE}",
            "deps": sorted([*_modules("layerbook.layerscores"), *records]), "outs": [{layerscores.FILE: kept}]},
        "compare-quantization": {
            "desc": "the quantization papers' layer scores and recipes on one model",
            "cmd": "python -m layerbook.comparison results/comparison",
            "deps": sorted([*_modules("layerbook.comparison"), *inputs]), "outs": [{COMPARISON: dict(kept)}]},
    }


def _modules(name: str) -> list[str]:
    return sorted(f.relative_to(paths.ROOT).as_posix() for f in deps.closure([name]))


def render() -> str:
    """The text of dvc.yaml."""
    yaml = YAML()
    yaml.default_flow_style, yaml.width = False, 4096
    buffer = io.StringIO()
    yaml.dump({"stages": stages()}, buffer)
    return HEADER + buffer.getvalue()


def params() -> str:
    """The text of params.yaml: kept values, and an entry for each paper that has none yet."""
    yaml = YAML()
    file = paths.ROOT / "params.yaml"
    kept = yaml.load(file.read_text(encoding="utf-8")) if file.is_file() else None
    kept = kept if kept is not None else {"papers": {}}
    for slug in cards.slugs():
        kept["papers"].setdefault(slug, {"seed": 0})
    for slug in set(kept["papers"]) - set(cards.slugs()):
        del kept["papers"][slug]
    buffer = io.StringIO()
    yaml.dump(kept, buffer)
    return buffer.getvalue()


def sync(check: bool = False) -> str:
    """Write dvc.yaml and params.yaml; returns the difference ('' when they were in step).

    Args:
        check: only compare.
    """
    difference = ""
    for name, text in (("dvc.yaml", render()), ("params.yaml", params())):
        file = paths.ROOT / name
        old = file.read_text(encoding="utf-8") if file.is_file() else ""
        difference += "".join(difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, f"{name} as derived"))
        if not check and old != text:
            record.replace(file, text.encode())
    return difference
