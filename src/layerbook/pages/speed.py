"""What running costs: the machinery, from results/bench.json, and every paper at both tiers, from
the records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from layerbook.pages import markup as h
from layerbook.pages import templating
from layerbook.pages.papers import Paper
from layerbook.pipeline import benchmarks


def fragment(root: Path) -> str:
    """The table as Markdown with HTML, each measurement as of then; a line that says how to make it
    when nothing was measured yet.
    """
    file = root / "results" / "bench.json"
    if not file.is_file():
        return "Nothing has been measured on this machine yet: `make bench` does it.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    standing = {
        part: benchmarks.standing(part, found) for part in {r["part"] for r in found["rows"]}
    }
    states = {since for _current, since in standing.values()}
    rows = []
    for r in found["rows"]:
        current, since = standing[r["part"]]
        goal = (
            ""
            if r["goal"] is None
            else f"at least {r['goal']:g}: {'met' if r['met'] else 'missed'}"
        )
        # where all speak of one state, that is said once, above the table
        notes = [note for note in (r["note"], since if len(states) > 1 else "") if note]
        name = templating.render("bench_name.html", name=r["name"], notes=notes)
        pair = [f"{r[k]}: {r[f'{k}_seconds']:.2f} s" for k in ("baseline", "ours")]
        if not current:
            goal = f"then {goal}" if goal else ""
        rows.append(({}, [name, *pair, f"{r['ratio']:.1f}", goal]))
    return templating.render(
        "bench.md",
        machine=found["machine"],
        then=next(iter(states)) if len(states) == 1 else "",
        table=h.table(["What", "Baseline", "Here", "Ratio", "Aim"], rows),
    )


def runs(papers: Sequence[Paper]) -> str:
    """What every paper took at the cpu tier and on a GPU, and on which: Markdown with HTML."""
    head = ("Paper", "cpu tier", "gpu tier", "Claims that only the gpu tier decides")
    rows = []
    for paper in papers:
        cpu, gpu = (paper.records.get(tier) for tier in ("cpu", "gpu"))
        waiting = sum(c["tier"] == "gpu" for c in paper.card["claims"] if c["kind"] != "control")
        rows.append(
            (
                {},
                [
                    templating.piece("up", paper.slug),
                    h.cost(cpu) if cpu else "not run",
                    h.cost(gpu) if gpu else "no run is stored yet",
                    waiting or "none",
                ],
            )
        )
    made = sum("gpu" in p.records for p in papers)
    return templating.render("runs.md", made=made, papers=len(papers), table=h.table(head, rows))
