"""Render the book's pages from cards, records and executed notebooks, and build it.

    layerbook render    render: book/papers, book/_generated, book/_toc.yml,
                                             results/metrics.json and results/overview.svg
    layerbook build     the same, then HTML in book/_build/html, each page
                                             checked

Rendering reads the working tree alone (no clock, no git, no network): the same records give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from layerbook import paths
from layerbook.pages import lists, paper_page
from layerbook.pages.papers import BookError, load


def render(root: Path = paths.ROOT) -> list[Path]:
    """Write every generated file of the book; returns their paths. Pages of papers that are gone
    are removed.
    """
    papers, book = load(root), root / "book"
    files = {root / name: content for name, content in lists.fragments(root, papers).items()}
    for paper in papers:
        for tier in paper.records:
            files[book / paper_page.page_path(paper, tier)] = paper_page.page(root, paper, tier)
    for old in [*(book / "papers").glob("*"), *(book / "_generated").glob("*")]:
        if old not in files:
            old.unlink()
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        if (
            not path.is_file() or path.read_bytes() != data
        ):  # an untouched file keeps Sphinx's cache warm
            path.write_bytes(data)
    return sorted(files)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock: two test workers must not build the same book at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, thread_local=False):
        yield


def _digest(root: Path) -> str:
    """A hash of all that the built book depends on: its sources, the package (reference page), the
    last commit.
    """
    # a checkout that another user owns is read here, and only read
    command = ["git", "-c", f"safe.directory={root}", "rev-parse", "HEAD"]
    head = subprocess.run(
        command, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    digest = hashlib.sha256(head.stdout.encode())
    for folder in ("book", "results", "notebooks", "src"):
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            if (
                path.is_file()
                and "_build" not in parts
                and "__pycache__" not in parts
                and "models" not in parts
            ):
                digest.update(str(parts).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def build_book(root: Path = paths.ROOT, *, force: bool = False) -> Path:
    """Render, build the HTML with every warning as an error, check it; returns the folder. Skips a
    fresh book.
    """
    build, html = root / "book" / "_build", root / "book" / "_build" / "html"
    with _lock(build / "lock"):
        render(root)
        stamp, digest = build / "stamp", _digest(root)
        if not force and stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
            return html
        stamp.unlink(missing_ok=True)
        for folder in (
            [html, build / ".doctrees"] if force else [html]
        ):  # no page outlives its source
            shutil.rmtree(folder, ignore_errors=True)
        code = "from jupyter_book.cli.main import main; main()"
        command = [
            sys.executable,
            "-c",
            code,
            "build",
            "-W",
            "-n",
            "--keep-going",
            "-q",
            str(root / "book"),
        ]
        # Matplotlib, which the reference page imports, keeps its font list in the checkout: there
        # may be no home folder
        settings = {"MPLCONFIGDIR": str(root / "build" / "matplotlib"), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | settings,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise BookError(f"jupyter-book failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        check_build(root, html)
        stamp.write_text(digest, encoding="utf-8")
    return html


def check_build(root: Path, html: Path) -> None:
    """Every page of the table of contents is there, holds its title, and no page of a paper lacks
    its verdicts.

    A build that exits with 0 has been seen to write no pages at all, so the files are looked at.
    """
    missing = []
    for paper in load(root):
        page = html / "papers" / f"{paper.slug}.html"
        if not page.is_file() or 'id="verdict-table"' not in page.read_text(encoding="utf-8"):
            missing.append(page.name)
    for name in (
        "index",
        "gallery",
        "scoreboard",
        "shelf",
        "changes",
        "assets",
        "reference",
        "search",
        "404",
    ):
        page = html / f"{name}.html"
        if not page.is_file() or page.stat().st_size < 5000:
            missing.append(page.name)
    if missing:
        raise BookError(f"pages missing or incomplete after the build: {', '.join(missing)}")
