"""The graph: derived from imports, stale exactly where it should be, and nothing re-recorded in
silence.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from layerbook import paths
from layerbook.claims import cards
from layerbook.families import scores
from layerbook.pipeline import deps
from layerbook.pipeline import stages as pipeline

ROOT = paths.ROOT
DVC = [sys.executable, "-m", "dvc"]


def test_dvc_yaml_is_what_the_notebooks_import():
    assert pipeline.sync(check=True) == "", "run 'layerbook sync'"


def test_a_papers_stage_depends_on_its_digest_and_its_data_alone():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for slug in cards.slugs():
        listed = stages[slug]["deps"]
        assert f"build/digests/{slug}.json" in listed
        assert all(
            d.startswith(("build/digests/", "build/prepared/", "results/models/")) for d in listed
        ), listed
    assert (
        "build/prepared/smollm2" in stages["relp"]["deps"]
        and "build/prepared/fashion-mnist" in stages["noprop"]["deps"]
    )
    for name in deps.trained():
        assert f"build/digests/train-{name}.json" in stages[f"train-{name}"]["deps"]
    assert (
        "build/digests/decide.json" in stages["decide"]["deps"]
        and "results/cpu/relp.json" in stages["decide"]["deps"]
    )
    shown = stages["report"]["deps"]
    assert {
        "notebooks/relp.yaml",
        "notebooks/relp.ipynb",
        "results/cpu/relp.verdicts.json",
        "book/discussion",
    } <= set(shown)


def test_the_comparison_reads_scores_alone_and_needs_all_its_papers(monkeypatch):
    stages, slugs = pipeline.stages(), sorted({s.slug for s in scores.SCORES})
    read = [
        name
        for name in stages["compare-quantization"]["deps"]
        if name.startswith(("results/", "notebooks/"))
    ]
    assert read == [scores.FILE], "seconds of a run make nothing stale"
    assert {f"results/cpu/{slug}.json" for slug in slugs} < set(
        stages["collect-layer-scores"]["deps"]
    )
    monkeypatch.setattr(cards, "slugs", lambda: slugs[1:])
    rest = pipeline.stages()
    assert (
        not any(name.startswith(("collect-", "compare-")) for name in rest)
        and pipeline.COMPARISON not in rest["report"]["deps"]
    )


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A package of this name with nothing in it; gives a function that writes one of its files."""
    package = tmp_path / "src" / "layerbook"

    def write(name, text=""):
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    write("__init__.py")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return write


def closed(*names):
    base = paths.ROOT / "src" / "layerbook"
    return [f.relative_to(base).as_posix() for f in deps.closure(names)]


def test_imports_are_followed(scratch):
    scratch("a.py", "from layerbook import b\n")
    scratch("b.py", "def f():\n    import layerbook.c\n")
    scratch("c.py", "from os import path\n")
    scratch("d.py")
    assert [f.stem for f in deps.closure(deps.imported("from layerbook import a"))] == [
        "__init__",
        "a",
        "b",
        "c",
    ]
    assert [f.stem for f in deps.closure(deps.imported("from layerbook.c import path"))] == [
        "__init__",
        "c",
    ]


def test_the_packages_above_a_module_are_inputs_with_all_that_they_import(scratch):
    scratch("a/__init__.py", "from layerbook import c\n")
    scratch("a/b.py")
    scratch("c.py")
    assert closed("layerbook.a.b") == ["__init__.py", "a/__init__.py", "a/b.py", "c.py"]
    assert closed(*deps.imported("import layerbook.a.b as x")) == [
        "__init__.py",
        "a/__init__.py",
        "a/b.py",
        "c.py",
    ]


def test_relative_imports_are_followed(scratch):
    scratch("a/__init__.py", "from .e import x\n")
    scratch("a/b.py", "from . import c\nfrom .. import d\nfrom ..f import g\n")
    for name in ("a/c.py", "a/e.py", "d.py", "f.py", "other.py"):
        scratch(name)
    assert closed("layerbook.a.b") == [
        "__init__.py",
        "a/__init__.py",
        "a/b.py",
        "a/c.py",
        "a/e.py",
        "d.py",
        "f.py",
    ]


def test_files_that_a_module_names_beside_itself_are_inputs(scratch):
    scratch("a/__init__.py")
    scratch(
        "a/b.py",
        "from pathlib import Path\nSCHEMA = Path(__file__).parent / 'shape.json'\nT = 'forms'\n",
    )
    scratch("a/shape.json", "{}")
    scratch("a/forms/page.html")
    scratch("a/unused.json", "{}")
    assert closed("layerbook.a.b") == [
        "__init__.py",
        "a/__init__.py",
        "a/b.py",
        "a/forms/page.html",
        "a/shape.json",
    ]


def test_networks_and_what_their_training_reads_are_derived(scratch):
    scratch("data/__init__.py")
    scratch(
        "data/loaders.py",
        "def bible():\n    return _prepared('web-bible')\n\n\ndef code(name):\n    return f'python-{name}'\n"
        "\n\ndef mnist():\n    return 'mnist'\n",
    )
    scratch("networks/__init__.py")
    scratch("networks/recipes/__init__.py")
    scratch(
        "networks/recipes/one.py",
        "from layerbook.data import loaders\nfrom . import texts\nNETWORK = making.Network(name='one', seeds=5)\n"
        "def make():\n    return map(loaders.code, 'abc')\n",
    )
    scratch("networks/recipes/texts.py", "from layerbook.data.loaders import bible\n")
    scratch(
        "networks/recipes/two.py",
        "from layerbook.data import loaders\nNETWORK = making.Network(name='two')\n",
    )
    assert deps.trained() == {"one": f"{deps.RECIPES}.one", "two": f"{deps.RECIPES}.two"}
    assert deps.read_by("two") == []
    assert deps.read_by("one") == ["python-django", "python-networkx", "python-sympy", "web-bible"]
    scratch("networks/recipes/three.py", "NETWORK = making.Network(name='two')\n")
    with pytest.raises(ValueError, match="both declare the network two"):
        deps.trained()


def test_dependencies_are_found_without_torch():
    code = (
        "import sys; from layerbook.pipeline import digests, stages; stages.stages(); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def project(house, monkeypatch):
    """A root with git, DVC, its own copy of the package, and two papers of which one imports a
    method's module more.
    """
    (house.root / "src").unlink()
    shutil.copytree(
        ROOT / "src" / "layerbook",
        house.root / "src" / "layerbook",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / ".dvcignore", house.root)
    house.paper("plain")
    house.paper(
        "drawn", extra="from layerbook.notebook import plots; from layerbook.quantize import sweeps"
    )
    (house.root / "notebooks" / "toy.yaml").unlink()
    (house.root / "notebooks" / "toy.ipynb").unlink()
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PYTHONPATH", str(house.root / "src"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    subprocess.run(["git", "init", "-q"], cwd=house.root, check=True)
    subprocess.run([*DVC, "init", "-q", "-f"], cwd=house.root, check=True)
    pipeline.sync()
    subprocess.run([*DVC, "repro", "-q", "decide"], cwd=house.root, check=True)
    return house


def stale(project) -> set[str]:
    """Stages that a `dvc repro` would run after the digests are made anew."""
    import json

    subprocess.run([*DVC, "repro", "-q", "-s", "digests"], cwd=project.root, check=True)
    command = [*DVC, "status", "--json", "plain", "drawn", "decide"]
    return set(
        json.loads(
            subprocess.run(
                command, cwd=project.root, capture_output=True, encoding="utf-8", check=True
            ).stdout
        )
    )


def test_stale_is_exactly_what_an_edit_can_change(project):
    assert stale(project) == set()
    lock, results = (project.root / "dvc.lock").read_bytes(), project.results()
    subprocess.run([*DVC, "repro", "-q", "decide"], cwd=project.root, check=True)
    assert (project.root / "dvc.lock").read_bytes() == lock and project.results() == results, (
        "a no-op changes nothing"
    )

    source = project.root / "src" / "layerbook"

    def after(edit, name):
        file = source / name if name.endswith(".py") else project.root / "notebooks" / name
        original = file.read_text(encoding="utf-8")
        file.write_text(edit(original), encoding="utf-8")
        assert file.read_text(encoding="utf-8") != original
        found = stale(project)
        file.write_text(original, encoding="utf-8")
        return found

    shows = ("notebook/tables.py", "notebook/plots.py", "pages/build.py", "authoring/scaffold.py")
    for shown in shows:
        assert after(lambda text: text + "\nX = 1\n", shown) == set(), shown
    assert after(lambda text: text + "\n# a comment\n", "quantize/sweeps.py") == set()
    assert (
        after(lambda text: text.replace("Numbers are drawn.", "Numbers were drawn."), "plain.yaml")
        == set()
    )
    assert after(lambda text: text.replace("# A paper", "#  A paper"), "plain.ipynb") == set()
    assert after(lambda text: text + "\nX = 1\n", "claims/engine.py") == {"decide"}
    assert after(lambda text: text.replace("above: 0.5", "above: 0.4"), "plain.yaml") == {"decide"}
    assert after(lambda text: text + "\nX = 1\n", "quantize/sweeps.py") == {"drawn"}
    assert after(lambda text: text + "\nX = 1\n", "notebook/paper.py") == {"plain", "drawn"}

    project.paper("plain", extra="word = 1")
    assert stale(project) == {"plain"}
    subprocess.run([*DVC, "repro", "-q", "decide"], cwd=project.root, check=True)
    new = project.results()
    assert (
        new["cpu/drawn.json"] == results["cpu/drawn.json"]
        and new["cpu/plain.json"] != results["cpu/plain.json"]
    )


def test_condas_environment_takes_the_lock():
    env = YAML(typ="safe").load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [d for d in env["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in env["dependencies"] if isinstance(d, dict)]
    assert "python=3.11" in plain and pip == ["--requirement requirements.lock", "--editable ."]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ((), "test"),
        (("changed",), "test-changed SINCE="),
        (("changed", "v1"), "test-changed SINCE=v1"),
    ],
)
def test_ci_runs_what_the_readme_says(tmp_path, arguments, asked):
    """Its script is started with a `make` that only writes down what it is asked for."""
    for name in ("make", "git", "chromium", "slurmctld", "munged"):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.log\n', encoding="utf-8"
        )
        (tmp_path / name).chmod(0o755)
    found = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", str(ROOT / ".ci" / "run"), *arguments], env=found, check=True)
    assert (tmp_path / "make.log").read_text(encoding="utf-8").strip() == asked
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```bash\n")[1].split("```")[0]
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert commands == [["make", "book"], ["make", "test"]]
    for command in [*commands, ["make", asked.split()[0]]]:
        subprocess.run([*command, "-n"], cwd=ROOT, check=True, capture_output=True)


def test_ci_refuses_what_it_does_not_know():
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "chnaged"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 2 and ".ci/run changed" in done.stderr


def test_the_data_are_those_of_data_dvc():
    from layerbook.data import manifest

    assert manifest.check_against_dvc() == []
