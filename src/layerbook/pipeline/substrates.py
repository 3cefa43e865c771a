"""What a paper may read: prepared assets and the small networks trained here, by the names that
cards use.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerbook import yamlfile
from layerbook.claims import cards
from layerbook.pipeline import deps


def known() -> list[str]:
    """Every name that a card may list under `substrate`, sorted."""
    from layerbook.data import prepare

    return sorted({*prepare.MAKERS, *deps.trained()})


def faults(card: Mapping[str, Any], file: Path) -> list[str]:
    """Names under a valid card's `substrate` that nothing in this checkout makes, as messages with
    file and line.
    """
    names = known()
    out = []
    for k, name in enumerate(card["substrate"]):
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            guess = f"; did you mean {near[0]}?" if near else ""
            line = yamlfile.read(file).line(["substrate", k])
            out.append(
                f"{file.name}:{line}: substrate.{k}: {name[:60]!r} is neither a prepared asset nor a network trained "
                f"here{guess} (known: {', '.join(names)})"
            )
    return out


def refuse(card: Mapping[str, Any], file: Path) -> None:
    """Raise cards.CardError for a card that lists what nothing makes."""
    if found := faults(card, file):
        raise cards.CardError("\n".join(found))
