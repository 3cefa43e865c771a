"""What each command of `layerbook` does; `layerbook.cli` says how it is typed.

Imports stand inside the functions, so that a command waits only for what it needs.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Any


def _name_drafts(named: Sequence[str] = ()) -> None:
    """Say in one line which drafts a command passed over; nothing where papers were named."""
    from layerbook.claims import cards

    if not named and (line := cards.left_out()):
        print(line)


def check(args: Namespace) -> int:
    from layerbook.authoring import check
    from layerbook.claims import cards

    faults = [f for slug in args.slug or cards.slugs() for f in check.check(slug)]
    if not args.slug:
        faults += check.leftovers()
    print("\n".join(faults) or "all conventions hold")
    notes = dict.fromkeys(n for slug in args.slug or cards.slugs() for n in check.notes(slug))
    print("".join(f"note: {note}\n" for note in notes), end="")
    _name_drafts(args.slug)
    for slug in sorted(set(args.slug) & set(cards.drafts())):
        todo = "then" if faults else "when it is to enter the book,"
        print(f"{slug} is a draft: {todo} take the line 'draft: true' out of notebooks/{slug}.yaml")
    return 1 if faults else 0


def new(args: Namespace) -> int:
    from layerbook import paths
    from layerbook.authoring import scaffold

    paper = args.paper
    if paper is None and sys.stdin.isatty():
        paper = input(f"the paper ({scaffold.EXAMPLES}; empty: later): ")
    for file in scaffold.new(args.slug, paper or ""):
        print(f"wrote {file.relative_to(paths.ROOT)}")
    print(
        f"it is a draft, which the book leaves out; fill in every TODO: 'layerbook check {args.slug}' lists what is left"
    )
    return 0


def train(args: Namespace) -> int:
    from layerbook.networks import making
    from layerbook.pipeline import advice, store

    if args.into is None and not args.again and args.network in store.changed_networks():
        print(advice.changed_networks([args.network]))
        print(f"  or train it anew and take what comes out: layerbook train {args.network} --again")
        return 1
    return making.command(
        args.network, args.into, args.seed, args.steps, args.processes, args.again
    )


def value(text: str) -> Any:
    from ruamel.yaml import YAML

    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"{text!r} is not name=value")
    return name, YAML(typ="safe").load(value)


def rerun(args: Namespace) -> int:
    from layerbook.claims import cards
    from layerbook.notebook import tables
    from layerbook.pipeline import runner, verdicts

    stored = verdicts.evidence(args.slug, args.tier) if args.expect_same else None
    result = runner.run(args.slug, args.tier, dict(args.param), write=not args.dry)
    for row in result["claims"]:
        print(f"{row['id']:4s} {tables.label(row['kind'], row['verdict']):16s} {row['reason']}")
    print(
        f"{args.slug}: {result['seconds']:.0f} s, {result['peak_memory_mb']} MB, {result['device']}"
    )
    other = (
        runner.other_parameters(args.slug, result)
        if args.tier == result["tier"] and not args.dry
        else []
    )
    if other:
        given = " ".join(f"-p {name} {value}" for name, value in args.param)
        print(
            f"nothing was stored: {'; '.join(other)}. Keep a copy of such a run with: papermill notebooks/{args.slug}.ipynb "
            f"copy.ipynb -p tier {args.tier} {given}".rstrip()
        )
    if args.slug in cards.drafts():
        print(
            f"{args.slug} is a draft: nothing was stored; when it is to enter the book, take the line 'draft: true' out of "
            f"notebooks/{args.slug}.yaml and run 'layerbook sync'"
        )
    return _compare(stored, result) if stored else 0


def decide(args: Namespace) -> int:
    import os

    from layerbook.pipeline import driver, history, verdicts

    faults, moves, stored = [], [], verdicts.stored(args.slug)
    for slug, tier in stored:
        try:
            moves += verdicts.rewrite(slug, tier)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
    lines = [f"{m['paper']} {m['claim']}: {m['was']} -> {m['is']}" for m in moves]
    print("\n".join(lines) or "no verdict changed")
    print("\n".join([*faults, f"{len(stored) - len(faults)} of {len(stored)} records decided"]))
    claims = [{k: m[k] for k in sorted(history.FIELDS)} for m in moves if m["kind"] != "control"]
    if claims and args.why:
        history.add(args.why, claims)
    elif claims and "DVC_STAGE" not in os.environ:
        print(f"{len(claims)} claims moved: --why 'the reason' puts them on the page What changed")
    if not faults and "DVC_STAGE" not in os.environ and "decide" in driver.stages():
        driver.dvc("repro", "-q", "-s", "digests")
        driver.dvc("commit", "-q", "-f", "decide")
    return 1 if faults else 0


def run(args: Namespace) -> int:
    from layerbook.pipeline import driver

    _name_drafts(args.slug)
    return driver.run(args.slug, args.tier, args.jobs, warm=not args.cold, cluster=args.slurm)


def _compare(stored: dict[str, Any], result: dict[str, Any]) -> int:
    from layerbook.pipeline import deps, verdicts

    changed = verdicts.differences(stored, result, deps.card(result["paper"]))
    print(
        "\n".join(changed) or f"{result['paper']}: every value and every verdict is the stored one"
    )
    return 1 if changed else 0


def fresh(args: Namespace) -> int:
    from layerbook.claims import cards
    from layerbook.pipeline import advice, record, stages, store

    if named := sorted(set(args.slug) & set(cards.drafts())):
        raise cards.CardError(
            f"{', '.join(named)}: a draft holds no evidence; "
            f"try it with 'layerbook rerun {named[0]} --tier smoke'"
        )
    bad = cards.draft_faults()
    bad += [
        f"{tier}/{slug}: {p}"
        for slug in args.slug or cards.slugs()
        for tier in record.TIERS
        if tier == "cpu" or record.file_of(slug, tier).is_file()
        for p in record.problems(slug, tier, strict=True)
    ]
    if stages.sync(check=True):
        bad.append("dvc.yaml or params.yaml is not what the notebooks import: run 'layerbook sync'")
    if changed := store.changed_networks():
        bad.append(advice.changed_networks(changed))
    print("\n".join(bad) or "the evidence is fresh")
    _name_drafts(args.slug)
    if bad:
        print("\n".join(advice.after_stale()))
    return 1 if bad else 0


def sync(args: Namespace) -> int:
    from layerbook.pipeline import stages

    difference = stages.sync(check=args.check)
    print(
        difference or "dvc.yaml and params.yaml are in step with the notebooks",
        end="" if difference else "\n",
    )
    _name_drafts()
    return 1 if difference and args.check else 0


def status(args: Namespace) -> int:
    from layerbook.pipeline import verdicts

    for slug, tier in verdicts.stored():
        found = verdicts.evidence(slug, tier)
        counts = Counter(r["verdict"] for r in found["claims"])
        print(
            f"{slug:20s} {tier:4s} {found['seconds']:6.0f} s  "
            + ", ".join(f"{n} {v}" for v, n in counts.items())
        )
    _name_drafts()
    return 0


def clean(args: Namespace) -> int:
    from layerbook import paths
    from layerbook.authoring import sourceform
    from layerbook.claims import cards
    from layerbook.pipeline import method, record

    for slug in args.slug or cards.slugs():
        file = paths.NOTEBOOKS / f"{slug}.ipynb"
        text = sourceform.text(method.read(file)).encode()
        if text != file.read_bytes():  # a notebook that is clean keeps its time stamp
            record.replace(file, text)
    return 0


def changed(args: Namespace) -> int:
    from layerbook.pipeline import changes

    if args.all:
        found, files, base = changes.everything("all was asked for"), [], None
    else:
        found, files, base = changes.changed(args.since)
    if args.only:
        print("\n".join(found.tests if args.only == "tests" else found.notebooks()))
        return 0
    print(f"{len(files)} files differ from {base[:10]}" if base else found.everything)
    if base and found.everything:
        print(f"everything is to be run: {found.everything}")
    for title, names in (("papers", found.papers), ("test files", found.tests)):
        print(f"{len(names)} {title}")
        for name in names if not found.everything else ():
            reasons = found.because[name]
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            print(f"  {name}: {reasons[0]}{more}")
    return 0


def data(args: Namespace) -> int:
    from layerbook.pipeline import store

    return store.ensure()


def assets(args: Namespace) -> int:
    """Fetch, verify or list raw assets."""
    from layerbook.data import fetch

    act = {"fetch": fetch.main_fetch, "verify": fetch.main_verify, "list": fetch.main_list}
    return act[args.action](args.names)


def prepare(args: Namespace) -> int:
    """Bring raw assets into the form that notebooks read."""
    from layerbook.data import prepare as room

    for name in args.names or room.MAKERS:
        size = sum(file.stat().st_size for file in room.prepare(name).iterdir())
        print(f"{name}: {size / 1e6:,.1f} MB")
    return 0


def collect(args: Namespace) -> int:
    """Collect the quantization papers' layer scores out of their records."""
    from layerbook.families import scores

    print(f"{len(scores.write())} scores in {scores.FILE}")
    return 0


def compare(args: Namespace) -> int:
    """Measure the quantization papers' scores and recipes on one model."""
    from layerbook.families import comparison

    print(f"wrote {comparison.write()}")
    return 0


def digests(args: Namespace) -> int:
    """Write the digests that stages depend on."""
    from layerbook.pipeline import digests as room

    print(f"{len(room.write())} digests in {room.FOLDER}")
    return 0


def folders(args: Namespace) -> int:
    """Shell lines that name folders in place of those that cannot be written."""
    import shlex

    from layerbook.pipeline import folders as room

    for name, folder in room.settle().items():
        print(f"export {name}={shlex.quote(folder)}")
    return 0


def render(args: Namespace) -> int:
    """Render the book's pages, and with `build` the book."""
    from layerbook.pages import build

    if args.command == "build":
        html = build.build_book(force=args.force)
        print(f"{len(list(html.rglob('*.html')))} pages; open {html / 'index.html'}")
    else:
        print(f"{len(build.render())} files rendered")
    _name_drafts()
    return 0
