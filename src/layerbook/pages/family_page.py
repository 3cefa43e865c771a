"""What several papers' measures say about the layers of one model, from the profiles in their
records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from layerbook.pages import markup as h
from layerbook.pages import templating
from layerbook.pages.papers import Paper

WIDE, HIGH, LEFT, TOP = 320, 118, 52, 10  # one panel of the figure, and where its axes begin


def profiles(papers: Sequence[Paper], model: str) -> list[dict[str, Any]]:
    """Profiles of the papers' main records on this model, by paper and in the order in which they
    were recorded.

    Each: name, statement, values (one number per layer), paper. Profiles whose number of layers is
    not that of most are
    left out, as are those with a number that is not finite.
    """
    found = []
    for paper in papers:
        record = paper.records[paper.main]
        if record.get("parameters", {}).get("model") == model:
            found += [
                {**p, "paper": paper}
                for p in record.get("profiles") or []
                if None not in p["values"]
            ]
    lengths = [len(p["values"]) for p in found]
    return [p for p in found if len(p["values"]) == max(sorted(set(lengths)), key=lengths.count)]


def _short(value: float) -> str:
    """A number for an axis: two digits that count."""
    return (
        f"{value:.2g}".replace("-", "−")
        if abs(value) >= 1e-3 or not value
        else f"{value:.0e}".replace("-", "−")
    )


def _panel(p: dict[str, Any], number: int) -> Markup:
    """One profile as a line over the layers, as SVG."""
    y, n = np.array(p["values"], dtype=float), len(p["values"])
    low, high = y.min(), y.max()
    xs = LEFT + (WIDE - LEFT - 12) * np.arange(n) / max(1, n - 1)
    log = low > 0 and high > 20 * low  # one layer that stands out must not flatten all others
    z, bottom, top = (np.log(y), np.log(low), np.log(high)) if log else (y, low, high)
    ys = TOP + (HIGH - TOP - 24) * (1 - (z - bottom) / ((top - bottom) or 1.0))
    peak, base = int(y.argmax()), HIGH - 24
    told = f"{p['name']} by layer: lowest {h.number(float(low))}, highest {h.number(float(high))} at layer {peak}"
    return templating.piece(
        "profile",
        number,
        p["name"],
        h.inline(p["statement"]) + ("; logarithmic axis" if log else ""),
        told,
        WIDE,
        HIGH,
        f"M{LEFT} {TOP}V{base}H{WIDE - 12}",
        " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys)),
        (f"{xs[peak]:.1f}", f"{ys[peak]:.1f}"),
        [(f"{xs[i]:.1f}", base + 16, i) for i in range(0, n, 5)],
        [(LEFT - 6, f"{at + 4:.1f}", _short(float(v))) for at, v in ((TOP, high), (base, low))],
    )


def _rank(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN for a constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else float("nan")


def _pair(x: np.ndarray, y: np.ndarray) -> str:
    """Correlation over layers, and of the steps from one layer to the next."""
    over, steps = _rank(x, y), _rank(np.diff(x), np.diff(y))
    return " / ".join("–" if np.isnan(v) else h.number(round(v, 2)) for v in (over, steps))


def fragment(papers: Sequence[Paper], model: str = "smollm2") -> str:
    """Figure and tables as Markdown with HTML; a sentence when fewer than two profiles were
    recorded.
    """
    found = profiles(papers, model)
    if len(found) < 2:
        return "Fewer than two papers have recorded a measure by layer so far.\n"
    y = [np.array(p["values"], dtype=float) for p in found]
    depth = np.arange(len(y[0]))
    rows, thirds = [], np.array_split(depth, 3)
    for i, (p, v) in enumerate(zip(found, y), 1):
        means = [h.number(float(v[third].mean())) for third in thirds]
        link = templating.piece("link", p["paper"].slug, p["paper"].short)
        ends = [int(v.argmax()), int(v.argmin())]
        rows.append(({}, [f"{i}. {p['name']}", link, *means, *ends, _pair(v, depth)]))
    parts = [
        f"{part} ({third[0]} to {third[-1]})"
        for part, third in zip(("lower", "middle", "upper"), thirds)
    ]
    means = [f"Mean, {part}" for part in parts]
    head = ("Measure", "Paper", *means, "Highest at", "Lowest at", "With depth")
    matrix = [
        (
            {},
            [
                f"{i + 1}. {found[i]['name']}",
                *("" if j >= i else _pair(y[i], y[j]) for j in range(len(y) - 1)),
            ],
        )
        for i in range(1, len(y))
    ]
    return templating.render(
        "family.md",
        panels=[_panel(p, i) for i, p in enumerate(found, 1)],
        thirds=h.table(head, rows),
        matrix=h.table(("Measure", *(f"{j + 1}" for j in range(len(y) - 1))), matrix),
    )
