"""`layerbook run --slurm`: one Slurm job per paper, through submitit.

The checkout must lie on a file system that the nodes share. A job stores its evidence itself, whole
or not at all; this process submits, follows, and retries. It may be stopped and started again: job
ids are kept, jobs go on without it.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerbook import paths
from layerbook.pipeline import deps, progress, record, runner
from layerbook.pipeline.driver import Done, Interrupted, Job

if TYPE_CHECKING:
    import submitit

# What `slurm:` in params.yaml may set. None for memory and minutes: from what the paper took the
# last time.
SETTINGS: dict[str, Any] = {
    "partition": None,
    "gpus": 0,
    "cpus": 2,
    "memory_gb": None,
    "minutes": None,
    "retry_memory_factor": 2,
    "poll_seconds": 5,
    "forget_seconds": 60,
    "extra": {},
}
WAITS = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
}
RUNS = {"RUNNING", "COMPLETING", "RESIZING"}
# no fault of the paper: submitted once more
LOST = {
    "NODE_FAIL",
    "BOOT_FAIL",
    "PREEMPTED",
    "REVOKED",
}
MEMORY = "OUT_OF_MEMORY"
OOM_SIGNS = (
    "oom-kill",
    "oom_kill",
    "out of memory",
    "exceeded memory limit",
    "exceeded job memory limit",
)


def settings() -> dict[str, Any]:
    """`slurm` of params.yaml over the defaults. Raises RunError on an unknown name."""
    file = paths.ROOT / "params.yaml"
    given = (
        (deps.fast_yaml(file.read_text(encoding="utf-8")) or {}).get("slurm") or {}
        if file.is_file()
        else {}
    )
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise runner.RunError(
            f"params.yaml: slurm has no setting {', '.join(unknown)}; it takes {', '.join(SETTINGS)}"
        )
    return SETTINGS | given


def folder() -> Path:
    """Where job ids, logs and submitit's files lie."""
    return paths.ROOT / "build" / "slurm"


def work(root: str, slug: str, tier: str, threads: int) -> str:
    """What runs on the node: one paper. Returns its error, empty when its evidence was stored."""
    if Path(root) != paths.ROOT:
        return f"{slug}: the node sees the checkout at {paths.ROOT}, not at {root}"
    try:
        runner.run(slug, tier, threads=threads)
    except Exception as error:  # noqa: BLE001 - handed to the driver as text, whatever it is
        return str(error) or type(error).__name__
    return ""


def submit(job: Job, factor: float = 1.0) -> submitit.Job[str]:
    """Submit a paper with `factor` times its memory. Raises RunError with what Slurm said."""
    import submitit

    s = settings()
    gigabytes = s["memory_gb"] or math.ceil(1.5 * job.memory_mb / 1024 + 1)
    executor = submitit.AutoExecutor(
        folder=folder() / "%j", cluster="slurm", slurm_max_num_timeout=0
    )
    executor.update_parameters(
        name=f"layerbook-{job.slug}",
        cpus_per_task=s["cpus"],
        slurm_mem=f"{math.ceil(1024 * factor * gigabytes)}M",
        timeout_min=s["minutes"] or max(15, math.ceil(4 * job.seconds / 60)),
        slurm_additional_parameters=dict(s["extra"]),
        **({"slurm_partition": s["partition"]} if s["partition"] else {}),
        **({"slurm_gpus_per_node": max(s["gpus"], job.gpus)} if s["gpus"] or job.gpus else {}),
    )
    try:
        return executor.submit(work, str(paths.ROOT), job.slug, job.tier, s["cpus"])
    except Exception as error:  # noqa: BLE001 - submitit raises its own kinds and subprocess's
        raise runner.RunError(
            f"{job.slug}: Slurm refused the job: {error}; see 'slurm' in params.yaml"
        ) from None


def states(ids: Iterable[str]) -> dict[str, str]:
    """State of each job that Slurm still knows: asked of its queue, then of its accounting where
    there is one.
    """
    wanted = sorted(set(ids))
    found: dict[str, str] = {}
    for command in (
        ["squeue", "-h", "-t", "all", "-o", "%i|%T", "-j", ",".join(wanted)],
        ["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(wanted)],
    ):
        if not wanted or not shutil.which(command[0]):
            continue
        out = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=60, check=False
        ).stdout
        for line in out.splitlines():
            name, _, state = line.strip().partition("|")
            if name in wanted and state:
                found.setdefault(name, state.split()[0].rstrip("+"))  # "CANCELLED by 1000"
        wanted = [w for w in wanted if w not in found]
    return found


class Ledger:
    """Which job runs which paper, on disk, so that a new driver carries on where another stopped."""

    def __init__(self) -> None:
        self.file = folder() / "jobs.json"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))

    def put(self, job: Job, number: str, tries: int, factor: float) -> None:
        """Note a submitted job."""
        self.rows[job.slug] = {"id": number, "tier": job.tier, "tries": tries, "factor": factor}
        self._save()

    def drop(self, slug: str) -> None:
        """Forget a job that is over."""
        self.rows.pop(slug, None)
        self._save()

    def _save(self) -> None:
        record.replace(self.file, (json.dumps(self.rows, indent=1) + "\n").encode())


def attach(number: str) -> submitit.Job[str]:
    """The submitit job with this id, submitted by this or an earlier driver."""
    import submitit

    return submitit.SlurmJob(folder=folder() / "%j", job_id=number)


def execute(jobs: Sequence[Job], show: progress.Display) -> list[Done]:
    """Submit what is not submitted yet, follow all to their end; an interrupt leaves the jobs to
    Slurm.

    Raises:
        RunError: there is no Slurm here, or it refuses a job.
        Interrupted: with the jobs that were over by then.
    """
    if jobs and not shutil.which("sbatch"):
        raise runner.RunError(
            "sbatch is not found: start this on a machine of the cluster that can submit jobs, or leave out "
            "--slurm (layerbook run -j N)"
        )
    ledger, done, began = Ledger(), [], {}
    for job in jobs:
        row = ledger.rows.get(job.slug)
        if row and row["tier"] == job.tier:
            show.say(f"follow {job.slug}: job {row['id']}, submitted before")
        else:
            ledger.put(job, submit(job).job_id, tries=1, factor=1.0)
            show.say(f"submit {job.slug}: job {ledger.rows[job.slug]['id']}")
        began[job.slug] = time.monotonic()
    open_jobs, seen, running = (
        {j.slug: j for j in jobs},
        dict.fromkeys((j.slug for j in jobs), time.monotonic()),
        set(),
    )
    try:
        while open_jobs:
            known = states(ledger.rows[s]["id"] for s in open_jobs)
            for slug, job in list(open_jobs.items()):
                row = ledger.rows[slug]
                state = known.get(row["id"], "UNKNOWN")
                if state in WAITS | RUNS:
                    seen[slug] = time.monotonic()
                    if state in RUNS and slug not in running:
                        running.add(slug)
                        show.started(slug)
                    continue
                error = outcome(slug, row, state, time.monotonic() - seen[slug])
                if error is None:
                    continue  # not settled yet: files of a shared system may come late
                if error in (MEMORY, "LOST") and row["tries"] == 1:
                    factor = settings()["retry_memory_factor"] if error == MEMORY else 1.0
                    ledger.put(job, submit(job, factor).job_id, tries=2, factor=factor)
                    seen[slug] = time.monotonic()
                    running.discard(slug)
                    why = (
                        f"its node was lost ({state})"
                        if error == "LOST"
                        else f"killed for memory, now with {factor:g} times it"
                    )
                    show.say(f"retry  {slug}: {why}: job {ledger.rows[slug]['id']}")
                    continue
                done.append(
                    Done(
                        job, time.monotonic() - began[slug], error=explain(slug, row, error, state)
                    )
                )
                ledger.drop(slug)
                del open_jobs[slug]
                show.finished(slug, done[-1].seconds, done[-1].error)
            show.tick()
            if open_jobs:
                time.sleep(settings()["poll_seconds"])
    except KeyboardInterrupt:
        show.say("stopped following; the jobs go on, and the same command follows them again")
        raise Interrupted(done) from None
    return done


def outcome(slug: str, row: dict[str, Any], state: str, silent: float) -> str | None:
    """How a job that neither waits nor runs ended: "" for well, an error, MEMORY or "LOST"; None
    while that is open.

    Args:
        silent: seconds since Slurm last said that it waits or runs.
    """
    job = attach(row["id"])
    if job.paths.result_pickle.exists():
        try:
            return job.result()
        except Exception as error:  # noqa: BLE001 - a job that broke before it could answer
            return f"{slug}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    if state == MEMORY or (
        state in {"FAILED", "CANCELLED"} and any(s in log(row["id"]).lower() for s in OOM_SIGNS)
    ):
        return MEMORY
    if state in LOST:
        return "LOST"
    if (
        state in {"CANCELLED", "TIMEOUT", "DEADLINE", "FAILED"}
        or silent > settings()["forget_seconds"]
    ):
        return state
    return None


def log(number: str) -> str:
    """The last lines that a job printed."""
    job = attach(number)
    text = "".join(
        f.read_text(errors="replace", encoding="utf-8")
        for f in (job.paths.stdout, job.paths.stderr)
        if f.is_file()
    )
    return text[-3000:]


def explain(slug: str, row: dict[str, Any], error: str, state: str) -> str:
    """A job's error in words that say what to do."""
    where = f"log: build/slurm/{row['id']}"
    known = {
        MEMORY: "killed for memory twice; raise memory_gb under slurm in params.yaml",
        "LOST": "its node was lost twice",
        "CANCELLED": "the job was cancelled; run the same command to submit it again",
        "TIMEOUT": "it ran out of time; raise minutes under slurm in params.yaml",
        "UNKNOWN": "Slurm no longer knows the job, and it left no result; run the same command again",
        "COMPLETED": "the job ended without a result; is the checkout on a file system that the nodes share?",
    }
    if not error or error not in {*known, state}:
        return error
    return f"{slug}: {known.get(error, f'the job ended as {state}')} ({where})"
