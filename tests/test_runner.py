"""Runs, records and faults: the evidence is whole, fresh and honest, or the build says why not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from layerbook import cli, keeping
from layerbook.claims import cards
from layerbook.pipeline import method, receipts, record, runner, verdicts

FIRST: dict[str, bytes] = {}


@pytest.fixture
def ran(house):
    """The house after one good run of its paper (made once, then copied: a record holds no path of
    its root).
    """
    if not FIRST:
        runner.run("toy")
        FIRST.update(house.results())
    for name, content in FIRST.items():
        record.replace(house.root / "results" / name, content)
    return house


def test_a_run_leaves_record_and_notebook(ran):
    found = ran.record()
    for key in (
        "schema",
        "paper",
        "tier",
        "seconds",
        "peak_memory_mb",
        "device",
        "versions",
        "parameters",
        "measured_by",
    ):
        assert key in found, key
    decided = verdicts.read("toy", "cpu")
    assert {c["id"]: c["verdict"] for c in decided["claims"]} == {
        "C1": "reproduced",
        "C2": "reproduced",
        "N1": "held",
    }
    assert (
        len(found["measured"]["C1"]["gain"]) == 8
        and "claims" not in found
        and "values" not in decided["claims"][0]
    )
    assert (
        "notebooks/toy.ipynb" in found["measured_by"]
        and "src/layerbook/notebook/paper.py" in found["measured_by"]
    )
    assert (
        "src/layerbook/claims/engine.py" not in found["measured_by"]
        and "src/layerbook/claims/engine.py" in decided["decided_by"]
    )
    assert record.problems("toy", "cpu") == []
    text = (ran.root / "results/cpu/toy.ipynb").read_text(encoding="utf-8")
    assert str(ran.root) not in text and "papermill" not in json.loads(text)["metadata"]


def test_a_fact_that_does_not_hold_blocks_every_verdict(house):
    house.paper(extra="run.fact('two is three', False)")
    for found in (runner.run("toy"), runner.run("toy", write=False)):
        rows = {r["id"]: r for r in found["claims"]}
        assert rows["C1"]["cause"] == rows["C2"]["cause"] == {"kind": "fact"}
        assert "two is three" in rows["C1"]["reason"]
    assert verdicts.problems("toy", "cpu") == []


def test_two_runs_give_the_same_bytes(ran):
    before = ran.results()
    runner.run("toy")
    after = ran.results()
    assert before["cpu/toy.ipynb"] == after["cpu/toy.ipynb"]
    old, new = json.loads(before["cpu/toy.json"]), json.loads(after["cpu/toy.json"])
    assert old["measured"] == new["measured"] and old["measured_by"] == new["measured_by"]
    assert before["cpu/toy.verdicts.json"] == after["cpu/toy.verdicts.json"]


def test_parameters_and_other_seeds_reach_the_notebook(house):
    found = runner.run("toy", overrides={"shift": -1.0, "seed": 1})
    assert found["parameters"]["seed"] == 1
    assert {c["id"]: c["verdict"] for c in found["claims"]}["C1"] == "not reproduced"
    assert house.results() == {}


def test_rehearsals_store_nothing(house):
    assert runner.run("toy", "gpu-dry")["claims"][0]["verdict"] == "not tested"
    assert house.results() == {}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("raise ValueError('out of ideas')", "out of ideas"),
        ("import os; os._exit(1)", "kernel died"),
        ("import errno; raise OSError(errno.ENOSPC, 'No space left on device')", "No space left"),
    ],
)
def test_a_failed_run_says_where_and_loses_nothing(ran, extra, says):
    before = ran.results()
    ran.paper(extra=extra)
    with pytest.raises(runner.RunError, match=says):
        runner.run("toy")
    assert ran.results() == before
    assert any("toy.ipynb changed" in p for p in record.problems("toy", "cpu"))


def test_unknown_parameter_is_refused_before_any_compute(ran):
    before = ran.results()
    ran.paper(extra="open('computed', 'w').close()")
    with pytest.raises(runner.RunError, match="no parameter 'speed'"):
        runner.run("toy", overrides={"speed": 3})
    assert not (ran.root / "computed").exists() and ran.results() == before


def test_plain_papermill_stores_nothing(house, shell):
    out = shell(
        sys.executable,
        "-m",
        "papermill",
        "notebooks/toy.ipynb",
        "out.ipynb",
        "-p",
        "seed",
        "3",
        cwd=house.root,
    )
    assert out.returncode == 0, out.stderr[-800:]
    assert (house.root / "out.ipynb").is_file() and house.results() == {}


def test_full_disk_while_storing_keeps_the_old_evidence(ran, monkeypatch):
    before = ran.results()

    def full(files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "replace_all", full)
    with pytest.raises(runner.RunError, match="disk is full"):
        runner.run("toy")
    assert ran.results() == before


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    target.write_bytes(b"old")
    monkeypatch.setattr(
        os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        record.replace(target, b"new and longer")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_killed_run_leaves_the_old_evidence_and_the_next_carries_on(ran):
    before = ran.results()
    ran.paper(extra="import time; open('started', 'w').close(); time.sleep(60)")
    child = subprocess.Popen(
        [sys.executable, "-m", "layerbook", "rerun", "toy"],
        cwd=ran.root,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(300):
        if (ran.root / "started").exists():
            break
        time.sleep(0.1)
    assert (ran.root / "started").exists()
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert ran.results() == before
    ran.paper()
    (ran.root / "params.yaml").write_text("papers: {toy: {seed: 5}}\n", encoding="utf-8")
    runner.run("toy")
    assert record.problems("toy", "cpu") == [] and ran.record()["parameters"]["seed"] == 5


def test_an_input_that_changes_during_the_run_is_caught(ran):
    before = ran.results()
    ran.paper(
        extra="from layerbook import paths; p = paths.NOTEBOOKS / 'toy.yaml'; "
        "p.write_text(p.read_text().replace('max: 10', 'max: 11'))"
    )
    with pytest.raises(runner.RunError, match="changed while the notebook ran"):
        runner.run("toy")
    assert ran.results() == before


def edit(house, change, suffix=".json"):
    """Problems of the evidence after a change of one of its files, which keeps the form in which it
    was written.
    """
    file = house.root / f"results/cpu/toy{suffix}"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(record.dumps(data), encoding="utf-8")
    return " ".join(record.problems("toy", "cpu"))


DECIDED = ".verdicts.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["claims"][2].update(verdict="not reproduced"),
        lambda d: d["claims"][0].update(reason="because"),
        lambda d: d["claims"][0].update(p=0.5),
        lambda d: d["claims"][0].update(interval=[0.9, 1.1]),
        lambda d: d["claims"][0].update(estimate=9.99),
        lambda d: d["gates"][0].update(met=False),
        lambda d: d["findings"][0].update(estimate=9.99),
        lambda d: d["findings"][0].update(interval=[9.0, 10.0]),
    ],
    ids=["verdict", "reason", "p", "interval", "estimate", "gate", "finding", "its interval"],
)
def test_whatever_was_decided_and_then_edited_is_caught(house, change):
    house.paper(extra="run.finding('height', 'of something', [1.0, 2.0, 4.0])")
    runner.run("toy")
    assert record.problems("toy", "cpu") == []
    text = edit(house, change, DECIDED)
    assert "does not follow from its stored values" in text and "layerbook decide toy" in text
    assert cli.main(["decide", "toy"]) == 0 and record.problems("toy", "cpu") == []


def test_edited_values_are_caught(ran):
    assert "does not follow" in edit(
        ran, lambda d: d["measured"]["C1"].update(gain=[9.0 + k for k in range(8)])
    )


@pytest.mark.parametrize(
    "key",
    [
        "findings",
        "parameters",
        "seconds",
        "gates",
        "measured",
        "measured_by",
        "versions",
        "profiles",
    ],
)
def test_a_record_that_lacks_a_field_is_refused(ran, key):
    assert "is a required property" in edit(ran, lambda d: d.pop(key))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(note="mine"),
        lambda d: d.update(seconds="long"),
        lambda d: d["measured"]["C1"].update(gain=["1"] * 8),
        lambda d: d.update(paper="other"),
        lambda d: d["gates"].update(G9=[1.0]),
        lambda d: d["measured"].update(C9={"": [1.0]}),
    ],
)
def test_a_record_with_what_does_not_belong_there_is_refused(ran, change):
    assert edit(ran, change)


def test_a_claim_dropped_from_the_verdicts_is_caught(ran):
    assert "but not in the verdicts" in edit(ran, lambda d: d["claims"].pop(), DECIDED)
    (ran.root / "results/cpu/toy.verdicts.json").unlink()
    assert "toy.verdicts.json" in " ".join(record.problems("toy", "cpu"))


def test_digests_that_do_not_match_are_caught(ran):
    assert "changed since the run" in edit(
        ran, lambda d: d["measured_by"].update({"notebooks/toy.yaml": "0" * 64})
    )
    assert cli.main(["fresh", "toy"]) == 1


def test_a_run_with_other_parameters_is_no_evidence(ran, capsys):
    before = ran.results()
    assert cli.main(["rerun", "toy", "-p", "shift=-1.0"]) == 0
    text = capsys.readouterr().out
    assert (
        "C1   not reproduced" in text
        and "nothing was stored: parameter shift was -1.0" in text
        and "papermill" in text
    )
    assert ran.results() == before
    assert "parameter seed was 3 in the run" in edit(ran, lambda d: d["parameters"].update(seed=3))


def test_a_seed_changed_in_params_makes_stale(ran):
    (ran.root / "params.yaml").write_text("papers: {toy: {seed: 1}}\n", encoding="utf-8")
    assert (
        "parameter seed was 0 in the run, but notebook and params.yaml give 1"
        in record.problems("toy", "cpu")
    )


def test_files_that_dvc_does_not_record_are_stale(ran):
    files = {s: ran.root / f"results/cpu/toy{s}" for s in (".json", ".ipynb", DECIDED)}
    outs = [{"path": f"results/cpu/toy{s}", "md5": receipts.md5(f)} for s, f in files.items()]
    lock = ran.root / "dvc.lock"
    lock.write_text(
        json.dumps({"schema": "2.0", "stages": {"toy": {"outs": outs}}}), encoding="utf-8"
    )
    assert record.problems("toy", "cpu", strict=True) == []
    for suffix, file in files.items():
        honest = file.read_text(encoding="utf-8")
        file.write_text(honest.replace("0", "00", 1), encoding="utf-8")
        assert f"toy{suffix} is not the file that dvc.lock records" in " ".join(
            record.problems("toy", "cpu", strict=True)
        ) or ("not in the form" in " ".join(record.problems("toy", "cpu", strict=True)))
        file.write_text(honest, encoding="utf-8")
    # nothing follows from it, and no digest shows it
    text = edit(ran, lambda d: d.update(seconds=0.1))
    assert "toy.json is not the file that dvc.lock records" in text
    lock.write_text("<<<<<<< HEAD\n" + lock.read_text(encoding="utf-8"), encoding="utf-8")
    assert "git checkout dvc.lock" in " ".join(record.problems("toy", "cpu"))


def test_a_broken_record_says_what_to_do(ran):
    (ran.root / "results/cpu/toy.json").write_text("{", encoding="utf-8")
    assert "make rerun PAPER=toy" in record.problems("toy", "cpu")[0]


@pytest.mark.parametrize("suffix", [".json", DECIDED])
def test_the_last_bytes_count_as_well(ran, suffix):
    whole = FIRST[f"cpu/toy{suffix}"]
    for cut in range(1, 12):
        (ran.root / f"results/cpu/toy{suffix}").write_bytes(whole[:-cut])
        assert record.problems("toy", "cpu") != [], cut


def test_a_swapped_notebook_and_a_missing_half_are_caught(ran):
    notebook = ran.root / "results/cpu/toy.ipynb"
    notebook.write_text(
        notebook.read_text(encoding="utf-8").replace("one is one", "one is two"), encoding="utf-8"
    )
    found = " ".join(record.problems("toy", "cpu"))
    assert "not the notebook that this record" in found and "cells are not those" in found
    notebook.unlink()
    assert record.problems("toy", "cpu") == ["results/cpu/toy.ipynb is missing"]


def test_records_are_valid_json_with_nan_measurements(house):
    house.paper(
        extra="_real = run.record\nrun.record = lambda c, *a, **k: _real(c, *a, **({'gain': [float('nan'), 1.0, 2.0]} "
        "if c == 'C1' else k))"
    )
    result = runner.run("toy")
    assert (
        result["claims"][0]["verdict"] == "undecided" and result["claims"][0]["values"][0] is None
    )
    assert record.read("toy", "cpu")["measured"]["C1"]["gain"][0] is None
    assert record.problems("toy", "cpu") == []
    assert "NaN" not in (house.root / "results/cpu/toy.json").read_text(encoding="utf-8").replace(
        "are NaN", ""
    )


def test_a_truncated_notebook_is_named(house):
    file = house.root / "notebooks/toy.ipynb"
    file.write_text(file.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ValueError, match="toy.ipynb is not a readable notebook"):
        method.load("toy")


def test_a_rerun_names_the_values_and_verdicts_that_changed(ran, capsys):
    assert cli.main(["rerun", "toy", "--dry", "--expect-same"]) == 0
    assert "every value and every verdict is the stored one" in capsys.readouterr().out
    # the verdicts are the same, the values not
    assert cli.main(["rerun", "toy", "--expect-same", "-p", "seed=4"]) == 1
    text = capsys.readouterr().out
    assert "toy C1: 8 of 8 values of gain differ" in text and "now" not in text
    card = cards.load("toy")
    stored, now = verdicts.evidence("toy", "cpu"), verdicts.evidence("toy", "cpu")
    now = json.loads(json.dumps(now))
    now["measured"]["C1"]["gain"][2] += 1e-9
    assert verdicts.differences(stored, now, card) == ["toy C1: 1 of 8 values of gain differ"]
    card["claims"][0]["varies"] = "time"
    assert verdicts.differences(stored, now, card) == []
