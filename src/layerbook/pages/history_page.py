"""Which verdicts moved without a new measurement, from what to what, and why."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerbook.notebook import tables
from layerbook.pages import markup as h
from layerbook.pages import templating
from layerbook.pages.papers import Paper
from layerbook.pipeline import history


def fragment(root: Path, papers: Sequence[Paper]) -> str:
    """Every entry of the history, the newest first, as Markdown with HTML."""
    by_slug = {p.slug: p for p in papers}
    entries = [
        {
            "day": _day(entry["date"]),
            "why": entry["why"],
            "moves": len(entry["moves"]),
            "table": _table(entry["moves"], by_slug),
        }
        for entry in reversed(history.read(root))
    ]
    return templating.render("history.md", entries=entries)


def _day(date: str) -> str:
    day = datetime.date.fromisoformat(date)
    return f"{day.day} {day:%B %Y}"


def _table(moves: Sequence[Mapping[str, str]], papers: Mapping[str, Paper]) -> Any:
    """One row a move; of claims that still stand, with what decides them now."""
    rows = []
    for move in moves:
        paper = papers.get(move["paper"])
        claims = paper.claims(move["tier"]) if paper and move["tier"] in paper.records else []
        now = next((c for c in claims if c["id"] == move["claim"]), None)
        name = f"{paper.short if paper else move['paper']}, {move['claim']}"
        later = now is not None and now["verdict"] == move["is"]
        rows.append(
            (
                {},
                [
                    templating.piece("link", move["paper"], name, move["claim"]) if now else name,
                    h.inline(now["statement"]) if now else "no longer asked",
                    _badge(move["was"]),
                    _badge(move["is"]),
                    h.inline(now["reason"]) if later else "",
                ],
            )
        )
    return h.table(("Claim", "What it says", "Was", "Is", "Because"), rows)


def _badge(verdict: str) -> Any:
    """A verdict as a badge; one of an earlier edition's words as it was written."""
    return h.badge(verdict) if tables.look(verdict) in h.VERDICTS else verdict
