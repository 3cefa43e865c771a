"""Which of the records' profiles are layer scores of quantization papers, and which way each of them points."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerbook import paths


@dataclass(frozen=True)
class Score:
    """A paper's layer score: the profile it records, and whether a high value asks for more bits."""

    slug: str
    profile: str
    high_is_important: bool = True


SCORES = (
    Score("layerwise-quant", "turning"),
    Score("layerwise-quant", "light tails"),
    Score("luq", "token entropy"),
    Score("spike-aware-quant", "activation spikes"),
    Score("hawq", "curvature"),
    Score("vidit-q", "range by token"),
    Score("wave-cnn-compression", "spectrum", high_is_important=False),
)


class ScoreError(RuntimeError):
    """A record lacks what the comparison needs; the message says which and what to do."""


def read(model: str, layers: int, folder: Path = paths.RESULTS / "cpu") -> list[dict[str, Any]]:
    """What the papers recorded of each layer: slug, profile, statement, values [layers], importance [layers].

    Raises:
        ScoreError: a record is missing, of another model, or without that profile for all layers.
    """
    found = []
    for score in SCORES:
        file = folder / f"{score.slug}.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        by_name = {p["name"]: p for p in record.get("profiles") or []}
        values = by_name.get(score.profile, {}).get("values") or []
        if record.get("parameters", {}).get("model") != model or len(values) != layers or None in values:
            raise ScoreError(f"results/cpu/{score.slug}.json has no profile '{score.profile}' of the {layers} layers of "
                                  f"{model}: make rerun PAPER={score.slug} TIER=cpu")
        sign = 1 if score.high_is_important else -1
        found.append({"slug": score.slug, "profile": score.profile, "statement": by_name[score.profile]["statement"],
                      "values": values, "importance": [sign * v for v in values]})
    return found
