"""What moved a verdict without a new measurement: the engine or a card changed, and why.

`layerbook decide --why "..."` adds an entry to results/history.json; the book's page "What changed"
shows them, the newest first. Controls are left out: what they do to a claim is seen at the claim.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerbook import paths
from layerbook.pipeline import record

FILE = "results/history.json"
FIELDS = {"paper", "tier", "claim", "was", "is"}


class HistoryError(ValueError):
    """A history that cannot be read; the message says how to get it back."""


def read(root: Path | None = None) -> list[dict[str, Any]]:
    """Every entry, the oldest first: {date, why, moves: [{paper, tier, claim, was, is}]}.

    Raises:
        HistoryError: the file is damaged.
    """
    file = (root or paths.ROOT) / FILE
    if not file.is_file():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        for entry in entries:
            datetime.date.fromisoformat(entry["date"])
            if not entry["why"].strip() or any(set(m) != FIELDS for m in entry["moves"]):
                raise ValueError("an entry lacks its reason or a field of a move")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(
            f"{FILE} is damaged ({error}): git checkout -- {FILE}, or mend it"
        ) from None
    return entries


def add(why: str, moves: Sequence[dict[str, str]], date: datetime.date | None = None) -> None:
    """Add an entry; nothing where no verdict moved.

    Raises:
        HistoryError: no reason is given, or the file is damaged.
    """
    if not moves:
        return
    if not why.strip():
        raise HistoryError("a verdict moved: say why, layerbook decide --why '...'")
    day = (date or datetime.date.today()).isoformat()
    entries = [*read(), {"date": day, "why": " ".join(why.split()), "moves": list(moves)}]
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    record.replace(paths.ROOT / FILE, text.encode())
