"""Whether a claim's tests stood before its first record, as git history shows it.

A card is committed before what it asks is measured. What is compared is, for each claim, the commit
in which its tests were last changed and the commit of its first record. Without git, on a shallow
clone, or outside a repository nothing is known, and `unknown` says why.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from layerbook import paths
from layerbook.claims import lint
from layerbook.pipeline import deps, record

BEFORE, TOGETHER, AFTER, UNRECORDED = "before", "together", "after", "no record"
UNCOMMITTED = ""  # in place of a commit: what lies in the checkout alone
# What a test is, without the words about it.
WORDS = ("changed", "expect", "underpowered")
OLD_NAMES = {"null": "null_value", None: "null_value"}
DECIDING = ("tests", "smallest", "deterministic", "fails", "compare", "requires")


@dataclass(frozen=True)
class Registered:
    """When a claim of a card was registered.

    Attributes:
        tests: commit in which its tests were last changed; "" while that is not committed.
        date: of that commit, as 2026-01-31.
        recorded: commit of the first record that holds the claim; None while there is none.
        order: "before", "together", "after" (the tests against the record) or "no record".
    """

    claim: str
    tests: str
    date: str
    recorded: str | None
    order: str


def _git(*arguments: str) -> str | None:
    """What a git command prints; None where there is no git or no such thing."""
    command = ["git", "-c", f"safe.directory={paths.ROOT}", *arguments]
    try:
        done = subprocess.run(
            command, cwd=paths.ROOT, capture_output=True, encoding="utf-8", check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def unknown() -> str:
    """Why git history tells nothing about registrations here; '' when it does."""
    shallow = _git("rev-parse", "--is-shallow-repository")
    if shallow is None:
        return "no git history here: when tests were registered cannot be seen"
    if shallow.strip() == "true":
        return "a shallow clone: when tests were registered cannot be seen (git fetch --unshallow)"
    return "" if _git("rev-parse", "--verify", "HEAD") else "nothing is committed here yet"


def _commits(name: str) -> list[tuple[str, str]]:
    """Commits that touch a file, oldest first, each with its date."""
    log = _git("log", "--topo-order", "--reverse", "--format=%H %cs", "--", name) or ""
    return [(line.split()[0], line.split()[1]) for line in log.splitlines()]


@lru_cache(maxsize=4096)
def _text(commit: str, name: str) -> str:
    """A file as a commit has it; '' when it has none."""
    return _git("show", f"{commit}:./{name}") or ""


def deciding(claim: Mapping[str, Any]) -> str:
    """All of a claim that a verdict depends on, in one textual form."""
    bare = {k: claim[k] for k in DECIDING if k in claim}
    if "tests" in bare:
        tests = [{k: v for k, v in t.items() if k not in WORDS} for t in bare["tests"]]
        # early cards wrote null_value as null
        bare["tests"] = [{OLD_NAMES.get(k, k): v for k, v in t.items()} for t in tests]
    return json.dumps(bare, sort_keys=True, ensure_ascii=False)


def _claims(text: str) -> dict[str, str]:
    """Claim id -> what decides it, of one version of a card; {} for one that is no card."""
    try:
        card = deps.fast_yaml(text)
        return {c["id"]: deciding(c) for c in card["claims"]}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _recorded(text: str) -> set[str]:
    """Ids of the claims that one version of a record holds measurements of."""
    try:
        found = json.loads(text)
        held = [c["id"] for c in found.get("claims", []) if c.get("values")]
        return {*found.get("measured", {}), *held}
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def _changes(slug: str) -> dict[str, tuple[str, str]]:
    """Claim id -> commit and date at which what decides it was last changed."""
    name = f"notebooks/{slug}.yaml"
    before: dict[str, str] = {}
    last: dict[str, tuple[str, str]] = {}
    for commit, date in _commits(name):
        now = _claims(_text(commit, name))
        last |= {c: (commit, date) for c, how in now.items() if before.get(c) != how}
        before = now or before
    here = {c["id"]: deciding(c) for c in deps.card(slug)["claims"]}
    return {c: last[c] if before.get(c) == how else (UNCOMMITTED, "") for c, how in here.items()}


def _first_records(slug: str, tier: str) -> dict[str, str]:
    """Claim id -> the commit whose record was the first to hold it."""
    name, out = f"results/{tier}/{slug}.json", {}
    for commit, _ in _commits(name):
        for claim in _recorded(_text(commit, name)):
            out.setdefault(claim, commit)
    return out


def of_paper(slug: str, tier: str = "cpu") -> list[Registered]:
    """When each claim of a paper was registered, in the card's order; [] where `unknown` says why."""
    if unknown():
        return []
    order = {
        c: k
        for k, c in enumerate((_git("rev-list", "--topo-order", "--reverse", "HEAD") or "").split())
    }
    recorded, out = _first_records(slug, tier), []
    for claim, (commit, date) in _changes(slug).items():
        first = recorded.get(claim)
        if first is None:
            how = UNRECORDED
        elif commit == UNCOMMITTED or order[commit] > order[first]:
            how = AFTER
        else:
            how = TOGETHER if commit == first else BEFORE
        out.append(Registered(claim, commit, date, first, how))
    return out


def undated(slug: str) -> Iterator[tuple[str, str]]:
    """Claims whose tests changed after their first record without a dated `changed`: id and text."""
    claims = {c["id"]: c for c in deps.card(slug)["claims"]}
    for tier in record.TIERS:
        if not record.file_of(slug, tier).is_file():
            continue
        for found in of_paper(slug, tier):
            said = [claims[found.claim], *claims[found.claim].get("tests", [])]
            dated = any(lint.DATE.search(item.get("changed", "")) for item in said)
            if found.order == AFTER and not dated:
                when = (
                    f"in {found.tests[:7]} ({found.date})"
                    if found.tests
                    else "here, not committed,"
                )
                yield (
                    found.claim,
                    f"its tests changed {when} after its first record ({found.recorded[:7]}): "
                    "say when and why under 'changed', beginning with the date",
                )
