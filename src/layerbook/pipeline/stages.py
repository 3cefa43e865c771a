"""dvc.yaml, written from cards and imports, so that no dependency is kept by hand."""

from __future__ import annotations

import difflib
import io
from typing import Any

from ruamel.yaml import YAML

from layerbook import paths
from layerbook.claims import cards
from layerbook.families import scores
from layerbook.pipeline import deps, digests, history, record

HEADER = """# Written by `layerbook sync` from the cards and from what each notebook imports; do not edit.
# digests -> prepare-<asset> -> train-<network> -> one stage per paper -> decide -> collect, compare layer scores -> report
"""
COMPARISON = "results/comparison/quantization.json"


def module_stages() -> dict[str, str]:
    """Stages that run a module of the package for long: they depend on its digest, not on its
    files.
    """
    from layerbook.data import prepare

    out = {f"prepare-{name}": "layerbook.data.prepare" for name in sorted(prepare.MAKERS)}
    out |= {f"train-{name}": module for name, module in deps.trained().items()}
    return out | ({"compare-quantization": "layerbook.families.comparison"} if compared() else {})


def digest(stage: str) -> str:
    """The file with the digests that a stage depends on."""
    return f"{digests.FOLDER}/{stage}.json"


def compared() -> list[str]:
    """Papers whose layer scores are set side by side; none while one of them is missing."""
    slugs = sorted({s.slug for s in scores.SCORES})
    return slugs if set(slugs) <= set(cards.slugs()) else []


def stages() -> dict[str, Any]:
    """All stages of the pipeline, in order."""
    from layerbook.data import prepare

    out: dict[str, Any] = {"digests": of_digests()}
    for name in sorted(prepare.MAKERS):
        raw = [] if name == prepare.PHOTOS else [f"data/{name}"]
        out[f"prepare-{name}"] = {
            "desc": f"raw asset {name} into the form that notebooks read",
            "cmd": f"python -m layerbook prepare {name}",
            "deps": sorted([*raw, digest(f"prepare-{name}")]),
            "outs": [{f"build/prepared/{name}": {"cache": False}}],
        }
    for name in deps.trained():
        folder = f"results/models/{name}"
        out[f"train-{name}"] = {
            "desc": f"train the small network {name}",
            "cmd": f"python -m layerbook train {name}",
            "deps": sorted(
                [
                    digest(f"train-{name}"),
                    *(f"build/prepared/{asset}" for asset in deps.read_by(name)),
                ]
            ),
            "outs": [{folder: {"cache": False, "persist": True}}],
        }
    out |= {slug: of_paper(slug) for slug in cards.slugs()}
    out["decide"] = of_decide()
    if compared():
        out |= of_comparison(compared())
    out["report"] = of_report()
    return out


def of_digests() -> dict[str, Any]:
    """The stage that says, without running anything, which of the others have to run."""
    names = [*module_stages(), *cards.slugs(), "decide", "bench"]
    listed = ["notebooks", "src/layerbook", "bench", "requirements.lock"]
    return {
        "desc": "digests of notebooks, cards and modules, blind to comments and wording",
        "cmd": "python -m layerbook digests",
        "deps": [name for name in sorted(listed) if (paths.ROOT / name).exists()],
        "outs": [{digest(name): {"cache": False, "persist": True}} for name in sorted(names)],
    }


def of_paper(slug: str) -> dict[str, Any]:
    """The stage of one paper."""
    outs = [
        record.file_of(slug, "cpu", s).relative_to(paths.ROOT).as_posix()
        for s in (".ipynb", ".json")
    ]
    read = [f.relative_to(paths.ROOT).as_posix() for f in deps.substrates(slug)]
    return {
        "desc": cards.load(slug)["title"],
        "cmd": f"python -m layerbook rerun {slug} --tier cpu",
        "deps": sorted([digest(slug), *read]),
        "params": [f"papers.{slug}"],
        "outs": [{name: {"cache": False, "persist": True}} for name in outs],
    }


def _results(*suffixes: str) -> list[str]:
    """Stored files of all papers: those of the cpu tier, which a stage makes, and those that there
    are of the gpu tier.
    """
    return [
        f"results/{tier}/{slug}{suffix}"
        for tier in record.TIERS
        for slug in cards.slugs()
        for suffix in suffixes
        if tier == "cpu" or record.file_of(slug, tier, suffix).is_file()
    ]


def of_decide() -> dict[str, Any]:
    """The stage that turns records into verdicts: seconds, whatever changed in the engine or in the
    cards' tests.
    """
    return {
        "desc": "records into verdicts",
        "cmd": "python -m layerbook decide",
        "deps": sorted([digest("decide"), *_results(".json")]),
        "outs": [{name: {"cache": False, "persist": True}} for name in _results(".verdicts.json")],
    }


def of_report() -> dict[str, Any]:
    """The stage that renders the book's pages: what it shows is taken word by word, and it takes
    seconds.
    """
    listed = ["book/discussion", "book/references.bib", "book/toc.yml"]
    listed += [
        f"notebooks/{slug}{suffix}" for slug in cards.slugs() for suffix in (".yaml", ".ipynb")
    ]
    listed += [f"book/{f.name}" for f in sorted((paths.ROOT / "book").glob("family-*.md"))]
    listed += [f"results/models/{name}" for name in deps.trained()]
    listed += [COMPARISON] if compared() else []
    if (paths.ROOT / history.FILE).is_file():
        listed.append(history.FILE)
    if (paths.RESULTS / "bench.json").is_file():
        listed += ["results/bench.json", digest("bench")]
    made = ("book/papers", "book/_generated", "book/_toc.yml", "results/overview.svg")
    return {
        "desc": "executed notebooks, records and verdicts into pages, tables and metrics",
        "cmd": "python -m layerbook render",
        "deps": sorted(
            [
                *_modules("layerbook.pages.build"),
                *listed,
                *_results(".ipynb", ".json", ".verdicts.json"),
            ]
        ),
        "outs": [{name: {"cache": False}} for name in made],
        "metrics": [{"results/metrics.json": {"cache": False}}],
    }


def of_comparison(slugs: list[str]) -> dict[str, Any]:
    """The stages that set the quantization papers side by side: the records' scores alone, then
    what is measured with them.
    """
    records = [record.file_of(slug, "cpu").relative_to(paths.ROOT).as_posix() for slug in slugs]
    inputs = [scores.FILE, "build/prepared/smollm2", "build/prepared/web-bible"]
    kept = {"cache": False, "persist": True}
    return {
        "collect-layer-scores": {
            "desc": "the quantization papers' layer scores, out of their records",
            "cmd": "python -m layerbook collect",
            "deps": sorted([*_modules("layerbook.families.scores"), *records]),
            "outs": [{scores.FILE: kept}],
        },
        "compare-quantization": {
            "desc": "the quantization papers' layer scores and recipes on one model",
            "cmd": "python -m layerbook compare",
            "deps": sorted([digest("compare-quantization"), *inputs]),
            "outs": [{COMPARISON: dict(kept)}],
        },
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
    for slug in set(kept["papers"]) - set(cards.slugs()) - set(cards.drafts()):
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
        difference += "".join(
            difflib.unified_diff(
                old.splitlines(True), text.splitlines(True), name, f"{name} as derived"
            )
        )
        if not check and old != text:
            record.replace(file, text.encode())
    return difference
