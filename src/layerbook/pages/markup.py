"""Pieces of HTML that more than one page of the book is made of: badges, numbers, forest plots,
tables.

Everything here is a pure function from records to text, so that the same records always give the
same bytes.
HTML never holds an empty line: in Markdown that would end the block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from layerbook.claims.zones import VERDICTS
from layerbook.notebook import tables

GLYPHS = dict(zip(VERDICTS, "✓≈✗?–", strict=True))
COLOURS = dict(zip(VERDICTS, ("#1b7f6b", "#8f6a00", "#b83b22", "#5568a3", "#6d737a"), strict=True))
MEANING = {
    "reproduced": "the interval lies beyond the threshold, and a sabotaged control is worse",
    "weaker": "the paper's direction, short of the threshold or smaller than would matter",
    "not reproduced": "the other direction, or no room for an effect that would matter",
    "undecided": "too few units, or a precondition or control stands in the way",
    "not tested": "this tier may not decide it",
}
# What a control is called, by its role on the card.
ROLES = {"sabotage": "sabotaged control", "rival": "simpler explanation", "fact": "control"}
_SUPER = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def css(verdict: str) -> str:
    """The class name of a verdict: "not reproduced" -> "not-reproduced"."""
    return verdict.replace(" ", "-")


def label(verdict: str, role: str) -> str:
    """What a verdict or state is called beside the name of its claim."""
    if role in ROLES.values():
        return f"{role} {verdict}" if tables.look(verdict) != verdict else verdict
    return tables.label(role, verdict)


def badge(
    verdict: str, role: str = "effect", count: int | None = None, silent: bool = False
) -> str:
    """A verdict as coloured text with a sign, so that colour alone never carries it; grey where a
    control says nothing.
    """
    text = label(verdict, role) if count is None else f"{count} {verdict}"
    look, grey = tables.look(verdict), " lb-silent" if silent else ""
    sign = f'<span aria-hidden="true">{GLYPHS[look]}</span>'
    order = VERDICTS.index(look)
    return f'<span class="lb-badge lb-{css(look)}{grey}" data-sort="{order}">{sign} {text}</span>'


def number(value: float | None) -> str:
    """A figure as in the notebooks' own tables, with a power of ten in place of 'e-06'."""
    mantissa, e, power = tables.number(value).partition("e")
    return f"{mantissa}×10{str(int(power.replace('−', '-'))).translate(_SUPER)}" if e else mantissa


def interval(pair: Sequence[float] | None) -> str:
    """An interval in brackets, or nothing when the test has none."""
    return f"[{number(pair[0])}, {number(pair[1])}]" if pair else ""


# Commands with which MathJax makes links, loads code, or sets attributes of the page; math that
# holds one is shown as written.
UNSAFE = re.compile(
    r"\\(href|url|require|class|cssId|style|data|def|edef|gdef|let|futurelet|newcommand|renewcommand|newenvironment"
    r"|renewenvironment|html\w*|unicode|mmlToken|includegraphics|bbox|csname|[()\[\]])(?![A-Za-z])|\\\\[()]"
)


def markdown(text: str) -> str:
    """Text as one line of Markdown that shows it as it is: no heading, directive, role, link or
    math begins in it.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def quoted(text: str) -> str:
    """Text as the value of a directive's option, which is read as YAML."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def inline(text: Any) -> str:
    """A card's sentence as HTML: `code`, *emphasis* and $math$ are understood, all else is shown as
    it is.
    """
    parts = re.split(r"(\$[^$\n]+\$|`[^`\n]+`)", str(text if text is not None else "").strip())
    out = []
    for part in parts:
        if len(part) > 2 and part[0] == part[-1] == "$" and not UNSAFE.search(part):
            out.append(
                f'<span class="math notranslate nohighlight">\\({escape(part[1:-1])}\\)</span>'
            )
        elif len(part) > 2 and part[0] == part[-1] == "`":
            out.append(f"<code>{escape(part[1:-1])}</code>")
        else:
            safe = escape(re.sub(r"\s+", " ", part.replace("->", "→")), quote=False)
            out.append(re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", safe))
    return "".join(out)


def estimate(claim: dict[str, Any]) -> str:
    """Our estimate with its interval; the exact value goes along for sorting."""
    if claim.get("estimate") is None:
        return '<span class="lb-none">not measured</span>'
    figure = (
        f'<data class="lb-estimate" value="{claim["estimate"]}">{number(claim["estimate"])}</data>'
    )
    span = interval(claim.get("interval"))
    return f'{figure} <span class="lb-interval">{span}</span>' if span else figure


def ours(claim: dict[str, Any]) -> str:
    """Our estimate with its interval, n and what one unit is, as one table cell."""
    units = (
        f' <span class="lb-n">n = {claim["n"]} ({inline(claim["unit"])})</span>'
        if claim.get("n")
        else ""
    )
    return estimate(claim) + units


def thresholds(test: dict[str, Any]) -> list[float]:
    """The line or lines that a card's test draws: above/below/between/within, also inside
    every/count.
    """
    if "within" in test:
        return [-float(test["within"]), float(test["within"])]
    for form in (test, test.get("every") or {}, test.get("count") or {}):
        for key in ("above", "below"):
            if isinstance(form.get(key), int | float):
                return [float(form[key])]
        if isinstance(form.get("between"), list):
            return [float(v) for v in form["between"]]
    return []


def forest(claim: dict[str, Any], test: dict[str, Any] | None) -> str:
    """A small forest plot: units as dots, estimate and interval as a bar, the test's threshold as a
    dashed line.

    Decoration beside the same figures in words, hence hidden from screen readers. Empty without
    estimate.
    """
    values, bar = ([v for v in claim.get(k) or [] if v is not None] for k in ("values", "interval"))
    mean, lines = claim.get("estimate"), thresholds(test or {})
    if mean is None:
        return ""
    values = values[:60]
    known = [*values, *bar, mean, *lines]
    low, high = min(known), max(known)
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{6 + 148 * (value - low) / width:.1f}"

    shapes = [f'<line class="lb-f-test" x1="{at(v)}" x2="{at(v)}" y1="1" y2="23"/>' for v in lines]
    shapes += [f'<circle class="lb-f-unit" cx="{at(v)}" cy="18" r="2"/>' for v in values]
    if len(bar) == 2:
        shapes.append(f'<line class="lb-f-bar" x1="{at(bar[0])}" x2="{at(bar[1])}" y1="8" y2="8"/>')
    shapes.append(f'<circle class="lb-f-mean" cx="{at(mean)}" cy="8" r="3.5"/>')
    return f'<svg class="lb-forest" viewBox="0 0 160 24" aria-hidden="true">{"".join(shapes)}</svg>'


def table(
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    classes: str = "",
    sort: bool = False,
) -> str:
    """A table on a wide screen that the style sheet turns into a list of cards on a phone.

    head: column titles. rows: (attributes of the <tr>, cells as HTML), the first cell heading its
    row.
    sort: put a button into every column title for the book's own script.
    """
    titles = (
        f'<button type="button" class="lb-sort">{name}</button>' if sort else name for name in head
    )
    columns = "".join(f'<th scope="col">{name}</th>' for name in titles)
    lines = []
    for attributes, (first, *rest) in rows:
        cells = f'<th scope="row">{first}</th>'
        cells += "".join(
            f'<td data-label="{escape(h)}">{c}</td>' for h, c in zip(head[1:], rest, strict=True)
        )
        lines.append(f"<tr {attributes}>{cells}</tr>".replace("<tr >", "<tr>"))
    body = "\n".join(lines)
    box = f'<div class="lb-scroll" tabindex="0" role="region" aria-label="{escape(head[0])} table">'
    return (
        f'{box}<table class="lb-table lb-cards {classes}">'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def overview(bars: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Verdicts as one SVG file, for the README: a bar per family (its name, its verdict counts)."""
    longest, shapes = max((sum(c.values()) for _, c in bars), default=1), []
    for i, (family, counts) in enumerate(bars):
        y, x = 30 * i + 8, 170.0
        shapes.append(f'<text x="160" y="{y + 15}" text-anchor="end">{family}</text>')
        for verdict in (v for v in VERDICTS if counts.get(v)):
            wide = 520 * counts[verdict] / longest
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="22" fill="{COLOURS[verdict]}"/>'
            )
            shapes.append(
                f'<text class="n" x="{x + wide / 2:.1f}" y="{y + 15}">{counts[verdict]}</text>'
            )
            x += wide
    base = 30 * len(bars) + 26
    for i, (verdict, colour) in enumerate(COLOURS.items()):
        shapes.append(
            f'<rect x="{20 + 138 * i}" y="{base - 10}" width="11" height="11" fill="{colour}"/>'
        )
        shapes.append(f'<text x="{36 + 138 * i}" y="{base}">{verdict}</text>')
    told = ", ".join(f"{sum(c.get(v, 0) for _, c in bars)} {v}" for v in VERDICTS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 710 {base + 14}" role="img"><title>Verdicts by family: '
        f"{told}</title><style>text{{font:13px system-ui,sans-serif;fill:#333}}.n{{fill:#fff;font-weight:600;"
        "text-anchor:middle}@media(prefers-color-scheme:dark){text{fill:#ddd}.n{fill:#fff}}"
        f"</style>{''.join(shapes)}</svg>\n"
    )


def duration(seconds: float) -> str:
    """A time as people say it: "42 s", "1 min 5 s", "2 h 3 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(megabytes: float) -> str:
    """A size: "20 kB", "830 MB" or "1.8 GB"."""
    if megabytes < 1:
        return f"{1000 * megabytes:.0f} kB"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def cost(record: Mapping[str, Any]) -> str:
    """What a run took: "1 min 1 s, 1.8 GB memory, cpu, 2 threads"."""
    gpu = (
        f", {memory(record['peak_gpu_memory_mb'])} GPU memory"
        if record.get("peak_gpu_memory_mb")
        else ""
    )
    used = f"{memory(record['peak_memory_mb'])} memory{gpu}"
    return f"{duration(record['seconds'])}, {used}, {escape(record['device'])}"
