"""Files written whole or not at all, the locks they are written under, and what killed processes
left behind.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from layerbook import paths

MINUTE = 60.0


class Held(Exception):
    """Another process holds the lock; `args[0]` is its process id, or 'unknown'."""


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock of this checkout, waiting no longer than `sweep` may hold it; it ends with the
    process that holds it.

    Raises:
        Held: another one holds it.
    """
    file = paths.ROOT / "build" / "locks" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    holder = file.with_name(f"{name}.pid")
    held = FileLock(file, timeout=0.5, poll_interval=0.05, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        with suppress(OSError):
            raise Held(holder.read_text(encoding="utf-8").strip() or "unknown") from None
        raise Held("unknown") from None
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def replace_all(files: Mapping[Path, bytes]) -> None:
    """Write several files that belong together: each is on the disk in full before the first takes
    its place.

    Raises:
        OSError: one could not be written, most often for want of room; then all are as they were.
    """
    temporaries = {target: target.with_name(f".{target.name}.{os.getpid()}") for target in files}
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporaries[target], "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for target, temporary in temporaries.items():
            os.replace(temporary, target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def sweep() -> list[Path]:
    """Remove what killed processes left behind: folders build/run-*, temporary files of stored
    ones. Returns what went.

    Everything of a paper is written under the paper's lock, so what lies there while the lock is
    free belongs to no one.
    """
    gone: list[Path] = []
    for slug, leftover in _by_paper().items():
        with suppress(Held, OSError), lock(f"{slug}.lock"):
            for path in leftover:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                    missing_ok=True
                )
                gone.append(path)
    for folder in (paths.ROOT, paths.RESULTS, paths.ROOT / "build" / "slurm", paths.NOTEBOOKS):
        for path in folder.glob(".*.*.*") if folder.is_dir() else ():
            with suppress(OSError):
                if _orphan(path):
                    path.unlink()
                    gone.append(path)
    return gone


def _by_paper() -> dict[str, list[Path]]:
    """Run folders and temporary files of records, by the paper that they belong to."""
    found: dict[str, list[Path]] = {}
    for path in (paths.ROOT / "build").glob("run-*-*"):
        found.setdefault(path.name.removeprefix("run-").rpartition("-")[0], []).append(path)
    for path in paths.RESULTS.glob("*/.*.*.*"):
        name, _, suffix = path.name.removeprefix(".").partition(".")
        if suffix.rpartition(".")[0] in ("json", "ipynb") and suffix.rpartition(".")[2].isdecimal():
            found.setdefault(name, []).append(path)
    return found


def _orphan(path: Path) -> bool:
    """True for `.name.ext.<pid>` of a process that is gone, and old enough that no other machine
    can be writing it.
    """
    pid = path.name.rpartition(".")[2]
    if (
        not (path.is_file() and pid.isascii() and pid.isdecimal())
        or time.time() - path.stat().st_mtime < MINUTE
    ):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, of another user
        return False
    return False
