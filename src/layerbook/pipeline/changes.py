"""What a change touches: the papers to execute again at the smoke tier, and the tests to run.

The question is asked of the files that differ from a base commit. A paper is touched by its own
files, by its networks and assets, and by every module that its notebook imports, directly or not; a
test file by what it imports, by the modules that it names in strings (commands that it starts), and
by the folders of the checkout that it reads. All of that is derived from the sources. A file that
this cannot place, and the ground that all tests share, mean everything.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from layerbook import paths
from layerbook.claims import cards
from layerbook.pipeline import deps, digests, record, stages, standing

# Ground that all stand on: names of files, or of folders that end in a slash.
SHARED = (
    "tests/conftest.py",
    "tests/run.sh",
    "requirements.lock",
    "environment.yml",
    "pyproject.toml",
    "params.yaml",
    "data.dvc",
    "Makefile",
    ".gitattributes",
    ".gitignore",
    ".dvcignore",
    ".ci/",
    ".dvc/",
    "tools/",
    "src/layerbook/__init__.py",
    "src/layerbook/paths.py",
    # these decide what is selected, so that a slip of theirs must not hide itself
    "src/layerbook/pipeline/changes.py",
    "src/layerbook/pipeline/standing.py",
    "src/layerbook/pipeline/deps.py",
    "src/layerbook/pipeline/digests.py",
)
# Always executed, so that no change goes without a run from one end to the other. One reads a
# network that others trained, one a network that was trained here: of these two kinds each is the
# quickest at the smoke tier.
SENTINELS = ("layerwise-quant", "wave-cnn-compression")


class ChangesError(ValueError):
    """A base that git cannot compare with; the message says what to type."""


@dataclass
class Selection:
    """What is to be run: papers by slug, test files by their path from the root.

    Attributes:
        because: paper or test file -> the changed files that touch it.
        everything: why all is to be run; "" where the closure of the change is.
    """

    papers: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    because: dict[str, list[str]] = field(default_factory=dict)
    everything: str = ""

    def notebooks(self) -> list[str]:
        """The executed notebooks of the selected papers, by their path from the root."""
        files = [
            record.file_of(slug, tier, ".ipynb") for slug in self.papers for tier in record.TIERS
        ]
        return [f.relative_to(paths.ROOT).as_posix() for f in files if f.is_file()]


# ---- what differs


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-c", f"safe.directory={paths.ROOT}", *arguments]
    return subprocess.run(
        command, cwd=paths.ROOT, capture_output=True, encoding="utf-8", check=False
    )


def base(since: str | None = None) -> str | None:
    """The commit to compare with: `since`, else where this branch left the default one; None when
    git knows no default branch, or no common ancestor.

    Raises:
        ChangesError: `since` names no commit of this repository.
    """
    if since is not None:
        found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{since}^{{commit}}")
        if found.returncode:
            raise ChangesError(
                f"--since {since}: git knows no such commit here. Fetch it (git fetch origin), "
                "or name another: layerbook changed --since HEAD~1"
            )
        return found.stdout.strip()
    for branch in ("origin/HEAD", "origin/main", "origin/master", "main", "master"):
        found = _git("merge-base", "HEAD", branch)
        if not found.returncode:
            return found.stdout.strip()
    return None


def differing(commit: str) -> list[str]:
    """Files that differ from a commit, by their path from the root: committed since, not yet
    committed, and new ones that git does not ignore.
    """
    changed = _git("diff", "--name-only", "-z", "--no-renames", commit, "--")
    new = _git("ls-files", "-z", "--others", "--exclude-standard")
    for done in (changed, new):
        if done.returncode:
            raise ChangesError(f"git cannot compare with {commit}: {done.stderr.strip()}")
    return sorted({*changed.stdout.split("\0"), *new.stdout.split("\0")} - {""})


def only_wording(file: str, commit: str) -> bool:
    """True when a module differs from that of a commit in comments, docstrings, layout or hints
    alone, by which no number of a paper can change.
    """
    before = _git("show", f"{commit}:{file}")
    there = paths.ROOT / file
    if before.returncode or not file.endswith(".py") or not there.is_file():
        return False
    return digests.of_code(before.stdout) == digests.of_code(there.read_text(encoding="utf-8"))


# ---- the closure


def _own(file: str) -> list[str] | None:
    """Papers whose own file this is: notebook, card, discussion, record, or a network that they
    read; None for any other file.
    """
    parts, slugs = Path(file).parts, cards.slugs()
    stem = parts[-1].split(".")[0]
    if parts[0] == "notebooks" or parts[:2] == ("book", "discussion"):
        return [stem] if stem in slugs else None
    if parts[:2] == ("results", "models") and len(parts) > 2:
        return [s for s in slugs if parts[2] in deps.card(s)["substrate"]]
    if parts[0] == "results":
        return [stem] if stem in slugs else []
    return None


def everything(why: str) -> Selection:
    """All papers and all tests."""
    return Selection(cards.slugs(), sorted(standing.test_files()), {}, why)


def select(files: Iterable[str], commit: str | None = None) -> Selection:
    """What changed files touch.

    Args:
        files: paths from the root, with slashes.
        commit: with which to compare a module: one whose wording alone differs touches no paper.
    """
    files = list(files)
    for file in files:
        if any(file == s or s.endswith("/") and file.startswith(s) for s in SHARED):
            return everything(f"{file} is ground that all stand on")
    slugs, makers = cards.slugs(), stages.module_stages()
    papers = {slug: standing.of_paper(slug, makers) for slug in slugs}
    tests = {name: standing.of_test(paths.ROOT / name) for name in standing.test_files()}
    because: dict[str, list[str]] = {}
    for file in files:
        area = Path(file).parts[0]
        own = _own(file)
        hit = set(own or [])
        if not (commit and only_wording(file, commit)):
            hit |= {slug for slug in slugs if file in papers[slug]}
        of_papers = {f"tests/papers/test_{slug.replace('-', '_')}.py" for slug in hit}
        for test, (stands_on, areas) in tests.items():
            reads = area in areas or standing.WHOLE in areas and area != "tests"
            if file in stands_on or reads or test in of_papers:
                hit.add(test)
        known = own is not None or file in ("dvc.yaml", "dvc.lock") or area == "book"
        placed = known or any(file in where for where, _ in tests.values())
        if not placed and not any(file in where for where in papers.values()):
            if "/" in file or not file.endswith((".md", "LICENSE", ".cff")):
                return everything(f"{file} has no place in what notebooks and tests import")
        for name in hit:
            because.setdefault(name, []).append(file)
    for slug in SENTINELS:
        if slug in slugs:
            because.setdefault(slug, ["a sentinel, always executed"])
    chosen = sorted(because)
    return Selection([n for n in chosen if n in papers], [n for n in chosen if n in tests], because)


def changed(since: str | None = None) -> tuple[Selection, list[str], str | None]:
    """The selection for what differs from the base, those files, and the base itself.

    Args:
        since: a commit to compare with; by default where this branch left the default one.

    Raises:
        ChangesError: see `base` and `differing`.
    """
    commit = base(since)
    if commit is None:
        return everything("git knows no common ancestor with a default branch"), [], None
    files = differing(commit)
    return select(files, commit), files, commit
