"""Digests: blind to what cannot change a number, and to nothing else."""

import time

import nbformat
import pytest

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import deps, digests, method, record, verdicts

CODE = 'def f(x, k=2):\n    """Doubles."""\n    return x * k\n'


@pytest.mark.parametrize(
    "same",
    [
        'def f(x, k=2):\n    """Twice as much."""\n    return x * k\n',
        "def f(x, k=2):\n    return x * k  # doubled\n",
        "# head\n\n\ndef f(\n    x,\n    k=2,\n):\n\n    return (x * k)\n",
        '"""A module."""\n' + CODE,
    ],
)
def test_comments_docstrings_and_layout_change_nothing(same):
    assert digests.of_code(same) == digests.of_code(CODE)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("k=2", "k=3"),
        CODE.replace("x * k", "x + k"),
        CODE.replace("k=2", "k=2.0"),
        CODE.replace("k=2", "k=True"),
        CODE.replace("f(", "g("),
        CODE + "\nf(1)\n",
        CODE.replace("x * k", "None"),
        CODE.replace("return x * k", "return"),
        "%pip list\n" + CODE,
        CODE + "(",
    ],
)
def test_code_changes_everything(other):
    assert digests.of_code(other) != digests.of_code(CODE)


def test_hints_of_types_and_shapes_change_nothing_but_fields_of_a_class_do():
    hinted = CODE.replace("x, k=2):", 'x: Float[Tensor, "n"], k: int = 2) -> Float[Tensor, "n"]:')
    assert hinted != CODE and digests.of_code(hinted) == digests.of_code(CODE)
    shaped = f"from jaxtyping import Float\n{hinted}"
    assert digests.of_code(shaped) == digests.of_code(CODE)
    assert digests.of_code(f"from math import sqrt\n{hinted}") != digests.of_code(CODE)
    field = "@dataclass\nclass A:\n    x: int = 0\n"
    assert digests.of_code(field) != digests.of_code(field.replace("x: int", "x: ClassVar[int]"))


def test_no_two_constants_look_alike():
    values = ["1", "1.0", "True", "'1'", "b'1'", "None", "...", "-1", "1j", "()"]
    assert len({digests.of_code(f"x = {value}") for value in values}) == len(values)


def test_the_digest_is_the_same_on_every_python():
    """A fixed value: trees of other Python versions differ in empty fields alone, which do not
    count.
    """
    code = (
        "@d\nclass A(B):\n    def f(self, *a, b: int = 1) -> str:\n        return f'{a!r:>{b}}'\n"
    )
    assert digests.of_code(code) == FIXED


FIXED = "d666c677cbfa9e0c2dfff8f1be102f2a381ae58e159ea5e4bbed32f75c140cb8"


@pytest.fixture
def measured_by(house):
    """What the toy is measured by now, and its verdicts decided by."""
    return lambda: (record.measured_by("toy"), digests.decided_by("toy"))


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "measured", "decided"),
    [
        ("Numbers are drawn.", "Numbers were drawn.", False, False),
        ("The shift is positive.", "It is.", False, False),
        ('differs: "nothing"', 'differs: "much"', False, False),
        ('help: "how far', 'help: "by how much', False, False),
        ("above: 0.5", "above: 0.4", False, True),
        ("smallest: 0.1", "smallest: 0.2", False, True),
        ("requires: [G1]", "requires: []", False, True),
        ("kind: identity", "kind: equivalence", False, True),
        ("max: 10", "max: 11", True, False),
        ("of: gain", "of: rise", True, True),
        ("id: G1", "id: G2", True, True),
    ],
)
def test_fields_of_a_card(house, measured_by, old, new, measured, decided):
    before = measured_by()
    if new == "id: G2":
        edit(house.root / "notebooks/toy.yaml", "requires: [G1]", "requires: [G2]")
    edit(house.root / "notebooks/toy.yaml", old, new)
    after = measured_by()
    assert (before[0] != after[0], before[1] != after[1]) == (measured, decided)


@pytest.mark.parametrize(
    ("cell", "source", "changes"),
    [
        ("title", "# A paper  for tests, with a word more", False),
        (
            "method",
            "# a comment\ndef draw(rng, shift, n=8):\n    return shift + 0.2 * rng.normal( size=n )",
            False,
        ),
        ("method", "def draw(rng, shift, n=8):\n    return shift + 0.3 * rng.normal(size=n)", True),
        ("params", 'tier = "auto"\nseed = 0\ndevice = "auto"\nshift = 2.0', True),
    ],
)
def test_cells_of_a_notebook(house, measured_by, cell, source, changes):
    before, file = measured_by()[0], house.root / "notebooks/toy.ipynb"
    notebook = nbformat.read(file, as_version=4)
    next(c for c in notebook.cells if c["id"] == cell).source = source
    notebook.metadata["saved"] = "now"
    nbformat.write(notebook, file)
    assert (measured_by()[0] != before) == changes


def test_a_byte_of_data_counts(house, measured_by):
    folder = house.root / "build/prepared/net"
    folder.mkdir(parents=True)
    (folder / "x.bin").write_bytes(b"0" * 10)
    edit(house.root / "notebooks/toy.yaml", "substrate: []", "substrate: [net]")
    before = measured_by()[0]
    (folder / "x.bin").write_bytes(b"0" * 9 + b"1")
    after = measured_by()[0]
    assert {n for n in after if after[n] != before[n]} == {"build/prepared/net/x.bin"}


def test_what_only_shows_or_decides_is_not_measured_by():
    """And each name that is left out is that of a module: a misspelt one would leave out nothing in
    silence.
    """
    for slug in cards.slugs():
        listed = digests.method_of(slug)
        assert (
            "src/layerbook/notebook/paper.py" in listed
            or "src/layerbook/notebook/paper.py" in listed
        )
        names = {
            deps.module_name(paths.ROOT / f)
            for f in listed
            if f.startswith("src/") and f.endswith(".py")
        }
        assert not any(
            n.rpartition(".")[2] in ("tables", "plots", "zones", "comparisons", "cards", "paths")
            for n in names
        )
    assert any(f.endswith("stats.py") for f in digests.method_of("hawq")), (
        "the notebook uses it to measure"
    )
    there = [p for p in digests.NOT_MEASURING if "*" not in p and deps.module_file(p)]
    assert {p.rpartition(".")[2] for p in there} >= {
        "cards",
        "engine",
        "zones",
        "comparisons",
        "tables",
        "plots",
        "paths",
    }


def test_all_records_are_decided_again_in_seconds():
    began = time.process_time()
    for slug, tier in verdicts.stored():
        assert not verdicts.problems(slug, tier), slug
    assert time.process_time() - began < 10


def test_sources_are_parsed_in_many_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    code = paths.ROOT.joinpath("src/layerbook/pipeline/driver.py").read_text(encoding="utf-8")
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(lambda k: method.parsed(code + f"\nX = {k}\n"), range(48)))
    assert len({len(tree.body) for tree in trees}) == 1
