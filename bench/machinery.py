"""`make bench`: what the machinery costs, each figure beside its plain baseline in the same run,
into results/bench.json.

Papers that only import what all papers import, and draw a few numbers, stand for notebooks of any
length: what is measured is what comes on top of their own work.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerbook import paths
from layerbook.pipeline import benchmarks, record

PAPERS = 34
IMPORTS = (
    "import matplotlib.pyplot, scipy.stats, torch\nfrom transformers import AutoModelForCausalLM"
)
FILE = paths.RESULTS / "bench.json"
SELF, DVC = [sys.executable, "-m", "bench.machinery"], [sys.executable, "-m", "dvc"]


def seconds(command: list[str], root: Path, expect: int = 0, **environment: str) -> float:
    """Wall-clock seconds of a command in the checkout `root`. Raises RuntimeError with its output
    when it fails.
    """
    here = str(Path(__file__).resolve().parents[1])  # where `bench` itself is imported from
    search = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    own = {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": search, paths.VARIABLE: str(root)}
    set_to = os.environ | own | environment
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env=set_to, capture_output=True, encoding="utf-8", check=False
    )
    took = time.perf_counter() - began
    if done.returncode != expect:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return took


def row(
    name: str,
    plain: tuple[str, float],
    ours: tuple[str, float],
    goal: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One line of the table: a baseline and ours in seconds, and the least ratio that is aimed at."""
    ratio = plain[1] / ours[1]
    return {
        "name": name,
        "baseline": plain[0],
        "baseline_seconds": round(plain[1], 2),
        "ours": ours[0],
        "ours_seconds": round(ours[1], 2),
        "ratio": round(ratio, 2),
        "goal": goal,
        "note": note,
        "met": None if goal is None else bool(ratio >= goal),
    }


def make(n: int) -> None:
    """Fill this process's checkout with `n` small papers and the DVC stages that run them."""
    from ruamel.yaml import YAML

    from bench import toy
    from layerbook.claims import cards
    from layerbook.pipeline import digests, stages

    for i in range(n):
        toy.write(paths.ROOT, f"paper-{i:02d}", extra=IMPORTS)
    with open(paths.ROOT / "dvc.yaml", "w", encoding="utf-8") as stream:
        YAML().dump({"stages": {slug: stages.of_paper(slug) for slug in cards.slugs()}}, stream)
    (paths.ROOT / "params.yaml").write_text(stages.params(), encoding="utf-8")
    digests.write()


@contextmanager
def pipeline_of(n: int) -> Iterator[Path]:
    """A checkout with `n` small papers and their DVC pipeline, and nothing else."""
    from bench import toy

    with tempfile.TemporaryDirectory(prefix="layerbook-bench-") as folder:
        root = Path(folder)
        toy.house(root, paths.ROOT)
        seconds([*SELF, "--make", str(n)], root)
        seconds([*DVC, "init", "-q", "--no-scm"], root)
        yield root


def measure() -> None:
    """Print seconds of the first run on a warm kernel, of seven more, and of five on plain kernels,
    as JSON.
    """
    from layerbook.pipeline import runner

    def once(warm: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return runner.execute("paper-00", {"tier": "cpu"}, Path(folder), warm=warm)[2]

    print(json.dumps([once(True), [once(True) for _ in range(7)], [once(False) for _ in range(5)]]))


def notebooks() -> Iterator[dict[str, Any]]:
    """Overhead of a kernel: the same small paper on plain kernels and on warm ones, in one process."""
    with pipeline_of(1) as root:
        out = subprocess.run(
            [*SELF, "--measure"],
            cwd=root,
            env=os.environ | {paths.VARIABLE: str(root)},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout
    first, warm, cold = json.loads(out.splitlines()[-1])
    yield row(
        "overhead of a notebook",
        ("plain kernel", statistics.median(cold)),
        ("warm kernel", statistics.median(warm)),
        5,
        f"medians of {len(cold)} and {len(warm)}; the first, which waits for the warm parent, took {first:.1f} s",
    )


def runs() -> Iterator[dict[str, Any]]:
    """A whole pipeline of small papers, and then the same with nothing to do."""
    with pipeline_of(PAPERS) as root:
        serial = ("dvc repro", seconds([*DVC, "repro", "-q"], root))
        idle = [seconds([*DVC, "repro", "-q"], root) for _ in range(3)]
        for name, jobs, goal in (("one after another", "1", None), ("two at once", "2", 8)):
            shutil.rmtree(root / "results")
            (root / "results").mkdir()
            command = [sys.executable, "-m", "layerbook", "run", "-j", jobs]
            yield row(
                f"{PAPERS} small papers, {name}",
                serial,
                (f"layerbook run -j {jobs}", seconds(command, root)),
                goal,
            )
        after = [seconds([*DVC, "repro", "-q"], root) for _ in range(3)]
        ours = [seconds([sys.executable, "-m", "layerbook", "run"], root) for _ in range(3)]
        yield row(
            f"nothing to do, {PAPERS} papers",
            ("dvc repro", statistics.median(idle + after)),
            ("layerbook run", statistics.median(ours)),
            note="median of 6 and of 3; both are to stay under 1.5 s",
        )


def book() -> Iterator[dict[str, Any]]:
    """The built book, from nothing and again."""
    build = [sys.executable, "-m", "layerbook", "build"]
    fresh, again = seconds([*build, "--force"], paths.ROOT), seconds(build, paths.ROOT)
    yield row("book build", ("from nothing", fresh), ("nothing changed", again))


QUIET = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PARALLEL = ["-n", "2", "--dist", "loadfile"]


def published() -> Iterator[dict[str, Any]]:
    """The check of the published notebooks, as CI runs it and in the plain way."""
    nbval = [
        *QUIET,
        "--nbval-lax",
        "--nbval-cell-timeout=300",
        *(str(p) for p in sorted(paths.RESULTS.glob("*/*.ipynb"))),
    ]
    smoke = {
        "LAYERBOOK_TIER": "smoke",
        "OMP_NUM_THREADS": "1",
        "JUPYTER_PATH": str(paths.ROOT / "src/layerbook/pipeline/jupyter"),
    }
    plain = seconds([*nbval, "--nbval-current-env"], paths.ROOT, **smoke)
    warm = seconds(
        [*nbval, "--nbval-kernel-name", "layerbook-warm", *PARALLEL], paths.ROOT, **smoke
    )
    yield row(
        "published notebooks, smoke tier",
        ("plain kernels, one process", plain),
        ("warm kernels, two processes", warm),
    )


def suite() -> Iterator[dict[str, Any]]:
    """All other tests, in two processes as CI runs them and in one."""
    unit, one = [*QUIET, "tests"], {"OMP_NUM_THREADS": "1", "LAYERBOOK_TIER": ""}
    yield row(
        "all other tests",
        ("one process", seconds(unit, paths.ROOT, **one)),
        ("two processes", seconds([*unit, *PARALLEL], paths.ROOT, **one)),
    )


def quantizers() -> Iterator[dict[str, Any]]:
    """The shared quantizers against the libraries that do the same."""
    from bench import (
        quantizing,
    )  # torch, which the other parts leave to the processes that they start

    yield from quantizing.quantizers()


MEASURE: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "quantizers": quantizers,
    "notebooks": notebooks,
    "book": book,
    "runs": runs,
    "published": published,
    "suite": suite,
}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'what':46} {'baseline':>36} {'s':>8}   {'ours':<28} {'s':>7} {'ratio':>7}"]
    for r in rows:
        goal = (
            ""
            if r["goal"] is None
            else f"  (at least {r['goal']}: {'met' if r['met'] else 'MISSED'})"
        )
        lines.append(
            f"{r['name']:46} {r['baseline']:>36} {r['baseline_seconds']:8.2f}   {r['ours']:<28} {r['ours_seconds']:7.2f} "
            f"{r['ratio']:7.2f}{goal}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures of this machine may be compared with."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether files that git knows differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", f"safe.directory={paths.ROOT}", *arguments]
        done = subprocess.run(
            command, cwd=paths.ROOT, capture_output=True, encoding="utf-8", check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {"commit": git("rev-parse", "--short=10", "HEAD"), "dirty": bool(changed)}


def stored() -> dict[str, Any]:
    """The measurements of this machine; those of another are no longer counted."""
    former = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return former if former.get("machine") == machine() else {}


def store(rows: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Put the rows of one part in the place of its former ones, which are dropped if another
    machine measured them.

    Args:
        rows: of the part.
        state: commit and inputs of the measurement.
    """
    former, part = stored(), rows[0]["part"]
    kept = [r for r in former.get("rows", []) if r["part"] in MEASURE and r["part"] != part]
    ordered = sorted([*kept, *rows], key=lambda r: list(MEASURE).index(r["part"]))
    known = former.get("parts", {}) | {part: state | {"machine": machine()}}
    parts = {name: known[name] for name in MEASURE if name in known}
    content = {"machine": machine(), "parts": parts, "rows": ordered}
    record.replace(FILE, (json.dumps(content, indent=1) + "\n").encode())


def outdated(part: str) -> bool:
    """True when what is stored of a part is not that of the checkout as it is."""
    found = stored()
    if benchmarks.PARTS[part].whole:
        at = found.get("parts", {}).get(part, {})
        return {k: at.get(k) for k in ("commit", "dirty")} != commit() or commit()["dirty"]
    return not benchmarks.standing(part, found)[0]


def measured(part: str) -> list[dict[str, Any]]:
    """Measure a part, print its rows as they come, and store them with commit and inputs.

    Raises RuntimeError when the inputs changed meanwhile: the figures would be of no known state.
    """
    state = commit() | {"inputs": benchmarks.inputs(part)}
    rows = []
    for found in MEASURE[part]():
        rows.append({"part": part} | found)
        print(table([found]).splitlines()[1], flush=True)
    if changed := benchmarks.changed_since(state, benchmarks.inputs(part)):
        raise RuntimeError(
            f"{', '.join(changed)} changed while {part} was measured, so nothing of it was stored: "
            f"make bench PART={part}"
        )
    store(rows, state)  # at once: a later part that is stopped takes nothing with it
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts that are named, or else those that are outdated, the cheap ones first;
    print the table and store its rows in place of the former ones.
    """
    named = sys.argv[1:] if arguments is None else arguments
    if named[:1] == ["--make"]:
        make(int(named[1]))
        return 0
    if named == ["--measure"]:
        measure()
        return 0
    if strange := sorted(set(named) - set(MEASURE)):
        print(
            f"no such part: {', '.join(strange)}; there are {', '.join(MEASURE)}", file=sys.stderr
        )
        return 2
    rows = []
    for part in MEASURE:
        if part in named or not named and outdated(part):
            rows += measured(part)
        elif not named:
            print(f"{part}: as stored; to measure it again: make bench PART={part}")
    print("\n" + table(rows))
    return 0 if all(r["met"] in (None, True) for r in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
