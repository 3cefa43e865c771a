"""Pages over all papers: front-page numbers, gallery, scoreboard, shelf, licences, reference, table
of contents.

Hand-written pages in book/ include these fragments from book/_generated, so that prose stays prose
and every table stays rendered.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from ruamel.yaml import YAML

from layerbook.claims import chance
from layerbook.notebook import tables
from layerbook.pages import family_page as report_family
from layerbook.pages import (
    history_page,
    inventory,
    paper_page,
    quantization_page,
    speed,
    templating,
)
from layerbook.pages import markup as h
from layerbook.pages.papers import FAMILIES, PROPER, Paper, read_yaml

CLAIMS = (
    "effect-or-equivalence"  # what the front page counts, as one choice of the scoreboard's filter
)


def fragments(root: Path, papers: list[Paper]) -> dict[str, str | bytes]:
    """Every generated file of the book except the papers' pages: path relative to the root ->
    content.
    """
    files: dict[str, str | bytes] = {
        "book/_toc.yml": toc(root, papers),
        "book/_generated/summary.md": summary(papers),
        "book/_generated/gallery.md": gallery(root, papers),
        "book/_generated/scoreboard.md": scoreboard(papers),
        "book/_generated/shelf.md": shelf(papers),
        "book/_generated/assets.md": inventory.assets(root, papers),
        "book/_generated/reference.md": inventory.reference(root),
        "book/_generated/bench.md": speed.fragment(root),
        "book/_generated/runs.md": speed.runs(papers),
        "book/_generated/history.md": history_page.fragment(root, papers),
        "results/overview.svg": h.overview(
            [(family, _total(mine)) for family, mine in _by_family(papers)]
        ),
        "results/metrics.json": json.dumps(metrics(papers), indent=1, sort_keys=True) + "\n",
    }
    pages = [page for family in FAMILIES if (page := family_page(root, family))]
    for page in pages:
        # which has measurements of its own, not the records' alone
        own = page == "family-quantization"
        parts = (
            quantization_page.fragments(root, papers)
            if own
            else {page: report_family.fragment(papers)}
        )
        files |= {f"book/_generated/{name}.md": text for name, text in parts.items()}
    pictures = {p.slug: thumbnail(root, p) for p in papers}
    return files | {
        f"book/_generated/thumb-{slug}.png": found[0] for slug, found in pictures.items() if found
    }


def metrics(papers: list[Paper]) -> dict[str, Any]:
    """Numbers for `dvc metrics show` and `diff`: verdict counts and seconds per paper, each claim's
    estimate.
    """
    per_paper = {}
    for paper in papers:
        estimates = {
            c["id"]: c["estimate"] for c in paper.claims() if c.get("estimate") is not None
        }
        seconds = paper.records[paper.main]["seconds"]
        per_paper[paper.slug] = {
            "claims": estimates,
            "seconds": seconds,
            "verdicts": paper.counts(),
        }
    return {"papers": per_paper, "total": {"papers": len(papers), **_total(papers)}}


def _total(papers: Iterable[Paper]) -> Counter[str]:
    return sum((p.counts() for p in papers), Counter())


def _by_family(papers: list[Paper]) -> list[tuple[str, list[Paper]]]:
    grouped = ((family, [p for p in papers if p.card["family"] == family]) for family in FAMILIES)
    return [(family, mine) for family, mine in grouped if mine]


def _link(paper: Paper, claim: str = "", text: str = "") -> Markup:
    return templating.piece("link", paper.slug, text or paper.short, claim)


def toc(root: Path, papers: list[Paper]) -> str:
    """book/_toc.yml: the hand-written book/toc.yml with one part per family in place of `papers:
    here`.
    """
    base, parts = read_yaml(root / "book" / "toc.yml"), []
    for part in base["parts"]:
        if "papers" not in part:
            parts.append(part)
            continue
        for family, mine in _by_family(papers):
            page = family_page(root, family)
            title = (
                "Bits against quality" if family == "quantization" else "One model, many measures"
            )
            chapters: list[dict[str, Any]] = [{"file": page, "title": title}] if page else []
            for p in mine:
                chapter: dict[str, Any] = {"file": f"papers/{p.slug}", "title": p.short}
                more = [
                    {"file": f"papers/{p.slug}-{t}", "title": f"{p.short}: {t} run"}
                    for t in p.records
                    if t != p.main
                ]
                chapters.append(chapter | ({"sections": more} if more else {}))
            parts.append({"caption": family.capitalize(), "chapters": chapters})
    text = io.StringIO()
    YAML().dump({**base, "parts": parts}, text)
    return text.getvalue()


def family_page(root: Path, family: str) -> str:
    """Name of the hand-written page that compares the measures of a family's papers; empty if there
    is none.
    """
    name = f"family-{h.css(family)}"
    return name if (root / "book" / f"{name}.md").is_file() else ""


def summary(papers: list[Paper]) -> str:
    """The front page's numbers, and its picture: one square per claim, one row per paper, one panel
    per family.
    """
    rows = [c for p in papers for c in p.claims()]
    checks, held = [c for c in rows if paper_page.is_check(c)], {}
    for kind in ("identity", "control"):
        mine = [c for c in checks if c["kind"] == kind]
        good = sum(tables.look(c["verdict"]) == "reproduced" for c in mine)
        held[kind] = f"{good} of {len(mine)}"
    return templating.render(
        "summary.md",
        papers=len(papers),
        counts=_total(papers),
        kind=CLAIMS,
        identities=held["identity"],
        controls=held["control"],
        matched=sum(c["verdict"] == "reproduced" and bool(c["matched"]) for c in rows),
        by_chance=f"{chance.expected_by_chance(rows):.1f}",
        effects=len(chance.effects(rows)),
        families=[(family, [_squares(p) for p in mine]) for family, mine in _by_family(papers)],
    )


def _squares(paper: Paper) -> dict[str, Any]:
    """One paper's row of the picture: link, what it shows in words, claims."""
    counts = paper.counts()
    return {
        "link": _link(paper),
        "told": ", ".join(f"{counts[v]} {v}" for v in h.VERDICTS if counts[v]),
        "claims": [c for c in paper.claims() if c["kind"] in PROPER],
    }


def _filters(target: str, choices: dict[str, tuple[str, Sequence[str]]]) -> Markup:
    """A form that the book's script fills with life: name of the data attribute -> (label, values)."""
    return templating.piece("filters", target, choices)


def thumbnail(root: Path, paper: Paper) -> tuple[bytes, str] | None:
    """The paper's picture, as (PNG, text alternative): from the cell tagged `gallery`, else its
    first figure.
    """
    cells = paper_page.read_notebook(root, paper, paper.main).cells
    tagged = [c for c in cells if "gallery" in c.metadata.get("tags", [])]
    found = paper_page.images(tagged) or paper_page.images(cells)
    return (
        (base64.b64decode(found[0][0]), found[0][1] or f"Figure from {paper.short}")
        if found
        else None
    )


def gallery(root: Path, papers: list[Paper]) -> str:
    """One card per paper with a picture from its own run, and filters by family and verdict."""
    if not papers:
        return "No paper has been run yet.\n"
    verdicts = [v for v in h.VERDICTS if _total(papers)[v]]
    choices = {
        "family": ("Family", [f for f, _ in _by_family(papers)]),
        "verdict": ("With a claim", verdicts),
    }
    return templating.render(
        "gallery.md",
        filters=_filters(".lb-gallery .lb-item", choices),
        papers=[_card(root, paper) for paper in papers],
    )


def _card(root: Path, paper: Paper) -> dict[str, Any]:
    """What a paper's card in the gallery shows."""
    counts, picture, title = paper.counts(), thumbnail(root, paper), paper.card["title"]
    return {
        "slug": paper.slug,
        "name": h.markdown(paper.short),
        "alt": h.quoted(paper.short),
        "title": title if title != paper.short else "",
        "family": paper.card["family"],
        "year": paper.card["year"],
        "picture": h.quoted(picture[1]) if picture else "",
        "badges": [h.badge(v, count=counts[v]) for v in h.VERDICTS if counts[v]],
        "classes": [
            f"lb-family-{h.css(paper.card['family'])}",
            *(f"lb-has-{h.css(v)}" for v in counts),
        ],
    }


def scoreboard(papers: list[Paper]) -> str:
    """Every registered claim with the paper's figure, ours, n, tier and verdict; sortable and
    filterable.
    """
    head = ("Paper", "Claim", "In the paper", "Here", "n", "Tier", "Verdict")
    claims = [(paper, c) for paper in papers for c in paper.claims()]
    tested = {(c["slug"], c["id"]): c["p"] for c in chance.effects(c for _, c in claims)}
    q = chance.q_values(tested)
    rows = [_score(paper, c, q.get((paper.slug, c["id"]))) for paper, c in claims]
    tiers = {_tier(c) for _, c in claims}
    choices = {
        "family": ("Family", [f for f, _ in _by_family(papers)]),
        "verdict": ("Verdict", (*h.VERDICTS, *tables.LOOKS)),
        "kind": ("Kind", (CLAIMS, "effect", "equivalence", "identity", *h.ROLES.values())),
        "tier": ("Tier", sorted(tiers)),
    }
    found = h.table(head, rows, classes="lb-scores", sort=True)
    return f"{_filters('.lb-row', choices)}\n\n{found}\n"


def _tier(claim: dict[str, Any]) -> str:
    return claim["tier"] or f"needs {claim['needs']}"


def _odds(p: float) -> str:
    """A probability as it is printed: three digits after the point, or that it is smaller."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _score(paper: Paper, c: dict[str, Any], q: float | None) -> tuple[dict[str, str], list[Any]]:
    """One row of the scoreboard: its attributes and cells; q over all effects of the book."""
    odds = [] if q is None else [_odds(c["p"]), _odds(q)]
    data = {"family": paper.card["family"], "verdict": c["verdict"]}
    data |= {"kind": c["role"], "tier": _tier(c)}
    data = {f"data-{k}": h.css(v) for k, v in data.items()}
    data["data-kind"] += f" {CLAIMS}" if c["kind"] in PROPER else ""
    others = [
        {"tier": t, "estimate": h.estimate(r), "badge": h.badge(r["verdict"], c["role"])}
        for t, r in c["other"].items()
    ]
    badge = h.badge(c["verdict"], c["role"], silent=c.get("silent", False))
    cells = [
        _link(paper),
        templating.piece("named", _link(paper, c["id"], c["id"]), h.inline(c["statement"])),
        h.inline("" if c["kind"] == "control" else tables.paper_says(c)),
        templating.piece("here", h.estimate(c), others, odds),
        templating.piece("units", c.get("n") or 0, c["unit"]),
        _tier(c),
        badge + paper_page.rival_note(c),
    ]
    return {"class": "lb-row", "data-key": f"{paper.slug}-{c['id']}", **data}, cells


SHELF = {
    "not reproduced": "Not reproduced",
    "weaker": "Weaker than in the paper",
    "reproduced": "Reproduced, and so is a simpler explanation",
    "undecided": "Undecided",
    "broken": "Controls and identities that broke",
    "not tested": "Not tested at this tier",
}


def shelf_place(claim: dict[str, Any]) -> str | None:
    """The heading under which a claim stands on the shelf (a key of SHELF); None when it does not
    belong there.
    """
    verdict = claim["verdict"]
    if claim["kind"] in PROPER:
        return verdict if verdict != "reproduced" or claim["matched"] else None
    broken = tables.look(verdict) == "not reproduced" or (
        claim["kind"] == "identity" and verdict == "undecided"
    )
    return "broken" if broken and paper_page.is_check(claim) else None


def shelf(papers: list[Paper]) -> str:
    """What did not come out as the paper says, with its likely reason and what would change our
    mind.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for paper in papers:
        for c in paper.claims():
            if place := shelf_place(c):
                found.setdefault(place, []).append(_shelved(paper, c))
    sections = [(title, found[place]) for place, title in SHELF.items() if place in found]
    return templating.render("shelf.md", sections=sections)


def _shelved(paper: Paper, c: dict[str, Any]) -> dict[str, Any]:
    """A claim as it stands on the shelf."""
    prose = paper.discussion.get(c["id"]) or {}
    told = [("Decided by.", c.get("reason")), ("Likely reason.", prose.get("reason"))]
    told.append(("What would change our mind.", prose.get("would_change")))
    return {
        "slug": paper.slug,
        "id": c["id"],
        "link": _link(paper, c["id"], f"{paper.short}, {c['id']}"),
        "badge": h.badge(c["verdict"], c["role"]),
        "rivals": paper_page.rival_note(c),
        "statement": c["statement"],
        "paper": h.inline(tables.paper_says(c).rstrip(".")),
        "ours": h.ours(c),
        "told": [(title, text) for title, text in told if text],
    }
