"""Drafts: named, passed over, and never evidence."""

import os
import sys

import nbformat
import pytest
from conftest import ROOT

from layerbook import cli, paths
from layerbook.authoring import check, scaffold
from layerbook.claims import cards
from layerbook.pages import build, papers
from layerbook.pipeline import method, record, stages

NOTE = "1 draft left out: my-paper"


@pytest.fixture
def drafted(house, monkeypatch):
    """A house with one paper and one draft fresh from the scaffold."""
    monkeypatch.setattr(
        stages, "stages", lambda: {slug: stages.of_paper(slug) for slug in cards.slugs()}
    )
    scaffold.new("my-paper", "cs/0101001")
    return house


def test_a_draft_is_no_paper_of_the_book(drafted):
    assert cards.slugs() == ["toy"] and cards.drafts() == ["my-paper"] and cards.left_out() == NOTE


def test_a_draft_is_named_by_each_command_and_stops_none(drafted, capsys):
    assert cli.main(["sync"]) == 0 and NOTE in capsys.readouterr().out
    assert "my-paper" not in (drafted.root / "dvc.yaml").read_text(encoding="utf-8") + (
        drafted.root / "params.yaml"
    ).read_text(encoding="utf-8")
    assert cli.main(["sync", "--check"]) == 0
    assert cli.main(["fresh"]) == 1  # the toy has not run
    out = capsys.readouterr().out
    assert (
        NOTE in out
        and "cpu/toy: results/cpu/toy.json is missing" in out
        and "cpu/my-paper" not in out
    )
    assert cli.main(["status"]) == 0 and NOTE in capsys.readouterr().out
    cli.main(["check"])
    out = capsys.readouterr().out
    assert NOTE in out and "my-paper.yaml:" not in out


def test_parameters_kept_for_a_draft_stay(drafted):
    (drafted.root / "params.yaml").write_text(
        "papers:\n  toy:\n    seed: 0\n  my-paper:\n    seed: 4\n", encoding="utf-8"
    )
    stages.sync()
    assert "seed: 4" in (drafted.root / "params.yaml").read_text(encoding="utf-8")


def test_the_rest_of_the_book_is_rendered(tmp_path, monkeypatch):
    from test_report import make_root

    root = make_root(tmp_path)
    (root / "notebooks" / "my-paper.yaml").write_text(
        "draft: true\ntitle: TODO\n", encoding="utf-8"
    )
    assert build.render(root)
    assert [p.slug for p in papers.load(root)] == ["toy-paper"]
    (root / "results/cpu/my-paper.json").write_text("{}", encoding="utf-8")
    with pytest.raises(papers.BookError, match="a draft has no stored record"):
        papers.load(root)


def test_what_is_left_to_fill_in_is_listed_for_card_and_notebook(drafted, capsys):
    assert cli.main(["check", "my-paper"]) == 1
    out = capsys.readouterr().out
    assert (
        "my-paper.yaml:3: title:" in out
        and "my-paper.ipynb: cell" in out
        and "take the line 'draft: true' out" in out
    )


def test_a_draft_runs_and_stores_nothing(drafted, capsys):
    assert cli.main(["rerun", "my-paper", "--tier", "cpu"]) == 0
    assert "is a draft: nothing was stored" in capsys.readouterr().out
    assert not record.file_of("my-paper", "cpu").exists() and not drafted.results()


def test_a_draft_is_not_run_as_evidence(drafted, capsys):
    assert cli.main(["run", "my-paper"]) == 1
    assert "layerbook rerun my-paper --tier smoke" in capsys.readouterr().err
    assert cli.main(["fresh", "my-paper"]) == 1
    assert "holds no evidence" in capsys.readouterr().err


def test_a_draft_with_a_stored_record_is_an_error(drafted, capsys):
    file = drafted.root / "results" / "cpu" / "my-paper.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    for command in ("fresh", "check"):
        assert cli.main([command]) == 1
        out = capsys.readouterr().out
        assert "notebooks/my-paper.yaml:1: a draft has no stored record" in out and "git rm" in out


def test_an_unfinished_card_that_is_no_draft_is_an_error_with_advice(drafted):
    card = drafted.root / "notebooks" / "my-paper.yaml"
    card.write_text(card.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(
        cards.CardError, match=r"my-paper.yaml:2: title: .*TODO.*'draft: true' as the first line"
    ):
        cards.load("my-paper")
    with pytest.raises(cards.CardError, match="my-paper.yaml:"):
        stages.sync()


def test_an_unreadable_card_is_never_passed_over(drafted, capsys):
    (drafted.root / "notebooks" / "toy.yaml").write_text("slug: toy\n\nnote: [\n", encoding="utf-8")
    assert cards.slugs() == ["toy"]
    assert cli.main(["sync"]) == 1
    assert "toy.yaml:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "draft"),
    [
        ("draft: true\nslug: x\n", True),
        ("# ours\n\ndraft: true # note\n", True),
        ("draft: true", True),
        ("slug: x\ndraft: true\n", False),
        ("draft: false\n", False),
        ('draft: "true"\n', False),
        (" draft: true\n", False),
        ("draft: true story\n", False),
        ("", False),
    ],
)
def test_only_the_first_line_makes_a_draft(tmp_path, head, draft):
    file = tmp_path / "x.yaml"
    file.write_text(head, encoding="utf-8")
    assert cards.is_draft(file) is draft


def test_a_draft_line_further_down_is_refused(house):
    card = house.root / "notebooks" / "toy.yaml"
    card.write_text(card.read_text(encoding="utf-8") + "draft: true\n", encoding="utf-8")
    with pytest.raises(
        cards.CardError,
        match=r"toy.yaml:\d+: draft: a draft says 'draft: true' in the card's first line",
    ):
        cards.load("toy")


def test_the_tests_of_a_draft_are_left_out_unless_named(tmp_path, shell):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests" / "papers").mkdir(parents=True)
    (tmp_path / "notebooks" / "my-paper.yaml").write_text("draft: true\n", encoding="utf-8")
    for name in ("conftest.py", "shapecheck.py"):
        text = (paths.ROOT / "tests" / name).read_text(encoding="utf-8")
        (tmp_path / "tests" / name).write_text(text, encoding="utf-8")
    (tmp_path / "tests" / "papers" / "test_my_paper.py").write_text(
        "def test_it():\n    assert False\n", encoding="utf-8"
    )
    (tmp_path / "tests" / "test_other.py").write_text(
        "def test_it():\n    pass\n", encoding="utf-8"
    )
    env = os.environ | {
        "LAYERBOOK_ROOT": str(tmp_path),
        "PYTHONPATH": f"{paths.ROOT / 'src'}{os.pathsep}{paths.ROOT}",
    }
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = shell(*command, "tests", cwd=tmp_path, env=env)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    assert "tests of 1 draft left out: my-paper" in done.stdout
    done = shell(*command, "tests/papers/test_my_paper.py", cwd=tmp_path, env=env)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout


def test_what_the_scaffold_writes_passes_ruff(drafted, shell):
    files = ["notebooks/my-paper.ipynb", "tests/papers/test_my_paper.py"]
    done = shell(
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        str(ROOT / "pyproject.toml"),
        *files,
        cwd=drafted.root,
    )
    assert done.returncode == 0, done.stdout


def test_check_survives_a_notebook_that_is_no_python(house):
    nb = method.read(house.root / "notebooks/toy.ipynb")
    nb.cells[1].source, nb.cells[3].source = "tier = (", "%magic"
    nbformat.write(nb, house.root / "notebooks/toy.ipynb")
    faults = "\n".join(check.check("toy"))
    assert (
        "cell params is not plain Python" in faults and "cell method is not plain Python" in faults
    )
