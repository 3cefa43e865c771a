"""The command `layerbook`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from layerbook import terminal


def _name_drafts(named: Sequence[str] = ()) -> None:
    """Say in one line which drafts a command passed over; nothing where papers were named."""
    from layerbook.claims import cards

    if not named and (line := cards.left_out()):
        print(line)


def _check(args: argparse.Namespace) -> int:
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


def _new(args: argparse.Namespace) -> int:
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


def _value(text: str) -> Any:
    from ruamel.yaml import YAML

    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, YAML(typ="safe").load(value)


def _rerun(args: argparse.Namespace) -> int:
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


def _decide(args: argparse.Namespace) -> int:
    import os

    from layerbook.pipeline import driver, verdicts

    faults, changed, stored = [], [], verdicts.stored(args.slug)
    for slug, tier in stored:
        try:
            changed += verdicts.write(slug, tier)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
    print("\n".join(changed) or "no verdict changed")
    print("\n".join([*faults, f"{len(stored) - len(faults)} of {len(stored)} records decided"]))
    if not faults and "DVC_STAGE" not in os.environ and "decide" in driver.stages():
        driver.dvc("repro", "-q", "-s", "digests")
        driver.dvc("commit", "-q", "-f", "decide")
    return 1 if faults else 0


def _run(args: argparse.Namespace) -> int:
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


def _fresh(args: argparse.Namespace) -> int:
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


def _sync(args: argparse.Namespace) -> int:
    from layerbook.pipeline import stages

    difference = stages.sync(check=args.check)
    print(
        difference or "dvc.yaml and params.yaml are in step with the notebooks",
        end="" if difference else "\n",
    )
    _name_drafts()
    return 1 if difference and args.check else 0


def _status(args: argparse.Namespace) -> int:
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


def _clean(args: argparse.Namespace) -> int:
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


def _changed(args: argparse.Namespace) -> int:
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


def _data(args: argparse.Namespace) -> int:
    from layerbook.pipeline import store

    return store.ensure()


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    top = argparse.ArgumentParser(
        prog="layerbook", description="Papers that are run, not only read."
    )
    sub = top.add_subparsers(dest="command", required=True)

    def add(
        name: str, function: Callable[[argparse.Namespace], int], text: str, slugs: str = ""
    ) -> argparse.ArgumentParser:
        p = sub.add_parser(name, help=text, description=text)
        p.set_defaults(function=function)
        if slugs:
            p.add_argument("slug", nargs=slugs) if slugs == "*" else p.add_argument("slug")
        return p

    add("check", _check, "hold notebooks and cards against the conventions", "*")
    new = add("new", _new, "scaffold card, notebook and test of a new paper", "1")
    new.add_argument(
        "--paper",
        metavar="ID",
        help="arXiv id, DOI, ACL Anthology or OpenReview id, or the address of its page",
    )
    run = add("rerun", _rerun, "execute a paper and store its record", "1")
    run.add_argument("--tier", default="cpu", choices=["smoke", "cpu", "gpu", "gpu-dry"])
    run.add_argument(
        "-p", "--param", action="append", default=[], type=_value, metavar="NAME=VALUE"
    )
    run.add_argument("--dry", action="store_true", help="store nothing")
    run.add_argument(
        "--expect-same",
        action="store_true",
        help="fail when a measured value or a verdict differs from the stored one",
    )
    many = add(
        "run",
        _run,
        "run all stale papers, or those named, several at once, and record them in DVC",
        "*",
    )
    many.add_argument(
        "-j", "--jobs", type=int, default=1, metavar="N", help="how many papers at once (default 1)"
    )
    many.add_argument("--tier", default="cpu", choices=["cpu", "gpu"])
    many.add_argument(
        "--cold",
        action="store_true",
        help="a plain kernel for each paper instead of warm, forked ones",
    )
    many.add_argument(
        "--slurm",
        action="store_true",
        help="one Slurm job per paper, as `slurm` in params.yaml says",
    )
    add("fresh", _fresh, "fail when a stored result is not that of the files beside it", "*")
    add(
        "decide",
        _decide,
        "decide the stored records again, after a change of the engine or of a card's tests",
        "*",
    )
    add("sync", _sync, "derive dvc.yaml and params.yaml").add_argument(
        "--check", action="store_true", help="only compare"
    )
    add("status", _status, "verdict counts of the stored records")
    add(
        "clean",
        _clean,
        "bring source notebooks into their stored form, without outputs and traces of an editor",
        "*",
    )
    closure = add(
        "changed", _changed, "papers and tests that a change touches; 'make test-changed' runs them"
    )
    closure.add_argument(
        "--since",
        metavar="COMMIT",
        help="compare with this commit (default: where this branch left the default one)",
    )
    closure.add_argument("--all", action="store_true", help="everything, whatever changed")
    closure.add_argument(
        "--only",
        choices=["notebooks", "tests"],
        help="print nothing but the executed notebooks, or the test files, one a line",
    )
    add("data", _data, "fetch what is missing, verify it against data.dvc, prepare what is stale")
    return top


def _say_which_checkout() -> None:
    """One line when $LAYERBOOK_ROOT names another checkout than that of the working folder."""
    import layerbook
    from layerbook import paths

    here = layerbook.checkout_here()
    if os.environ.get(paths.VARIABLE) and here and here != paths.ROOT:
        print(
            f"layerbook: {paths.VARIABLE} names {paths.ROOT}, so that is where this works, not the checkout "
            f"of the working folder, {here}; to work here: unset {paths.VARIABLE}",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; whatever happens ends in one message and an exit code, see `endings.command`."""
    from layerbook import endings
    from layerbook.pipeline import advice

    terminal.lenient()
    args = parser().parse_args(argv)

    def run() -> int:
        from layerbook import keeping

        _say_which_checkout()
        keeping.sweep()
        return args.function(args)

    return endings.command(f"layerbook {args.command}", run, advice.explain)
