"""`layerbook run`: the stale papers, several at once, kept one by one and then recorded in DVC.

`dvc repro` runs stages one after another, each in processes of its own. This driver decides from
the evidence itself which papers are stale, runs as many at once as cores, memory and GPUs allow, on
kernels forked from one warm parent, and tells DVC afterwards, so that `dvc repro` finds nothing to
do. Whatever interrupts it, a finished paper stays and no other is touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from layerbook import endings, keeping, paths
from layerbook.claims import cards
from layerbook.pipeline import advice, deps, machine, progress, record, runner

SECONDS, MEMORY_MB = 120.0, 3000  # assumed of a paper that has no record yet
STATUS = ("status", "--json")
SHARE = 0.9  # of the free memory may be promised to papers that run


@dataclass(frozen=True)
class Job:
    """One paper to run, and what it took the last time."""

    slug: str
    tier: str
    seconds: float
    memory_mb: int

    @property
    def gpus(self) -> int:
        """GPUs that it occupies."""
        return int(self.tier == "gpu")


@dataclass
class Done:
    """What became of a job: its record, or the reason why there is none."""

    job: Job
    seconds: float
    result: dict[str, Any] | None = None
    error: str = ""


def plan(slugs: Sequence[str], tier: str) -> list[Job]:
    """Jobs for the papers named, or else for all whose evidence is stale; the longest first.

    Raises:
        cards.CardError: a name is no paper.
    """
    known = cards.slugs()
    for slug in slugs:
        if slug in cards.drafts():
            raise cards.CardError(
                f"{slug} is a draft, whose results are not stored: try it with "
                f"'layerbook rerun {slug} --tier smoke', or take 'draft: true' out of its card"
            )
        if slug not in known:
            raise cards.CardError(f"no paper is called {slug}; there are {', '.join(known)}")
    jobs = []
    for slug in slugs or [s for s in known if stale(s, tier)]:
        try:
            last = record.read(slug, tier)
            jobs.append(Job(slug, tier, last["seconds"], last["peak_memory_mb"]))
        except (FileNotFoundError, ValueError, KeyError):
            jobs.append(Job(slug, tier, SECONDS, MEMORY_MB))
    return sorted(jobs, key=lambda job: -job.seconds)


def stale(slug: str, tier: str) -> bool:
    """True when a paper has to run: no record, or not that of the files and parameters that there
    are.
    """
    return bool(record.changes(slug, tier))


def decide(tier: str) -> None:
    """Decide every usable record of a tier again whose verdicts do not follow from it; what is
    stale runs anyway.
    """
    from layerbook.pipeline import verdicts

    for slug in cards.slugs():
        if not stale(slug, tier):
            verdicts.write(slug, tier)


def execute(jobs: Sequence[Job], at_once: int, warm: bool, show: progress.Display) -> list[Done]:
    """Run the jobs, at most `at_once` together; an interrupt ends those that run and returns what
    is finished.
    """
    if not jobs:
        return []
    from layerbook.pipeline import kernels

    warm = warm and kernels.available()
    if warm:
        kernels.start_parent()
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 else None
    memory, slots = (
        SHARE * machine.free_memory_mb(),
        machine.gpus() if any(j.gpus for j in jobs) else [],
    )
    waiting, done = list(jobs), []
    running: dict[Future, tuple[Job, list[str]]] = {}

    def fits(job: Job) -> bool:
        used = sum(j.memory_mb for j, _ in running.values())
        return not running or (used + job.memory_mb <= memory and job.gpus <= len(slots))

    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                for job in [j for j in waiting if len(running) < at_once]:
                    if len(running) < at_once and fits(job):
                        waiting.remove(job)
                        mine = [slots.pop(0) for _ in range(min(job.gpus, len(slots)))]
                        env = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine else {}
                        running[pool.submit(_one, job, warm, threads, env)] = (job, mine)
                        show.started(job.slug)
                for future in wait(running, timeout=0.25, return_when=FIRST_COMPLETED).done:
                    slots += running.pop(future)[1]
                    done.append(future.result())
                    show.finished(done[-1].job.slug, done[-1].seconds, done[-1].error)
                show.tick()
        except KeyboardInterrupt:
            while wait(
                running, timeout=0.2
            ).not_done:  # again and again: one may just have been starting
                kernels.Notebooks.kill_all()
            show.say("interrupted: what had finished is kept, what was running is not")
            raise Interrupted(
                done + [f.result() for f in running if not f.result().error]
            ) from None
    return done


class Interrupted(Exception):
    """The driver was asked to stop; `args[0]` are the jobs that had finished."""


def _one(job: Job, warm: bool, threads: int | None, env: dict[str, str]) -> Done:
    began = time.monotonic()
    try:
        result = runner.run(job.slug, job.tier, warm=warm, threads=threads, env=env)
        return Done(job, time.monotonic() - began, result)
    except Exception as error:  # noqa: BLE001 - one paper's failure, of whatever kind, must not take the others along
        return Done(job, time.monotonic() - began, error=str(error) or type(error).__name__)


def dvc(*arguments: str) -> str:
    """Run a DVC command in the checkout and return what it printed. Raises RunError with its
    message and what to do.
    """
    return answer(ask(*arguments))


def ask(*arguments: str) -> subprocess.Popen[str]:
    """Start a DVC command in the checkout; `answer` waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        stderr=subprocess.PIPE,
        env=dict(os.environ) | {"DVC_NO_ANALYTICS": "1"},
        start_new_session=True,
    )


def answer(asked: subprocess.Popen[str]) -> str:
    """What a DVC command printed. Raises RunError with its message and what to do."""
    try:
        out, errors = asked.communicate()
    except KeyboardInterrupt:
        end(asked)
        raise
    if asked.returncode:
        raise runner.RunError(advice.of_dvc(" ".join(asked.args[3:]), (errors + out).strip()))
    return out


def end(asked: subprocess.Popen[str], patience: float = 10.0) -> None:
    """End a DVC command and the stages that it runs: asked to at first, so that it frees its locks."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(asked.pid, number)  # a group of its own, see `ask`
        with suppress(subprocess.TimeoutExpired):
            asked.wait(patience)
            return


def stages() -> dict[str, Any]:
    """The stages of dvc.yaml; empty when there is none."""
    file = paths.ROOT / "dvc.yaml"
    return (
        (deps.fast_yaml(file.read_text(encoding="utf-8")) or {}).get("stages", {})
        if file.is_file()
        else {}
    )


def differing(asked: subprocess.Popen[str] | None = None) -> list[str]:
    """Stages in which DVC sees a difference, after prepared data and trained networks were brought
    up to date.

    Args:
        asked: a `dvc status --json` that was started before.
    """
    if not stages():
        return []
    found = json.loads((answer(asked) if asked else dvc(*STATUS)) or "{}")
    if "digests" in found:  # only then does DVC know which of the others differ
        dvc("repro", "-q", "-s", "digests")
        found = json.loads(dvc(*STATUS) or "{}")
    before = [n for n in found if n.startswith(("prepare-", "train-"))]
    unasked = [
        n.removeprefix("train-")
        for n in before
        if n.startswith("train-") and only_outputs(found[n])
    ]
    if unasked := [
        n for n in unasked if (paths.MODELS / n).exists() or advice.restore(f"results/models/{n}")
    ]:
        raise runner.RunError(advice.changed_networks(unasked) + "\nnothing was run")
    if before:
        dvc("repro", "-q", *before)
        found = json.loads(dvc(*STATUS) or "{}")
    # data/ has no cache: it is verified by hash
    return [n for n, why in found.items() if "not in cache" not in json.dumps(why)]


def only_outputs(why: Sequence[Any]) -> bool:
    """True when DVC reruns a stage for its outputs alone: nobody asked for it by a change of code,
    data or parameters.
    """
    return bool(why) and all(isinstance(w, dict) and set(w) == {"changed outs"} for w in why)


def settle(finished: Sequence[str]) -> None:
    """Record in DVC what is fresh, and rebuild the report: afterwards `dvc repro` has nothing to do
    for these papers.
    """
    known = stages()
    papers = [s for s in cards.slugs() if s in known]
    fresh = [s for s in papers if s in finished or not stale(s, "cpu")]
    if len(fresh) < len(papers):
        if fresh:
            dvc("commit", "-q", "-f", *fresh)
        return
    others = set(differing()) - {*papers, "report"}
    compared = [n for n in known if n == "decide" or n.startswith(("collect-", "compare-"))]
    for name in compared if others & set(compared) else []:
        # by itself: papers upstream are fresh, whatever DVC has recorded of them so far
        dvc("repro", "-q", "-s", name)
    others -= set(compared)
    if "report" in known:  # before it is recorded: an interrupt in between must leave it stale
        subprocess.run(
            [sys.executable, *known["report"]["cmd"].split()[1:]], cwd=paths.ROOT, check=True
        )
    # Without names, one pass records all; with them, dvc.lock is written once for each, and nothing
    # else can slip in.
    dvc(
        "commit",
        "-q",
        "-f",
        *([n for n in known if n in papers or n == "report"] if others else []),
    )


def run(
    slugs: Sequence[str] = (),
    tier: str = "cpu",
    at_once: int = 1,
    warm: bool = True,
    cluster: bool = False,
) -> int:
    """Run what is stale (or named), keep what succeeds, record it; returns an exit code.

    Raises:
        runner.RunError: nothing could be run: another driver is at work, results cannot be written.
    """
    with (
        runner.only_one("driver.lock", "another 'layerbook run' is at work here"),
        endings.orderly(),
    ):
        runner.own_code()
        keeping.sweep()
        asked = ask(*STATUS) if stages() else None  # while DVC looks around, so do we
        try:
            if plan(slugs, tier) and warm and not cluster:
                from layerbook.pipeline import kernels

                if kernels.available():
                    kernels.start_parent()
            different = differing(asked)
        finally:
            if (
                asked and asked.poll() is None
            ):  # something went wrong, or a signal came, before DVC had answered
                end(asked)
        if different:
            decide(tier)
        jobs = plan(slugs, tier)
        if jobs:
            runner.writable(tier)
        show = progress.Display({j.slug: j.seconds for j in jobs}, at_once)
        with show:
            try:
                if cluster:
                    from layerbook.pipeline import cluster as slurm

                    done = slurm.execute(jobs, show)
                else:
                    done = execute(jobs, at_once, warm, show)
            except Interrupted as interrupted:
                done, code = interrupted.args[0], 130
            else:
                code = 0
        if (jobs or different) and stages():
            settle([d.job.slug for d in done if not d.error])
    failed = [d for d in done if d.error]
    for d in failed:
        print(f"\nfailed: {d.error}")
    print(
        f"{len(done) - len(failed)} of {len(jobs)} papers run and recorded"
        if jobs
        else "nothing to do: the evidence is fresh"
    )
    return code or int(bool(failed))
