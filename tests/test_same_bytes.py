"""Same machine, same bytes: what two equal runs share, what is masked, and what a card marks as
varying.
"""

import difflib
import json
import tempfile
from pathlib import Path

import nbformat
import pytest
from markupsafe import escape
from nbformat.v4 import new_code_cell, new_notebook, new_output

from bench import toy
from layerbook import paths
from layerbook.claims import cards, varying
from layerbook.notebook import paper, tables
from layerbook.pages import paper_page
from layerbook.pipeline import method, record, runner

NOISY = """
import os, sys, tempfile, warnings
warnings.warn(f"process {os.getpid()} looked at {id(run):#x}")
warnings.warn(tempfile.mkdtemp())
print("pid", os.getpid(), object(), __import__("pathlib").Path.cwd())
print(f"W1201 02:33:11.123456 {os.getpid()} thing.cc:12] slow", file=sys.stderr)
print(f" 50%|#####     | 1/2 [00:0{os.getpid() % 10}<00:01,  {os.getpid()}it/s]", file=sys.stderr)
[object()]
"""


def test_two_runs_of_a_noisy_paper_give_equal_bytes_but_for_seconds_and_memory(house):
    house.paper(extra=NOISY)
    kept = []
    for _ in range(2):
        runner.run("toy")
        stored = house.record()
        assert stored.pop("seconds") > 0 and stored.pop("peak_memory_mb") > 0
        kept.append((json.dumps(stored), record.file_of("toy", "cpu", ".ipynb").read_bytes()))
    assert list(difflib.unified_diff(*(k[1].decode().splitlines() for k in kept), n=0)) == []
    assert kept[0] == kept[1]
    text = kept[0][1].decode()
    # what was said stays
    assert "UserWarning: process ... looked at 0x..." in text and "thing.cc:12] slow" in text
    outputs = json.dumps([c["outputs"] for c in json.loads(text)["cells"] if "outputs" in c])
    assert "it/s" not in outputs and str(house.root) not in text


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("<Thing at 0x7f3a5c0012d0>", "<Thing at 0x...>"),
        ("color: 0xff", "color: 0xff"),
        (
            f"{tempfile.gettempdir()}/ipykernel_4711/123.py:3: UserWarning: deprecated",
            "ipykernel/cell.py:3: UserWarning: deprecated",
        ),
        ("the current process 4711 forked", "the current process ... forked"),
        ("worker (pid=31): slow", "worker (pid=...): slow"),
        ("2026-12-01 02:33:11,120 INFO ready", "(time) INFO ready"),
    ],
)
def test_what_differs_between_processes_is_masked(said, stored):
    given = new_output("stream", name="stderr", text=said + "\n")
    assert varying.mask_output(given, Path("/some/checkout"))["text"] == stored + "\n"


def test_times_on_stdout_stay_and_empty_warnings_go():
    book = new_notebook(
        cells=[
            new_code_cell(
                "x",
                outputs=[
                    new_output("stream", name="stdout", text="process 2 "),
                    new_output("stream", name="stderr", text="\n"),
                    new_output("stream", name="stdout", text="of 3 at 02:33:11\n"),
                    new_output(
                        "stream", name="stderr", text="\r 10%|#    | 1/9 [00:01<00:09, 1.00it/s]\n"
                    ),
                ],
            )
        ]
    )
    assert [o["text"] for o in runner.normalise(book).cells[0].outputs] == [
        "process 2 of 3 at 02:33:11\n"
    ]


@pytest.mark.parametrize("slug", cards.slugs())
def test_no_stored_notebook_holds_what_would_be_masked_now(slug):
    file = record.file_of(slug, "cpu", ".ipynb")
    if not file.is_file():
        pytest.skip("a draft without a stored run; as of 2026-12-01 there is none")
    for cell in nbformat.read(file, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr" or "it/s" not in output["text"]
            for text in (
                output.get("text"),
                *(v for k, v in output.get("data", {}).items() if k.startswith("text/")),
            ):
                assert (
                    text is None
                    or varying.mask(text, paths.ROOT, output.get("name") == "stderr") == text
                )


def timed(slug):
    """Claims whose values a notebook takes from a clock: those recorded in a cell that reads a name
    filled by a timed cell.
    """
    text = "\n".join(
        c.source
        for c in method.read(paths.NOTEBOOKS / f"{slug}.ipynb").cells
        if c.cell_type == "code"
    )
    return any(
        name in text
        for name in ("perf_counter", "time.time(", "monotonic(", "process_time", "timeit")
    )


@pytest.mark.parametrize("slug", cards.slugs())
def test_a_paper_that_reads_a_clock_marks_a_claim_or_a_finding(slug):
    marks = varying.of_claims(cards.load(slug)).values()
    source = (paths.NOTEBOOKS / f"{slug}.ipynb").read_text(encoding="utf-8")
    assert timed(slug) == ("time" in marks or 'varies=\\"time\\"' in source), slug


def test_controls_vary_as_the_effect_that_they_must_fail():
    assert varying.of_claims(cards.load("wave-cnn-compression")) == dict.fromkeys(
        ("C5", "C5a", "N5", "N5a", "R5"), "time"
    )
    assert varying.of_claims(cards.load("relp")) == {"C5": "time"}


def test_marked_arrays_are_left_out_of_a_comparison_and_nothing_else(house):
    house.paper(
        card=toy.CARD.replace("    smallest: 0.1\n", "    smallest: 0.1\n    varies: time\n"),
        extra='run.finding("F1", "seconds", [{}], varies="time")\nrun.finding("F2", "plain", [1.0])'.replace(
            "{}", "__import__('time').perf_counter()"
        ),
    )
    runs = [runner.run("toy", write=False) for _ in range(2)]
    runs[1]["claims"][0]["values"] = [9.0] * 8  # C1
    runs[1]["claims"][2]["estimate"] = 9.0  # N1, which must fail C1
    runs[1]["seconds"] += 3
    card = cards.load("toy")
    assert varying.fixed(runs[0], card) == varying.fixed(runs[1], card)
    runs[1]["claims"][1]["values"][0] = 9.0  # C2 is not marked
    assert varying.fixed(runs[0], card) != varying.fixed(runs[1], card)
    assert [f["name"] for f in varying.fixed(runs[0], card)["findings"]] == ["F2"]
    html = tables.verdicts(card, runs[0], runs[0]["findings"])
    # C1, N1, F1
    assert html.count("(depends on the machine&#x27;s speed)") == 3 and "seconds (depends" in html
    assert escape("depends on the machine's speed") in paper_page._findings(runs[0])


def test_an_unknown_mark_is_refused(house):
    house.paper(
        card=toy.CARD.replace("    smallest: 0.1\n", "    smallest: 0.1\n    varies: moon\n")
    )
    with pytest.raises(cards.CardError, match="moon"):
        cards.load("toy")
    house.paper()
    run = paper.Run(cards.load("toy"), {"tier": "cpu", "seed": 0, "device": "cpu", "shift": 1.0})
    with pytest.raises(paper.MeasurementError, match="choices: time, threads"):
        run.finding("F", "f", [1.0], varies="moon")
