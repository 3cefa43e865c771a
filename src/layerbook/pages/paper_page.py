"""The page of one paper: a header with the verdicts, the executed notebook, and how to cite both."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from layerbook.claims import papersources, varying
from layerbook.notebook import tables
from layerbook.pages import cells as pagecells
from layerbook.pages import markup as h
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


def _byline(paper: Paper) -> str:
    card = paper.card
    parts = [escape(", ".join(card["authors"])), str(card["year"])]
    if card.get("venue"):
        parts.append(escape(card["venue"]))
    parts += [
        f'<a href="{escape(address)}">{escape(text)}</a>'
        for text, address in papersources.links(card)
    ]
    code = card.get("code") or {}
    if code.get("url"):
        licence = f" ({escape(code['licence'])})" if code.get("licence") else ""
        parts.append(f'<a href="{escape(code["url"])}">authors\' code</a>{licence}')
    return f'<p class="lb-byline">{" · ".join(parts)}</p>'


def _verdict_rows(claims: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = []
    for claim in claims:
        notes = (
            ("how our setting differs", claim.get("differs")),
            ("what was changed", claim.get("changed")),
        )
        aside = "".join(
            f"<details><summary>{k}</summary>{h.inline(v)}</details>" for k, v in notes if v
        )
        also = "".join(
            f"<li>{h.inline(part['test'])}: {h.number(part.get('estimate'))} {h.interval(part.get('interval'))}, "
            f"{'sharper test: ' if part.get('asks') == 'us' else ''}{h.inline(part.get('outcome'))}</li>"
            for part in claim.get("also") or []
        )
        tests = f"<details><summary>the test</summary>{h.inline(claim.get('test'))}<ul>{also}</ul></details>"
        measured = (
            h.ours(claim)
            + h.forest(claim, claim["registered"])
            + (tests if claim.get("test") else "")
        )
        badge = h.badge(claim["verdict"], claim["role"], silent=claim.get("silent", False))
        verdict = badge + rival_note(claim) + varies_note(claim)
        rows.append(
            (
                f'id="claim-{claim["id"]}"',
                [
                    f'<span class="lb-id">{claim["id"]}</span> {h.inline(claim["statement"])}{aside}',
                    h.inline("" if claim["kind"] == "control" else tables.paper_says(claim)),
                    measured,
                    f'{verdict}<span class="lb-reason">{h.inline(claim.get("reason"))}</span>',
                ],
            )
        )
    return rows


def varies_note(row: dict[str, Any]) -> str:
    """A badge at a claim or finding that two runs need not agree on: what its numbers depend on."""
    return (
        f' <span class="lb-badge">{varying.MEANING[row["varies"]]}</span>'
        if row.get("varies")
        else ""
    )


def rival_note(claim: dict[str, Any]) -> str:
    """Badges beside the verdict of a claim that holds while a simpler explanation is level or ahead."""
    return "".join(
        f' <span class="lb-badge lb-rival">simpler explanation {r["id"]} is {r["state"]}</span>'
        for r in claim["matched"]
    )


def _rival_alert(paper: Paper, tier: str) -> str:
    rows = paper.claims(tier)
    statements = {c["id"]: c["statement"] for c in rows}
    items = [
        f"<li><b>{c['id']} is {c['verdict']}, and so is a simpler explanation, {r['id']} "
        f"({r['state']}):</b> {h.inline(statements[r['id']])}</li>"
        for c in rows
        for r in c["matched"]
    ]
    return f'<ul class="lb-alert">{"".join(items)}</ul>' if items else ""


def is_check(claim: dict[str, Any]) -> bool:
    """Whether a row is an identity or a control that says something: no simpler explanation, and no
    control of a claim that was not reproduced.
    """
    checks = ("identity", h.ROLES["sabotage"], h.ROLES["fact"])
    told = claim["verdict"] != "not tested" and not claim.get("silent")
    return claim["role"] in checks and told


def _strip(paper: Paper, tier: str) -> str:
    """Verdict counts of the claims proper, and whether every identity and control behaved."""
    counts = paper.counts(tier)
    badges = [h.badge(v, count=counts[v]) for v in h.VERDICTS if counts[v]]
    checks = [c for c in paper.claims(tier) if is_check(c)]
    held = sum(tables.look(c["verdict"]) == "reproduced" for c in checks)
    text = (
        f'<span class="lb-n">{held} of {len(checks)} identities and controls behaved as they '
        "must</span>"
    )
    return f'<p class="lb-strip">{" ".join(badges)} {text if checks else ""}</p>'


def _discussion(paper: Paper, tier: str) -> str:
    """Why a claim did not come out reproduced and what would change our mind, in the paper's own
    words.
    """
    by_id = {c["id"]: c for c in paper.claims(tier)}
    items = []
    for claim_id, prose in paper.discussion.items():
        if claim_id in by_id:
            claim = by_id[claim_id]
            items.append(
                f'<dt><span class="lb-id">{claim_id}</span> {h.badge(claim["verdict"], claim["role"])}{rival_note(claim)}</dt>'
                f"<dd>{h.inline(prose.get('reason'))} <em>What would change our mind:</em> "
                f"{h.inline(prose.get('would_change') or 'not known')}</dd>"
            )
    return f'<dl class="lb-why">{"".join(items)}</dl>' if items else ""


def _header(paper: Paper, tier: str, title: str, idea: str) -> str:
    record, slug = paper.records[tier], paper.slug
    rows = paper.claims(tier)
    head = ("Claim", "In the paper", "Here: estimate, 95 % interval", "Verdict")
    proper = [c for c in rows if c["kind"] != "control"]
    controls = [c for c in rows if c["kind"] == "control"]
    main_table = h.table(head, _verdict_rows(proper), classes="lb-claims")
    parts = [f"# {title}{'' if tier == paper.main else f' ({tier} run)'}", _byline(paper)]
    parts.append(h.inline(paper.card["summary"]).join(('<p class="lb-summary">', "</p>")))
    parts.append(_strip(paper, tier) + _rival_alert(paper, tier))
    parts.append(
        f'<p class="lb-cost">Rerun ({h.cost(record)}): <code>make rerun PAPER={slug} TIER={tier}</code></p>'
    )
    if carried := record.get("carried"):
        parts.append(
            f'<p class="lb-cost">Measured at commit <code>{h.escape(carried["commit"][:10])}</code>; '
            f"not run again since: {h.inline(carried['why'])}.</p>"
        )
    others = [t for t in paper.records if t != tier]
    for other in others:
        file = Path(page_path(paper, other)).name
        parts.append(f"This page shows the {tier} run. There is also [the {other} run]({file}).")
    parts.append(f'<div id="verdict-table">{main_table}</div>')
    if controls:
        inner = h.table(head, _verdict_rows(controls), classes="lb-claims")
        parts.append(
            f'<details class="lb-controls"><summary>Sabotaged controls and simpler explanations '
            f"({len(controls)}): the claim's own measurement minus theirs</summary>{inner}</details>"
        )
    for gate in record.get("gates") or []:
        parts.append(
            f'<p class="lb-gate">Precondition {gate["id"]}, {tables.gate_state(gate)}: {h.inline(gate["statement"])}</p>'
        )
    parts.append(_findings(record))
    if why := _discussion(paper, tier):
        parts.append(f"## What did not come out\n\n{why}")
    parts.append(f"## Rerun it\n\n{_rerun(paper, tier)}")
    if idea:
        parts.append(f"## The idea\n\n{idea}")
    return "\n\n".join(part for part in parts if part)


def _findings(record: dict[str, Any]) -> str:
    items = "".join(
        f"<li>{h.inline(f['name'])}: {h.inline(f['statement'])} {h.ours({'unit': 'units', **f})}"
        f"{varies_note(f)}</li>"
        for f in record.get("findings") or []
    )
    return f"<p>Also measured, without a verdict:</p>\n<ul>{items}</ul>" if items else ""


def _rerun(paper: Paper, tier: str) -> str:
    slug = paper.slug
    options = paper.card.get("parameters") or {}
    example = " -p model <checkpoint>" if "model" in options else ""
    files = [
        ("notebook", f"../../notebooks/{slug}.ipynb"),
        ("executed notebook", f"../../results/{tier}/{slug}.ipynb"),
        ("card", f"../../notebooks/{slug}.yaml"),
        ("record", f"../../results/{tier}/{slug}.json"),
        ("verdicts", f"../../results/{tier}/{slug}.verdicts.json"),
    ]
    links = ", ".join(f"{{download}}`{name} <{target}>`" for name, target in files)
    rows = [
        ("", [f"<code>{name}</code>", h.inline((spec or {}).get("help"))])
        for name, spec in options.items()
    ]
    table = h.table(("Parameter", "What it is"), rows) if rows else ""
    return (
        f"```bash\nmake rerun PAPER={slug} TIER={tier}\n"
        f"papermill notebooks/{slug}.ipynb out.ipynb -p tier {tier} -p seed 3{example}\n```\n\n"
        f"{table}\n\nDownload: {links}."
    ).replace("\n\n\n\n", "\n\n")


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
    own = (
        f"@misc{{layerbook-{paper.slug},\n  title        = {{{{{braced(paper.short)}}}, reproduced}},\n"
        f"  author       = {{{{Layerbook contributors}}}},\n  howpublished = {{Layerbook}},\n"
        f"  note         = {{Reproduction of {_source(paper)}}}\n}}"
    )
    if cited:
        return f"### This reproduction\n\n```bibtex\n{own}\n```"
    block = "\n\n".join(part for part in (bibtex(root, paper.card.get("cite") or ""), own) if part)
    return f"## Cite\n\n```bibtex\n{block}\n```"


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
