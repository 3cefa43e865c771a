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
from layerbook.pipeline import record

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
    build = [sys.executable, "-m", "layerbook.pages.build", "build"]
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


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "notebooks": notebooks,
    "runs": runs,
    "book": book,
    "published": published,
    "suite": suite,
    "quantizers": quantizers,
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


def store(rows: list[dict[str, Any]]) -> None:
    """Put the rows of one part in the place of its former ones, which are dropped if another
    machine measured them.
    """
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    former = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    kept = former.get("rows", []) if former.get("machine") == machine else []
    kept = [r for r in kept if r["part"] in PARTS and r["part"] != rows[0]["part"]]
    ordered = sorted([*kept, *rows], key=lambda r: list(PARTS).index(r["part"]))
    record.replace(
        FILE, (json.dumps({"machine": machine, "rows": ordered}, indent=1) + "\n").encode()
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure all parts, or those named; print the table and store its rows in place of the former
    ones.
    """
    named = (sys.argv[1:] if arguments is None else arguments) or list(PARTS)
    if named[0] == "--make":
        make(int(named[1]))
        return 0
    if named[0] == "--measure":
        measure()
        return 0
    if set(named) - set(PARTS):
        print(
            f"no such part: {', '.join(sorted(set(named) - set(PARTS)))}; there are {', '.join(PARTS)}",
            file=sys.stderr,
        )
        return 2
    rows = []
    for name in named:
        for found in PARTS[name]():
            rows.append({"part": name} | found)
            print(table([found]).splitlines()[1], flush=True)
        # at once: a later part that is stopped takes nothing with it
        store([r for r in rows if r["part"] == name])
    print("\n" + table(rows))
    return 0 if all(r["met"] in (None, True) for r in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
