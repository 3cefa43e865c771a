"""Rendering: pages are a pure function of cards, records and notebooks. A small book is made up on
the spot.
"""

from __future__ import annotations

import base64
import copy
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pytest
from ruamel.yaml import YAML

from layerbook import paths
from layerbook.claims import cards, chance, zones
from layerbook.pages import build, lists, markup, paper_page, papers
from layerbook.pipeline import record as records

ALT = "A made-up image of four black pixels for the tests."
CARD: dict[str, Any] = {
    "slug": "toy-paper",
    "title": "Toy: A Paper & Its <Claims>",
    "authors": ["Layerbook contributors"],
    "year": 2025,
    "arxiv": "2501.00001",
    "cite": "toy2025",
    "code": {"url": None, "note": "made up"},
    "family": "inference",
    "summary": "A made-up paper with $x^2$ in it.",
    "substrate": ["smollm2"],
    "parameters": {"model": {"help": "checkpoint", "kind": "causal-lm"}},
    "claims": [
        {"id": "C1", "kind": "effect", "statement": "A beats B & <C>.", "paper": "1 -> 2", "metric": "gain", "unit": "seed",
         "tests": [{"above": 0}], "smallest": 0.1, "tier": "cpu", "differs": "small"},
        {"id": "C2", "kind": "equivalence", "statement": "D equals E.", "paper": "not known", "metric": "difference",
         "unit": "seed", "tests": [{"within": 0.1}], "tier": "cpu"},
        {"id": "C3", "kind": "identity", "statement": "Sums are kept.", "paper": "not known", "metric": "error",
         "unit": "layer", "tests": [{"every": {"below": 1e-3}}], "tier": "smoke"},
        {"id": "C4", "kind": "effect", "statement": "It scales.", "paper": "3", "metric": "gain", "unit": "seed",
         "tests": [{"above": 0}], "smallest": 0.1, "tier": "gpu", "differs": "small"},
        {"id": "N1", "kind": "control", "statement": "Shuffled.", "metric": "gain", "unit": "seed", "fails": "C1", "tier": "cpu"},
        {"id": "R1", "kind": "control", "statement": "Parameter count.", "metric": "gain", "unit": "seed", "fails": "C1",
         "tier": "cpu"},
    ],
}  # fmt: skip


def result(
    claim: str, verdict: str, estimate: float | None, pair: list[float] | None = None, **more: Any
) -> dict[str, Any]:
    kind = next(c["kind"] for c in CARD["claims"] if c["id"] == claim)
    n = 5 if estimate is not None else 0
    base = {
        "id": claim,
        "kind": kind,
        "verdict": verdict,
        "estimate": estimate,
        "interval": pair,
        "n": n,
        "unit": "seed",
    }
    rest = {
        "values": [estimate] * n,
        "test": "mean > 0",
        "p": None,
        "also": [],
        "of": "",
        "cause": None,
        "controls": [],
        "rivals": [],
    }
    return {**base, **rest, "reason": f"reason of {claim}", **more}


def make_root(root: Path, gpu: bool = False) -> Path:
    """A project with one made-up paper and the book's hand-written files."""
    shutil.copytree(
        paths.BOOK,
        root / "book",
        ignore=shutil.ignore_patterns("_build", "papers", "_generated", "discussion"),
    )
    package = ("src/layerbook/data", "src/layerbook/claims")
    for folder in ("notebooks", "results/cpu", "results/gpu", "book/discussion", *package):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(
        paths.ROOT / "src/layerbook/data/assets.yaml", root / "src/layerbook/data/assets.yaml"
    )
    shutil.copy(
        paths.ROOT / "src/layerbook/claims/stats.py", root / "src/layerbook/claims/stats.py"
    )
    with (root / "notebooks/toy-paper.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(CARD, stream)
    (root / "book/discussion/toy-paper.yaml").write_text(
        "C2: {reason: Too few seeds., would_change: More seeds.}\n", encoding="utf-8"
    )
    with (root / "book/references.bib").open("a", encoding="utf-8") as stream:
        stream.write("\n@misc{toy2025,\n  title = {Toy}\n}\n")
    picture = io.BytesIO()
    matplotlib.image.imsave(picture, np.zeros((2, 2)), format="png")
    png, v4 = base64.b64encode(picture.getvalue()).decode(), nbformat.v4
    figure = v4.new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": ALT}})
    cells = [
        v4.new_markdown_cell("# Toy: A Paper & Its <Claims>\n\nThe idea.", id="title"),
        v4.new_code_cell("seed = 0", id="params", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("show()", id="figure", outputs=[figure]),
        v4.new_markdown_cell(
            "## Method\n\n$$a=b$$ (eq-a)\n\n## Cite\n\n```bibtex\n@misc{toy}\n```", id="cite"
        ),
    ]
    rivals = [{"id": "R1", "state": "ahead"}]
    rows = [
        result("C1", "reproduced", 0.5, [0.25, 0.75], rivals=rivals),
        result("C2", "undecided", 0.0123456, [-0.2, 0.2]),
        result("C3", "reproduced", 4.1e-6),
        result("C4", "not tested", None),
        result("N1", "held", 0.5, [0.2, 0.8]),
        result("R1", "ahead", -0.4, [-0.5, -0.3]),
    ]
    record = {
        "schema": 2,
        "paper": "toy-paper",
        "seconds": 61.2,
        "peak_memory_mb": 1830,
        "device": "cpu, 2 threads",
    }
    record |= {
        "tier": "cpu",
        "versions": {"python": "3.11", "torch": "2"},
        "gates": [],
        "claims": rows,
    }
    record["findings"] = [
        {
            "name": "F1",
            "statement": "passes",
            "n": 1,
            "values": [2.0],
            "estimate": 2.0,
            "interval": None,
        }
    ]
    for tier in ("cpu", "gpu") if gpu else ("cpu",):
        mine = copy.deepcopy(record)
        mine["tier"] = tier
        if tier == "gpu":
            mine["claims"][3] = result("C4", "weaker", 0.05, [0.01, 0.09])
            mine["claims"][1] = result("C2", "reproduced", 0.01, [-0.05, 0.05])
        notebook = v4.new_notebook(cells=copy.deepcopy(cells))
        (root / f"results/{tier}/toy-paper.ipynb").write_text(
            nbformat.writes(notebook), encoding="utf-8"
        )
        store(root, mine)
    (root / "notebooks/toy-paper.ipynb").write_text(
        nbformat.writes(v4.new_notebook(cells=copy.deepcopy(cells))), encoding="utf-8"
    )
    return root


def store(root: Path, evidence: dict[str, Any]) -> None:
    """Write a record and its verdicts, given as one, in the two files in which they are kept."""
    tier, digest = evidence["tier"], "0" * 64
    head = {"schema": 2, "paper": "toy-paper", "tier": tier}
    without = lambda row, *keys: {k: v for k, v in row.items() if k not in keys}  # noqa: E731
    measured = (
        head
        | {k: evidence[k] for k in ("seconds", "peak_memory_mb", "device", "versions")}
        | {
            "parameters": {"tier": tier, "seed": 0, "device": "auto"}
            | evidence.get("parameters", {}),
            "measured_by": {"notebook": digest},
            "notebook": {"path": "", "sha256": digest},
            "measured": {c["id"]: {"": c["values"]} for c in evidence["claims"] if c["values"]},
            "units": {},
            "gates": {},
            "findings": [
                {k: f[k] for k in ("name", "statement", "values")} for f in evidence["findings"]
            ],
            "profiles": evidence.get("profiles", []),
        }
    )
    decided = head | {
        "schema": 3,
        "decided_by": {"engine": digest},
        "gates": [],
        "claims": [without(c, "values", "unit") for c in evidence["claims"]],
        "findings": [without(f, "values", "statement") for f in evidence["findings"]],
    }
    (root / f"results/{tier}/toy-paper.json").write_text(records.dumps(measured), encoding="utf-8")
    (root / f"results/{tier}/toy-paper.verdicts.json").write_text(
        records.dumps(decided), encoding="utf-8"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def generated(root: Path, name: str) -> str:
    return (root / "book/_generated" / f"{name}.md").read_text(encoding="utf-8")


def first_cell(root: Path, name: str = "toy-paper") -> str:
    return nbformat.read(root / f"book/papers/{name}.ipynb", as_version=4).cells[0].source


def test_rendering_is_deterministic_and_leaves_fresh_files_alone(
    root: Path, tmp_path: Path
) -> None:
    files = build.render(root)
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    assert build.render(root) == files
    assert before == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def test_pages_of_papers_that_are_gone_are_removed(root: Path) -> None:
    build.render(root)
    (root / "results/cpu/toy-paper.json").unlink()
    build.render(root)
    assert not list((root / "book/papers").glob("*"))
    assert "No paper has been run yet" in generated(root, "gallery")


def test_the_header_answers_what_held_and_how_to_rerun(root: Path) -> None:
    build.render(root)
    text = first_cell(root)
    counts = (
        "✓</span> 1 reproduced",
        "[0.25, 0.75]",
        "n = 5 (seed)",
        "4.1×10⁻⁶",
        "1 → 2",
        "identity holds",
        "simpler explanation R1 is ahead",
    )
    cost = ("1 min 1 s", "1.8 GB", "make rerun PAPER=toy-paper TIER=cpu")
    for expected in (*counts, *cost, "a simpler explanation, R1", "Too few seeds."):
        assert expected in text, expected
    assert "A beats B &amp; &lt;C&gt;." in text, "a card's text must not become markup"
    assert r"\(x^2\)" in text


def test_a_header_holds_no_empty_line_inside_html(root: Path) -> None:
    build.render(root)
    for block in re.findall(
        r'<div id="verdict-table">.*?</table></div></div>', first_cell(root), flags=re.DOTALL
    ):
        assert "\n\n" not in block


def test_figures_and_parameters_are_described(root: Path) -> None:
    build.render(root)
    cells = nbformat.read(root / "book/papers/toy-paper.ipynb", as_version=4).cells
    assert [c.metadata["mystnb"]["image"]["alt"] for c in cells if "mystnb" in c.metadata] == [ALT]
    at = next(i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", []))
    assert "lb-caption" in cells[at - 1].source
    assert (root / "book/_generated/thumb-toy-paper.png").read_bytes().startswith(b"\x89PNG")


def test_the_scoreboard_holds_every_claim_once_with_exact_values(root: Path) -> None:
    build.render(root)
    text = generated(root, "scoreboard")
    keys = re.findall(r'data-key="toy-paper-(\w+)"', text)
    assert keys == [c["id"] for c in CARD["claims"]]
    assert 'value="0.0123456"' in text and "0.01235" in text


def test_the_scoreboard_says_p_and_q_of_each_effect_and_of_nothing_else(root: Path) -> None:
    paper = papers.load(root)[0]
    kinds = {c["id"]: c["kind"] for c in paper.card["claims"]}
    for k, row in enumerate(paper.records["cpu"]["claims"]):
        row["p"] = 0.004 * k
    effects = {c["id"]: c["p"] for c in chance.effects(paper.claims())}
    assert effects and {kinds[claim] for claim in effects} <= {"effect", "equivalence"}
    text, q = lists.scoreboard([paper]), chance.q_values(effects)
    assert text.count(", q ") == len(effects) < len(kinds)
    for claim, p in effects.items():
        row = re.search(rf'data-key="[\w-]+-{claim}".*?</tr>', text, re.S).group(0)
        for name, value in (("p", p), ("q", q[claim])):
            said = f"= {value:.3f}" if value >= 0.001 else "&lt; 0.001"
            assert f"{name} {said}" in row, row


def test_the_shelf_has_what_did_not_come_out_and_nothing_else(root: Path) -> None:
    build.render(root)
    text = generated(root, "shelf")
    assert re.findall(r'id="toy-paper-(\w+)"', text) == ["C1", "C2", "C4"]
    assert "More seeds." in text and "## Reproduced, and so is a simpler explanation" in text


def test_without_a_gpu_run_the_page_says_so_and_gives_no_figure(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    build.render(root)
    runs = (root / "book/_generated/runs.md").read_text(encoding="utf-8")
    assert (
        "No GPU run is stored" in runs
        and "no run is stored yet" in runs
        and "GPU memory" not in runs
    )


def test_a_gpu_run_decides_what_the_cpu_may_not(tmp_path: Path) -> None:
    root = make_root(tmp_path, gpu=True)
    build.render(root)
    (paper,) = papers.load(root)
    rows = {c["id"]: c for c in paper.claims()}
    assert (rows["C4"]["verdict"], rows["C4"]["tier"]) == ("weaker", "gpu")
    assert (rows["C2"]["verdict"], rows["C2"]["other"]["gpu"]["verdict"]) == (
        "undecided",
        "reproduced",
    )
    assert "(toy-paper-gpu.ipynb)" in first_cell(root)
    runs = (root / "book/_generated/runs.md").read_text(encoding="utf-8")
    assert "1 of 1 papers" in runs and runs.count(" memory") >= 2 and '">1</td>' in runs
    gpu = nbformat.read(root / "book/papers/toy-paper-gpu.ipynb", as_version=4)
    assert not any("(eq-a)" in c.source for c in gpu.cells), (
        "equation labels must be unique in the book"
    )
    toc = papers.read_yaml(root / "book/_toc.yml")
    chapters = [
        c for part in toc["parts"] for c in part["chapters"] if c["file"] == "papers/toy-paper"
    ]
    assert chapters[0]["sections"][0]["file"] == "papers/toy-paper-gpu"


def test_metrics_count_claims_proper(root: Path) -> None:
    build.render(root)
    numbers = json.loads((root / "results/metrics.json").read_text(encoding="utf-8"))
    assert numbers["total"] == {"papers": 1, "reproduced": 1, "undecided": 1, "not tested": 1}
    assert numbers["papers"]["toy-paper"]["claims"]["C1"] == 0.5


def test_a_record_that_the_card_does_not_register_is_refused(root: Path) -> None:
    path = root / "results/cpu/toy-paper.verdicts.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["claims"][0]["id"] = "C9"
    path.write_text(records.dumps(record), encoding="utf-8")
    with pytest.raises(build.BookError, match="C9.*does not register.*make rerun"):
        build.render(root)


def test_a_record_without_its_notebook_is_refused(root: Path) -> None:
    (root / "results/cpu/toy-paper.ipynb").unlink()
    with pytest.raises(build.BookError, match="missing beside its record"):
        build.render(root)


def test_a_page_shows_the_source_as_it_is_and_the_verdicts_as_they_are_stored(root: Path) -> None:
    """Text and comments come from the source, outputs from the run, the table of verdicts from what
    is stored.
    """
    v4, executed, source = (
        nbformat.v4,
        root / "results/cpu/toy-paper.ipynb",
        root / "notebooks/toy-paper.ipynb",
    )
    old = '<div aria-label="verdicts">not reproduced, said the run</div>'
    notebooks = [nbformat.read(p, as_version=4) for p in (executed, source)]
    given = v4.new_code_cell("seed = 3", id="given", metadata={"tags": ["injected-parameters"]})
    ending = v4.new_code_cell(
        "run.finish()", outputs=[v4.new_output("display_data", {"text/html": old})], id="end"
    )
    notebooks[0].cells[2:2] = [given]
    notebooks[0].cells.append(ending)
    notebooks[1].cells[0].source += "\n\nA word more."
    notebooks[1].cells[2].source = "show()  # with a comment"
    notebooks[1].cells += [
        v4.new_code_cell("# a comment alone", id="alone"),
        v4.new_code_cell("run.finish()", id="end"),
    ]
    for path, notebook in zip((executed, source), notebooks, strict=True):
        path.write_text(nbformat.writes(notebook), encoding="utf-8")
    build.render(root)
    cells = nbformat.read(root / "book/papers/toy-paper.ipynb", as_version=4).cells
    by_id = {c["id"]: c for c in cells}
    assert (
        "A word more." in cells[0].source and by_id["figure"].source == "show()  # with a comment"
    )
    assert (
        "image/png" in by_id["figure"].outputs[0].data
        and [c["id"] for c in cells].index("given") == 4
    )
    shown = by_id["end"].outputs[0].data["text/html"]
    assert "said the run" not in shown and "reason of C2" in shown and "passes" in shown
    source.write_text(
        source.read_text(encoding="utf-8").replace("show()", "show(1)"), encoding="utf-8"
    )
    with pytest.raises(
        build.BookError,
        match="its code cells are not those of the source notebook; run it again: make rerun",
    ):
        build.render(root)


def test_a_record_without_verdicts_says_how_to_decide(root: Path) -> None:
    (root / "results/cpu/toy-paper.verdicts.json").unlink()
    with pytest.raises(
        build.BookError, match="verdicts.json is missing; decide again: layerbook decide toy-paper"
    ):
        build.render(root)


def test_every_verdict_has_sign_colour_and_meaning() -> None:
    assert tuple(markup.GLYPHS) == tuple(markup.MEANING) == tuple(markup.COLOURS) == zones.VERDICTS
    assert set(lists.SHELF) >= set(zones.VERDICTS)
    css = (paths.BOOK / "_static/layerbook.css").read_text(encoding="utf-8")
    assert all(f".lb-{markup.css(v)} {{" in css for v in zones.VERDICTS)
    assert papers.FAMILIES == cards.schema()["properties"]["family"]["enum"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.12344, "0.1234"),
        (-2.5, "−2.5"),
        (4.1e-6, "4.1×10⁻⁶"),
        (-3e12, "−3×10¹²"),
        (0.0, "0"),
        (7, "7"),
    ],
)
def test_numbers_are_printed_for_readers(value: float | None, text: str) -> None:
    assert markup.number(value) == text


@pytest.mark.parametrize(
    ("test", "lines"),
    [({"above": 1}, [1]), ({"within": 0.5}, [-0.5, 0.5]), ({"every": {"below": 2}}, [2]), ({"between": [1, 2]}, [1, 2]),
     ({"matches": {"values": [1, 2, 3], "floor": 0}}, [])],
)  # fmt: skip
def test_forest_plots_draw_the_registered_threshold(
    test: dict[str, Any], lines: list[float]
) -> None:
    claim = {"values": [1.0, 3.0], "estimate": 2.0, "interval": [1.5, 2.5]}
    assert markup.thresholds(test) == lines
    assert markup.forest(claim, test).count("lb-f-test") == len(lines)
    assert markup.forest({"estimate": None}, test) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (60, "1 min"), (61.2, "1 min 1 s"), (7380, "2 h 3 min")]
)
def test_times_are_printed_as_people_say_them(seconds: float, text: str) -> None:
    assert markup.duration(seconds) == text


def test_an_entry_of_the_bibliography_is_found_whole(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    entry = "@article{a2025,\n  title = {{A} {B}},\n}"
    (tmp_path / "book/references.bib").write_text(
        f"{entry}\n\n@misc{{b, title={{B}}\n}}\n", encoding="utf-8"
    )
    assert paper_page.bibtex(tmp_path, "a2025") == entry
    assert paper_page.bibtex(tmp_path, "a20") is None


def extension() -> Any:
    spec = importlib.util.spec_from_file_location(
        "layerbook_book", paths.BOOK / "_ext/layerbook_book.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_foot_is_uncommitted_without_git(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{}", encoding="utf-8")
    assert extension().commit_of(tmp_path, record) == "uncommitted"


def test_docstrings_with_stars_and_bars_become_plain_text() -> None:
    lines = ["Takes *args and |x| in `code`.", "", "    block * here", "", "End_ here."]
    extension().plain_docstring(None, "function", "f", None, None, lines)
    assert lines[0] == r"Takes \*args and \|x\| in ``code``."
    assert "::" in lines and r"End\_ here." in lines
