"""Execute a paper's notebook and store its evidence: all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat

import layerbook
from layerbook import endings, keeping, paths
from layerbook.claims import varying
from layerbook.pipeline import deps, receipts, record

MAX_BYTES = 300_000
MEMORY_HINT = "it ran out of memory: close other programs, run fewer papers at once (-j 1) or use a smaller tier\n"


class RunError(RuntimeError):
    """A run that produced no evidence; the message says where it stopped and what to do."""


def parameters_of(slug: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Parameters of a paper's stage: params.yaml under `papers.<slug>`, then `overrides`."""
    file = paths.ROOT / "params.yaml"
    stored = deps.fast_yaml(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return dict((stored or {}).get("papers", {}).get(slug) or {}) | (overrides or {})


def execute(
    slug: str,
    parameters: dict[str, Any],
    folder: Path,
    warm: bool = False,
    threads: int | None = None,
    env: dict[str, str] | None = None,
    bar: bool = False,
) -> tuple[nbformat.NotebookNode, dict[str, Any], float]:
    """Run the notebook in a fresh kernel.

    Args:
        warm: fork the kernel from this process's warm parent (`kernels`) instead of starting a
            plain one.
        threads: compute threads of the kernel; None leaves them to the libraries.
        env: further environment variables of the kernel. What a shell holds that changes results is
            left out, see `surroundings`.
        bar: show papermill's progress bar.

    Returns:
        the executed notebook (normalised), its measurements, and the seconds it took.

    Raises:
        RunError: a cell failed, the kernel died, the disk is full, or another tier or another
            checkout's code ran than was asked for.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from layerbook.pipeline import kernels

    kernels.register()
    out, handed = folder / f"{slug}.ipynb", folder / "measurements.json"
    own = {paths.VARIABLE: str(paths.ROOT), paths.MEASUREMENTS_VARIABLE: str(handed)}
    limits = {"OMP_NUM_THREADS": str(threads), "LAYERBOOK_THREADS": str(threads)} if threads else {}
    began = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(paths.NOTEBOOKS / f"{slug}.ipynb"),
            str(out),
            parameters=parameters,
            engine_name="layerbook",
            kernel_name=kernels.WARM if warm else kernels.COLD,
            cwd=str(paths.ROOT),
            log_output=False,
            progress_bar=bar,
            shutdown_kernel="immediate",
            env=own | limits | (env or {}),
        )
    except PapermillExecutionError as error:
        kept = _keep(out, slug)
        hint = (
            MEMORY_HINT
            if "memory" in str(error.evalue).lower() or error.ename == "MemoryError"
            else ""
        )
        raise RunError(
            f"{slug}: cell {error.exec_count} failed: {error.ename}: {error.evalue}\n"
            f"{hint}the notebook with its traceback is {kept}; stored results are unchanged"
        ) from None
    except DeadKernelError:
        raise RunError(
            f"{slug}: the kernel died, most often for want of memory; close other programs or use a smaller "
            "tier (--tier smoke); stored results are unchanged"
        ) from None
    except OSError as error:
        raise RunError(_disk(slug, error)) from None
    seconds = time.perf_counter() - began
    if not handed.is_file():
        raise RunError(
            f"{slug}: the notebook ended without run.finish(), so there is nothing to record"
        )
    notebook = normalise(nbformat.read(out, as_version=4))
    measurements = json.loads(handed.read_text(encoding="utf-8"))
    _as_asked(slug, parameters["tier"], measurements)
    return notebook, measurements, seconds


def _as_asked(slug: str, tier: str, measurements: dict[str, Any]) -> None:
    """Refuse measurements of another tier than the one asked for, or by code other than this
    process's own.
    """
    ran = "gpu-dry" if measurements["dry"] else measurements["tier"]
    if tier not in ("auto", ran):
        raise RunError(
            f"{slug}: tier {tier} was asked for, but the notebook ran at tier {ran}, so nothing is stored; take out "
            f"of notebooks/{slug}.ipynb what sets LAYERBOOK_TIER or the tier, and run it again"
        )
    if measurements["code"] != str(layerbook.code_that_runs()):
        raise RunError(
            f"{slug}: the notebook imported layerbook from {measurements['code']}, but its evidence would name the "
            f"files in {layerbook.code_that_runs()}, so nothing is stored; take out of notebooks/{slug}.ipynb what "
            "changes the import path, and run it again"
        )


def own_code() -> None:
    """Raise RunError when the code that runs is not that of the checkout in which its evidence
    would be stored.
    """
    runs = layerbook.code_that_runs()
    if runs != layerbook.code_of(paths.ROOT):
        raise RunError(
            f"the code that runs lies in {runs}, but results would be stored in {paths.ROOT}, which it does not belong "
            f"to, so nothing was run; set PYTHONPATH to the src folder of that checkout, or unset {paths.VARIABLE}"
        )


def _disk(slug: str, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{slug}: the disk is full; free some space and run it again; stored results are unchanged"
    return f"{slug}: {error}; stored results are unchanged"


def _keep(out: Path, slug: str) -> str:
    kept = paths.ROOT / "build" / "failed" / f"{slug}.ipynb"
    if out.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out, kept)
    return kept.relative_to(paths.ROOT).as_posix()


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs between two equal runs: times, widget ids, process numbers, addresses,
    machine paths.
    """
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if "outputs" in cell:
            cell["outputs"] = varying.mask_outputs(cell["outputs"], paths.ROOT)
    return notebook


@contextmanager
def only_one(name: str, busy: str) -> Iterator[None]:
    """Hold the lock `name` of this checkout, see `keeping.lock`.

    Raises:
        RunError: another process holds it; the message is `busy` and that process's id.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(keeping.lock(name))
        except keeping.Held as held:
            raise RunError(f"{busy} (process {held}); wait for it, or stop it") from None
        yield


def writable(tier: str) -> None:
    """Find out before any compute whether results can be stored. Raises RunError that says what to
    do.
    """
    folder = paths.RESULTS / tier
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        why = (
            "the disk is full"
            if error.errno == errno.ENOSPC
            else f"it cannot be written ({error.strerror})"
        )
        raise RunError(
            f"results/{tier}: {why}; make room or make it writable, then run it again; nothing was run"
        ) from None


def run(
    slug: str,
    tier: str = "cpu",
    overrides: dict[str, Any] | None = None,
    write: bool = True,
    warm: bool = False,
    threads: int | None = None,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a paper at a tier and, for the cpu and gpu tiers, store its record and executed notebook.

    Args:
        warm, threads, env: as for `execute`.

    Raises:
        cards.CardError, RunError
        KeyboardInterrupt: a signal came; the kernel has ended, and what was stored is whole.
    """
    card = deps.card(slug)  # refuses a card with faults
    write = write and "draft" not in card  # a draft's numbers are no evidence
    if write and tier in record.TIERS:
        own_code()
        writable(tier)
    (paths.ROOT / "build").mkdir(exist_ok=True)
    keeping.sweep()
    parameters, how = (
        parameters_of(slug, overrides) | {"tier": tier},
        {"warm": warm, "threads": threads, "env": env},
    )
    try:
        with only_one(f"{slug}.lock", f"{slug} is being run already"):
            if threading.current_thread() is not threading.main_thread():
                return _run(slug, parameters, write, how)
            from layerbook.pipeline import (
                kernels,
            )  # after the checks above, which need none of its imports

            how["bar"] = sys.stderr.isatty()
            return endings.apart(
                lambda: _run(slug, parameters, write, how), kernels.Notebooks.kill_all
            )
    except FileNotFoundError as error:
        raise RunError(f"{slug}: {error}") from None
    except OSError as error:
        raise RunError(_disk(slug, error)) from None


def _run(slug: str, parameters: dict[str, Any], write: bool, how: dict[str, Any]) -> dict[str, Any]:
    from layerbook.pipeline import verdicts  # brings scipy

    before = record.measured_by(slug)
    with tempfile.TemporaryDirectory(dir=paths.ROOT / "build", prefix=f"run-{slug}-") as folder:
        notebook, measurements, seconds = execute(slug, parameters, Path(folder), **how)
    if record.measured_by(slug) != before:
        raise RunError(
            f"{slug}: an input changed while the notebook ran, so its result belongs to neither version; "
            "run it again"
        )
    text = (nbformat.writes(notebook, indent=1) + "\n").encode()
    if len(text) > MAX_BYTES:
        raise RunError(
            f"{slug}: the executed notebook has {len(text):,} bytes, more than {MAX_BYTES:,}; draw smaller figures"
        )
    found, card, tier = (
        record.build(measurements, before, seconds, text),
        deps.card(slug),
        measurements["tier"],
    )
    if (
        not write
        or measurements["dry"]
        or tier not in record.TIERS
        or other_parameters(slug, found)
    ):
        facts = verdicts.broken_facts(text)
        decided = verdicts.decide(card, found, measurements["dry"], facts)
        return verdicts.joined(found, decided, card)
    wrong = record.fault(found, "measurements", slug, parameters["tier"])
    if wrong:
        raise RunError(
            f"{slug}: what the run handed over is no record: {wrong}; stored results are unchanged"
        )
    decided = verdicts.build(found, text)
    keeping.replace_all(
        {
            record.file_of(slug, tier, ".ipynb"): text,
            record.file_of(slug, tier): record.dumps(found).encode(),
            verdicts.file_of(slug, tier): record.dumps(decided).encode(),
        }
    )
    receipts.leave(slug, tier)
    return verdicts.joined(found, decided, card)


def other_parameters(slug: str, found: dict[str, Any]) -> list[str]:
    """In which parameters a run was not the one that notebook and params.yaml describe: such a run
    is no evidence.
    """
    return record.other_parameters(slug, found["tier"], found["parameters"])
