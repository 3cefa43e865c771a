"""Tables that a notebook shows of its own card and verdicts, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from layerbook.claims import varying

LABELS = {
    ("identity", "reproduced"): "identity holds",
    ("identity", "not reproduced"): "identity broken",
    ("control", "held"): "control held",
    ("control", "passes"): "control passes",
    ("control", "beaten"): "simpler explanation beaten",
    ("control", "level"): "simpler explanation level",
    ("control", "ahead"): "simpler explanation ahead",
}
# States of controls wear the colour and the sign of the verdict that they are like.
LOOKS = {
    "held": "reproduced",
    "beaten": "reproduced",
    "holds": "reproduced",
    "level": "weaker",
    "passes": "not reproduced",
    "ahead": "not reproduced",
    "fails": "not reproduced",
}


def label(kind: str, verdict: str) -> str:
    """What the reader sees for a verdict, or for the state of a control or identity."""
    return LABELS.get((kind, verdict), verdict)


def look(verdict: str) -> str:
    """The verdict whose colour and sign a verdict or state wears."""
    return LOOKS.get(verdict, verdict)


def paper_says(claim: Mapping[str, Any]) -> str:
    """What the paper states about a claim, its figure with its unit, and where it stands, as text."""
    paper = claim.get("paper")
    if paper is None:
        return "our own question" if claim.get("asked_by") else "not known"
    if isinstance(paper, str):
        return paper
    figure = " ".join(str(paper[k]) for k in ("value", "unit") if k in paper)
    return f"{paper['says']}{f': {figure}' if figure else ''} ({paper['where']})"


def number(x: float | None) -> str:
    """Four significant digits with a true minus sign; an em dash for nothing."""
    return "—" if x is None else f"{x:.4g}".replace("-", "−")


def span(interval: Sequence[float] | None) -> str:
    """'[low, high]' or an em dash."""
    return "—" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """An HTML table; cells are taken as HTML. `name` becomes its CSS class and accessible label."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="lb-scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table class="lb-table">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def badge(kind: str, verdict: str, silent: bool = False) -> str:
    """A verdict as a coloured word; grey where a control says nothing."""
    grey = " lb-silent" if silent else ""
    name = look(verdict).replace(" ", "-")
    return f'<span class="lb-verdict lb-{name}{grey}">{escape(label(kind, verdict))}</span>'


def registered(card: Mapping[str, Any]) -> str:
    """The claims as they stand before the run."""
    from layerbook.claims import roles, testwords

    by_id = {c["id"]: c for c in card["claims"]}
    rows = []
    for c in card["claims"]:
        named = roles.named(c)
        tests = c.get("tests") or by_id[named[0]]["tests"]
        asked = " and ".join(testwords.describe(t) for t in tests)
        rows.append(
            [
                c["id"],
                c["kind"],
                escape(c["statement"]),
                "—" if c["kind"] == "control" else escape(paper_says(c)),
                escape(f"against {', '.join(named)}: {asked}" if named else asked),
                escape(c["unit"]),
                c["tier"],
            ]
        )
    return table(
        ["id", "kind", "claim", "in the paper", "test", "unit", "tier"], rows, "registered claims"
    )


def gate_state(gate: Mapping[str, Any]) -> str:
    """What is said of a gate: one that only a larger tier measures is not called unmet."""
    return "met" if gate["met"] else "not met" if gate["values"] else "not measured at this tier"


def _depends(varies: str | None) -> str:
    return f" ({varying.MEANING[varies]})" if varies else ""


def verdicts(
    card: Mapping[str, Any], result: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]
) -> str:
    """The verdicts of a run, its gates, and what it reports without a verdict."""
    marked = varying.of_claims(card)
    rows = [
        [
            r["id"],
            badge(r["kind"], r["verdict"], r.get("silent", False)),
            escape(r["test"]),
            number(r["estimate"]),
            span(r["interval"]),
            str(r["n"]),
            escape(r["reason"] + _depends(marked.get(r["id"]))),
        ]
        for r in result["claims"]
    ]
    html = table(["id", "verdict", "test", "estimate", "interval", "n", "reason"], rows, "verdicts")
    if result["gates"]:
        rows = [
            [
                g["id"],
                gate_state(g),
                escape(g["statement"]),
                escape(g["reason"] if g["values"] else ""),
            ]
            for g in result["gates"]
        ]
        html += table(["gate", "", "statement", "measured"], rows, "gates")
    if findings:
        rows = [
            [
                escape(f["name"]),
                escape(f["statement"] + _depends(f.get("varies"))),
                number(f["estimate"]),
                span(f["interval"]),
                str(f["n"]),
            ]
            for f in findings
        ]
        html += table(
            ["reported without verdict", "what", "mean", "95 % interval", "n"], rows, "findings"
        )
    return html
