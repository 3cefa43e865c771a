"""What to say when a file is not as it should be: each fault and each remedy is worded once, here.

`survey` looks at every file that the project reads and names those that are damaged; `explain`
turns an exception into a message with file, fault and the next command. Neither looks at anything
until something has gone wrong, so that good files cost nothing.
"""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from layerbook import paths
from layerbook.pipeline import filefaults as ff

# what DVC says of a lock that is held
BUSY = (
    "Unable to acquire lock",
    "is busy, it is being blocked by",
)
# Exceptions whose messages say all; by name, so that a stage which imports this module does not
# come to depend on theirs.
OWN = (
    "CardError", "RunError", "AssetError", "FileFault", "BookError", "ScoreError", "SourceError",
    "InputError", "MakingError", "NetworkError", "HistoryError",
)  # fmt: skip


def _data_dvc(file: Path) -> None:
    outs = ff.yaml_of(file, outs=list)["outs"]
    ff.of_kind(outs[0] if outs else None, dict, " in 'outs'", md5=str)


def _scores(file: Path) -> None:
    for entry in ff.json_of(file, list):
        ff.of_kind(entry, dict, " in an entry", slug=str, profile=str, values=list)


ONE: dict[str, Callable[[Path], Any]] = {
    "dvc.yaml": lambda file: ff.yaml_of(file, stages=dict),
    "params.yaml": lambda file: ff.yaml_of(file, papers=dict),
    "dvc.lock": lambda file: ff.yaml_of(file, schema=str, stages=dict),
    "data.dvc": _data_dvc,
    ".dvc/config": ff.config_of,
    "results/bench.json": lambda file: ff.json_of(file, **ff.BENCH),
    "results/comparison/quantization.json": lambda file: ff.json_of(file, scores=list),
    "results/comparison/scores.json": _scores,
    "book/toc.yml": lambda file: ff.yaml_of(file, parts=list),
    "book/_config.yml": ff.yaml_of,
    "book/references.bib": ff.bibliography_of,
}
MANY: dict[str, Callable[[Path], Any]] = {
    "notebooks/*.yaml": ff.card_of,
    "notebooks/*.ipynb": ff.notebook_of,
    "book/discussion/*.yaml": ff.discussion_of,
    "results/*/*.ipynb": ff.notebook_of,
    "results/cpu/*.json": ff.record_of,
    "results/gpu/*.json": ff.record_of,
    "results/models/*/card.json": lambda file: ff.json_of(file, description=str),
    "results/models/**/*.safetensors": ff.weights_of,
    "build/prepared/*/card.json": ff.json_of,
}


PIPELINE = ("dvc.yaml", "params.yaml", "dvc.lock", "data.dvc", ".dvc/config")


def _files(root: Path) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Every file that the project reads, by its path from the root, with the function that reads
    it.
    """
    for name, read in ONE.items():
        if (root / name).exists() or _tracked(root, name):
            yield name, read
    seen = set(ONE)
    for pattern, read in MANY.items():
        for file in sorted(root.glob(pattern)):
            name = file.relative_to(root).as_posix()
            seen.add(name)
            yield name, read
    for name in _changed(root, "results", "notebooks", "book"):  # tracked files that are gone
        if name not in seen and not (root / name).exists():
            yield name, ff.text_of


def _reader(name: str) -> Callable[[Path], Any]:
    if name.endswith(".safetensors"):  # in Python 3.11 Path.match takes ** for one folder
        return ff.weights_of
    return ONE.get(name) or next(
        (read for pattern, read in MANY.items() if Path(name).match(pattern)), ff.text_of
    )


def survey(root: Path | None = None, only: Sequence[str] | None = None) -> list[str]:
    """Every damaged file that the project reads: 'path fault', and below it what to type; one entry
    each.

    Args:
        only: paths from the root, in place of all files.
    """
    root = root or paths.ROOT
    files = (
        _files(root)
        if only is None
        else ((n, _reader(n)) for n in only if (root / n).exists() or _tracked(root, n))
    )
    found = []
    for name, read in files:
        if fault := ff.fault_of(root / name, read):
            found.append(f"{name} {fault}\n  {remedy(name, root)}")
    return found


def _git(root: Path, *arguments: str) -> str:
    """What a git command prints; '' where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _tracked(root: Path, name: str) -> bool:
    return bool(_git(root, "ls-files", "--", name))


def _changed(root: Path, *names: str) -> dict[str, str]:
    """Tracked files below `names` that differ from the last commit: path -> git's two letters."""
    rows = _git(
        root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--", *names
    ).split("\0")
    prefix = _git(root, "rev-parse", "--show-prefix").strip()
    return {row[3:].removeprefix(prefix): row[:2] for row in rows if row}


def restore(name: str, root: Path | None = None) -> str:
    """The git command that brings a file or folder back as it was committed; '' when git holds no
    other state of it.
    """
    changed = _changed(root or paths.ROOT, name)
    if not changed:
        return ""
    # then the index holds the damaged state, too
    staged = any(letters[0] != " " for letters in changed.values())
    return f"git checkout {'HEAD ' if staged else ''}-- {name}"


def remake(name: str, root: Path | None = None) -> str:
    """How a file is made anew, with the time that this takes where it is known; '' for what only a
    person can write.
    """
    root, parts = root or paths.ROOT, Path(name).parts
    if name == "dvc.yaml":
        return "write it anew: rm -rf dvc.yaml && layerbook sync"
    if name == "params.yaml":
        return "write it anew with every seed 0: rm -rf params.yaml && layerbook sync"
    if name == "dvc.lock":
        return "record the files as they are: rm -rf dvc.lock && dvc commit -f"
    if name == "data.dvc":
        return "record data/ as it is: rm -rf data.dvc && dvc add data"
    if name == "results/bench.json":
        return "measure again (minutes): make bench"
    if parts[:2] == ("results", "comparison"):
        stage = "collect-layer-scores" if parts[-1] == "scores.json" else "compare-quantization"
        return f"make it again: dvc repro -f {stage}"
    if parts[:2] == ("results", "models") and len(parts) > 2:
        return f"train it anew ({training_time(parts[2], root)}): dvc repro -s -f train-{parts[2]}"
    if parts[0] == "results" and len(parts) == 3:
        slug = parts[2].split(".")[0]
        if name.endswith(".verdicts.json"):
            return f"decide again: layerbook decide {slug}"
        return f"run the paper again ({run_time(slug, parts[1], root)}): make rerun PAPER={slug} TIER={parts[1]}"
    if parts[0] == "results":
        return "render it again: layerbook render"
    if parts[:2] == ("build", "prepared") and len(parts) > 2:
        return f"prepare it again: rm -rf build/prepared/{parts[2]} && layerbook data"
    if parts[0] == "data":
        return "fetch it again: layerbook data"
    return ""


def training_time(network: str, root: Path | None = None) -> str:
    """How long the training of a network took, in the words of its card, as committed where the
    file is damaged.
    """
    root, name = root or paths.ROOT, f"results/models/{network}/card.json"
    for text in (_git(root, "show", f"HEAD:./{name}"), _read(root / name)):
        try:
            told = json.loads(text)["seconds"]
        except (ValueError, KeyError, TypeError):
            continue
        return (
            f"its card says {told} s"
            if isinstance(told, int | float)
            else f"its card says, in seconds: {told}"
        )
    return "minutes to hours: its card gives no time"


def run_time(slug: str, tier: str, root: Path | None = None) -> str:
    """How long a paper ran, by its record, as committed where the file is damaged."""
    root, name = root or paths.ROOT, f"results/{tier}/{slug}.json"
    for text in (_git(root, "show", f"HEAD:./{name}"), _read(root / name)):
        try:
            return f"about {round(float(json.loads(text)['seconds']))} s"
        except (ValueError, KeyError, TypeError):
            continue
    return "some minutes"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def remedy(name: str, root: Path | None = None) -> str:
    """What to type about a damaged or changed file: git first where it holds another state, then
    what makes it anew.
    """
    root = root or paths.ROOT
    back, anew = restore(name, root), remake(name, root)
    if (root / name).is_dir() and Path(name).suffix:
        back = back and f"mv {name} {name}.folder && {back}"
    ways = ([f"bring back the committed one: {back}"] if back else []) + ([anew] if anew else [])
    return "; or ".join(ways) or f"mend it by hand; 'git log -- {name}' lists earlier versions"


def explain(error: BaseException, root: Path | None = None) -> str:
    """The message for an exception: its own where the project wrote it, else what a look at all
    files finds.

    Returns '' for what no damaged file explains: a fault of the program, whose traceback is then
    wanted.
    """
    if type(error).__name__ in OWN:
        return str(error)
    if found := survey(root):
        return "\n".join(found)
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return of_os(error, root)
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError):
        return str(error)
    return of_os(error, root) if isinstance(error, OSError) else ""


def of_os(error: OSError, root: Path | None = None) -> str:
    """The message for a file that the system refuses."""
    name = str(error.filename or "a file")
    try:
        name = Path(name).resolve().relative_to((root or paths.ROOT).resolve()).as_posix()
    except ValueError:
        pass
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}: the disk is full; make room and run this again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{name}: this user may not read or write it; change its mode (chmod u+rw {name}) or its owner"
    if error.errno == errno.EISDIR:
        return f"{name} is a folder where a file belongs; move it away (mv {name} {name}.folder) and run this again"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{name} is a file where a folder belongs; move it away (mv {name} {name}.file) and run this again"
    if error.errno == errno.ENOENT:
        back = restore(name, root)
        return f"{name} is missing; {back or 'layerbook data'} brings it back"
    return f"{name}: {error.strerror}; mend that and run this again"


def of_dvc(command: str, text: str, root: Path | None = None) -> str:
    """The message for a DVC command that failed: only a lock that is really held means another
    process.

    Args:
        command: what was asked of DVC.
        text: what it printed.
    """
    kept = "results that were computed are kept"
    if any(sign in text for sign in BUSY):
        return f"dvc {command} failed: {text}\nanother DVC process is at work; wait for it and run this again; {kept}"
    if "RWLock-file" in text:
        return (
            f"dvc {command} failed: .dvc/tmp/rwlock is damaged, left so by a process that was killed; "
            f"remove it and run this again: rm .dvc/tmp/rwlock; {kept}"
        )
    if found := survey(root):
        return "\n".join([*found, f"dvc {command} failed because of that; {kept}"])
    return f"dvc {command} failed: {text}\nsee above; {kept}"


def changed_networks(names: Sequence[str], root: Path | None = None) -> str:
    """The message for trained networks that differ from what dvc.lock records, before DVC would
    train them anew.
    """
    root, lines = root or paths.ROOT, []
    for network in names:
        folder = f"results/models/{network}"
        what = "changed since it was trained" if (root / folder).exists() else "missing"
        lines.append(
            f"{folder}: the trained network is {what}, and its training was not asked for; {remedy(folder, root)}"
        )
        if (root / folder).exists() and not restore(folder, root):
            lines.append(
                f"  or, if these files are the right ones, record them: dvc commit -f train-{network}"
            )
    return "\n".join(lines)


def after_stale(root: Path | None = None) -> list[str]:
    """What to type when evidence is stale: first, results that git holds in another state, then how
    to run.
    """
    root = root or paths.ROOT
    changed, lines = _changed(root, "results"), []
    shown = set()
    for name in sorted(changed):
        parts = Path(name).parts
        whole = "/".join(parts[:3]) if parts[1:2] == ("models",) else name
        if whole not in shown and len(parts) >= 3:
            shown.add(whole)
            lines.append(f"{whole} is not as committed; {remedy(whole, root)}")
    return [
        *lines,
        "rerun what is stale with 'make repro' (or 'make rerun PAPER=<slug> TIER=<tier>')",
    ]
