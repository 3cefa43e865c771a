"""The quantization family's page: bits against quality, orders of the layers, and what the layer
scores go with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from layerbook.families import scores
from layerbook.pages import markup as h
from layerbook.pages import templating
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


def _label(
    x: float, y: float, text: str, taken: list[tuple[float, float, float, float]]
) -> tuple[str, str, str, str]:
    """Where a point's number stands, as (x, y, anchor, text): to its right, or left, above or below
    where that is free; `taken` boxes grow by its own.
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
    return f"{at:.1f}", f"{base:.1f}", anchor, text


def scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Recipes as numbered points: stored bits a weight against the rise of the loss, with
    intervals; what the template of the figure draws.
    """
    top, bits = max(r["interval"][1] for r in rows) * 1.02, [r["weights"] for r in rows]
    first, last = int(min(bits)), max(bits) + 0.4
    x = lambda b: LEFT + (W - LEFT - 14) * (b - first) / (last - first)  # noqa: E731
    ticks = [(f"{x(b):.1f}", BASE + 18, b, "middle") for b in range(first, int(last) + 1)]
    rises = [v for v in (0, 0.1, 0.5, 1, 2, 4, 6, 8, 10) if v <= top]
    ticks += [(LEFT - 8, f"{_y(v, top) + 4:.1f}", f"{v:g}", "end") for v in rises]
    places = [(x(r["weights"]), _y(r["mean"], top)) for r in rows]
    taken = [(at - 6, y - 6, at + 6, y + 6) for at, y in places]
    points = []
    for r, (at, y) in zip(rows, places, strict=True):
        low, high = (_y(v, top) for v in r["interval"])
        where = {"x": at, "y": y, "low": low, "high": high, "left": at - 5, "top": y - 5}
        points.append(
            {name: f"{value:.1f}" for name, value in where.items()}
            | {"kind": "own" if r["slug"] else "plain", "square": r["activations"] < 16}
        )
    least = min(rows, key=lambda r: r["mean"])
    told = (
        f"{len(rows)} recipes, stored bits a weight against the rise of the loss; the least loss is that of "
        f"{least['name']} at {h.number(least['weights'])} bits. The table below has all numbers."
    )
    return {
        "width": W,
        "height": H,
        "told": told,
        "axis": f"M{LEFT} 8V{BASE}H{W - 8}",
        "ticks": ticks,
        "middle": (W + LEFT) / 2,
        "half": BASE / 2,
        "points": points,
        "marks": [_label(at, y, str(i), taken) for i, (at, y) in enumerate(places, 1)],
    }


def _link(papers: Mapping[str, Paper], slug: str) -> str:
    return templating.piece("link", slug, slug) if slug in papers else "baseline"


def recipes(found: Mapping[str, Any], papers: Mapping[str, Paper]) -> str:
    """Scatter and table of the recipes, by bits."""
    rows = sorted(found["recipes"], key=lambda r: (r["weights"], r["mean"]))
    lines = []
    for i, r in enumerate(rows, 1):
        loss = f"{h.number(round(r['mean'], 3))} {h.interval([round(v, 3) for v in r['interval']])}"
        bits, times = f"{r['weights']:.2f}", f"{np.exp(r['mean']):.2f}"
        lines.append(({}, [f"{i}. {r['name']}", _link(papers, r["slug"]), bits, loss, times]))
    head = ("Recipe", "Paper", "Stored bits", "Rise of the loss", "Perplexity times")
    table = h.table(head, lines, classes="lb-compare")
    return templating.render("scatter.md", table=table, **scatter(rows))


def _curves(
    level: Mapping[str, Any], name: str, counts: Sequence[int], number: int, title: str
) -> Markup:
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
    told = (
        f"{title}: with {xs[-1]} layers lowered the loss has risen by {h.number(own[-1])} nats, in most random orders by "
        f"{h.number(low[-1])} to {h.number(high[-1])}"
    )
    return templating.piece(
        "curves",
        number,
        title,
        told,
        width,
        height,
        f"M{left} 8V{base}H{width - 12}",
        band,
        line(best),
        line(own),
        [(point(k, 0).split(",")[0], base + 16, k) for k in xs],
        [(left - 6, 16, f"{top:.1f}"), (left - 6, base + 4, "0")],
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
    panels = [
        _curves(first, name, found["counts"], i, title)
        for i, (name, (title, _)) in enumerate(titles.items(), 1)
        if name != "measured harm"
    ]
    rows, head = [], ["Order by", "Paper"]
    for level in found["levels"]:
        head += [f"Area, {level['level']} bits", f"Beaten, {level['level']} bits"]
    for i, (name, (title, slug)) in enumerate(titles.items(), 1):
        cells = [f"{i}. {title}", _link(papers, slug)]
        for level in found["levels"]:
            area, share = level["areas"][name], beaten(level, name)
            cells += [h.number(round(area, 3)), f"{share:.0%}".replace("%", " %")]
        rows.append(({}, cells))
    table = h.table(head, rows, classes="lb-compare")
    return templating.render("panels.md", panels=panels, table=table, matrix="")


def correlates(found: Mapping[str, Any], papers: Sequence[Paper]) -> str:
    """Harm and scores by layer; the scores' correlations with harm, depth, measures of other
    papers, and each other.
    """
    own = [(s["profile"], s["slug"], np.array(s["importance"])) for s in found["scores"]]
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
    beside = {names[level["level"]]: np.array(level["harm"]) for level in found["levels"]} | {
        "depth": np.arange(found["layers"])
    }
    beside |= {
        p["name"]: np.array(p["values"])
        for p in profiles(papers, found["model"])
        if p["name"] in BESIDE
    }
    by_slug = {p.slug: p for p in papers}
    rows = []
    for name, slug, v in own:
        pairs = ["" if name == other else _pair(v, w) for other, w in beside.items()]
        rows.append(({}, [name, _link(by_slug, slug), *pairs]))
    again = {names[level["level"]]: np.array(level["harm_other"]) for level in found["levels"]}
    pairs = [_pair(again[k], w) if k in again else "" for k, w in beside.items()]
    rows.append(({}, ["same harm, other text", "–", *pairs]))
    matrix = [
        ({}, [name, *("" if j >= i else _pair(v, own[j][2]) for j in range(len(own) - 1))])
        for i, (name, _, v) in enumerate(own)
        if i
    ]
    return templating.render(
        "panels.md",
        panels=[_panel(p, i) for i, p in enumerate(panels, 1)],
        table=h.table(("Importance by", "Paper", *beside), rows),
        matrix=h.table(("Importance by", *(name for name, _, _ in own[:-1])), matrix),
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
