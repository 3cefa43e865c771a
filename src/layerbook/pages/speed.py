"""What running costs: the machinery, from results/bench.json, and every paper at both tiers, from
the records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from layerbook.pages import markup as h
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
        name = escape(r["name"]) + (
            f'<br><small class="lb-aside">{escape(r["note"])}</small>' if r["note"] else ""
        )
        if len(states) > 1:  # else it is said once, above the table
            name += f'<br><small class="lb-aside">{escape(since)}</small>'
        pair = [f"{escape(r[k])}: {r[f'{k}_seconds']:.2f} s" for k in ("baseline", "ours")]
        if not current:
            goal = f"then {goal}" if goal else ""
        rows.append(("", [name, *pair, f"{r['ratio']:.1f}", goal]))
    machine = found["machine"]
    text = (
        f"Measured by `make bench` on {machine['cores']} cores ({machine['system']}, Python {machine['python']}), each figure "
        "beside its plain baseline in the same run. The small papers do nothing but import what all papers import and draw a "
        "few numbers, so that what is left is the cost of the machinery.\n\n"
    )
    if len(states) == 1:
        text += f"**Each figure is of then:** {escape(*states)}.\n\n"
    return text + h.table(["What", "Baseline", "Here", "Ratio", "Aim"], rows) + "\n"


def runs(papers: Sequence[Paper]) -> str:
    """What every paper took at the cpu tier and on a GPU, and on which: Markdown with HTML."""
    rows = []
    for paper in papers:
        cpu, gpu = (paper.records.get(tier) for tier in ("cpu", "gpu"))
        waiting = sum(c["tier"] == "gpu" for c in paper.card["claims"] if c["kind"] != "control")
        rows.append(
            (
                "",
                [
                    f'<a href="../papers/{paper.slug}.html">{escape(paper.slug)}</a>',
                    h.cost(cpu) if cpu else "not run",
                    h.cost(gpu) if gpu else "no run is stored yet",
                    f"{waiting or 'none'}",
                ],
            )
        )
    made = sum("gpu" in p.records for p in papers)
    text = (
        f"{made} of {len(papers)} papers have a GPU run in this book."
        if made
        else (
            "No GPU run is stored in this book yet: so far the tier was only rehearsed at tiny size, "
            "on a CPU, and the claims in the last column are not tested."
        )
    )
    return f"{text}\n\n{h.table(['Paper', 'cpu tier', 'gpu tier', 'Claims that only the gpu tier decides'], rows)}\n"
