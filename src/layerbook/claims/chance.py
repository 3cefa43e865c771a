"""What chance alone would do over all effects of the book.

Each claim is decided by itself. How far many decisions can be trusted together is said here: q
values (Benjamini and Hochberg 1995), and how many effects would come out by chance if none existed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scipy import stats as scipy_stats

from layerbook.claims import inference

CONFIDENCE = 0.95  # of an interval whose level a row does not give


def effects(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of verdicts that are effects or equivalences with a p value."""
    kinds = ("effect", "equivalence")
    return [r for r in rows if r["kind"] in kinds and r.get("p") is not None]


def q_values(ps: Mapping[Any, float]) -> dict[Any, float]:
    """q of each p: the share of false ones to expect among all that are as small or smaller.

    Benjamini and Hochberg's step-up procedure, over all of the book's effects at once. Raises
    ValueError for a p outside [0, 1].
    """
    if not ps:
        return {}
    adjusted = scipy_stats.false_discovery_control(list(ps.values()), method="bh")
    return dict(zip(ps, (float(q) for q in adjusted), strict=True))


def expected_by_chance(rows: Iterable[Mapping[str, Any]]) -> float:
    """How many of these effects would be reproduced if none of them existed.

    That is one side of each interval: 2.5 %, and 5 % for an equivalence or a rank.
    """

    def level(row: Mapping[str, Any]) -> float:
        if row["test"].startswith("rank"):
            return inference.RANK_LEVEL
        return (1 - (row.get("level") or CONFIDENCE)) / 2

    return sum(level(r) for r in effects(rows))
