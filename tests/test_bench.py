"""The benchmark table: ratios against baselines, aims that can be missed, figures of one machine
only.
"""

import json
import subprocess
import sys
from functools import partial

import pytest

from bench import machinery, toy
from layerbook.claims import cards
from layerbook.pages import speed
from layerbook.pipeline import benchmarks, deps


@pytest.fixture
def parts(house, monkeypatch):
    """Two parts whose seconds the test sets, stored in the house, which is a repository with code
    of its own: "first" is timed by a module and depends on the number of papers, too.
    """
    seconds = {"first": (8.0, 1.0), "second": (3.0, 2.0)}
    monkeypatch.setattr(machinery, "FILE", house.root / "results" / "bench.json")

    def rows(name):
        plain, ours = seconds[name]
        yield machinery.row(f"{name} thing", ("plain", plain), ("ours", ours), 4)

    monkeypatch.setattr(machinery, "MEASURE", {name: partial(rows, name) for name in seconds})
    (house.root / "src").unlink()
    code = house.root / "src" / "layerbook" / "timed.py"
    code.parent.mkdir(parents=True)
    code.write_text("def work():\n    return 1\n", encoding="utf-8")
    first = benchmarks.Part(("layerbook.timed",), tools=("torch",), papers=True)
    known = {"first": first, "second": benchmarks.Part(files=("requirements.lock",))}
    monkeypatch.setattr(benchmarks, "PARTS", known)
    (house.root / "requirements.lock").write_text("torch==2.0\n", encoding="utf-8")
    (house.root / ".gitignore").write_text("/build/\n", encoding="utf-8")
    git(house, "init", "-q")
    git(house, "add", ".")
    git(house, "commit", "-q", "-m", "all")
    return seconds


def git(house, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=house.root, check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


def stored(house):
    return json.loads((house.root / "results" / "bench.json").read_text(encoding="utf-8"))["rows"]


def test_a_missed_aim_fails_the_run(house, parts, capsys):
    assert machinery.main([]) == 1
    assert "8.00  (at least 4: met)" in capsys.readouterr().out and [
        r["met"] for r in stored(house)
    ] == [True, False]
    parts["second"] = (9.0, 2.0)
    assert machinery.main(["second"]) == 0
    # the other row stays
    assert [(r["part"], r["ratio"]) for r in stored(house)] == [
        ("first", 8.0),
        ("second", 4.5),
    ]


def test_figures_of_another_machine_do_not_stay(house, parts):
    machinery.main([])
    file = house.root / "results" / "bench.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace('"cores": ', '"cores": 10'), encoding="utf-8"
    )
    machinery.main(["second"])
    assert [r["part"] for r in stored(house)] == ["second"]


def test_an_unknown_part_names_the_parts(parts, capsys):
    assert machinery.main(["third"]) == 2
    assert "there are first, second" in capsys.readouterr().err


def test_a_command_that_fails_is_no_measurement(house):
    with pytest.raises(RuntimeError, match="ended with 3"):
        machinery.seconds([sys.executable, "-c", "raise SystemExit(3)"], house.root)


def test_the_page_shows_what_was_measured(house, parts):
    assert "make bench" in speed.fragment(house.root)
    machinery.main([])
    text = speed.fragment(house.root)
    assert "plain: 8.00 s" in text and "at least 4: met" in text and "at least 4: missed" in text


def test_the_small_pipeline_is_a_pipeline(house, shell):
    with machinery.pipeline_of(2) as root:
        done = shell(sys.executable, "-m", "dvc", "status", cwd=root)
        assert "paper-00:" in done.stdout and "paper-01:" in done.stdout
        assert "transformers" in (root / "notebooks/paper-01.ipynb").read_text(encoding="utf-8")
    assert not root.exists()


def test_what_was_measured_before_a_failure_is_kept(house, parts, monkeypatch):
    def stops():
        raise RuntimeError("stopped")
        yield

    monkeypatch.setitem(machinery.MEASURE, "second", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        machinery.main([])
    assert [r["part"] for r in stored(house)] == ["first"]


def test_each_part_is_stored_with_commit_machine_and_inputs(house, parts):
    machinery.main([])
    found = json.loads((house.root / "results" / "bench.json").read_text(encoding="utf-8"))["parts"]
    assert list(found) == ["first", "second"]
    for part in found.values():
        assert git(house, "rev-parse", "HEAD").startswith(part["commit"]) and not part["dirty"]
        assert part["machine"] == machinery.machine()
    inputs = found["first"]["inputs"]
    assert inputs["torch"] == "2.0" and inputs[benchmarks.PAPERS] == "1"
    assert len(inputs["src/layerbook/timed.py"]) == 16


def code(house, text):
    (house.root / "src" / "layerbook" / "timed.py").write_text(text, encoding="utf-8")


CHANGES = {
    "a module": (lambda house: code(house, "def work():\n    return 2\n"), "layerbook.timed"),
    "a tool": (
        lambda house: (house.root / "requirements.lock").write_text(
            "torch==2.1\n", encoding="utf-8"
        ),
        "torch",
    ),
    "a paper more": (lambda house: toy.write(house.root, "more"), benchmarks.PAPERS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_measurement_whose_input_changed_is_not_shown_as_todays(house, parts, change):
    machinery.main([])
    commit = machinery.commit()["commit"]
    fresh = speed.fragment(house.root)
    # said once, for all
    assert fresh.count("nothing that it depends on has changed since") == 1
    assert "Each figure is of then" in fresh
    assert "before later changes" not in fresh and "then at least" not in fresh
    make, named = CHANGES[change]
    make(house)
    text = speed.fragment(house.root)
    assert f"measured at {commit}, before later changes to {named}" in text
    # another state for each: said at each
    assert "Each figure is of then" not in text
    assert "then at least 4: met" in text


def test_a_comment_changes_no_measurement(house, parts):
    machinery.main([])
    code(house, '"""What is timed."""\n\n\ndef work():  # a comment\n    return 1\n')
    assert "before later changes" not in speed.fragment(house.root)


def test_what_has_no_digests_is_outdated(house, parts):
    machinery.main([])
    file = house.root / "results" / "bench.json"
    former = json.loads(file.read_text(encoding="utf-8"))
    del former["parts"]
    file.write_text(json.dumps(former), encoding="utf-8")
    text = speed.fragment(house.root)
    assert text.count("speaks of no known state") == 1 and "has changed since" not in text
    assert "Each figure is of then" in text


def test_a_part_of_the_whole_checkout_is_only_ever_of_its_commit(house, parts, monkeypatch):
    monkeypatch.setitem(benchmarks.PARTS, "second", benchmarks.Part(whole=True))
    machinery.main([])
    assert "it depends on the whole checkout as it was then" in speed.fragment(house.root)
    assert not machinery.outdated("second")
    code(house, "def work():\n    return 2\n")
    assert machinery.outdated("second")


def test_without_a_name_only_what_is_outdated_is_measured(house, parts, capsys):
    machinery.main([])
    parts["first"], parts["second"] = (80.0, 1.0), (80.0, 1.0)
    code(house, "def work():\n    return 2\n")
    assert machinery.main([]) == 0
    assert [r["ratio"] for r in stored(house)] == [80.0, 1.5]
    assert "second: as stored" in capsys.readouterr().out
    machinery.main(["second"])
    assert [r["ratio"] for r in stored(house)] == [80.0, 80.0]


def test_inputs_that_change_during_a_measurement_make_it_void(house, parts, monkeypatch):
    def edits():
        code(house, "def work():\n    return 3\n")
        yield machinery.row("a thing", ("plain", 1.0), ("ours", 1.0))

    monkeypatch.setitem(machinery.MEASURE, "first", edits)
    with pytest.raises(RuntimeError, match="timed.py changed while first was measured.*PART=first"):
        machinery.main(["first"])
    assert not (house.root / "results" / "bench.json").exists()


def test_every_part_says_what_it_depends_on():
    assert list(machinery.MEASURE) == list(benchmarks.PARTS)
    for name, part in benchmarks.PARTS.items():
        found = benchmarks.inputs(name)
        assert all(deps.module_file(module) for module in part.modules)
        assert all(found.values()), f"{name}: {[k for k, v in found.items() if not v]}"
        assert part.whole or found["bench/machinery.py"]
    quantizers = benchmarks.inputs("quantizers")
    assert "src/layerbook/quantize/gptq.py" in quantizers
    assert "src/layerbook/pages/build.py" not in quantizers
    assert benchmarks.inputs("book")[benchmarks.PAPERS] == str(len(cards.slugs()))
