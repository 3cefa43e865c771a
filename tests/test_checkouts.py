"""Several checkouts on one machine: each command works in that of the working folder, with the code
that lies there.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import layerbook
from bench import toy
from layerbook import cli, keeping, paths
from layerbook.pipeline import digests, record, runner, stages

PARAMS = "papers:\n  toy:\n    seed: 0\n"


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def surroundings():
    """This process's environment, with the code of the *first* checkout on the import path, as an
    editable install has it.
    """
    return {k: v for k, v in os.environ.items() if k not in (paths.VARIABLE, "LAYERBOOK_TIER")}


def call(where, installed, *command):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=where,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
        env=surroundings() | {"PYTHONPATH": str(installed / "src"), "DVC_NO_ANALYTICS": "1"},
    )


def make(root):
    """A checkout with one toy paper, its code a copy of this one's, all of it in git."""
    root.mkdir()
    shutil.copytree(
        Path(layerbook.__file__).parent,
        root / "src" / "layerbook",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (root / "pyproject.toml").write_text('[project]\nname = "layerbook"\n', encoding="utf-8")
    (root / "params.yaml").write_text(PARAMS, encoding="utf-8")
    (root / ".gitignore").write_text("/build/\n__pycache__/\n", encoding="utf-8")
    for name in ("notebooks", "build", "results"):
        (root / name).mkdir()
    toy.bibliography(root)
    toy.write(root, "toy")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    return root


@pytest.fixture
def two(tmp_path):
    """The checkout that the package is installed from, and a worktree of it."""
    main, other = make(tmp_path / "main"), tmp_path / "other"
    git(main, "worktree", "add", "-q", str(other))
    return main, other


def files(root):
    return {
        p.relative_to(root): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and not {".git", "__pycache__", "build"} & set(p.parts)
    }


def test_each_command_acts_on_the_checkout_of_the_working_folder(two):
    main, other = two
    before = files(main)
    (other / "notebooks" / "toy.yaml").write_text("slug: [", encoding="utf-8")
    own = other / "src" / "layerbook" / "notebook" / "paper.py"
    own.write_text(own.read_text(encoding="utf-8") + "\nALONE = 1\n", encoding="utf-8")
    found = call(other, main, "layerbook", "check", "toy")
    assert found.returncode == 1 and "toy" in found.stdout + found.stderr, found
    toy.write(other, "toy")
    made = call(other / "notebooks", main, "layerbook", "new", "a-paper")
    assert made.returncode == 0 and (other / "notebooks" / "a-paper.yaml").is_file(), made.stderr
    (other / "notebooks" / "a-paper.yaml").unlink()
    (other / "notebooks" / "a-paper.ipynb").unlink()
    ran = call(other, main, "layerbook", "rerun", "toy", "--tier", "smoke")
    assert ran.returncode == 0, ran.stderr
    ran = call(other, main, "layerbook", "rerun", "toy")
    assert ran.returncode == 0, ran.stderr
    stored = json.loads((other / "results" / "cpu" / "toy.json").read_text(encoding="utf-8"))
    assert stored["measured_by"]["src/layerbook/notebook/paper.py"] == digests.of_code(
        own.read_text(encoding="utf-8")
    )
    assert files(main) == before  # nothing at all was touched where the package is installed from


def test_the_code_is_that_of_the_working_folder_and_falls_back_to_the_installed_one(two, tmp_path):
    main, other = two
    (tmp_path / "elsewhere").mkdir()
    look = "import layerbook; from layerbook import paths; print(layerbook.code_that_runs(), paths.__file__, paths.ROOT)"
    for where, root in (
        (main, main),
        (other, other),
        (other / "notebooks", other),
        (tmp_path / "elsewhere", main),
    ):
        said = subprocess.run(
            [sys.executable, "-c", look],
            cwd=where,
            capture_output=True,
            encoding="utf-8",
            check=True,
            env=surroundings() | {"PYTHONPATH": str(main / "src")},
        ).stdout.split()
        assert said == [
            str(root / "src/layerbook"),
            str(root / "src/layerbook/paths.py"),
            str(root),
        ], where
    named = call(other, main, "layerbook", "status")
    assert named.returncode == 0 and named.stderr == ""
    named = subprocess.run(
        [sys.executable, "-m", "layerbook", "status"],
        cwd=other,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=surroundings() | {"PYTHONPATH": str(main / "src"), paths.VARIABLE: str(main)},
    )
    assert named.returncode == 0 and str(main) in named.stderr and str(other) in named.stderr
    assert f"unset {paths.VARIABLE}" in named.stderr


def test_papermill_runs_a_notebook_from_any_folder(two, tmp_path):
    main, other = two
    for where, root in ((other, other), (tmp_path, main)):
        out = subprocess.run(
            [
                sys.executable,
                "-m",
                "papermill",
                str(root / "notebooks/toy.ipynb"),
                str(tmp_path / "out.ipynb"),
            ],
            cwd=where,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
            env=surroundings() | {"PYTHONPATH": str(main / "src")},
        )
        assert out.returncode == 0, out.stderr[-600:]


def test_an_experiment_in_a_copy_leaves_the_main_results_alone(two):
    from ruamel.yaml import YAML

    main, _ = two
    stage = {
        "cmd": f"{shlex.quote(sys.executable)} -m layerbook rerun toy --tier cpu",
        "deps": ["notebooks/toy.ipynb"],
        "params": ["papers.toy"],
        "outs": [{f"results/cpu/toy.{e}": {"cache": False}} for e in ("ipynb", "json")],
    }
    with open(main / "dvc.yaml", "w", encoding="utf-8") as stream:
        YAML().dump({"stages": {"toy": stage}}, stream)
    assert call(main, main, "dvc", "init", "-q").returncode == 0
    assert call(main, main, "layerbook", "rerun", "toy").returncode == 0
    assert call(main, main, "dvc", "commit", "-q", "-f").returncode == 0
    git(main, "add", ".")
    git(main, "commit", "-q", "-m", "with results")
    before = files(main / "results")
    tried = call(
        main, main, "dvc", "exp", "run", "--temp", "-n", "third", "-S", "papers.toy.seed=3"
    )
    assert tried.returncode == 0, tried.stderr
    assert files(main / "results") == before
    refs = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", "refs/exps"],
        cwd=main,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.split()
    (name,) = [r for r in refs if r.endswith("/third")]
    there = subprocess.run(
        ["git", "show", f"{name}:results/cpu/toy.json"],
        cwd=main,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert json.loads(there.stdout)["parameters"]["seed"] == 3


def test_two_checkouts_run_at_once(two):
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "layerbook", "rerun", "toy"],
            cwd=root,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            env=surroundings() | {"PYTHONPATH": str(two[0] / "src")},
        )
        for root in two
    ]
    for root, child in zip(two, children, strict=True):
        assert child.wait(240) == 0, child.communicate()
        assert (root / "results/cpu/toy.json").is_file() and not list(
            (root / "build").glob("run-*")
        )


def test_evidence_of_code_from_elsewhere_is_refused_before_anything_runs(house, monkeypatch):
    house.paper(extra="open('computed', 'w').close()")
    (house.root / "src").unlink()  # the root has no code, so what runs belongs to another one
    with pytest.raises(runner.RunError, match="does not belong to, so nothing was run.*PYTHONPATH"):
        runner.run("toy")
    assert not (house.root / "computed").exists() and house.results() == {}


def test_a_notebook_that_imports_other_code_stores_nothing(house, tmp_path):
    other = make(tmp_path / "other")
    file = house.root / "notebooks/toy.ipynb"
    file.write_text(
        file.read_text(encoding="utf-8").replace(
            "import numpy as np",
            f"import os; os.environ['LAYERBOOK_ROOT'] = {str(other)!r}; import numpy as np".replace(
                "'", "\\u0027"
            ),
        ),
        encoding="utf-8",
    )
    with pytest.raises(runner.RunError, match="imported layerbook from .*so nothing is stored"):
        runner.run("toy")
    assert house.results() == {}


SEE = "import os\nfor name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'LAYERBOOK_THREADS'): assert name not in os.environ, name"


@pytest.mark.parametrize("warm", [False, True])
def test_what_a_shell_holds_does_not_reach_stored_evidence(house, monkeypatch, warm):
    for name, value in {
        "LAYERBOOK_TIER": "smoke",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "LAYERBOOK_THREADS": "1",
        "LAYERBOOK_MEASUREMENTS": str(house.root / "stray.json"),
    }.items():
        monkeypatch.setenv(name, value)
    house.paper(extra=SEE)
    assert runner.run("toy", warm=warm)["tier"] == "cpu"
    assert house.record()["tier"] == "cpu" and record.problems("toy", "cpu") == []
    assert not (house.root / "stray.json").exists()


def test_another_tier_than_asked_for_stores_nothing(house):
    file = house.root / "notebooks/toy.ipynb"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace(
            "import numpy as np",
            "import os; os.environ.update(LAYERBOOK_TIER='smoke'); import numpy as np",
        ),
        encoding="utf-8",
    )
    with pytest.raises(
        runner.RunError,
        match="tier cpu was asked for, but the notebook ran at tier smoke.*toy.ipynb",
    ):
        runner.run("toy")
    assert house.results() == {}


def test_a_disk_that_fills_between_notebook_and_record_changes_neither(house, monkeypatch):
    runner.run("toy")
    before, real, calls = house.results(), os.fsync, []
    house.paper(extra="rng.normal()")  # so that what would be stored is something else

    def second_fails(number):
        calls.append(number)
        if len(calls) == 3:  # the probe, the notebook, and now the record
            raise OSError(28, "No space left on device")
        return real(number)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(runner.RunError, match="disk is full"):
        runner.run("toy")
    assert house.results() == before and len(calls) == 3


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(house):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [house.root / "build/run-toy-abcd1234", house.root / "build/run-one-two-abcd1234"]
    for folder in left:
        folder.mkdir()
        (folder / "measurements.json").write_text("{}", encoding="utf-8")
    (house.root / "results/cpu").mkdir()
    record_left, other_left, recent = (
        house.root / "results/cpu" / f".toy.json.{dead.pid}",
        house.root / f".dvc.yaml.{dead.pid}",
        house.root / f".params.yaml.{dead.pid}",
    )
    for file in (record_left, other_left, recent):
        file.write_text("{", encoding="utf-8")
    os.utime(other_left, (0, 0))
    mine = house.root / f".dvc.yaml.{os.getpid()}"
    mine.write_text("mine", encoding="utf-8")
    os.utime(mine, (0, 0))
    with keeping.lock("toy.lock"):
        assert cli.main(["status"]) == 0
        assert left[0].is_dir() and record_left.is_file(), "of a paper that runs"
        assert not left[1].exists() and not other_left.exists()
    assert cli.main(["status"]) == 0
    assert not left[0].exists() and not record_left.exists() and mine.exists() and recent.exists()


def test_stages_say_nothing_of_another_root(house):
    """The commands of dvc.yaml name no folder: each copy of the checkout runs them in itself."""
    assert (
        str(house.root) not in json.dumps(stages.of_paper("toy"))
        and str(paths.ROOT) not in stages.params()
    )
