"""Conventions and the scaffold."""

import nbformat
import pytest

from layerbook import cli
from layerbook.authoring import check, scaffold
from layerbook.pipeline import method


def test_every_paper_of_the_book_keeps_the_conventions(capsys):
    assert cli.main(["check"]) == 0, capsys.readouterr().out


def test_the_scaffold_is_red_until_filled_in(house):
    files = scaffold.new("new-paper")
    assert [f.suffix for f in files] == [".yaml", ".ipynb", ".py"]
    faults = "\n".join(check.check("new-paper"))
    assert "TODO" in faults and "new-paper.yaml:3: title" in faults
    with pytest.raises(FileExistsError):
        scaffold.new("new-paper")
    with pytest.raises(ValueError, match="no slug"):
        scaffold.new("New Paper")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda nb: nb.cells[1].update(outputs=[nbformat.v4.new_output("stream", text="hi")]),
            "holds an output",
        ),
        (
            lambda nb: nb.cells[1].update(
                source='tier = "auto"\nseed = 1 + len("a")\ndevice = "auto"'
            ),
            "more than literals",
        ),
        (
            lambda nb: nb.cells[1].update(source='tier = "auto"\nseed = 1\ndevice = "auto"'),
            "the card asks for",
        ),
        (lambda nb: nb.cells[3].update(source="print('side effect')"), "does more than define"),
        (lambda nb: nb.cells[4].update(source="pass"), "claim C1 is never recorded"),
        (lambda nb: nb.cells[0].update(source="no title"), "not the title"),
        (lambda nb: nb.cells[4].update(source='open("/home/me/x")'), "absolute path"),
    ],
)
def test_departures_are_named(house, change, says):
    notebook = method.read(house.root / "notebooks/toy.ipynb")
    change(notebook)
    nbformat.write(notebook, house.root / "notebooks/toy.ipynb")
    assert says in "\n".join(check.check("toy"))
