"""The benchmark table: ratios against baselines, aims that can be missed, figures of one machine
only.
"""

import json
import sys

import pytest

from bench import machinery
from layerbook.pages import speed


@pytest.fixture
def parts(house, monkeypatch):
    """Two parts whose seconds the test sets, stored in the house."""
    seconds = {"first": (8.0, 1.0), "second": (3.0, 2.0)}
    monkeypatch.setattr(machinery, "FILE", house.root / "results" / "bench.json")
    monkeypatch.setattr(
        machinery,
        "PARTS",
        {
            name: lambda name=name: iter(
                [
                    machinery.row(
                        f"{name} thing", ("plain", seconds[name][0]), ("ours", seconds[name][1]), 4
                    )
                ]
            )
            for name in seconds
        },
    )
    return seconds


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

    monkeypatch.setitem(machinery.PARTS, "second", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        machinery.main([])
    assert [r["part"] for r in stored(house)] == ["first"]
