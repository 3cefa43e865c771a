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
from html import escape
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from layerbook.data.manifest import load as load_assets
from layerbook.notebook import tables
from layerbook.pages import family_page as report_family
from layerbook.pages import markup as h
from layerbook.pages import paper_page, quantization_page, speed
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
        "book/_generated/assets.md": assets(root, papers),
        "book/_generated/reference.md": reference(root),
        "book/_generated/bench.md": speed.fragment(root),
        "book/_generated/runs.md": speed.runs(papers),
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


def _link(paper: Paper, claim_id: str = "", text: str = "") -> str:
    anchor = f"#claim-{claim_id}" if claim_id else ""
    return f'<a href="papers/{paper.slug}.html{anchor}">{escape(text or paper.short)}</a>'


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
    """The front page's numbers and its picture."""
    rows, proper = [c for p in papers for c in p.claims()], _total(papers)
    tiles = "".join(
        f'<a class="lb-tile lb-{h.css(v)}" href="scoreboard.html?verdict={h.css(v)}&amp;kind={CLAIMS}"><b>{proper[v]}</b> '
        f'<span><span aria-hidden="true">{h.GLYPHS[v]}</span> {v}</span></a>'
        for v in h.VERDICTS
    )
    checks, held = [c for c in rows if paper_page.is_check(c)], {}
    for name, mine in (
        ("identity", [c for c in checks if c["kind"] == "identity"]),
        ("control", [c for c in checks if c["kind"] == "control"]),
    ):
        good = sum(tables.look(c["verdict"]) == "reproduced" for c in mine)
        held[name] = f"{good} of {len(mine)}"
    matched = sum(c["verdict"] == "reproduced" and bool(c["matched"]) for c in rows)
    return (
        f'<p class="lb-lead"><b>{len(papers)}</b> {"paper" if len(papers) == 1 else "papers"}, '
        f'<b>{proper.total()}</b> claims, decided by statistics:</p>\n\n<div class="lb-tiles">{tiles}</div>\n\n'
        f'<p class="lb-aside">{held["identity"]} mathematical identities hold, {held["control"]} controls that were run behaved '
        f"as they must, and in {matched} {'claim' if matched == 1 else 'claims'} "
        f'<a href="shelf.html">a simpler explanation does as well</a>.</p>\n\n{wall(papers)}\n'
    )


def wall(papers: list[Paper]) -> str:
    """The verdict overview: one square per claim, one row per paper, one panel per family; fits a
    phone.
    """
    panels = []
    for family, mine in _by_family(papers):
        lines = []
        for paper in mine:
            counts = ", ".join(f"{n} {v}" for v in h.VERDICTS if (n := paper.counts()[v]))
            squares = "".join(
                f'<span class="lb-square lb-{h.css(c["verdict"])}" title="{c["id"]} {c["verdict"]}: '
                f'{escape(" ".join(c["statement"].split()))}">{h.GLYPHS[c["verdict"]]}</span>'
                for c in paper.claims()
                if c["kind"] in PROPER
            )
            row = f'<span class="lb-squares" role="img" aria-label="{counts}">{squares}</span>'
            lines.append(f"<li>{_link(paper)}{row}</li>")
        panels.append(
            f'<div class="lb-panel"><p>{family.capitalize()}</p><ul>{"".join(lines)}</ul></div>'
        )
    legend = "".join(
        f'<span><span class="lb-square lb-{h.css(v)}" aria-hidden="true">{h.GLYPHS[v]}</span> {v}: {meaning}</span>'
        for v, meaning in h.MEANING.items()
    )
    return f'<div class="lb-wall">{"".join(panels)}</div>\n<p class="lb-legend">{legend}</p>'


def _filters(target: str, choices: dict[str, tuple[str, Sequence[str]]]) -> str:
    """A form that the book's script fills with life: name of the data attribute -> (label, values)."""
    fields = ['<label>Search <input type="search" data-filter="text"></label>']
    for name, (title, values) in choices.items():
        options = "".join(f'<option value="{h.css(v)}">{v}</option>' for v in values)
        fields.append(
            f'<label>{title} <select data-filter="{name}"><option value="">all</option>{options}</select></label>'
        )
    shown = '<output class="lb-shown" aria-live="polite"></output>'
    return (
        f'<form class="lb-filters" data-target="{target}" hidden>{"".join(fields)}{shown}</form>\n'
    )


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
    lines = [_filters(".lb-gallery .lb-item", choices), "::::{grid} 1 2 2 3", ":gutter: 3"]
    lines += [":class-container: lb-gallery", ""]
    for paper in papers:
        counts, picture = paper.counts(), thumbnail(root, paper)
        classes = [
            f"lb-family-{h.css(paper.card['family'])}",
            *(f"lb-has-{h.css(v)}" for v in counts),
        ]
        lines += [
            f":::{{grid-item-card}} {h.markdown(paper.short)}",
            f":link: papers/{paper.slug}",
            ":link-type: doc",
        ]
        lines += [
            f":link-alt: {h.quoted(paper.short)}",
            f":class-item: lb-item {' '.join(classes)}",
        ]
        if picture:
            lines += [
                f":img-top: _generated/thumb-{paper.slug}.png",
                f":img-alt: {h.quoted(picture[1])}",
            ]
        if paper.short != paper.card["title"]:
            lines += ["", f'<p class="lb-card-title">{escape(paper.card["title"])}</p>']
        badges = " ".join(h.badge(v, count=counts[v]) for v in h.VERDICTS if counts[v])
        family = f'<p class="lb-card-family">{paper.card["family"]} · {paper.card["year"]}</p>'
        lines += ["", family, f'<p class="lb-strip">{badges}</p>', ":::", ""]
    return "\n".join([*lines, "::::"]) + "\n"


def scoreboard(papers: list[Paper]) -> str:
    """Every registered claim with the paper's figure, ours, n, tier and verdict; sortable and
    filterable.
    """
    head = ("Paper", "Claim", "In the paper", "Here", "n", "Tier", "Verdict")
    rows, tiers = [], set()
    for paper in papers:
        for c in paper.claims():
            others = "".join(
                f'<span class="lb-other">{t}: {h.estimate(r)} {h.badge(r["verdict"], c["role"])}</span>'
                for t, r in c["other"].items()
            )
            unit = f' <span class="lb-n">{h.inline(c["unit"])}</span>' if c.get("n") else ""
            tier = c["tier"] or f"needs {c['needs']}"
            tiers.add(tier)
            data = {
                "family": paper.card["family"],
                "verdict": c["verdict"],
                "kind": c["role"],
                "tier": tier,
            }
            data = {k: h.css(v) for k, v in data.items()}
            data["kind"] += f" {CLAIMS}" if c["kind"] in PROPER else ""
            attributes = "".join(f' data-{k}="{v}"' for k, v in data.items())
            cells = [
                _link(paper),
                f'<span class="lb-id">{_link(paper, c["id"], c["id"])}</span> {h.inline(c["statement"])}',
                h.inline("" if c["kind"] == "control" else tables.paper_says(c)),
                h.estimate(c) + others,
                f'<data value="{c.get("n") or 0}">{c.get("n") or "–"}</data>{unit}',
                tier,
                h.badge(c["verdict"], c["role"], silent=c.get("silent", False))
                + paper_page.rival_note(c),
            ]
            rows.append((f'class="lb-row" data-key="{paper.slug}-{c["id"]}"{attributes}', cells))
    choices = {
        "family": ("Family", [f for f, _ in _by_family(papers)]),
        "verdict": ("Verdict", (*h.VERDICTS, *tables.LOOKS)),
        "kind": ("Kind", (CLAIMS, "effect", "equivalence", "identity", *h.ROLES.values())),
        "tier": ("Tier", sorted(tiers)),
    }
    return (
        _filters(".lb-row", choices)
        + "\n"
        + h.table(head, rows, classes="lb-scores", sort=True)
        + "\n"
    )


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
    sections: dict[str, list[str]] = {}
    for paper in papers:
        for c in paper.claims():
            if not (place := shelf_place(c)):
                continue
            prose = paper.discussion.get(c["id"]) or {}
            told = [("Decided by.", c.get("reason")), ("Likely reason.", prose.get("reason"))]
            told.append(("What would change our mind.", prose.get("would_change")))
            link = _link(paper, c["id"], f"{paper.short}, {c['id']}")
            why = "".join(f"<p><b>{title}</b> {h.inline(text)}</p>" for title, text in told if text)
            sections.setdefault(place, []).append(
                f'<div class="lb-shelf" id="{paper.slug}-{c["id"]}"><p class="lb-shelf-head">'
                f"{link} {h.badge(c['verdict'], c['role'])}{paper_page.rival_note(c)}</p>"
                f'<p>{h.inline(c["statement"])}</p><p class="lb-figures">In the paper: '
                f"{h.inline(tables.paper_says(c)).rstrip('.')}. Here: {h.ours(c)}</p>{why}</div>"
            )
    done = [
        f"## {title}\n\n" + "\n".join(sections[k]) for k, title in SHELF.items() if k in sections
    ]
    return "\n\n".join(done or ["The shelf is empty."]) + "\n"


def assets(root: Path, papers: list[Paper]) -> str:
    """Models and data with source, licence and the papers that use them; then the networks trained
    here.
    """
    users: dict[str, list[str]] = {}
    for paper in papers:
        for name in paper.card["substrate"]:
            users.setdefault(name, []).append(_link(paper))
    rows = []
    for a in load_assets(root / "src" / "layerbook" / "data" / "assets.yaml").values():
        name = f'<b id="{a.name}">{a.name}</b> <span class="lb-n">{h.memory(a.size / 1e6)}</span>'
        package = f'<span class="lb-n">{a.client}: {escape(a.package)} {escape(a.version)}</span>'
        source = f'<a href="{escape(a.homepage)}" aria-label="home of {a.name}">home</a> {package}'
        used = ", ".join(users.get(a.name, ["the book and its tests"] if a.client == "npm" else []))
        rows.append(("", [name, h.inline(a.description), source, escape(a.licence), used]))
    text = h.table(("Asset", "What it is", "Source", "Licence", "Used by"), rows)
    trained = []
    for path in sorted((root / "results" / "models").glob("*/card.json")):
        card, name = json.loads(path.read_text(encoding="utf-8")), path.parent.name
        used = ", ".join(users.get(name, []))
        trained.append(("", [f'<b id="{name}">{name}</b>', h.inline(card["description"]), used]))
    if trained:
        text += "\n\n## Networks trained here\n\nSmall networks that the pipeline trains and several papers share.\n\n"
        text += h.table(("Network", "What it is", "Used by"), trained)
    return text + "\n"


def reference(root: Path) -> str:
    """One autodoc section per public module of the package, below what the folder that it lies in
    is for.
    """
    package, out = root / "src" / "layerbook", []
    folders = [package, *sorted(p.parent for p in package.glob("*/__init__.py"))]
    for folder in folders:
        home = ".".join(folder.relative_to(package.parent).parts)
        out.append(f"## {home}\n")
        if (
            folder != package
        ):  # the package's own docstring stands at the top of the page in other words
            out.append(f"```{{eval-rst}}\n.. automodule:: {home}\n```\n")
        for file in sorted(folder.glob("*.py")):
            if not file.stem.startswith("_"):
                name = f"{home}.{file.stem}"
                out.append(
                    f"### {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
                )
    return "\n".join(out)
