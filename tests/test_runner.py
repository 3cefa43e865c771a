"""Runs, records and faults: the evidence is whole, fresh and honest, or the build says why not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from layerbook import cli, method, record, runner

FIRST: dict[str, bytes] = {}


@pytest.fixture
def ran(house):
    """The house after one good run of its paper (made once, then copied: a record holds no path of its root)."""
    if not FIRST:
        runner.run("toy")
        FIRST.update(house.results())
    for name, content in FIRST.items():
        record.replace(house.root / "results" / name, content)
    return house


def test_a_run_leaves_record_and_notebook(ran):
    found = ran.record()
    for key in ("schema", "paper", "tier", "seconds", "peak_memory_mb", "device", "versions", "parameters", "inputs", "claims"):
        assert key in found, key
    assert {c["id"]: c["verdict"] for c in found["claims"]} == dict.fromkeys(("C1", "C2", "N1"), "reproduced")
    assert len(found["claims"][0]["values"]) == 8
    assert "notebooks/toy.ipynb" in found["inputs"] and "src/layerbook/claims.py" in found["inputs"]
    assert record.problems("toy", "cpu") == []
    text = (ran.root / "results/cpu/toy.ipynb").read_text()
    assert str(ran.root) not in text and "papermill" not in json.loads(text)["metadata"]


def test_two_runs_give_the_same_bytes(ran):
    before = ran.results()
    runner.run("toy")
    after = ran.results()
    assert before["cpu/toy.ipynb"] == after["cpu/toy.ipynb"]
    old, new = json.loads(before["cpu/toy.json"]), json.loads(after["cpu/toy.json"])
    assert old["claims"] == new["claims"] and old["inputs"] == new["inputs"]


def test_parameters_and_other_seeds_reach_the_notebook(house):
    found = runner.run("toy", overrides={"shift": -1.0, "seed": 1}, write=False)
    assert found["parameters"]["seed"] == 1
    assert {c["id"]: c["verdict"] for c in found["claims"]}["C1"] == "not reproduced"
    assert house.results() == {}


def test_rehearsals_store_nothing(house):
    assert runner.run("toy", "gpu-dry")["claims"][0]["verdict"] == "not tested"
    assert house.results() == {}


@pytest.mark.parametrize(("extra", "says"), [
    ("raise ValueError('out of ideas')", "out of ideas"),
    ("import os; os._exit(1)", "kernel died"),
    ("import errno; raise OSError(errno.ENOSPC, 'No space left on device')", "No space left"),
])
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
    out = shell(sys.executable, "-m", "papermill", "notebooks/toy.ipynb", "out.ipynb", "-p", "seed", "3", cwd=house.root)
    assert out.returncode == 0, out.stderr[-800:]
    assert (house.root / "out.ipynb").is_file() and house.results() == {}


def test_full_disk_while_storing_keeps_the_old_evidence(ran, monkeypatch):
    before = ran.results()

    def full(target, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "replace", full)
    with pytest.raises(runner.RunError, match="disk is full"):
        runner.run("toy", overrides={"seed": 2})
    assert ran.results() == before


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        record.replace(target, b"new and longer")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_killed_run_leaves_the_old_evidence_and_the_next_carries_on(ran):
    before = ran.results()
    ran.paper(extra="import time; open('started', 'w').close(); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-m", "layerbook", "rerun", "toy"], cwd=ran.root, start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if (ran.root / "started").exists():
            break
        time.sleep(0.1)
    assert (ran.root / "started").exists()
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert ran.results() == before
    ran.paper()
    runner.run("toy", overrides={"seed": 5})
    assert record.problems("toy", "cpu") == [] and ran.record()["parameters"]["seed"] == 5


def test_an_input_that_changes_during_the_run_is_caught(ran):
    before = ran.results()
    ran.paper(extra="from layerbook import paths; p = paths.NOTEBOOKS / 'toy.yaml'; p.write_text(p.read_text() + '# later\\n')")
    with pytest.raises(runner.RunError, match="changed while the notebook ran"):
        runner.run("toy")
    assert ran.results() == before


def edit(house, change):
    file = house.root / "results/cpu/toy.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return " ".join(record.problems("toy", "cpu"))


def test_an_edited_verdict_is_caught(ran):
    assert "does not follow from its stored values" in edit(ran, lambda d: d["claims"][2].update(verdict="not reproduced"))


def test_edited_values_are_caught(ran):
    assert "does not follow" in edit(ran, lambda d: d["claims"][0].update(values=[9.0 + k for k in range(8)]))


def test_a_claim_dropped_from_the_record_is_caught(ran):
    assert "in the card but not in the record" in edit(ran, lambda d: d["claims"].pop())


def test_hashes_that_do_not_match_are_caught(ran):
    assert "changed since the run" in edit(ran, lambda d: d["inputs"].update({"notebooks/toy.yaml": "0" * 64}))
    assert cli.main(["fresh", "toy"]) == 1


def test_a_broken_record_says_what_to_do(ran):
    (ran.root / "results/cpu/toy.json").write_text("{")
    assert "make rerun PAPER=toy" in record.problems("toy", "cpu")[0]


def test_a_swapped_notebook_and_a_missing_half_are_caught(ran):
    notebook = ran.root / "results/cpu/toy.ipynb"
    notebook.write_text(notebook.read_text().replace("one is one", "one is two"))
    found = " ".join(record.problems("toy", "cpu"))
    assert "not the notebook that this record" in found and "cells are not those" in found
    notebook.unlink()
    assert record.problems("toy", "cpu") == ["results/cpu/toy.ipynb is missing"]


def test_records_are_valid_json_with_nan_measurements(house):
    house.paper(extra="_real = run.record\nrun.record = lambda c, *a, **k: _real(c, *a, **({'gain': [float('nan'), 1.0, 2.0]} "
                      "if c == 'C1' else k))")
    result = runner.run("toy")
    assert result["claims"][0]["verdict"] == "inconclusive" and result["claims"][0]["values"][0] is None
    assert record.problems("toy", "cpu") == []
    assert "NaN" not in (house.root / "results/cpu/toy.json").read_text().replace("are NaN", "")


def test_a_truncated_notebook_is_named(house):
    file = house.root / "notebooks/toy.ipynb"
    file.write_text(file.read_text()[:200])
    with pytest.raises(ValueError, match="toy.ipynb is not a readable notebook"):
        method.load("toy")


def test_a_rerun_names_the_verdict_that_changed(ran, capsys):
    assert cli.main(["rerun", "toy", "--dry", "--expect-same", "-p", "seed=4"]) == 0
    assert cli.main(["rerun", "toy", "--expect-same", "-p", "shift=-1.0"]) == 1
    assert "toy C1: stored reproduced, now not reproduced" in capsys.readouterr().out
