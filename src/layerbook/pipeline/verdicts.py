"""Verdicts: what the engine decided from a record, in results/<tier>/<slug>.verdicts.json.

Nothing else writes that file. It holds no measured value, so that a change of the engine or of a
card's tests decides all records again within seconds and runs nothing. `joined` puts record and
verdicts together for those who read both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerbook.claims import cards, engine, varying
from layerbook.pipeline import deps, digests, record

SUFFIX = ".verdicts.json"
SCHEMA = 3
BROKEN_FACT = "FAILS: "  # how a notebook prints a fact that does not hold


def file_of(slug: str, tier: str) -> Path:
    """Where the verdicts of a paper lie."""
    return record.file_of(slug, tier, SUFFIX)


def _nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else v for v in values]


def broken_facts(notebook: bytes) -> list[str]:
    """Facts that an executed notebook printed and that did not hold."""
    cells = json.loads(notebook)["cells"]
    printed = [
        "".join(output["text"])
        for cell in cells
        for output in cell.get("outputs", [])
        if output.get("output_type") == "stream"
    ]
    lines = [line for text in printed for line in text.split("\n")]
    return [line.removeprefix(BROKEN_FACT) for line in lines if line.startswith(BROKEN_FACT)]


def decide(
    card: Mapping[str, Any],
    measured: Mapping[str, Any],
    dry: bool = False,
    facts: Sequence[str] = (),
) -> dict[str, Any]:
    """The engine's verdicts on a record's arrays: rows of claims, gates and findings, without
    values and wording.

    Args:
        card: the paper's card.
        measured: its record.
        dry: a rehearsal decides nothing.
        facts: those that the notebook stated and that did not hold.
    """
    arrays = {
        c: {name: _nan(values) for name, values in named.items()}
        for c, named in measured["measured"].items()
    }
    gates = {g: _nan(values) for g, values in measured["gates"].items()}
    rows = engine.decide(card, arrays, gates, measured["tier"], dry, facts)
    bare = lambda row, *without: {k: v for k, v in row.items() if k not in without}  # noqa: E731
    found = [
        engine.finding(f["name"], f["statement"], _nan(f["values"])) for f in measured["findings"]
    ]
    return record.finite(
        {
            "claims": [
                bare(r, "values", "unit") | {"also": [bare(a, "values") for a in r["also"]]}
                for r in rows["claims"]
            ],
            "gates": [bare(g, "values", "statement") for g in rows["gates"]],
            "findings": [bare(f, "values", "statement") for f in found],
        }
    )


def build(measured: Mapping[str, Any], notebook: bytes | None = None) -> dict[str, Any]:
    """The content of a verdicts file, from a record.

    Args:
        notebook: the executed notebook; by default the one that is stored beside the record.
    """
    slug, tier = measured["paper"], measured["tier"]
    head = {
        "schema": SCHEMA,
        "paper": slug,
        "tier": tier,
        "decided_by": digests.decided_by(slug),
    }
    stored_notebook = record.file_of(slug, tier, ".ipynb")
    if notebook is None and stored_notebook.is_file():
        notebook = stored_notebook.read_bytes()
    facts = broken_facts(notebook) if notebook else []
    return head | decide(deps.card(slug), measured, facts=facts)


def joined(
    measured: Mapping[str, Any], decided: Mapping[str, Any], card: Mapping[str, Any]
) -> dict[str, Any]:
    """Record and verdicts as one: each row of a claim, gate or finding with its values, unit, units
    and statement.
    """
    by_id = {c["id"]: c for c in card["claims"]}
    rows = []
    for row in decided["claims"]:
        arrays = measured["measured"].get(row["id"], {})
        claim = by_id.get(row["id"], {})
        also = [dict(a, values=arrays.get(a["of"], [])) for a in row["also"]]
        named = {"units": measured["units"][row["id"]]} if measured["units"].get(row["id"]) else {}
        values = arrays.get(row["of"], [])
        rows.append(row | {"values": values, "unit": claim.get("unit", ""), "also": also} | named)
    statements = {g["id"]: g["statement"] for g in card.get("gates", [])}
    gates = [
        g | {"values": measured["gates"].get(g["id"], []), "statement": statements.get(g["id"], "")}
        for g in decided["gates"]
    ]
    findings = [
        raw | row for raw, row in zip(measured["findings"], decided["findings"], strict=False)
    ]
    return {
        **measured,
        "decided_by": decided.get("decided_by", {}),
        "claims": rows,
        "gates": gates,
        "findings": findings,
    }


def read(slug: str, tier: str) -> dict[str, Any]:
    """The stored verdicts alone. Raises ValueError when they are not usable, FileNotFoundError when
    there are none.
    """
    return record.load(
        file_of(slug, tier), "verdicts", slug, tier, f"decide again: layerbook decide {slug}"
    )


def evidence(slug: str, tier: str) -> dict[str, Any]:
    """Record and verdicts of a paper, joined. Raises ValueError, FileNotFoundError or
    cards.CardError.
    """
    return joined(record.read(slug, tier), read(slug, tier), deps.card(slug))


def write(slug: str, tier: str) -> list[str]:
    """Decide a stored record again and keep the verdicts; returns what changed, one line for each
    claim.

    Raises:
        ValueError: the record is not usable, or the card has faults.
    """
    return [f"{slug} {m['claim']}: {m['was']} -> {m['is']}" for m in rewrite(slug, tier)]


def rewrite(slug: str, tier: str) -> list[dict[str, str]]:
    """The same, returning {paper, tier, claim, kind, was, is} of each claim that changed."""
    new = build(record.read(slug, tier))
    file = file_of(slug, tier)
    try:  # as it stands, of whatever edition of the engine
        before = json.loads(file.read_text(encoding="utf-8"))
        old = {r["id"]: r["verdict"] for r in before["claims"]}
    except (OSError, ValueError, KeyError, TypeError):
        old = {}
    text = record.dumps(new).encode()
    if not file.is_file() or file.read_bytes() != text:
        record.replace(file, text)
    where = {"paper": slug, "tier": tier}
    return [
        where | {"claim": r["id"], "kind": r["kind"], "was": old[r["id"]], "is": r["verdict"]}
        for r in new["claims"]
        if r["id"] in old and old[r["id"]] != r["verdict"]
    ]


def stored(slugs: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Paper and tier of every record that there is, of the papers named or of all."""
    return [
        (slug, tier)
        for slug in slugs or cards.slugs()
        for tier in record.TIERS
        if record.file_of(slug, tier).is_file()
    ]


def problems(slug: str, tier: str) -> list[str]:
    """Why the stored verdicts are not those of the record, the card and the engine; an empty list
    when they are.

    Raises:
        ValueError, FileNotFoundError: record or verdicts cannot be read.
    """
    again = f"decide again: layerbook decide {slug}"
    measured, card = record.read(slug, tier), deps.card(slug)
    registered = cards.registered_arrays(card)
    unknown = [c for c in measured["measured"] if c not in registered]
    unknown += [
        g for g in measured["gates"] if g not in {gate["id"] for gate in card.get("gates", [])}
    ]
    out = [f"{c} is in the record but not in the card" for c in unknown]
    old, new = read(slug, tier), build(measured)
    then, now = old["decided_by"], new["decided_by"]
    differing = sorted(n for n in {*then, *now} if then.get(n) != now.get(n))
    if differing:
        return [*out, f"the verdicts were decided by another {', '.join(differing)}; {again}"]
    for kind in ("claims", "gates", "findings"):
        out += [f"{text}; {again}" for text in _underived(kind, old[kind], new[kind])]
    return out


def _underived(
    kind: str, stored_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Where stored rows are not what follows from the stored values."""
    name = "name" if kind == "findings" else "id"
    here, there = [r.get(name) for r in stored_rows], [r.get(name) for r in rows]
    if here != there:
        lost, more = [n for n in there if n not in here], [n for n in here if n not in there]
        if lost:
            return [f"{', '.join(lost)}: in the card or the record but not in the verdicts"]
        return [
            f"{', '.join(map(str, more)) or kind}: in the verdicts but not in the card or the record"
        ]
    out = []
    for old, new in zip(stored_rows, rows, strict=True):
        wrong = [
            key
            for key in sorted({*old, *new})
            if key not in old or key not in new or not same(old[key], new[key])
        ]
        if wrong:
            says = f" ({old['verdict']}, not {new['verdict']})" if "verdict" in wrong else ""
            out.append(
                f"{new[name]}: its stored {', '.join(wrong)} does not follow from its stored values{says}"
            )
    return out


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values, numbers to one part in a million: machines differ in a last digit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) in (int, float) and type(b) in (int, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def differences(
    stored_evidence: Mapping[str, Any], now: Mapping[str, Any], card: Mapping[str, Any]
) -> list[str]:
    """Which measured arrays and verdicts of a second run are not those of the first, value by
    value.

    Claims that the card marks `varies` (by time or by threads), their controls, and findings that
    the notebook marks so are left out.
    """
    varies = set(varying.of_claims(card))
    varies |= {f["name"] for f in now["findings"] if "varies" in f}

    def arrays(found: Mapping[str, Any]) -> dict[tuple[str, str], list[Any]]:
        out = {(c, name): v for c, named in found["measured"].items() for name, v in named.items()}
        out |= {(g["id"], "gate"): g["values"] for g in found["gates"]}
        return out | {
            (row["name"], kind): row["values"]
            for kind in ("findings", "profiles")
            for row in found[kind]
        }

    before, after, out = arrays(stored_evidence), arrays(now), []
    for what in sorted({*before, *after}):
        a, b = before.get(what), after.get(what)
        if a != b and what[0] not in varies:
            count = sum(x != y for x, y in zip(a or [], b or [], strict=False)) + abs(
                len(a or []) - len(b or [])
            )
            out.append(
                f"{now['paper']} {what[0]}: {count} of {len(a or [])} values of {what[1] or 'its array'} differ"
            )
    old = {r["id"]: r["verdict"] for r in stored_evidence["claims"]}
    return out + [
        f"{now['paper']} {r['id']}: stored {old.get(r['id'])}, now {r['verdict']}"
        for r in now["claims"]
        if old.get(r["id"]) != r["verdict"] and r["id"] not in varies
    ]
