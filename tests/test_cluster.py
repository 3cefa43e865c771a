"""`layerbook run --slurm` on a real Slurm of one node: jobs that end well, run out of memory, are
cancelled, lose their node.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import slurm

from layerbook.pipeline import cluster, driver, record, runner

PARAMS = "papers: {{}}\nslurm: {{cpus: 1, memory_gb: {memory}, minutes: 5, poll_seconds: 0.5, forget_seconds: 40}}\n"
SLOW = "import time; time.sleep(25)"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if slurm.missing():
        pytest.skip(slurm.missing())
    started = slurm.Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture
def site(house, real, monkeypatch):
    """The house on the cluster, with memory to spare."""
    for name, value in real.environment.items():
        monkeypatch.setenv(name, value)
    (house.root / "params.yaml").write_text(PARAMS.format(memory=1), encoding="utf-8")
    return house


def start(site):
    return subprocess.Popen(
        [sys.executable, "-m", "layerbook", "run", "--slurm"],
        cwd=site.root,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    return process.communicate(timeout=180)[0]


def ledger(site):
    return json.loads((site.root / "build/slurm/jobs.json").read_text(encoding="utf-8"))


def test_papers_run_as_jobs_and_are_recorded(site):
    site.paper("other")
    site.paper("broken", extra="raise ValueError('out of ideas')")
    process = start(site)
    text = finish(process)
    assert process.returncode == 1 and "failed: broken: cell" in text and "out of ideas" in text, (
        text
    )
    for slug in ("toy", "other"):
        assert record.problems(slug, "cpu") == []
    assert not record.file_of("broken", "cpu").exists() and ledger(site) == {}
    assert "1 of 1 papers" not in text and "2 of 3 papers run and recorded" in text


def test_a_job_killed_for_memory_is_retried_once_with_more(site, real):
    (site.root / "params.yaml").write_text(PARAMS.format(memory=0.9), encoding="utf-8")
    # 0.96 GB beside the imports
    site.paper(extra="import time; block = np.ones(120_000_000); time.sleep(4); del block")
    process = start(site)
    text = finish(process)
    assert "retry  toy: killed for memory, now with 2 times it" in text, text
    assert process.returncode == 0 and record.problems("toy", "cpu") == []


def test_a_cancelled_job_is_named_and_the_others_are_kept(site, real):
    site.paper("slow", extra=SLOW)
    process = start(site)
    slurm.wait_for(lambda: real.jobs().get("layerbook-slow") == "RUNNING", 60)
    real.cancel("layerbook-slow")
    text = finish(process)
    assert (
        process.returncode == 1 and "slow: the job was cancelled; run the same command" in text
    ), text
    assert record.problems("toy", "cpu") == [] and not record.file_of("slow", "cpu").exists()


def test_a_driver_that_is_stopped_and_started_again_follows_its_jobs(site, real):
    site.paper(extra="import time; time.sleep(12)")
    first = start(site)
    slurm.wait_for(lambda: real.jobs().get("layerbook-toy") == "RUNNING", 60)
    first.send_signal(signal.SIGTERM)
    assert "the jobs go on" in finish(first) and first.returncode == 130
    number = ledger(site)["toy"]["id"]
    second = start(site)
    text = finish(second)
    assert f"follow toy: job {number}, submitted before" in text and "submit toy" not in text, text
    assert second.returncode == 0 and record.problems("toy", "cpu") == [] and ledger(site) == {}


def test_a_driver_killed_at_once_finds_what_its_jobs_stored(site, real):
    first = start(site)
    slurm.wait_for(lambda: real.jobs().get("layerbook-toy") in ("PENDING", "RUNNING"), 60)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    slurm.wait_for(lambda: not driver.stale("toy", "cpu"), 90)
    text = finish(start(site))
    assert "nothing to do" in text, text


def test_a_lost_node_costs_a_second_try(site, real):
    site.paper(
        extra="import time, os; from layerbook import paths; mark = paths.ROOT / 'build' / 'first'\n"
        "if not mark.exists(): mark.touch(); time.sleep(120)"
    )
    process = start(site)
    slurm.wait_for(lambda: (site.root / "build/first").exists(), 90)
    real.lose_node()
    try:
        slurm.wait_for(lambda: real.jobs().get("layerbook-toy") != "RUNNING", 90)
    finally:
        real.start_node()
    text = finish(process)
    assert "retry  toy: its node was lost" in text, text
    assert process.returncode == 0 and record.problems("toy", "cpu") == []


def test_settings_are_checked(house):
    (house.root / "params.yaml").write_text("papers: {}\nslurm: {queue: fast}\n", encoding="utf-8")
    with pytest.raises(runner.RunError, match="no setting queue; it takes partition"):
        cluster.settings()


def test_without_slurm_the_message_says_so(house, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(runner.RunError, match="sbatch is not found"):
        driver.run(cluster=True)
    assert house.results() == {}
