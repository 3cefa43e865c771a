"""A notebook that is run twice in one kernel, in another order, or saved by an editor."""

import json

import nbclient
import nbformat
import pytest

from layerbook import cli, paths
from layerbook.authoring import check, sourceform
from layerbook.notebook import namespaces, paper
from layerbook.pipeline import method

READ = "import json\nprint(json.dumps([run.params, run.seed, run.measurements()['measured']]))"


def executed(notebook):
    """What cells with the source READ print, in order, when a notebook's cells are run in one
    kernel.
    """
    where = {"metadata": {"path": str(paths.ROOT)}}
    client = nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=where)
    client.execute()
    return [
        json.loads(
            "".join(
                o["text"] for o in c.outputs if o.output_type == "stream" and o.name == "stdout"
            )
        )
        for c in notebook.cells
        if c.source == READ
    ]


def copies(*cells):
    """A notebook of copies of these cells."""
    made = [nbformat.v4.new_code_cell(c if isinstance(c, str) else c.source) for c in cells]
    return nbformat.v4.new_notebook(cells=made)


def code(slug):
    return [
        c for c in method.read(paths.NOTEBOOKS / f"{slug}.ipynb").cells if c.cell_type == "code"
    ]


def test_run_all_twice_gives_the_same_and_a_changed_seed_counts(house):
    cells = code("toy")
    other = cells[0].source.replace("seed = 0", "seed = 5")
    left = (
        "n_left = 3\nseed = 77\nname = 'left behind'\nimport torch\ntorch.set_grad_enabled(False)"
    )
    again = [
        cells[0],
        *cells[1:],
        READ,
        left,
        cells[0],
        *cells[1:],
        READ,
        left,
        other,
        *cells[1:],
        READ,
    ]
    first, second, third = executed(copies(*again))
    assert first == second and first[1] == 0
    assert third[1] == third[0]["seed"] == 5 and third[2]["C1"] != first[2]["C1"]


def test_out_of_order_the_parameters_cell_that_was_run_last_counts(house):
    cells = code("toy")
    later = "seed = 9"  # an experiment's own variable, not a parameter
    injected = "# Parameters\nseed = 4\n"
    order = [
        cells[2],
        cells[0],
        injected,
        cells[1],
        READ,
        later,
        cells[1],
        READ,
        cells[0],
        cells[1],
        READ,
    ]
    assert [seed for _p, seed, _m in executed(copies(*order))] == [4, 4, 0]


def test_a_misspelt_parameter_is_still_refused_in_every_run(house):
    cells = code("toy")
    wrong = cells[0].source + "\nsed = 3"
    for order in (
        [wrong, cells[1]],
        [*cells, wrong, cells[1]],
        [cells[0], "# Parameters\nsed = 3", cells[1]],
    ):
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="no parameter 'sed'"):
            executed(copies(*order))


def test_values_that_are_no_literals_are_those_of_the_variables():
    space = {
        "In": ["", "tier = 'cpu'; seed = 1 + 1; device = 'auto'", "seed = 9"],
        "seed": 9,
        "tier": "cpu",
        "device": "auto",
    }
    assert namespaces.parameters(space, ("tier", "seed", "device")) == {
        "tier": "cpu",
        "seed": 9,
        "device": "auto",
    }


def test_a_paper_of_the_book_runs_twice_in_one_kernel(monkeypatch):
    monkeypatch.setenv(paper.TIER_VARIABLE, "smoke")
    cells = code("relp")
    first, second = executed(copies(*cells, READ, *cells, READ))
    assert first[:2] == second[:2] and set(first[2]) == set(second[2])
    same = [name for name in first[2] if json.dumps(first[2][name]) == json.dumps(second[2][name])]
    assert len(same) > len(first[2]) / 2  # the others hold seconds


def saved(notebook):
    """A notebook as an editor saves it after it was opened and looked at."""
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    notebook.metadata.update(widgets=state, toc={"base": 1})
    notebook.metadata["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    notebook.metadata["language_info"].update(
        version="3.12.9", file_extension=".py", pygments_lexer="ipython3"
    )
    for cell in notebook.cells:
        cell.metadata.update(
            editable=True,
            slideshow={"slide_type": ""},
            collapsed=True,
            jupyter={"outputs_hidden": True},
        )
        if cell.cell_type == "code":
            cell.metadata.update(
                execution={"iopub.execute_input": "2026-11-23T10:00:00Z"}, scrolled=True
            )
    return notebook


@pytest.mark.parametrize("slug", ["relp", "luq"])
def test_an_ordinary_save_is_no_fault_and_clean_restores_every_byte(house, slug):
    real = paths.NOTEBOOKS.__class__(__file__).parent.parent / "notebooks"
    file = house.root / "notebooks" / f"{slug}.ipynb"
    (house.root / "notebooks" / f"{slug}.yaml").write_bytes((real / f"{slug}.yaml").read_bytes())
    cited = paths.BOOK.parent / "book" / "references.bib"
    cited.write_bytes((real.parent / "book" / "references.bib").read_bytes())
    before = (real / f"{slug}.ipynb").read_bytes()
    file.write_bytes(before)
    clean = check.check(slug)
    notebook = saved(method.read(file))
    file.write_text(nbformat.writes(notebook, indent=2), encoding="utf-8", newline="\r\n")
    assert check.check(slug) == clean
    shown = next(c for c in notebook.cells if c.cell_type == "code")
    shown.update(outputs=[nbformat.v4.new_output("stream", text="hi")], execution_count=7)
    nbformat.write(notebook, file)
    assert "holds an output; source notebooks hold none: run layerbook clean" in "\n".join(
        check.check(slug)
    )
    assert cli.main(["clean", slug]) == 0
    assert file.read_bytes() == before


def test_every_notebook_is_stored_in_this_form():
    for file in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        assert sourceform.text(method.read(file)).encode() == file.read_bytes(), (
            f"{file.name}: run layerbook clean {file.stem}"
        )
