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
from layerbook.claims import card_rules, papersources, roles

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
            faults += [
                (document.line(where), text)
                for where, text in card_rules.faults(card, file.stem, COMMON_PARAMETERS)
            ]
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
    if rule == "anyOf":  # text or something with fields: what is wrong with the kind that is there
        kinds = {e.schema_path[0] for e in error.context if list(e.schema_path)[1:] == ["type"]}
        of_its_kind = [e for e in error.context if e.schema_path[0] not in kinds]
        return [pair for e in of_its_kind or error.context for pair in _say(e)]
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


def registered_arrays(card: dict[str, Any]) -> dict[str, set[str]]:
    """Claim id -> the array names that it is measured on ('' for a single unnamed one).

    A claim's are those that its tests read, the random ones of a rank test, and the one that shows
    the paper's own quantity; a control's are those that the tests of the claim read which it names.
    """
    by_id = {c["id"]: c for c in card["claims"]}
    out = {}
    for claim in card["claims"]:
        tests = claim.get("tests")
        if tests is None:
            out[claim["id"]] = {t.get("of", "") for t in by_id[roles.named(claim)[0]]["tests"]}
            continue
        out[claim["id"]] = {t.get("of", "") for t in tests}
        out[claim["id"]] |= {t["rank"]["among"] for t in tests if "rank" in t}
        out[claim["id"]] |= {claim["shows"]} if "shows" in claim else set()
    return out
