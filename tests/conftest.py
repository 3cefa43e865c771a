"""A small house to test the machinery in: its own root with two tiny papers, nothing shared with
the real one.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shapecheck  # before any room that it checks is imported

from bench import toy  # noqa: F401 - bound before any root is patched
from layerbook import paths  # noqa: F401 - bound before any root is patched
from layerbook.claims import cards, engine  # noqa: F401 - bound before any root is patched
from layerbook.data import fetch, manifest, prepare  # noqa: F401 - bound before any root is patched
from layerbook.pipeline import store  # noqa: F401 - bound before any root is patched

ROOT = paths.ROOT


class House:
    """A root folder with papers in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def paper(self, slug: str = "toy", card: str = toy.CARD, extra: str = "pass") -> None:
        """Write card and notebook of a paper; `extra` goes into its working cell."""
        toy.write(self.root, slug, card, textwrap.dedent(extra))

    def record(self, slug: str = "toy", tier: str = "cpu") -> dict:
        """The stored record."""
        return json.loads(
            (self.root / "results" / tier / f"{slug}.json").read_text(encoding="utf-8")
        )

    def results(self) -> dict[str, bytes]:
        """Every file under results/, by its path."""
        folder = self.root / "results"
        return {
            str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a draft's test file out, unless the command names it: it is red until the draft is
    filled in.
    """
    if collection_path.parent.name != "papers" or not collection_path.name.startswith("test_"):
        return None
    named = {Path(argument.split("::")[0]).name for argument in config.invocation_params.args}
    files = {f"test_{slug.replace('-', '_')}.py" for slug in cards.drafts(ROOT / "notebooks")}
    return True if collection_path.name in files - named else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the drafts whose tests are left out."""
    if names := cards.drafts(ROOT / "notebooks"):
        terminalreporter.write_line(
            f"tests of {len(names)} draft{'s' * (len(names) > 1)} left out: {', '.join(names)}"
        )


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """An isolated root: this process and every kernel it starts see it in place of the checkout."""
    toy.house(tmp_path, paths.ROOT)
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    monkeypatch.setenv("LAYERBOOK_TIER", "")
    for name, folder in {
        "ROOT": "",
        "DATA": "data",
        "PREPARED": "build/prepared",
        "NOTEBOOKS": "notebooks",
        "RESULTS": "results",
        "BOOK": "book",
        "MODELS": "results/models",
    }.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    made = House(tmp_path)
    made.paper()
    return made


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess]:
    """Run a command in a folder and capture what it prints."""

    def run(*command: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False, **kwargs
        )

    return run


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes are not checked, as in a run: what a function itself refuses is seen."""
    with shapecheck.off():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads, as in training: sums are ordered by thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made_twice(tmp_path, threads) -> Callable[..., tuple[Path, dict]]:
    """Makes a network twice by a tiny recipe, which must fail its gate; compares all that is
    written, and gives one folder and its card.
    """
    from layerbook.networks import making

    def run(name: str, tiny: object) -> tuple[Path, dict]:
        network = making.find(name)
        cards = [making.make(network, tmp_path / x, tiny, processes=1) for x in "ab"]
        assert cards[0] == cards[1] and not cards[0]["gate"]["passed"]
        files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
        assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.*"))
        for file in files:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        return tmp_path / "a", json.loads((tmp_path / "a" / "card.json").read_text("utf-8"))

    return run
