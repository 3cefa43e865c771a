"""`layerbook run`: stale papers side by side, each kept or not, recorded in DVC; and whatever may
happen meanwhile.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ruamel.yaml import YAML

from bench import toy
from layerbook import cli
from layerbook.claims import cards
from layerbook.pipeline import (
    driver,
    kernels,
    machine,
    progress,
    record,
    runner,
    verdicts,
)
from layerbook.pipeline import (
    stages as pipeline,
)


@pytest.fixture(scope="module")
def initialized(tmp_path_factory):
    """What `dvc init` leaves in a folder; it takes seconds, and is the same for all."""
    folder = tmp_path_factory.mktemp("initialized")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    return folder / ".dvc"


@pytest.fixture
def many(house, initialized):
    """Three papers in a DVC pipeline with a report stage behind them."""
    for slug in ("one", "two"):
        house.paper(slug)
    (house.root / "params.yaml").write_text(pipeline.params(), encoding="utf-8")
    stages(house)
    shutil.copytree(initialized, house.root / ".dvc")
    return house


def stages(house):
    out = {"digests": pipeline.of_digests() | {"deps": ["notebooks"]}}
    out |= {slug: pipeline.of_paper(slug) for slug in cards.slugs()}
    results = [f"results/cpu/{slug}.json" for slug in cards.slugs()]
    (house.root / "sum.py").write_text(
        "import glob, pathlib\n"
        "pathlib.Path('sum.txt').write_text(str(len(glob.glob('results/cpu/*.verdicts.json'))))\n",
        encoding="utf-8",
    )
    out["report"] = {
        "cmd": "python sum.py",
        "deps": ["sum.py", *results],
        "outs": [{"sum.txt": {"cache": False}}],
    }
    with open(house.root / "dvc.yaml", "w", encoding="utf-8") as stream:
        YAML().dump({"stages": out}, stream)


def nothing_to_do(house, shell):
    done = shell(sys.executable, "-m", "dvc", "repro", cwd=house.root)
    return done.returncode == 0 and "Running stage" not in done.stdout


def launch(house, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "layerbook", "run", *arguments],
        cwd=house.root,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=dict(os.environ) | {"PYTHONFAULTHANDLER": "1"},
    )


def until(condition, child, seconds=180):
    """Wait for the condition; a driver that does not get there is ended, and says in which line
    each thread stood.
    """
    end = time.monotonic() + seconds
    while not condition():
        if child.poll() is not None or time.monotonic() > end:
            child.send_signal(signal.SIGABRT)
            raise AssertionError(
                f"the driver did not get there; exit code {child.wait()}\n{child.communicate()[0]}"
            )
        time.sleep(0.1)


def underway(house):
    """True when two of the three papers are stored and the third one runs."""
    return (house.root / "started").exists() and all(
        (house.root / f"results/cpu/{s}.json").exists() for s in ("one", "toy")
    )


def test_all_stale_papers_run_and_dvc_has_nothing_left(many, shell, capsys):
    assert cli.main(["run", "-j", "2"]) == 0
    assert "3 of 3 papers run and recorded" in capsys.readouterr().out
    assert (
        all(record.problems(s, "cpu") == [] for s in cards.slugs())
        and (many.root / "sum.txt").read_text(encoding="utf-8") == "3"
    )
    assert nothing_to_do(many, shell)
    before = many.results()
    assert cli.main(["run"]) == 0 and "nothing to do" in capsys.readouterr().out
    many.paper("two", extra="word = 1")  # one source changes: one paper runs, two stay as they are
    assert cli.main(["run"]) == 0 and "1 of 1 papers" in capsys.readouterr().out
    after = many.results()
    assert {n for n in after if after[n] != before[n]} <= {"cpu/two.ipynb", "cpu/two.json"}
    assert after["cpu/two.json"] != before["cpu/two.json"]
    many.paper("two", extra="word = 1  # a comment")
    assert cli.main(["run"]) == 0 and "nothing to do" in capsys.readouterr().out
    assert nothing_to_do(many, shell)
    file = many.root / "params.yaml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("one:\n    seed: 0", "one:\n    seed: 7"),
        encoding="utf-8",
    )
    assert cli.main(["run"]) == 0 and record.read("one", "cpu")["parameters"]["seed"] == 7
    assert nothing_to_do(many, shell)


def test_a_failed_paper_is_named_and_the_others_are_kept(many, shell, capsys):
    many.paper("two", extra="raise ValueError('out of ideas')")
    assert cli.main(["run", "-j", "2"]) == 1
    text = capsys.readouterr().out
    assert (
        re.search(r"failed: two: cell \d+ failed: ValueError: out of ideas", text)
        and "2 of 3 papers" in text
    ), text
    assert record.problems("one", "cpu") == [] == record.problems("toy", "cpu")
    state = json.loads(shell(sys.executable, "-m", "dvc", "status", "--json", cwd=many.root).stdout)
    assert "two" in state and "one" not in state and "toy" not in state


def test_named_papers_run_even_when_fresh_and_unknown_ones_are_refused(house, capsys):
    assert cli.main(["run", "toy"]) == 0 and cli.main(["run", "toy"]) == 0
    assert "1 of 1 papers" in capsys.readouterr().out
    assert cli.main(["run", "toys"]) == 1
    assert "no paper is called toys; there are toy" in capsys.readouterr().err


def test_an_edited_value_is_run_again_and_an_edited_verdict_decided_again(many, shell, capsys):
    assert cli.main(["run"]) == 0
    file = many.root / "results/cpu/one.json"
    honest = json.loads(file.read_text(encoding="utf-8"))
    forged = json.loads(file.read_text(encoding="utf-8"))
    forged["measured"]["C1"]["gain"] = [2.0 + k / 10 for k in range(8)]
    file.write_text(record.dumps(forged), encoding="utf-8")
    verdicts.write("one", "cpu")  # so that every number follows from the forged ones
    capsys.readouterr()
    assert cli.main(["run"]) == 0 and "1 of 1 papers" in capsys.readouterr().out
    assert (
        json.loads(file.read_text(encoding="utf-8"))["measured"] == honest["measured"]
        and record.problems("one", "cpu", strict=True) == []
    )
    file = many.root / "results/cpu/one.verdicts.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace('"reproduced"', '"weaker"', 1), encoding="utf-8")
    assert cli.main(["decide"]) == 0 and file.read_text(encoding="utf-8") == whole


def test_longest_first_and_no_more_memory_than_there_is(house, monkeypatch):
    for k, slug in enumerate(("a1", "a2", "a3")):
        house.paper(slug)
        record.replace(
            record.file_of(slug, "cpu"),
            json.dumps(
                {"schema": 2, "paper": slug, "seconds": 10.0 * (k + 1), "peak_memory_mb": 600}
            ).encode(),
        )
    monkeypatch.setattr(
        record,
        "read",
        lambda slug, tier: json.loads(record.file_of(slug, tier).read_text(encoding="utf-8")),
    )
    jobs = driver.plan(["a1", "a2", "a3", "toy"], "cpu")
    assert [j.slug for j in jobs] == ["toy", "a3", "a2", "a1"] and jobs[0].seconds == driver.SECONDS
    now, most = [], []

    def pretend(job, *_):
        now.append(job.memory_mb)
        most.append(sum(now))
        time.sleep(0.3)
        now.remove(job.memory_mb)
        return driver.Done(job, 0.3)

    monkeypatch.setattr(driver, "_one", pretend)
    monkeypatch.setattr(machine, "free_memory_mb", lambda: 1400.0)
    done = driver.execute(jobs, 4, False, progress.Display({j.slug: j.seconds for j in jobs}, 4))
    assert len(done) == 4 and max(most) == 3000  # the one that needs more than there is runs alone
    assert sorted(set(most)) == [600, 1200, 3000]


def test_gpus_are_handed_out_one_by_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    seen, busy = [], []

    def pretend(job, warm, threads, env):
        busy.append(env["CUDA_VISIBLE_DEVICES"])
        seen.append(sorted(busy))
        time.sleep(0.3)
        busy.remove(env["CUDA_VISIBLE_DEVICES"])
        return driver.Done(job, 0.3)

    monkeypatch.setattr(driver, "_one", pretend)
    jobs = [driver.Job(f"p{k}", "gpu", 10.0, 10) for k in range(4)]
    assert (
        len(driver.execute(jobs, 4, False, progress.Display({j.slug: 10.0 for j in jobs}, 4))) == 4
    )
    assert max(map(len, seen)) == 2 and all(len(set(s)) == len(s) for s in seen)


def test_the_display_says_what_runs_what_is_next_and_how_long(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    show = progress.Display({"a": 60.0, "b": 40.0, "c": 20.0}, 2)
    show.say = lambda text: None
    show.started("a")
    show.started("b")
    clock[0] += 30
    show.finished("b", 30.0, "")
    assert show.left() == 25.0  # 30 s of a, 20 s of c, two at once
    assert show.text() == "1 of 3 done; about 0:25 left\n  a  0:30 of about 1:00\n  next: c"


def test_two_drivers_do_not_run_at_once(house):
    house.paper(extra="import time; open('started', 'w').close(); time.sleep(6)")
    first = launch(house, "toy")
    until((house.root / "started").exists, first)
    second = launch(house, "toy")
    text = second.communicate(timeout=60)[0]
    assert (
        second.returncode == 1
        and f"another 'layerbook run' is at work here (process {first.pid})" in text
    )
    with pytest.raises(runner.RunError, match="toy is being run already"):
        runner.run("toy")
    assert first.wait(60) == 0 and record.problems("toy", "cpu") == []


def test_a_driver_killed_in_mid_run_loses_nothing_that_was_finished(many, shell):
    many.paper("two", extra="import time; open('started', 'w').close(); time.sleep(300)")
    child = launch(many, "-j", "2")
    until(lambda: underway(many), child)
    kept = many.results()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    kinds = ("ipynb", "json", "verdicts.json")
    assert many.results() == kept and sorted(kept) == [
        f"cpu/{s}.{e}" for s in ("one", "toy") for e in kinds
    ]
    many.paper("two")
    assert cli.main(["run"]) == 0  # only what was lost runs: the others' bytes stay
    assert {n: v for n, v in many.results().items() if "two" not in n} == kept
    assert nothing_to_do(many, shell)


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_is_orderly(many, shell, ignored):
    many.paper("two", extra="import time; open('started', 'w').close(); time.sleep(300)")
    # as a shell does for what it starts with &
    old = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    child = launch(many, "-j", "2")
    if ignored:
        signal.signal(signal.SIGINT, old)
    until(lambda: underway(many), child)
    child.send_signal(signal.SIGINT)
    text = child.communicate(timeout=60)[0]
    assert child.returncode == 130 and "interrupted: what had finished is kept" in text
    state = json.loads(shell(sys.executable, "-m", "dvc", "status", "--json", cwd=many.root).stdout)
    assert "two" in state and "one" not in state  # what had finished is recorded, too


def test_a_kernel_killed_from_outside_fails_its_paper_alone(many):
    many.paper(
        "two", extra="import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(300)"
    )
    child = launch(many, "-j", "2")
    until(
        lambda: (many.root / "pid").exists() and (many.root / "pid").read_text(encoding="utf-8"),
        child,
    )
    os.kill(int((many.root / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
    text = child.communicate(timeout=90)[0]
    assert (
        child.returncode == 1
        and "two: the kernel died, most often for want of memory" in text
        and "2 of 3 papers" in text
    )


def test_out_of_memory_in_a_notebook_says_so(house):
    house.paper(
        extra="import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\nnp.ones(1 << 33)"
    )
    with pytest.raises(
        runner.RunError, match="ran out of memory.*\n.*stored results are unchanged"
    ):
        runner.run("toy", warm=True)
    assert house.results() == {}


def holds(house, pid):
    """DVC's lock file when process `pid` writes a paper's record."""
    return json.dumps(
        {
            "write": {str(house.root / "results/cpu/two.json"): {"pid": pid, "cmd": "dvc repro"}},
            "read": {},
        }
    )


def test_a_lock_of_a_dead_process_is_no_obstacle(many, shell):
    assert cli.main(["run"]) == 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (many.root / ".dvc/tmp/rwlock").write_text(holds(many, dead.pid), encoding="utf-8")
    (many.root / ".dvc/tmp/lock").write_text(f"{dead.pid}\n", encoding="utf-8")
    (many.root / "build/locks/driver.lock").write_text(f"{dead.pid}\n", encoding="utf-8")
    many.paper("two", extra="word = 1")
    assert cli.main(["run"]) == 0 and nothing_to_do(many, shell)


def test_a_live_dvc_process_is_named_and_nothing_runs_beside_it(many, capsys):
    assert cli.main(["run"]) == 0
    before = many.results()
    many.paper("two", extra="word = 1")
    (many.root / ".dvc/tmp/rwlock").write_text(holds(many, os.getpid()), encoding="utf-8")
    code = cli.main(["run"])
    assert code == 1 and "another DVC process is at work" in capsys.readouterr().err
    assert many.results() == before
    (many.root / ".dvc/tmp/rwlock").unlink()
    assert cli.main(["run"]) == 0 and "1 of 1 papers run and recorded" in capsys.readouterr().out


def test_a_read_only_results_folder_is_found_before_anything_runs(house, monkeypatch):
    house.paper(extra="open('computed', 'w').close()")
    (house.root / "results" / "cpu").mkdir()
    real = runner.tempfile.TemporaryFile

    def refuse(*args, **kwargs):
        if str(kwargs.get("dir", "")).endswith("results/cpu"):
            raise PermissionError(30, "Read-only file system")
        return real(*args, **kwargs)

    # root may write where others may not
    monkeypatch.setattr(runner.tempfile, "TemporaryFile", refuse)
    assert cli.main(["run"]) == 1
    assert not (house.root / "computed").exists() and house.results() == {}


def test_a_full_disk_loses_nothing(house, shell):
    """A file system of 64 kB under results/: the probe fits nowhere, or the record does not."""
    runner.run("toy")
    before = house.results()
    mount = shell(
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=64k",
        "tmpfs",
        str(house.root / "results"),
        cwd=house.root,
    )
    if mount.returncode:
        pytest.skip(f"no file system may be mounted here: {mount.stderr.strip()}")
    try:
        for name, content in before.items():
            target = house.root / "results" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        room = os.statvfs(house.root / "results")
        (house.root / "results" / "filler").write_bytes(b"0" * (room.f_bavail * room.f_frsize))
        with pytest.raises(runner.RunError, match="disk is full"):
            runner.run("toy")
        assert {n: v for n, v in house.results().items() if n != "filler"} == before
    finally:
        shell("umount", str(house.root / "results"), cwd=house.root)


def test_a_clock_set_back_deceives_nobody(house):
    runner.run("toy")
    file = house.root / "notebooks/toy.ipynb"
    stamp = file.stat()
    house.paper(extra="_ = 1")
    os.utime(file, ns=(0, 0))  # the clock stood in 1970 when this was written
    assert any("toy.ipynb changed" in p for p in record.problems("toy", "cpu"))
    runner.run("toy")
    assert record.problems("toy", "cpu") == []
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**18))
    assert record.problems("toy", "cpu") == []


def test_same_size_same_time_other_content_is_seen(house):
    runner.run("toy")
    assert record.problems("toy", "cpu") == []
    file = house.root / "notebooks/toy.yaml"
    stamp = file.stat()
    file.write_text(
        file.read_text(encoding="utf-8").replace("max: 10", "max: 19"), encoding="utf-8"
    )
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert any("toy.yaml changed" in p for p in record.problems("toy", "cpu"))


def test_a_corrupted_input_is_seen_and_named(house):
    folder = house.root / "build/prepared/net"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    house.paper(card=driver_card("net"))
    runner.run("toy")
    (folder / "model.safetensors").write_bytes(b"0" * 99 + b"1")
    assert record.problems("toy", "cpu") == [
        "build/prepared/net/model.safetensors changed since the run"
    ]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").parent.rmdir()
    assert "'net' is neither a prepared asset nor" in record.problems("toy", "cpu")[0]


def driver_card(substrate):
    return toy.CARD.replace("substrate: []", f"substrate: [{substrate}]")


def test_locks_end_with_their_holder(house):
    with runner.only_one("x.lock", "busy"):
        with (
            open(house.root / "build/locks/x.lock", encoding="utf-8") as other,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with runner.only_one("x.lock", "busy"):
        pass


def test_plain_kernels_remain(house, monkeypatch):
    seen = []
    monkeypatch.setattr(
        driver, "_one", lambda job, warm, *_: seen.append(warm) or driver.Done(job, 0.0)
    )
    assert cli.main(["run", "--cold"]) == 0 and cli.main(["run"]) == 0
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert cli.main(["run"]) == 0 and seen == [False, True, False]


def test_a_stale_comparison_is_made_before_the_report_and_never_recorded_unmade(monkeypatch):
    did = []
    known = {
        "toy": {},
        "collect-y": {},
        "compare-x": {},
        "report": {"cmd": "python -m layerbook render"},
    }
    monkeypatch.setattr(driver, "stages", lambda: known)
    monkeypatch.setattr(driver, "differing", lambda: ["toy", "collect-y", "report"])
    monkeypatch.setattr(driver, "stale", lambda *_: [])
    monkeypatch.setattr(driver.cards, "slugs", lambda: ["toy"])
    monkeypatch.setattr(driver, "dvc", lambda *a: did.append(a) or "")
    monkeypatch.setattr(driver.subprocess, "run", lambda command, **_: did.append(("report",)))
    driver.settle(["toy"])
    # which its input may have made stale
    made = [
        ("repro", "-q", "-s", "collect-y"),
        ("repro", "-q", "-s", "compare-x"),
    ]
    assert did == [*made, ("report",), ("commit", "-q", "-f")]
    did.clear()
    monkeypatch.setattr(driver, "differing", lambda: ["toy", "report"])
    driver.settle(["toy"])
    assert did == [("report",), ("commit", "-q", "-f")]
