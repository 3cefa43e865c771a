"""Registered tests in words, for tables and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerbook.claims import inference


def describe(test: Mapping[str, Any]) -> str:
    """The test in words, for tables: 'mean of gain > 0'."""
    name = f" of {test['of']}" if test.get("of") else ""
    if "rank" in test:
        better = "lower" if test["rank"].get("better") == "lower" else "higher"
        share = test["rank"].get("beats", 1 - inference.RANK_LEVEL)
        return f"rank{name} among random ones ({better} is better): beats at least {share:.0%}"
    if "every" in test:
        return f"every unit{name} {bound(test['every'])}"
    if "count" in test:
        c = test["count"]
        return f"share of units{name} {bound(c)} is above {c['at_least']:g}"
    if "matches" in test:
        m = test["matches"]
        units = len(m["values"])
        return f"mean{name} within the prediction interval of {units} reference units (floor {m['floor']:g})"
    if test.get("deterministic"):
        return f"the one value{name} {bound(test)}"
    scale = {"log": "geometric ", "z": "Fisher "}.get(test.get("scale", ""), "")
    return f"{scale}{test.get('on', 'mean')}{name} {bound(test)}"


def bound(t: Mapping[str, Any]) -> str:
    """A bound in signs: '> 0'."""
    if "above" in t:
        return f"> {t['above']:g}"
    if "below" in t:
        return f"< {t['below']:g}"
    if "between" in t:
        return f"in [{t['between'][0]:g}, {t['between'][1]:g}]"
    return f"within ±{t['within']:g} (90 % interval)"
