"""The graph: derived from imports, stale exactly where it should be, and nothing re-recorded in silence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from layerbook import cards, deps, layerscores, paths, pipeline

ROOT = paths.ROOT
DVC = [sys.executable, "-m", "dvc"]


def test_dvc_yaml_is_what_the_notebooks_import():
    assert pipeline.sync(check=True) == "", "run 'layerbook sync'"


def test_every_stage_of_a_paper_lists_its_own_inputs():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for slug in ("relp", "layerwise-quant", "noprop", "projection-head"):
        listed = stages[slug]["deps"]
        assert {f"notebooks/{slug}.ipynb", f"notebooks/{slug}.yaml", "src/layerbook/claims.py"} <= set(listed)
        assert not any("report" in d for d in listed), "the book's renderer decides nothing about a result"
    assert "build/prepared/smollm2" in stages["relp"]["deps"] and "build/prepared/fashion-mnist" in stages["noprop"]["deps"]


def test_the_comparison_reads_scores_alone_and_needs_all_its_papers(monkeypatch):
    stages, slugs = pipeline.stages(), sorted({s.slug for s in layerscores.SCORES})
    read = [name for name in stages["compare-quantization"]["deps"] if name.startswith(("results/", "notebooks/"))]
    assert read == [layerscores.FILE], "seconds of a run make nothing stale"
    assert {f"results/cpu/{slug}.json" for slug in slugs} < set(stages["collect-layer-scores"]["deps"])
    monkeypatch.setattr(cards, "slugs", lambda: slugs[1:])
    rest = pipeline.stages()
    assert not any(name.startswith(("collect-", "compare-")) for name in rest) and pipeline.COMPARISON not in rest["report"]["deps"]


def test_imports_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "src" / "layerbook"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from layerbook import b\n")
    (package / "b.py").write_text("def f():\n    import layerbook.c\n")
    (package / "c.py").write_text("from os import path\n")
    (package / "d.py").write_text("")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert [f.stem for f in deps.closure(deps.imported("from layerbook import a"))] == ["__init__", "a", "b", "c"]
    assert [f.stem for f in deps.closure(deps.imported("from layerbook.c import path"))] == ["__init__", "c"]


@pytest.fixture
def project(house, monkeypatch):
    """A root with git, DVC, its own copy of the package, and two papers of which one imports a helper more."""
    (house.root / "src").unlink()
    shutil.copytree(ROOT / "src" / "layerbook", house.root / "src" / "layerbook", ignore=shutil.ignore_patterns("__pycache__"))
    house.paper("plain")
    house.paper("drawn", extra="from layerbook import plots")
    (house.root / "notebooks" / "toy.yaml").unlink()
    (house.root / "notebooks" / "toy.ipynb").unlink()
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    subprocess.run(["git", "init", "-q"], cwd=house.root, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=house.root, check=True)
    pipeline.sync()
    subprocess.run([*DVC, "repro", "-q", "plain", "drawn"], cwd=house.root, check=True)
    return house


def stale(project) -> set[str]:
    import json

    out = subprocess.run([*DVC, "status", "--json", "plain", "drawn"], cwd=project.root, capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout))


def test_stale_is_exactly_what_imports_the_edited_file(project):
    assert stale(project) == set()
    lock, results = (project.root / "dvc.lock").read_bytes(), project.results()
    subprocess.run([*DVC, "repro", "-q", "plain", "drawn"], cwd=project.root, check=True)
    assert (project.root / "dvc.lock").read_bytes() == lock and project.results() == results, "a no-op changes nothing"

    helper = project.root / "src" / "layerbook" / "plots.py"
    original = helper.read_bytes()
    helper.write_bytes(original + b"\n# edited\n")
    assert stale(project) == {"drawn"}
    helper.write_bytes(original)
    engine = project.root / "src" / "layerbook" / "claims.py"
    original = engine.read_bytes()
    engine.write_bytes(original + b"\n# edited\n")
    assert stale(project) == {"plain", "drawn"}
    engine.write_bytes(original)
    for other in ("report.py", "scaffold.py"):
        (project.root / "src" / "layerbook" / other).write_text("# edited\n")
    assert stale(project) == set()

    project.paper("plain", extra="pass  # edited")
    assert stale(project) == {"plain"}
    subprocess.run([*DVC, "repro", "-q", "plain", "drawn"], cwd=project.root, check=True)
    after = project.results()
    assert after["cpu/drawn.json"] == results["cpu/drawn.json"] and after["cpu/plain.json"] != results["cpu/plain.json"]


def test_environment_and_lock_are_in_step():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = dict(line.strip().split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    lock = {canonicalize_name(k): v for k, v in lock.items()}
    wanted = project["dependencies"] + [r for group in project["optional-dependencies"].values() for r in group]
    for text in wanted:
        requirement = Requirement(text)
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, text
    assert "+" not in lock["torch"]
    env = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    plain = [d for d in env["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in env["dependencies"] if isinstance(d, dict)]
    assert "python=3.11" in plain and pip == ["--requirement requirements.lock", "--editable ."]


def test_ci_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text() and "make test" in (ROOT / "README.md").read_text()
    assert "make book" in (ROOT / "README.md").read_text()


def test_the_data_are_those_of_data_dvc():
    from layerbook import manifest

    assert manifest.check_against_dvc() == []
