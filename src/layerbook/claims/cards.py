"""Cards: what a paper claims and how each claim is decided, registered before the run.

A card is `notebooks/<slug>.yaml`. `load` validates it against `card.schema.json` and against the
rules that a schema cannot say (references between claims), and names the line of each fault.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from layerbook import paths, yamlfile
from layerbook.claims import papersources

COMMON_PARAMETERS: dict[str, dict[str, Any]] = {
    "tier": {"help": "size of the run", "choices": ["auto", "smoke", "cpu", "gpu", "gpu-dry"]},
    "seed": {"help": "first seed", "min": 0, "max": 2**31 - 1},
    "device": {"help": "where to compute", "choices": ["auto", "cpu", "cuda"]},
}
KEPT = ("cpu", "gpu")  # tiers whose records are stored
# A draft says so in its first line, so that it is known for one however broken the rest of it is.
DRAFT = re.compile(
    r"\A\ufeff?(?:[ \t]*(?:#[^\n]*)?\r?\n)*draft:[ \t]*true[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)"
)
UNFINISHED = re.compile(r"\s*(TODO|FIXME)")


class CardError(ValueError):
    """A card that may not be used; the message lists every fault with its line."""


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a card."""
    return json.loads((Path(__file__).parent / "card.schema.json").read_text(encoding="utf-8"))


def is_draft(file: Path) -> bool:
    """True for a card whose first line is `draft: true`; false for one that can not be read, which
    `read` then says.
    """
    try:
        return bool(DRAFT.match(file.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False


def _all(folder: Path | None) -> list[Path]:
    """Every card file of a folder (that of the notebooks, if none is given), sorted by slug."""
    found = (folder or paths.NOTEBOOKS).glob("*.yaml")
    return sorted((f for f in found if f.is_file()), key=lambda f: f.stem)


def slugs(folder: Path | None = None) -> list[str]:
    """Slugs of all papers in the book, sorted; drafts are left out."""
    return [f.stem for f in _all(folder) if not is_draft(f)]


def drafts(folder: Path | None = None) -> list[str]:
    """Slugs of the papers that are drafts, sorted."""
    return [f.stem for f in _all(folder) if is_draft(f)]


def left_out() -> str:
    """One line that names the drafts which a command passes over; empty when there are none."""
    names = drafts()
    return (
        f"{len(names)} draft{'' if len(names) == 1 else 's'} left out: {', '.join(names)}"
        if names
        else ""
    )


def draft_faults(folder: Path | None = None) -> list[str]:
    """Drafts that hold stored evidence, which a draft may not: one message for each."""
    results = folder.parent / "results" if folder else paths.RESULTS
    return [
        f"notebooks/{slug}.yaml:1: a draft has no stored record, but results/{tier}/{slug}.json is there: "
        f"take the line 'draft: true' out, or remove the record with 'git rm results/{tier}/{slug}.*'"
        for slug in drafts(folder)
        for tier in KEPT
        if (results / tier / f"{slug}.json").is_file()
    ]


def path(slug: str) -> Path:
    """The card's file. Raises CardError, naming the choices, when there is no such paper."""
    file = paths.NOTEBOOKS / f"{slug}.yaml"
    known = slugs() + drafts()
    if slug not in known:
        raise CardError(f"no paper {slug!r}; there are: {', '.join(known) or 'none yet'}")
    return file


def load(slug: str) -> dict[str, Any]:
    """Read and validate the card of a paper. Raises CardError."""
    return read(path(slug))


def read(file: Path, finished: bool = False) -> dict[str, Any]:
    """Read and validate one card file.

    Args:
        finished: refuse what is still to be filled in (TODO) in a draft, too.

    Raises:
        CardError: with file:line of each fault.
    """
    try:
        document = yamlfile.read(file)
        card = document.data
        if not isinstance(card, dict):
            raise CardError(f"{file.name}:1: a card is a mapping that starts with 'slug:'")
        draft = is_draft(file)
        faults = [(document.line(where), text) for where, text in faults_of(card, schema())]
        if "draft" in card and not draft:
            line = document.line(["draft"])
            faults.append(
                (
                    line,
                    "draft: a draft says 'draft: true' in the card's first line; else take this line out",
                )
            )
        todo = [fault for fault in faults if fault[1].endswith(UNFINISHED_TEXT)]
        if len(todo) == len(faults):  # all that is there has its form
            faults += [(document.line(where), text) for where, text in _rules(card, file.stem)]
            if not UNFINISHED.match(card["cite"]) and not (draft and not finished):
                faults += [
                    (document.line(["cite"]), text) for text in _citation(card["cite"], file)
                ]
        if draft and not finished:
            faults = [fault for fault in faults if fault not in todo]
        elif not draft:
            faults = [
                (line, text + NO_DRAFT if (line, text) in todo else text) for line, text in faults
            ]
        document.refuse(faults)
    except yamlfile.YamlFault as error:
        raise CardError(str(error)) from None
    except OSError as error:
        raise CardError(
            f"{file.name}: cannot be read ({error.strerror}); there are: {', '.join(slugs())}"
        ) from None
    return card


UNFINISHED_TEXT = "is unfinished (TODO): fill it in"
NO_DRAFT = ", or write 'draft: true' as the first line of the card"


def _citation(key: str, file: Path) -> list[str]:
    """What is wrong with a card's citation: nothing, or that the bibliography beside the notebooks
    lacks it.
    """
    known = papersources.bibliography(file.parent.parent / "book" / "references.bib")
    if key in known:
        return []
    near = difflib.get_close_matches(key, known, 1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return [
        f"cite: {key!r} is no entry of book/references.bib{guess}: add the paper's BibTeX there under this key"
    ]


def faults_of(data: Any, rules: dict[str, Any]) -> Iterator[tuple[list[Any], str]]:
    """Departures from a JSON schema in plain words, as (path of the value, text)."""
    for error in jsonschema.Draft202012Validator(rules).iter_errors(data):
        for where, text in _say(error):
            at = ".".join(map(str, where))
            yield where, f"{at[:200]}: {text}" if at else text


KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing",
}
WANTED = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
    "boolean": "true or false",
}
FORMS = {
    "arxiv": 'an arXiv id such as "2401.00001" or "cs/0101001"',
    "doi": 'a DOI such as "10.1000/182"',
    "acl": 'an ACL Anthology id such as "2024.acl-long.1" or "P19-1001"',
    "openreview": "the id in the address of its OpenReview page",
    "url": "an address that starts with https:// or http://",
    "slug": "lower-case words joined by hyphens",
    "cite": "a key of book/references.bib",
    "id": "C, N or R (G for a gate) and a number",
}


def _say(error: jsonschema.ValidationError) -> list[tuple[list[Any], str]]:
    """One schema error as (path, text) pairs."""
    where, value, rule = list(error.absolute_path), error.instance, error.validator
    shown = json.dumps(value, ensure_ascii=False, default=str)[:120]
    if (
        isinstance(value, str)
        and UNFINISHED.match(value)
        and (rule == "pattern" or where == ["family"])
    ):
        return [(where, f"{shown} {UNFINISHED_TEXT}")]
    if rule in ("anyOf", "oneOf") and not where:
        return [
            (
                where,
                "where is the paper published? give at least one of arxiv, doi, acl, openreview, url",
            )
        ]
    if rule == "oneOf" and "required" in error.validator_value[0]:
        forms = ", ".join(option["required"][0] for option in error.validator_value)
        return [(where, f"a test has exactly one of {forms}")]
    if rule == "oneOf":
        form = FORMS["url"] if where[-1:] == ["url"] else "text"
        return [(where, f"{shown} is neither null nor {form}")]
    if rule == "additionalProperties":
        known = list(error.schema["properties"])
        return [([*where, name], _unknown(name, known)) for name in value if name not in known]
    if rule == "required":
        missing = [name for name in error.validator_value if name not in value]
        return [(where, f"'{name}' is missing") for name in missing if f"'{name}'" in error.message]
    if rule == "type":
        kind = KINDS.get(type(value), "something else")
        text = f"{shown} is {kind} where {WANTED.get(error.validator_value, error.validator_value)} is wanted"
        return [
            (
                where,
                text
                + (
                    ": put it in quotes"
                    if error.validator_value == "string" and kind in ("a number", "true or false")
                    else ""
                ),
            )
        ]
    if "propertyNames" in error.absolute_schema_path:
        return [([*where, value], "a name here is a letter, then letters, digits and _")]
    if rule == "pattern":
        form = FORMS.get(str(where[-1]) if where else "", "")
        blank = isinstance(value, str) and not value.strip()
        return [
            (
                where,
                "is blank: write something"
                if blank
                else f"{shown} is not {form or 'of the form that is wanted here'}",
            )
        ]
    return [(where, error.message[:300])]


def _unknown(name: str, known: list[str]) -> str:
    """What is said of a key that the schema does not know."""
    if name == "null" and "null_value" in known:
        return "the key null is written null_value: YAML reads a bare null as nothing"
    near = difflib.get_close_matches(name, known, 1)
    return f"'{name[:60]}' is no field here{f'; did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"


def _rules(card: dict[str, Any], stem: str) -> list[tuple[list[Any], str]]:
    faults: list[tuple[list[Any], str]] = []
    if card["slug"] != stem:
        faults.append((["slug"], f"slug {card['slug']!r} is not the file's name {stem!r}"))
    for name in set(card.get("parameters", {})) & set(COMMON_PARAMETERS):
        faults.append(
            (["parameters", name], f"parameter {name!r} belongs to every notebook, leave it out")
        )
    if len(card["title"].splitlines()) > 1:
        faults.append((["title"], "title: write it on one line"))
    for name, spec in card.get("parameters", {}).items():
        if "min" in spec and "max" in spec and spec["min"] > spec["max"]:
            faults.append(
                (
                    ["parameters", name],
                    f"parameter {name!r}: min is larger than max, so no value passes",
                )
            )
    ids: dict[str, dict[str, Any]] = {}
    for group in ("gates", "claims"):
        for k, item in enumerate(card.get(group, [])):
            if item["id"] in ids:
                faults.append(([group, k, "id"], f"duplicate id {item['id']}"))
            ids[item["id"]] = item
            if "test" in item:
                faults += [
                    ([group, k, "test", *at], f"{item['id']}: {text}")
                    for at, text in _threshold(item["test"])
                ]
    for k, claim in enumerate(card["claims"]):
        faults += [
            (["claims", k, *where], f"{claim['id']}: {text}")
            for where, text in _claim_rules(claim, ids)
        ]
    return faults


def _claim_rules(
    claim: dict[str, Any], ids: dict[str, dict[str, Any]]
) -> list[tuple[list[Any], str]]:
    out: list[tuple[list[Any], str]] = []
    kind = claim["kind"]
    if kind == "control":
        if ("fails" in claim) == ("tests" in claim):
            out.append(
                (
                    [],
                    "a control has either 'fails' (the effect whose test it must fail) or its own 'tests'",
                )
            )
        if "fails" in claim and ids.get(claim["fails"], {}).get("kind") not in (
            "effect",
            "equivalence",
        ):
            out.append((["fails"], f"fails {claim['fails']!r}, which is no effect of this card"))
    else:
        if "paper" not in claim:
            out.append(
                ([], "no 'paper': the paper's own figure and where it stands, or 'not known'")
            )
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
        out += [(["tests", k, *at], text) for at, text in _threshold(test)]
    return out


def _threshold(test: dict[str, Any]) -> Iterator[tuple[list[Any], str]]:
    """Bounds of one test that nothing, or nothing sensible, can satisfy."""
    for at, bound in (([], test.get("between")), (["every"], test.get("every", {}).get("between"))):
        if bound and bound[0] > bound[1]:
            yield at, f"between {bound}: the first bound must not be the larger"
    bound = test.get("between")
    if bound and bound[0] == bound[1]:
        yield (
            [],
            f"between {bound}: no interval fits between equal bounds; use every: {{between: {bound}}} for an exact value",
        )
    if "null_value" not in test:
        return
    if not ("above" in test or "below" in test):
        yield ["null_value"], "'null_value' goes with above or below"
    elif not (
        test["null_value"] < test["above"]
        if "above" in test
        else test["null_value"] > test["below"]
    ):
        side = "above" if "above" in test else "below"
        yield (
            ["null_value"],
            (
                f"null_value {test['null_value']:g} means no effect, so it cannot itself lie {side} "
                f"the threshold {test[side]:g} or on it"
            ),
        )


def registered_arrays(card: dict[str, Any]) -> dict[str, set[str]]:
    """Claim id -> the array names that its tests read ('' for a single unnamed one)."""
    by_id = {c["id"]: c for c in card["claims"]}
    tests = {
        c["id"]: c["tests"] if "tests" in c else by_id[c["fails"]]["tests"] for c in card["claims"]
    }
    return {claim: {t.get("of", "") for t in found} for claim, found in tests.items()}
