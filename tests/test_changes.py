"""What a change touches: in a scratch repository with a package, three papers and some tests."""

import shutil
import subprocess

import pytest

import layerbook
from bench import toy
from layerbook import cli, paths
from layerbook.claims import cards
from layerbook.pipeline import changes, deps

TESTS = {
    "conftest.py": "from bench import toy\n",
    "test_pages.py": "from layerbook.pages import lists\n",
    "test_gptq.py": "from layerbook.quantize import gptq\n",
    "test_bits.py": "import helper\n",
    "helper.py": "from layerbook.quantize import bits\n",
    "test_command.py": "COMMAND = ['-m', 'layerbook', 'status']\n",
    "test_built.py": "COMMAND = 'python -m layerbook.pages.build'\n",
    "test_notebooks.py": "from layerbook import paths\nFOUND = list(paths.NOTEBOOKS.glob('*'))\n",
    "test_readme.py": "from layerbook import paths\nTEXT = (paths.ROOT / 'README.md').read_text()\n",
    "test_tree.py": "from layerbook import paths\nFOUND = list(paths.ROOT.rglob('*'))\n",
    "deep/er/test_deep.py": "",
    "papers/test_by_gptq.py": "from layerbook.quantize import grids\n",
    "papers/test_plain.py": "",
    "papers/test_other.py": "",
}
IMPORTS = {"by-gptq": "from layerbook.quantize import gptq", "plain": "pass", "other": "pass"}


def git(root, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=root, check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


@pytest.fixture
def scratch(house, monkeypatch):
    """A repository on its branch main, from which the branch that is worked on has just left."""
    root = house.root
    (root / "src").unlink()
    code = shutil.ignore_patterns("__pycache__")
    shutil.copytree(layerbook.code_that_runs(), root / "src" / "layerbook", ignore=code)
    (root / "notebooks" / "toy.ipynb").unlink()
    (root / "notebooks" / "toy.yaml").unlink()
    for slug, extra in IMPORTS.items():
        toy.write(root, slug, extra=extra)
    for name, text in TESTS.items():
        (root / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tests" / name).write_text(text, encoding="utf-8")
    (root / "bench").mkdir()
    (root / "bench" / "toy.py").write_text("", encoding="utf-8")
    (root / "README.md").write_text("Read me.\n", encoding="utf-8")
    (root / ".gitignore").write_text("/build/\n__pycache__/\n", encoding="utf-8")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    git(root, "checkout", "-q", "-b", "work")
    monkeypatch.setattr(changes, "SENTINELS", ("plain",))
    return root


def edit(root, name, text="\nCHANGED = 1\n"):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    file.write_text(before + text, encoding="utf-8")


def found(since=None):
    """Papers and test files that are touched; the latter by their name alone, and without the test
    that reads the whole tree, which is touched by all but other tests.
    """
    selection, _, _ = changes.changed(since)
    assert not selection.everything, selection.everything
    tests = {t.removeprefix("tests/").removesuffix(".py") for t in selection.tests}
    return selection.papers, tests - {"test_tree"}


def test_nothing_changed_leaves_the_sentinels(scratch):
    selection, files, base = changes.changed()
    assert (selection.papers, selection.tests, files) == (["plain"], [], [])
    assert base == git(scratch, "rev-parse", "main")


def test_a_papers_notebook_touches_that_paper_and_the_sentinels(scratch):
    file = scratch / "notebooks" / "other.ipynb"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("0.2 * rng", "0.3 * rng"), encoding="utf-8")
    assert found() == (["other", "plain"], {"papers/test_other", "test_notebooks"})
    git(scratch, "commit", "-q", "-a", "-m", "changed")  # committed since the branch left, the same
    assert found()[0] == ["other", "plain"]
    assert found("HEAD")[0] == ["plain"]


def test_a_module_touches_exactly_the_papers_that_import_it(scratch):
    edit(scratch, "src/layerbook/quantize/gptq.py")
    assert found() == (["by-gptq", "plain"], {"test_gptq", "papers/test_by_gptq"})


def test_a_module_below_touches_those_who_import_it_by_way_of_others(scratch):
    edit(scratch, "src/layerbook/quantize/grids.py")
    papers, tests = found()
    assert papers == ["by-gptq", "plain"]
    assert {"test_gptq", "papers/test_by_gptq"} <= tests and "papers/test_other" not in tests


def test_pages_touch_no_paper_but_their_tests(scratch):
    edit(scratch, "src/layerbook/pages/lists.py")
    assert found() == (["plain"], {"test_pages", "test_built"})


def test_a_tests_helper_touches_the_tests_that_use_it(scratch):
    edit(scratch, "tests/helper.py")
    assert found() == (["plain"], {"test_bits"})


@pytest.mark.parametrize(
    ("module", "tests"),
    [
        ("pipeline/verdicts", {"test_command"}),  # what `layerbook status` reads
        ("pages/lists", set()),  # another command's
        ("commands", {"test_command"}),
    ],
)
def test_a_test_starts_a_command_and_stands_on_its_modules(scratch, module, tests):
    edit(scratch, f"src/layerbook/{module}.py")
    assert found()[1] & {"test_command"} == tests


def test_a_wording_alone_touches_no_paper(scratch):
    edit(scratch, "src/layerbook/quantize/gptq.py", "\n# a comment\n")
    assert found() == (["plain"], {"test_gptq"})


def test_a_text_touches_the_tests_that_read_it(scratch):
    edit(scratch, "README.md", "More.\n")
    assert found() == (["plain"], {"test_readme"})


def test_a_network_touches_the_papers_whose_cards_name_it(scratch, monkeypatch):
    file = scratch / "notebooks" / "other.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("substrate: []", "substrate: [wave-nets]"), encoding="utf-8")
    (scratch / "results" / "models" / "wave-nets").mkdir(parents=True)
    git(scratch, "commit", "-q", "-a", "-m", "named")
    edit(scratch, "results/models/wave-nets/card.json", "{}")
    assert found("HEAD")[0] == ["other", "plain"]
    git(scratch, "add", ".")
    git(scratch, "commit", "-q", "-m", "trained")
    edit(scratch, deps.module_file(deps.trained()["wave-nets"]).relative_to(scratch).as_posix())
    assert found("HEAD")[0] == ["other", "plain"]


@pytest.mark.parametrize(
    "name",
    [
        "strange.bin",
        "src/layerbook/pages/strange.txt",
        "tests/conftest.py",
        "requirements.lock",
        "pyproject.toml",
        "tools/environment.py",
        ".ci/run",
        "src/layerbook/pipeline/deps.py",
    ],
)
def test_shared_ground_and_unknown_files_mean_everything(scratch, name):
    edit(scratch, name)
    selection, _, _ = changes.changed()
    assert selection.papers == sorted(IMPORTS) and name in selection.everything
    assert {t.removeprefix("tests/") for t in selection.tests} == {t for t in TESTS if "test_" in t}


def test_what_all_tests_are_set_up_with_touches_all_of_them_and_no_paper(scratch):
    edit(scratch, "bench/toy.py")
    papers, tests = found()
    assert papers == ["plain"]
    assert tests == {t[:-3] for t in TESTS if "test_" in t} - {"test_tree"}


def test_a_module_that_is_gone_means_everything(scratch):
    (scratch / "src" / "layerbook" / "quantize" / "billm.py").unlink()
    assert "billm.py" in changes.changed()[0].everything


def test_without_a_base_everything_is_run_and_a_wrong_one_is_named(scratch, capsys):
    git(scratch, "branch", "-m", "main", "trunk")
    assert "default branch" in changes.changed()[0].everything
    assert cli.main(["changed", "--since", "nowhere"]) == 1
    text = capsys.readouterr().err
    assert "nowhere" in text and "git fetch" in text and "Traceback" not in text
    assert found("trunk")[0] == ["plain"]


def test_the_command_prints_what_the_script_takes(scratch, capsys):
    edit(scratch, "src/layerbook/quantize/gptq.py")
    (scratch / "results" / "cpu").mkdir(parents=True)
    (scratch / "results" / "cpu" / "by-gptq.ipynb").write_text("{}", encoding="utf-8")
    assert cli.main(["changed", "--only", "notebooks"]) == 0
    assert capsys.readouterr().out == "results/cpu/by-gptq.ipynb\n"
    assert cli.main(["changed", "--only", "tests"]) == 0
    names = ("papers/test_by_gptq", "test_gptq", "test_tree")
    assert capsys.readouterr().out == "".join(f"tests/{name}.py\n" for name in names)
    assert cli.main(["changed"]) == 0
    assert "by-gptq: results/cpu/by-gptq.ipynb and 1 more" in capsys.readouterr().out


def test_the_sentinels_are_two_papers_on_networks_of_both_kinds():
    """One on a network that others trained and none of ours, one on a network trained here."""
    kinds = [set(deps.card(s)["substrate"]) & set(deps.trained()) for s in changes.SENTINELS]
    assert set(changes.SENTINELS) <= set(cards.slugs())
    assert [bool(kind) for kind in kinds] == [False, True]
    plain = next(
        line.removeprefix("PLAIN=results/cpu/").removesuffix(".ipynb")
        for line in (paths.ROOT / "tests" / "run.sh").read_text(encoding="utf-8").splitlines()
        if line.startswith("PLAIN=")
    )
    assert plain in changes.SENTINELS, "it runs in each selection"
