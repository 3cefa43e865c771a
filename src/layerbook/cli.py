"""The command `layerbook`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from layerbook import commands, terminal


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

    add("check", commands.check, "hold notebooks and cards against the conventions", "*")
    new = add("new", commands.new, "scaffold card, notebook and test of a new paper", "1")
    new.add_argument(
        "--paper",
        metavar="ID",
        help="arXiv id, DOI, ACL Anthology or OpenReview id, or the address of its page",
    )
    run = add("rerun", commands.rerun, "execute a paper and store its record", "1")
    run.add_argument("--tier", default="cpu", choices=["smoke", "cpu", "gpu", "gpu-dry"])
    run.add_argument(
        "-p", "--param", action="append", default=[], type=commands.value, metavar="NAME=VALUE"
    )
    run.add_argument("--dry", action="store_true", help="store nothing")
    run.add_argument(
        "--expect-same",
        action="store_true",
        help="fail when a measured value or a verdict differs from the stored one",
    )
    many = add(
        "run",
        commands.run,
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
    add(
        "fresh", commands.fresh, "fail when a stored result is not that of the files beside it", "*"
    )
    add(
        "decide",
        commands.decide,
        "decide the stored records again, after a change of the engine or of a card's tests",
        "*",
    ).add_argument(
        "--why",
        default="",
        metavar="TEXT",
        help="the reason, for the book's page What changed, if a claim's verdict moves",
    )
    add("sync", commands.sync, "derive dvc.yaml and params.yaml").add_argument(
        "--check", action="store_true", help="only compare"
    )
    add("status", commands.status, "verdict counts of the stored records")
    add(
        "clean",
        commands.clean,
        "bring source notebooks into their stored form, without outputs and traces of an editor",
        "*",
    )
    closure = add(
        "changed",
        commands.changed,
        "papers and tests that a change touches; 'make test-changed' runs them",
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
    train = add("train", commands.train, "train a small network that papers share")
    train.add_argument("network", help="its name, a folder of results/models")
    train.add_argument("--into", type=Path, metavar="FOLDER", help="write it here instead")
    train.add_argument("--seed", type=int, help="another first seed; with --into only")
    train.add_argument("--steps", type=int, help="another length; with --into only")
    train.add_argument(
        "--processes", type=int, default=2, metavar="N", help="members at once (default 2)"
    )
    train.add_argument(
        "--again", action="store_true", help="train it though nothing that it is made from changed"
    )
    add(
        "data",
        commands.data,
        "fetch what is missing, verify it against data.dvc, prepare what is stale",
    )
    assets = add("assets", commands.assets, "raw assets: fetch, verify or list them")
    assets.add_argument("action", choices=["fetch", "verify", "list"])
    assets.add_argument("names", nargs="*", help="assets (default: all)")
    prepare = add("prepare", commands.prepare, "raw assets into the form that notebooks read")
    prepare.add_argument("names", nargs="*", help="assets (default: all)")
    add("collect", commands.collect, "the quantization papers' layer scores, out of their records")
    add("compare", commands.compare, "those scores, and the papers' recipes, on one model")
    add("digests", commands.digests, "digests of notebooks, cards and modules, for DVC")
    add("render", commands.render, "the book's pages, from results")
    add("build", commands.render, "the book's pages and the book itself").add_argument(
        "--force", action="store_true", help="from nothing, not from what was built before"
    )
    add("folders", commands.folders, "shell lines that name writable folders, for eval")
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
