"""What the book's pages are rendered from: a paper's card, its records, its discussion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from layerbook import paths
from layerbook.claims import cards, discussions, roles, testwords, varying
from layerbook.pages.markup import ROLES
from layerbook.pipeline import advice, filefaults, record, verdicts

FAMILIES: list[str] = cards.schema()["properties"]["family"]["enum"]
# claims proper; identities and controls say whether to believe them
PROPER = (
    "effect",
    "equivalence",
)
TIERS = ("cpu", "gpu")


class BookError(RuntimeError):
    """The book can not be rendered or built; the message says which file is at fault and what to
    do.
    """


def checked(path: Path, read: Callable[[Path], Any], root: Path) -> Any:
    """What `read`, a function of `filefaults`, gives for a file. Raises BookError: file, fault and
    what to type.
    """
    try:
        return read(path)
    except filefaults.FileFault as fault:
        name = path.relative_to(root).as_posix()
        raise BookError(f"{name} {fault}\n  {advice.remedy(name, root)}") from None


def read_yaml(path: Path) -> Any:
    """Read one YAML file as plain Python values."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Paper:
    """One paper: its card, its records by tier, and the prose on claims that did not come out
    reproduced.
    """

    slug: str
    card: dict[str, Any]
    records: dict[str, dict[str, Any]]
    discussion: dict[str, dict[str, str]]

    @property
    def short(self) -> str:
        """The name used in lists: the part of the title before a colon."""
        return " ".join(self.card["title"].split(":")[0].split())

    @property
    def main(self) -> str:
        """The tier of the paper's main page: cpu, unless there is only a gpu run."""
        return next(t for t in TIERS if t in self.records)

    def claims(self, tier: str | None = None) -> list[dict[str, Any]]:
        """Registered claims with their results: those of one tier, or of the tier that decides each
        of them.

        The cpu record decides what it tested and the gpu record decides the rest; what both tested
        keeps the gpu result under "other". Added keys: role (the kind, or what sort of control),
        registered (the test that decided), needs (the smallest tier that may decide), tier (that
        measured it, or None), matched (the simpler explanations that are level or ahead of a claim
        that holds, [{"id", "state"}]), slug.
        """
        by_id = {c["id"]: c for c in self.card["claims"]}
        measured = {t: {c["id"]: c for c in record["claims"]} for t, record in self.records.items()}
        for t, found in measured.items():
            if unknown := sorted(set(found) - set(by_id)):
                raise BookError(
                    f"results/{t}/{self.slug}.json holds {', '.join(unknown)}, which notebooks/{self.slug}.yaml "
                    f"does not register: run it again with `make rerun PAPER={self.slug} TIER={t}`"
                )
        marked, rows = varying.of_claims(self.card), []
        for claim in by_id.values():
            results = {
                t: found[claim["id"]] for t, found in measured.items() if claim["id"] in found
            }
            tested = [t for t in TIERS if t in results and results[t]["verdict"] != "not tested"]
            chosen = tier if tier in results else next(iter([*tested, *results]), None)
            result = results.get(chosen) or {
                "verdict": "not tested",
                "reason": "no measurement was recorded",
            }
            holds = result["verdict"] in ("reproduced", "weaker")
            rivals = [r for r in result.get("rivals", []) if r["state"] in ("level", "ahead")]
            control = claim["kind"] == "control"
            added = {
                "role": ROLES[roles.role(claim)] if control else claim["kind"],
                "registered": registered(claim, result.get("test")),
                "needs": claim["tier"],
                "tier": chosen if result.get("n") else None,
                "matched": rivals if holds else [],
                "other": {t: results[t] for t in tested if t != chosen} if tier is None else {},
                "slug": self.slug,
                "varies": marked.get(claim["id"]),
            }
            rows.append({**claim, **result, **added})
        return rows

    def counts(self, tier: str | None = None) -> Counter[str]:
        """Verdicts of the paper's effects and equivalences."""
        return Counter(c["verdict"] for c in self.claims(tier) if c["kind"] in PROPER)


def registered(claim: dict[str, Any], words: str | None) -> dict[str, Any]:
    """The test of a claim that decided it, found by its words; a difference is held against 0."""
    if "tests" not in claim:
        return {"above": 0}
    tests = roles.tests(claim)
    return next((t for t in tests if testwords.describe(t) == words), tests[0])


def evidence(file: Path, card: dict[str, Any], tier: str) -> dict[str, Any]:
    """Record and verdicts of a paper as one. Raises BookError that says which file is at fault and
    what to do.
    """
    slug, contents = file.stem, []
    for path, kind, remedy in (
        (file, "measurements", f"run it again: make rerun PAPER={slug} TIER={tier}"),
        (
            file.with_name(f"{slug}{verdicts.SUFFIX}"),
            "verdicts",
            f"decide again: layerbook decide {slug}",
        ),
    ):
        try:
            contents.append(record.load(path, kind, slug, tier, remedy))
        except FileNotFoundError:
            raise BookError(f"results/{tier}/{path.name} is missing; {remedy}") from None
        except ValueError as error:
            raise BookError(str(error)) from None
    return verdicts.joined(*contents, card)


def load(root: Path = paths.ROOT) -> list[Paper]:
    """Every paper that has a card and at least one record, by family and then by name. Raises
    cards.CardError.
    """
    papers, folder = [], root / "notebooks"
    if faults := cards.draft_faults(folder):
        raise BookError("\n".join(faults))
    for path in (folder / f"{slug}.yaml" for slug in cards.slugs(folder)):
        files = {tier: root / "results" / tier / f"{path.stem}.json" for tier in TIERS}
        found = {t: f for t, f in files.items() if f.exists()}
        prose = root / "book" / "discussion" / f"{path.stem}.yaml"
        if found:
            card = cards.read(path)
            for file in found.values():
                checked(file, filefaults.record_of, root)
            if prose.exists():
                checked(prose, filefaults.discussion_of, root)
            records = {t: evidence(f, card, t) for t, f in found.items()}
            papers.append(Paper(path.stem, card, records, discussions.read(prose, card)))
    return sorted(papers, key=lambda p: (FAMILIES.index(p.card["family"]), p.short.lower()))
