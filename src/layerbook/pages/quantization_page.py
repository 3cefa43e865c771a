"""The quantization family's page: bits against quality, orders of the layers, and what the layer
scores go with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from layerbook.families import scores
from layerbook.pages import markup as h
from layerbook.pages.family_page import _pair, _panel, profiles
from layerbook.pages.papers import BookError, Paper

FILE = Path("results") / "comparison" / "quantization.json"
W, H, LEFT, BASE = 440, 320, 50, 276  # the scatter
# other papers' measures that a score may merely repeat
BESIDE = (
    "writing",
    "skipping",
    "activation spikes",
)


def load(root: Path, papers: Sequence[Paper]) -> dict[str, Any]:
    """The stored comparison. Raises BookError if there is none, or if it was made from other scores
    than the records hold.
    """
    file, again = root / FILE, "make it again: dvc repro compare-quantization"
    if not file.is_file():
        raise BookError(f"{FILE} is missing: {again}")
    found = json.loads(file.read_text(encoding="utf-8"))
    records = {p.slug: p.records[p.main] for p in papers}
    for score in found["scores"]:
        now = {
            p["name"]: p["values"] for p in records.get(score["slug"], {}).get("profiles") or []
        }.get(score["profile"])
        if now is None or not np.allclose(now, score["values"], rtol=1e-5, atol=0):
            raise BookError(
                f"{FILE} used a profile '{score['profile']}' which is not that of {score['slug']}'s record: {again}"
            )
    return found


def _y(value: float, top: float) -> float:
    """Height of a loss in the scatter; the axis is a square root, so that small losses are told
    apart.
    """
    return BASE - (BASE - 14) * (max(value, 0.0) / top) ** 0.5


def _label(x: float, y: float, text: str, taken: list[tuple[float, float, float, float]]) -> str:
    """A point's number as SVG: to its right, or left, above or below where that is free; `taken`
    boxes grow by its own.
    """
    wide = 6.5 * len(text)
    places = [
        (x + 8, y + 4, "start", x + 8),
        (x - 8, y + 4, "end", x - 8 - wide),
        (x, y - 9, "middle", x - wide / 2),
        (x, y + 17, "middle", x - wide / 2),
    ]
    boxes = [(left, bottom - 9, left + wide, bottom) for _, bottom, _, left in places]
    free = [
        not any(a < r and c > left and b < d and e > top for left, top, r, d in taken)
        for a, b, c, e in boxes
    ]
    best = free.index(True) if True in free else 0
    taken.append(boxes[best])
    at, base, anchor, _ = places[best]
    return f'<text class="lb-mark" x="{at:.1f}" y="{base:.1f}" text-anchor="{anchor}">{text}</text>'


def scatter(rows: Sequence[Mapping[str, Any]]) -> str:
    """Recipes as numbered points: stored bits a weight against the rise of the loss, with
    intervals, as SVG.
    """
    top, bits = max(r["interval"][1] for r in rows) * 1.02, [r["weights"] for r in rows]
    first, last = int(min(bits)), max(bits) + 0.4
    x = lambda b: LEFT + (W - LEFT - 14) * (b - first) / (last - first)  # noqa: E731
    parts = [f'<path class="lb-axis" d="M{LEFT} 8V{BASE}H{W - 8}"/>']
    parts += [
        f'<text x="{x(b):.1f}" y="{BASE + 18}" text-anchor="middle">{b}</text>'
        for b in range(first, int(last) + 1)
    ]
    ticks = [v for v in (0, 0.1, 0.5, 1, 2, 4, 6, 8, 10) if v <= top]
    parts += [
        f'<text x="{LEFT - 8}" y="{_y(v, top) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in ticks
    ]
    turned = f'text-anchor="middle" transform="rotate(-90 14 {BASE / 2})"'
    parts += [
        f'<text x="{(W + LEFT) / 2}" y="{H - 6}" text-anchor="middle">stored bits a weight</text>',
        f'<text x="14" y="{BASE / 2}" {turned}>rise of the loss (nats)</text>',
    ]
    points = [(x(r["weights"]), _y(r["mean"], top)) for r in rows]
    taken = [(at - 6, y - 6, at + 6, y + 6) for at, y in points]
    for r, (at, y) in zip(rows, points, strict=True):
        kind, (low, high) = "own" if r["slug"] else "plain", (_y(v, top) for v in r["interval"])
        mark = (
            f'<rect x="{at - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"'
            if r["activations"] < 16
            else f'<circle cx="{at:.1f}" cy="{y:.1f}" r="5"'
        )
        parts.append(
            f'<path class="lb-bar-{kind}" d="M{at:.1f} {low:.1f}V{high:.1f}"/>{mark} class="lb-dot-{kind}"/>'
        )
    parts += [_label(at, y, str(i), taken) for i, (at, y) in enumerate(points, 1)]
    least = min(rows, key=lambda r: r["mean"])
    told = (
        f"{len(rows)} recipes, stored bits a weight against the rise of the loss; the least loss is that of "
        f"{least['name']} at {h.number(least['weights'])} bits. The table below has all numbers."
    )
    return f'<svg class="lb-scatter" viewBox="0 0 {W} {H}" role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'


def _link(papers: Mapping[str, Paper], slug: str) -> str:
    return f'<a href="papers/{slug}.html">{escape(slug)}</a>' if slug in papers else "baseline"


def recipes(found: Mapping[str, Any], papers: Mapping[str, Paper]) -> str:
    """Scatter and table of the recipes, by bits."""
    rows = sorted(found["recipes"], key=lambda r: (r["weights"], r["mean"]))
    lines = []
    for i, r in enumerate(rows, 1):
        loss = f"{h.number(round(r['mean'], 3))} {h.interval([round(v, 3) for v in r['interval']])}"
        lines.append(
            (
                "",
                [
                    f"{i}. {escape(r['name'])}",
                    _link(papers, r["slug"]),
                    f"{r['weights']:.2f}",
                    loss,
                    f"{np.exp(r['mean']):.2f}",
                ],
            )
        )
    head = ("Recipe", "Paper", "Stored bits", "Rise of the loss", "Perplexity times")
    return f"{scatter(rows)}\n\n{h.table(head, lines, classes='lb-compare')}\n"


def _curves(
    level: Mapping[str, Any], name: str, counts: Sequence[int], number: int, title: str
) -> str:
    """One order's curve over the lowered layers, in the band of the random orders and above that by
    measured harm.
    """
    xs = [0, *counts]
    chance = np.array([c for key, c in level["curves"].items() if key.startswith("random ")])
    low, high = np.quantile(chance, [0.1, 0.9], axis=0)
    own, best = level["curves"][name], level["curves"]["measured harm"]
    width, height, left, base = 320, 150, 40, 126
    top = float(max(high.max(), max(own))) * 1.02

    def point(k: float, v: float) -> str:
        x = left + (width - left - 12) * k / xs[-1]
        return f"{x:.1f},{base - (base - 10) * max(0.0, v) / top:.1f}"

    line = lambda values: " ".join(point(k, v) for k, v in zip(xs, values, strict=True))  # noqa: E731
    band = (
        line(high)
        + " "
        + " ".join(point(k, v) for k, v in reversed(list(zip(xs, low, strict=True))))
    )
    ticks = "".join(
        f'<text x="{point(k, 0).split(",")[0]}" y="{base + 16}" text-anchor="middle">{k}</text>'
        for k in xs
    )
    told = (
        f"{title}: with {xs[-1]} layers lowered the loss has risen by {h.number(own[-1])} nats, in most random orders by "
        f"{h.number(low[-1])} to {h.number(high[-1])}"
    )
    return (
        f'<figure class="lb-profile"><figcaption><b>{number}. {escape(title)}</b></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(told)}">'
        f'<polygon class="lb-band" points="{band}"/><path class="lb-axis" d="M{left} 8V{base}H{width - 12}"/>'
        f'<polyline class="lb-best" points="{line(best)}"/><polyline class="lb-line" points="{line(own)}"/>{ticks}'
        f'<text x="{left - 6}" y="16" text-anchor="end">{top:.1f}</text>'
        f'<text x="{left - 6}" y="{base + 4}" text-anchor="end">0</text>'
        "</svg></figure>"
    )


def beaten(level: Mapping[str, Any], name: str) -> float:
    """Share of the random orders whose area is larger."""
    chance = [a for key, a in level["areas"].items() if key.startswith("random ")]
    return float(np.mean([a > level["areas"][name] for a in chance]))


def orders(found: Mapping[str, Any], papers: Mapping[str, Paper]) -> str:
    """Panels of the mildest level, and a table of all levels."""
    titles = {f"{s['slug']}: {s['profile']}": (s["profile"], s["slug"]) for s in found["scores"]}
    titles |= {name: (name, "") for name in ("from the front", "from the back", "measured harm")}
    first = found["levels"][0]
    figure = "".join(
        _curves(first, name, found["counts"], i, title)
        for i, (name, (title, _)) in enumerate(titles.items(), 1)
        if name != "measured harm"
    )
    rows, head = [], ["Order by", "Paper"]
    for level in found["levels"]:
        head += [f"Area, {level['level']} bits", f"Beaten, {level['level']} bits"]
    for i, (name, (title, slug)) in enumerate(titles.items(), 1):
        cells = [f"{i}. {escape(title)}", _link(papers, slug)]
        for level in found["levels"]:
            cells += [
                h.number(round(level["areas"][name], 3)),
                f"{beaten(level, name):.0%}".replace("%", " %"),
            ]
        rows.append(("", cells))
    return (
        f'<div class="lb-profiles">{figure}</div>\n\n{h.table(head, rows, classes="lb-compare")}\n'
    )


def correlates(found: Mapping[str, Any], papers: Sequence[Paper]) -> str:
    """Harm and scores by layer; the scores' correlations with harm, depth, measures of other
    papers, and each other.
    """
    own = [(escape(s["profile"]), s["slug"], np.array(s["importance"])) for s in found["scores"]]
    names = {level["level"]: f"harm, {level['level']} bits" for level in found["levels"]}
    alone = "rise of the loss (nats a token) when this layer alone is lowered"
    panels = [
        {"name": names[level["level"]], "statement": alone, "values": level["harm"]}
        for level in found["levels"]
    ]
    panels += [
        {"name": s["profile"], "statement": s["statement"], "values": s["values"]}
        for s in found["scores"]
    ]
    figure = "".join(_panel(p, i) for i, p in enumerate(panels, 1))
    beside = {names[level["level"]]: np.array(level["harm"]) for level in found["levels"]} | {
        "depth": np.arange(found["layers"])
    }
    beside |= {
        p["name"]: np.array(p["values"])
        for p in profiles(papers, found["model"])
        if p["name"] in BESIDE
    }
    by_slug = {p.slug: p for p in papers}
    rows = [
        (
            "",
            [
                name,
                _link(by_slug, slug),
                *("" if name == other else _pair(v, w) for other, w in beside.items()),
            ],
        )
        for name, slug, v in own
    ]
    again = {names[level["level"]]: np.array(level["harm_other"]) for level in found["levels"]}
    rows.append(
        (
            "",
            [
                "same harm, other text",
                "–",
                *(_pair(again[k], w) if k in again else "" for k, w in beside.items()),
            ],
        )
    )
    matrix = [
        ("", [name, *("" if j >= i else _pair(v, own[j][2]) for j in range(len(own) - 1))])
        for i, (name, _, v) in enumerate(own)
        if i
    ]
    return (
        f'<div class="lb-profiles">{figure}</div>\n\n{h.table(("Importance by", "Paper", *beside), rows)}\n\n'
        f"### Scores against each other\n\n{h.table(('Importance by', *(name for name, _, _ in own[:-1])), matrix)}\n"
    )


def fragments(root: Path, papers: Sequence[Paper]) -> dict[str, str]:
    """The generated parts of the page: name -> Markdown with HTML."""
    by_slug, names = {p.slug: p for p in papers}, ("recipes", "orders", "correlates")
    if missing := sorted({s.slug for s in scores.SCORES} - set(by_slug)):
        text = f"Nothing to compare yet: {', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no record.\n"
        return {f"family-quantization-{name}": text for name in names}
    found = load(root, papers)
    return {
        "family-quantization-recipes": recipes(found, by_slug),
        "family-quantization-orders": orders(found, by_slug),
        "family-quantization-correlates": correlates(found, papers),
    }
