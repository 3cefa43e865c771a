"""The page's table of what the machinery costs, from results/bench.json."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from layerbook import report_html as h


def fragment(root: Path) -> str:
    """The table as Markdown with HTML; a line that says how to make it when nothing was measured yet."""
    file = root / "results" / "bench.json"
    if not file.is_file():
        return "Nothing has been measured on this machine yet: `make bench` does it.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for r in found["rows"]:
        goal = "" if r["goal"] is None else f"at least {r['goal']:g}: {'met' if r['met'] else 'missed'}"
        name = escape(r["name"]) + (f'<br><small class="lb-aside">{escape(r["note"])}</small>' if r["note"] else "")
        pair = [f"{escape(r[k])}: {r[f'{k}_seconds']:.2f} s" for k in ("baseline", "ours")]
        rows.append(("", [name, *pair, f"{r['ratio']:.1f}", goal]))
    machine = found["machine"]
    text = (f"Measured by `make bench` on {machine['cores']} cores ({machine['system']}, Python {machine['python']}), each figure "
            "beside its plain baseline in the same run. The small papers do nothing but import what all papers import and draw a "
            "few numbers, so that what is left is the cost of the machinery.\n\n")
    return text + h.table(["What", "Baseline", "Here", "Ratio", "Aim"], rows) + "\n"
