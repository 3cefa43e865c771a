"""Cards: what a paper claims and how each claim is decided, registered before the run.

A card is `notebooks/<slug>.yaml`. `load` validates it against `card.schema.json` and against the
rules that a schema cannot say (references between claims), and names the line of each fault.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from layerbook import paths

COMMON_PARAMETERS: dict[str, dict[str, Any]] = {
    "tier": {"help": "size of the run", "choices": ["auto", "smoke", "cpu", "gpu", "gpu-dry"]},
    "seed": {"help": "first seed", "min": 0, "max": 2**31 - 1},
    "device": {"help": "where to compute", "choices": ["auto", "cpu", "cuda"]},
}


class CardError(ValueError):
    """A card that may not be used; the message lists every fault with its line."""


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a card."""
    return json.loads((Path(__file__).parent / "card.schema.json").read_text(encoding="utf-8"))


def slugs() -> list[str]:
    """Slugs of all papers in the book, sorted."""
    return sorted(p.stem for p in paths.NOTEBOOKS.glob("*.yaml"))


def path(slug: str) -> Path:
    """The card's file. Raises CardError, naming the choices, when there is no such paper."""
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    if not file.is_file():
        raise CardError(f"no paper {slug!r}; there are: {', '.join(slugs()) or 'none yet'}")
    return file


def load(slug: str) -> dict[str, Any]:
    """Read and validate the card of a paper. Raises CardError."""
    return read(path(slug))


def read(file: Path) -> dict[str, Any]:
    """Read and validate one card file. Raises CardError with file:line of each fault."""
    try:
        marked = YAML(typ="rt").load(file.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise CardError(f"{file.name}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(marked, dict):
        raise CardError(f"{file.name}:1: a card is a mapping that starts with 'slug:'")
    card = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    faults = [(_line(marked, list(e.absolute_path)), f"{'.'.join(map(str, e.absolute_path)) or 'card'}: {e.message[:300]}")
              for e in jsonschema.Draft202012Validator(schema()).iter_errors(card)]
    if not faults:
        faults = [(_line(marked, where), text) for where, text in _rules(card, file.stem)]
    if faults:
        raise CardError("\n".join(f"{file.name}:{line}: {text}" for line, text in sorted(faults)))
    return card


def _line(node: Any, where: list[Any]) -> int:
    """1-based line of a path inside a round-trip YAML document."""
    line = 1
    for key in where:
        try:
            mark = node.lc.item(key) if isinstance(key, int) else node.lc.key(key)
            line, node = mark[0] + 1, node[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _rules(card: dict[str, Any], stem: str) -> list[tuple[list[Any], str]]:
    faults: list[tuple[list[Any], str]] = []
    if card["slug"] != stem:
        faults.append((["slug"], f"slug {card['slug']!r} is not the file's name {stem!r}"))
    for name in set(card.get("parameters", {})) & set(COMMON_PARAMETERS):
        faults.append((["parameters", name], f"parameter {name!r} belongs to every notebook, leave it out"))
    ids: dict[str, dict[str, Any]] = {}
    for group in ("gates", "claims"):
        for k, item in enumerate(card.get(group, [])):
            if item["id"] in ids:
                faults.append(([group, k, "id"], f"duplicate id {item['id']}"))
            ids[item["id"]] = item
    for k, claim in enumerate(card["claims"]):
        faults += [(["claims", k, *where], f"{claim['id']}: {text}") for where, text in _claim_rules(claim, ids)]
    return faults


def _claim_rules(claim: dict[str, Any], ids: dict[str, dict[str, Any]]) -> list[tuple[list[Any], str]]:
    out: list[tuple[list[Any], str]] = []
    kind = claim["kind"]
    if kind == "control":
        if ("fails" in claim) == ("tests" in claim):
            out.append(([], "a control has either 'fails' (the effect whose test it must fail) or its own 'tests'"))
        if "fails" in claim and ids.get(claim["fails"], {}).get("kind") not in ("effect", "equivalence"):
            out.append((["fails"], f"fails {claim['fails']!r}, which is no effect of this card"))
    else:
        if "paper" not in claim:
            out.append(([], "no 'paper': the paper's own figure and where it stands, or 'not known'"))
        if "tests" not in claim:
            out.append(([], "no 'tests': a claim is decided by at least one"))
        if "fails" in claim:
            out.append((["fails"], "only a control fails another claim's test"))
    if kind == "effect":
        if "twin" not in claim:
            out.append(([], "an effect needs a 'twin', the control that must fail the same test"))
        for key in ("smallest", "differs"):
            if key not in claim:
                out.append(([], f"an effect needs '{key}'"))
    for key in ("twin", "rival"):
        if key in claim and ids.get(claim[key], {}).get("kind") != "control":
            out.append(([key], f"{key} {claim[key]!r} is no control of this card"))
    for gate in claim.get("requires", []):
        if not gate.startswith("G") or gate not in ids:
            out.append((["requires"], f"requires {gate!r}, which is no gate of this card"))
    names = [t.get("of", "") for t in claim.get("tests", [])]
    if len(names) > 1 and "" in names:
        out.append((["tests"], "with several tests each names its array with 'of'"))
    for k, test in enumerate(claim.get("tests", [])):
        for bound in (test.get("between"), test.get("every", {}).get("between")):
            if bound and bound[0] > bound[1]:
                out.append((["tests", k], f"between {bound}: the first bound must not be the larger"))
        if "null" in test and not ("above" in test or "below" in test):
            out.append((["tests", k], "'null' goes with above or below"))
    return out


def registered_arrays(card: dict[str, Any]) -> dict[str, set[str]]:
    """Claim id -> the array names that its tests read ('' for a single unnamed one)."""
    by_id = {c["id"]: c for c in card["claims"]}
    tests = {c["id"]: c["tests"] if "tests" in c else by_id[c["fails"]]["tests"] for c in card["claims"]}
    return {claim: {t.get("of", "") for t in found} for claim, found in tests.items()}
