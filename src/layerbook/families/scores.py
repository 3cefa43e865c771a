"""Which of the records' profiles are layer scores of quantization papers, and which way each of
them points.

    layerbook collect     (a stage of the pipeline)

The file holds nothing else of the records, so that a paper's rerun with equal scores leaves it as
it was, and with it all that is made from it.
"""

from __future__ import annotations

import json
import math
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


FILE = "results/comparison/scores.json"
NUMBERS = ("values", "importance")  # of an entry of that file
ROUNDING = 1e-5  # by which scores of another processor may differ and be the same


class ScoreError(RuntimeError):
    """A record lacks what the comparison needs; the message says which and what to do."""


def collect(model: str = "smollm2", folder: Path = paths.RESULTS / "cpu") -> list[dict[str, Any]]:
    """What the papers recorded of each layer: slug, profile, statement, values [layers], importance
    [layers].

    Raises:
        ScoreError: a record is missing, of another model, without that profile, or with another
            number of layers.
    """
    found: list[dict[str, Any]] = []
    for score in SCORES:
        file = folder / f"{score.slug}.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        by_name = {p["name"]: p for p in record.get("profiles") or []}
        values = by_name.get(score.profile, {}).get("values") or []
        layers = len(found[0]["values"]) if found else len(values)
        if (
            record.get("parameters", {}).get("model") != model
            or not values
            or len(values) != layers
            or None in values
        ):
            raise ScoreError(
                f"results/cpu/{score.slug}.json has no profile '{score.profile}' of all layers of {model}: "
                f"make rerun PAPER={score.slug} TIER=cpu"
            )
        sign = 1 if score.high_is_important else -1
        found.append(
            {
                "slug": score.slug,
                "profile": score.profile,
                "statement": by_name[score.profile]["statement"],
                "values": values,
                "importance": [sign * v for v in values],
            }
        )
    return found


def read(layers: int, file: Path = paths.ROOT / FILE) -> list[dict[str, Any]]:
    """The collected scores. ScoreError if there are none, or for another number of layers."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not found or any(len(s["values"]) != layers for s in found):
        raise ScoreError(f"{FILE} has no scores of {layers} layers: dvc repro collect-layer-scores")
    return found


def write(file: Path = paths.ROOT / FILE) -> list[dict[str, Any]]:
    """Collect the scores into a file, and return them.

    A file that holds the same scores, but for what another processor's rounding changes, stays as
    it is, and with it all that is made from it.

    Raises:
        ScoreError: a record has no such profile.
    """
    collected = collect()
    if file.is_file() and _same(json.loads(file.read_text(encoding="utf-8")), collected):
        return collected
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(collected, indent=1) + "\n", encoding="utf-8")
    return collected


def _same(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> bool:
    """Whether two collections hold the same scores, to one part in 100,000."""
    bare = lambda rows: [{k: v for k, v in r.items() if k not in NUMBERS} for r in rows]  # noqa: E731
    return bare(old) == bare(new) and all(
        len(a[key]) == len(b[key])
        and all(math.isclose(x, y, rel_tol=ROUNDING) for x, y in zip(a[key], b[key]))
        for a, b in zip(old, new)
        for key in NUMBERS
    )
