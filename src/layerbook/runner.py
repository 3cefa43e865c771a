"""Execute a paper's notebook and store its evidence: all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from layerbook import cards, paper, paths, record

MAX_BYTES = 400_000


class RunError(RuntimeError):
    """A run that produced no evidence; the message says where it stopped and what to do."""


@contextmanager
def _environment(**values: str):
    old = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, v in old.items():
            os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)


def parameters_of(slug: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Parameters of a paper's stage: params.yaml under `papers.<slug>`, then `overrides`."""
    from ruamel.yaml import YAML

    file = paths.ROOT / "params.yaml"
    stored = YAML(typ="safe").load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return dict((stored or {}).get("papers", {}).get(slug) or {}) | (overrides or {})


def execute(slug: str, parameters: dict[str, Any], folder: Path) -> tuple[nbformat.NotebookNode, dict[str, Any], float]:
    """Run the notebook in a fresh kernel.

    Returns:
        the executed notebook (normalised), its measurements, and the seconds it took.

    Raises:
        RunError: a cell failed, the kernel died or the disk is full.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    out, handed = folder / f"{slug}.ipynb", folder / "measurements.json"
    began = time.perf_counter()
    try:
        with _environment(**{paper.OUTPUT_VARIABLE: str(handed), "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"}):
            papermill.execute_notebook(
                str(paths.NOTEBOOKS / f"{slug}.ipynb"), str(out), parameters=parameters, kernel_name="python3",
                cwd=str(paths.ROOT), progress_bar=sys.stderr.isatty(), log_output=False, shutdown_kernel="immediate",
            )
    except PapermillExecutionError as error:
        kept = _keep(out, slug)
        raise RunError(f"{slug}: cell {error.exec_count} failed: {error.ename}: {error.evalue}\n"
                       f"the notebook with its traceback is {kept}; stored results are unchanged") from None
    except DeadKernelError:
        raise RunError(f"{slug}: the kernel died, most often for want of memory; close other programs or use a smaller "
                       "tier (--tier smoke); stored results are unchanged") from None
    except OSError as error:
        raise RunError(_disk(slug, error)) from None
    seconds = time.perf_counter() - began
    if not handed.is_file():
        raise RunError(f"{slug}: the notebook ended without run.finish(), so there is nothing to record")
    notebook = normalise(nbformat.read(out, as_version=4))
    return notebook, json.loads(handed.read_text(encoding="utf-8")), seconds


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
    """Drop what differs between two equal runs: times, widget ids, machine paths."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", []):
            for holder, key in ((output, "text"), *((output.get("data", {}), k) for k in ("text/plain", "text/html"))):
                if isinstance(holder.get(key), str):
                    holder[key] = holder[key].replace(str(paths.ROOT), ".")
    return notebook


def run(slug: str, tier: str = "cpu", overrides: dict[str, Any] | None = None, write: bool = True) -> dict[str, Any]:
    """Run a paper at a tier and, for the cpu and gpu tiers, store its record and executed notebook.

    Raises:
        cards.CardError, RunError
    """
    cards.load(slug)
    try:
        before = record.inputs(slug)
    except FileNotFoundError as error:
        raise RunError(f"{slug}: {error}") from None
    build = paths.ROOT / "build"
    try:
        build.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=build, prefix=f"run-{slug}-") as folder:
            notebook, measurements, seconds = execute(slug, parameters_of(slug, overrides) | {"tier": tier}, Path(folder))
        if record.inputs(slug) != before:
            raise RunError(f"{slug}: an input changed while the notebook ran, so its result belongs to neither version; "
                           "run it again")
        text = (nbformat.writes(notebook, indent=1) + "\n").encode()
        if len(text) > MAX_BYTES:
            raise RunError(f"{slug}: the executed notebook has {len(text):,} bytes, more than {MAX_BYTES:,}; draw smaller figures")
        result = record.build(measurements, before, seconds, text)
        if write and not measurements["dry"] and measurements["tier"] in record.TIERS:
            record.replace(record.file_of(slug, measurements["tier"], ".ipynb"), text)
            record.replace(record.file_of(slug, measurements["tier"]), record.dumps(result).encode())
    except OSError as error:
        raise RunError(_disk(slug, error)) from None
    return result
