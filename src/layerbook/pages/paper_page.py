"""The page of one paper: a header with the verdicts, the executed notebook, and how to cite both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbformat import NotebookNode

from layerbook.claims import papersources, varying
from layerbook.notebook import tables
from layerbook.pages import cells as pagecells
from layerbook.pages import markup as h
from layerbook.pages import templating
from layerbook.pages.papers import BookError, Paper, checked
from layerbook.pipeline import filefaults

CAPTIONS = {
    "parameters": "The notebook's own defaults.",
    "injected-parameters": "What this run was given instead.",
}


def page_path(paper: Paper, tier: str) -> str:
    """Where the page of a tier lies below book/: the main tier has the paper's own name."""
    return (
        f"papers/{paper.slug}.ipynb" if tier == paper.main else f"papers/{paper.slug}-{tier}.ipynb"
    )


def _markdown(cell_id: str, text: str) -> NotebookNode:
    cell = nbformat.v4.new_markdown_cell(text.strip() + "\n")
    cell["id"] = cell_id
    return cell


def read_notebook(root: Path, paper: Paper, tier: str) -> NotebookNode:
    """The source notebook with the outputs of a tier's run; BookError when that ran other code or
    is missing.
    """
    path, source = (
        root / "results" / tier / f"{paper.slug}.ipynb",
        root / "notebooks" / f"{paper.slug}.ipynb",
    )
    again = f"make rerun PAPER={paper.slug} TIER={tier}"
    if not path.is_file():
        raise BookError(f"{path.name} is missing beside its record: {again}")
    notebook = checked(path, filefaults.notebook_of, root)
    try:
        cells = pagecells.merged(nbformat.read(source, as_version=4), notebook)
    except pagecells.CellsDiffer as error:
        raise BookError(f"results/{tier}/{path.name}: {error}; run it again: {again}") from None
    notebook.cells = pagecells.with_current_tables(cells, paper.card, paper.records[tier])
    return notebook


def images(cells: list[NotebookNode]) -> list[tuple[str, str]]:
    """Every PNG of some cells in order, as (base64 text, text alternative); the alternative may be
    empty.
    """
    found = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                found.append((output["data"]["image/png"], alt))
    return found


def _byline(paper: Paper) -> Markup:
    card = paper.card
    code = card.get("code") or {}
    return templating.render(
        "byline.html",
        authors=", ".join(card["authors"]),
        year=card["year"],
        venue=card.get("venue"),
        links=papersources.links(card),
        code={"url": code["url"], "licence": code.get("licence")} if code.get("url") else None,
    )


def _verdict_rows(claims: list[dict[str, Any]]) -> list[tuple[dict[str, str], list[Markup]]]:
    """Rows of a table of claims: attributes and cells."""
    rows = []
    for claim in claims:
        notes = (
            ("how our setting differs", claim.get("differs")),
            ("what was changed", claim.get("changed")),
        )
        tests = [
            {k: part.get(k) for k in ("test", "estimate", "interval", "asks", "outcome")}
            for part in claim.get("also") or []
        ]
        badge = h.badge(claim["verdict"], claim["role"], silent=claim.get("silent", False))
        rows.append(
            (
                {"id": f"claim-{claim['id']}"},
                [
                    templating.piece("claim", claim, notes),
                    h.inline("" if claim["kind"] == "control" else tables.paper_says(claim)),
                    templating.piece(
                        "measured",
                        h.ours(claim),
                        h.forest(claim, claim["registered"]),
                        claim.get("test"),
                        tests,
                    ),
                    templating.piece(
                        "verdict",
                        badge + rival_note(claim) + varies_note(claim),
                        claim.get("reason"),
                    ),
                ],
            )
        )
    return rows


def varies_note(row: dict[str, Any]) -> Markup:
    """A badge at a claim or finding that two runs need not agree on: what its numbers depend on."""
    if not row.get("varies"):
        return Markup()
    return Markup(" ") + templating.piece("varies", varying.MEANING[row["varies"]])


def rival_note(claim: dict[str, Any]) -> Markup:
    """Badges beside the verdict of a claim that holds while a simpler explanation is level or ahead."""
    return Markup(" ") + templating.piece("rivals", claim) if claim["matched"] else Markup()


def _alerts(paper: Paper, tier: str) -> list[dict[str, str]]:
    """Claims that hold, each with a simpler explanation that does as well."""
    rows = paper.claims(tier)
    statements = {c["id"]: c["statement"] for c in rows}
    return [
        {
            "id": c["id"],
            "verdict": c["verdict"],
            "rival": r["id"],
            "state": r["state"],
            "statement": statements[r["id"]],
        }
        for c in rows
        for r in c["matched"]
    ]


def is_check(claim: dict[str, Any]) -> bool:
    """Whether a row is an identity or a control that says something: no simpler explanation, and no
    control of a claim that was not reproduced.
    """
    checks = ("identity", h.ROLES["sabotage"], h.ROLES["fact"])
    told = claim["verdict"] != "not tested" and not claim.get("silent")
    return claim["role"] in checks and told


def _why(paper: Paper, tier: str) -> list[dict[str, Any]]:
    """Claims that did not come out reproduced with the paper's own discussion of them."""
    by_id = {c["id"]: c for c in paper.claims(tier)}
    return [
        {
            "id": claim,
            "badge": h.badge(by_id[claim]["verdict"], by_id[claim]["role"])
            + rival_note(by_id[claim]),
            "reason": prose.get("reason"),
            "would_change": prose.get("would_change") or "not known",
        }
        for claim, prose in paper.discussion.items()
        if claim in by_id
    ]


def _header(paper: Paper, tier: str, title: str, idea: str) -> str:
    """All that stands above the notebook's cells, as Markdown with HTML.

    Args:
        title, idea: the notebook's own heading and first text, as Markdown.
    """
    record, slug, rows = paper.records[tier], paper.slug, paper.claims(tier)
    head = ("Claim", "In the paper", "Here: estimate, 95 % interval", "Verdict")
    controls = [c for c in rows if c["kind"] == "control"]
    claims = [c for c in rows if c["kind"] != "control"]
    counts, checks = paper.counts(tier), [c for c in rows if is_check(c)]
    options = paper.card.get("parameters") or {}
    return templating.render(
        "paper.md",
        title=Markup(title),
        idea=Markup(idea),
        main=tier == paper.main,
        tier=tier,
        slug=slug,
        byline=_byline(paper),
        summary=paper.card["summary"],
        badges=[h.badge(v, count=counts[v]) for v in h.VERDICTS if counts[v]],
        checks=len(checks),
        held=sum(tables.look(c["verdict"]) == "reproduced" for c in checks),
        alerts=_alerts(paper, tier),
        cost=h.cost(record),
        others=[(t, Path(page_path(paper, t)).name) for t in paper.records if t != tier],
        claims=h.table(head, _verdict_rows(claims), classes="lb-claims"),
        controls=(len(controls), h.table(head, _verdict_rows(controls), classes="lb-claims"))
        if controls
        else None,
        gates=[
            {"id": g["id"], "state": tables.gate_state(g), "statement": g["statement"]}
            for g in record.get("gates") or []
        ],
        findings=_findings(record),
        why=_why(paper, tier),
        example=Markup(" -p model <checkpoint>") if "model" in options else "",
        parameters=_parameters(options),
        files=_files(slug, tier),
    )


def _findings(record: dict[str, Any]) -> Markup:
    rows = [
        {
            "name": f["name"],
            "statement": f["statement"],
            "ours": h.ours({"unit": "units", **f}),
            "note": varies_note(f),
        }
        for f in record.get("findings") or []
    ]
    return templating.render("findings.html", findings=rows)


def _parameters(options: dict[str, Any]) -> Markup:
    rows = [
        ({}, [templating.piece("code", name), h.inline((spec or {}).get("help"))])
        for name, spec in options.items()
    ]
    return h.table(("Parameter", "What it is"), rows) if rows else Markup()


def _files(slug: str, tier: str) -> list[tuple[str, Markup]]:
    """What can be downloaded: name -> its path from the page."""
    return [
        ("notebook", Markup(f"../../notebooks/{slug}.ipynb")),
        ("executed notebook", Markup(f"../../results/{tier}/{slug}.ipynb")),
        ("card", Markup(f"../../notebooks/{slug}.yaml")),
        ("record", Markup(f"../../results/{tier}/{slug}.json")),
        ("verdicts", Markup(f"../../results/{tier}/{slug}.verdicts.json")),
    ]


def bibtex(root: Path, key: str) -> str | None:
    """One entry of book/references.bib as written there, or None."""
    path = root / "book" / "references.bib"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(
        rf"^@\w+\s*\{{\s*{re.escape(key)}\s*,.*?^\}}", text, flags=re.MULTILINE | re.DOTALL
    )
    return found.group(0) if found else None


def braced(text: str) -> str:
    """Text as part of a BibTeX value: on one line, with no brace that opens or closes another."""
    return " ".join(text.split()).replace("{", "").replace("}", "").replace("\\", "")


def _source(paper: Paper) -> str:
    """The paper's first identifier in the words of its BibTeX note: `arXiv:2401.00001`, or an
    address.
    """
    text, address = papersources.links(paper.card)[0]
    return braced(text if "arxiv" in paper.card else address)


def _cite(root: Path, paper: Paper, cited: bool) -> str:
    """BibTeX of the reproduction, after the paper's own where the notebook does not end with that."""
    data = {"slug": paper.slug, "short": braced(paper.short), "source": _source(paper)}
    own = templating.render("own.bib", **{k: Markup(v) for k, v in data.items()})
    entry = bibtex(root, paper.card.get("cite") or "") or ""
    return templating.render("cite.md", cited=cited, own=own, paper=Markup(entry))


def page(root: Path, paper: Paper, tier: str) -> str:
    """The page of one run as notebook JSON: header, cells as executed, citation."""
    notebook = read_notebook(root, paper, tier)
    first = notebook.cells[0]
    title, idea, cells = h.markdown(paper.card["title"]), "", list(notebook.cells)
    if first.cell_type == "markdown" and first.source.startswith("# "):
        heading, _, idea = first.source.partition("\n")
        title, cells = heading[2:].strip(), cells[1:]
    out = [_markdown("book-header", _header(paper, tier, title, idea.strip()))]
    for cell in cells:
        if (
            tier != paper.main and cell.cell_type == "markdown"
        ):  # the main page keeps the equation labels
            cell.source = re.sub(r"(\$\$[ \t]*)\([\w:-]+\)", r"\1", cell.source)
        tags = cell.metadata.get("tags", [])
        for tag, caption in CAPTIONS.items():
            if tag in tags:
                out.append(_markdown(f"caption-{tag}", f'<p class="lb-caption">{caption}</p>'))
        alts = [alt for _, alt in images([cell]) if alt]
        if alts:  # MyST-NB takes the text alternative from the cell, not from the output
            cell.metadata.setdefault("mystnb", {}).setdefault("image", {})["alt"] = " ".join(alts)
        out.append(cell)
    cited = any(cell.cell_type == "markdown" and "## Cite" in cell.source for cell in cells)
    out.append(_markdown("book-cite", _cite(root, paper, cited)))
    notebook.cells = out
    return nbformat.writes(notebook, indent=1) + "\n"
