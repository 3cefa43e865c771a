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

from markupsafe import Markup

from layerbook.claims.zones import VERDICTS
from layerbook.notebook import tables
from layerbook.pages import templating

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
) -> Markup:
    """A verdict as coloured text with a sign, so that colour alone never carries it; grey where a
    control says nothing.
    """
    text = label(verdict, role) if count is None else f"{count} {verdict}"
    look = tables.look(verdict)
    return templating.piece("badge", text, look, VERDICTS.index(look), silent)


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


MATH = Markup('<span class="math notranslate nohighlight">\\({}\\)</span>')
CODE = Markup("<code>{}</code>")


def markdown(text: str) -> Markup:
    """Text as one line of Markdown that shows it as it is: no heading, directive, role, link or
    math begins in it.
    """
    return Markup(re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split())))


def quoted(text: str) -> Markup:
    """Text as the value of a directive's option, which is read as YAML."""
    return Markup(json.dumps(" ".join(text.split()), ensure_ascii=False))


def inline(text: Any) -> Markup:
    """A card's sentence as HTML: `code`, *emphasis* and $math$ are understood, all else is shown as
    it is.
    """
    parts = re.split(r"(\$[^$\n]+\$|`[^`\n]+`)", str(text if text is not None else "").strip())
    out = []
    for part in parts:
        if len(part) > 2 and part[0] == part[-1] == "$" and not UNSAFE.search(part):
            out.append(MATH.format(part[1:-1]))
        elif len(part) > 2 and part[0] == part[-1] == "`":
            out.append(CODE.format(part[1:-1]))
        else:
            plain = escape(re.sub(r"\s+", " ", part.replace("->", "→")), quote=False)
            out.append(re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", plain))
    return Markup("".join(out))


def estimate(claim: dict[str, Any]) -> Markup:
    """Our estimate with its interval; the exact value goes along for sorting."""
    return templating.piece("estimate", claim)


def ours(claim: dict[str, Any]) -> Markup:
    """Our estimate with its interval, n and what one unit is, as one table cell."""
    return templating.piece("ours", claim)


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


def forest(claim: dict[str, Any], test: dict[str, Any] | None) -> Markup:
    """A small forest plot: units as dots, estimate and interval as a bar, the test's threshold as a
    dashed line.

    Decoration beside the same figures in words, hence hidden from screen readers. Empty without
    estimate.
    """
    values, bar = ([v for v in claim.get(k) or [] if v is not None] for k in ("values", "interval"))
    mean, lines = claim.get("estimate"), thresholds(test or {})
    if mean is None:
        return Markup()
    values = values[:60]
    known = [*values, *bar, mean, *lines]
    low, high = min(known), max(known)
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{6 + 148 * (value - low) / width:.1f}"

    ends = [at(v) for v in bar] if len(bar) == 2 else []
    dots = [at(v) for v in values]
    return templating.piece("forest", [at(v) for v in lines], dots, ends, at(mean))


def table(
    head: Sequence[str],
    rows: Iterable[tuple[Mapping[str, Any], Sequence[Any]]],
    *,
    classes: str = "",
    sort: bool = False,
) -> Markup:
    """A table on a wide screen that the style sheet turns into a list of cards on a phone.

    Args:
        head: column titles.
        rows: (attributes of the row, cells), the first cell heading its row; a cell is text, or
            HTML where it is `Markup`.
        sort: put a button into every column title for the book's own script.

    Raises:
        ValueError: a row has not as many cells as there are titles.
    """
    rows = list(rows)
    if any(len(cells) != len(head) for _, cells in rows):
        raise ValueError(f"a row has not {len(head)} cells, as many as there are titles")
    return templating.piece("table", list(head), rows, classes, sort)


def overview(bars: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """Verdicts as one SVG file, for the README: a bar per family (its name, its verdict counts)."""
    longest, drawn = max((sum(c.values()) for _, c in bars), default=1), []
    for i, (family, counts) in enumerate(bars):
        x, parts = 170.0, []
        for verdict in (v for v in VERDICTS if counts.get(v)):
            wide = 520 * counts[verdict] / longest
            parts.append(
                {
                    "x": f"{x:.1f}",
                    "wide": f"{wide:.1f}",
                    "middle": f"{x + wide / 2:.1f}",
                    "colour": COLOURS[verdict],
                    "count": counts[verdict],
                }
            )
            x += wide
        drawn.append({"y": 30 * i + 8, "family": family, "parts": parts})
    base = 30 * len(bars) + 26
    told = ", ".join(f"{sum(c.get(v, 0) for _, c in bars)} {v}" for v in VERDICTS)
    data = {"bars": drawn, "base": base, "height": base + 14, "told": told, "colours": COLOURS}
    return templating.render("overview.svg", **data) + "\n"


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
    return f"{duration(record['seconds'])}, {used}, {record['device']}"


templating.ENV.filters |= {"inline": inline, "css": css}
templating.ENV.globals |= {
    "VERDICTS": VERDICTS,
    "GLYPHS": GLYPHS,
    "MEANING": MEANING,
    "badge": badge,
    "number": number,
    "interval": interval,
}
