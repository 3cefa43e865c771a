"""Other machines: figures draw with matplotlib's own font, and another user's checkout can be read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import matplotlib
import pytest
from matplotlib.font_manager import FontProperties, findfont

from layerbook import paths
from layerbook.notebook import plots
from layerbook.pages import build

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_figures_draw_with_the_font_that_comes_with_matplotlib(weight: str) -> None:
    with matplotlib.rc_context(
        {"font.family": "serif"}
    ):  # as a settings file of the user's might have it
        plots.style()
        found = Path(findfont(FontProperties(weight=weight)))
    assert found.is_relative_to(matplotlib.get_data_path()) and "DejaVuSans" in found.name


def test_a_checkout_that_another_user_owns_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git refuses it by default; then no page named its commit, and a new commit did not rebuild
    the book.
    """
    root = tmp_path / "a path with spaces \u00e9'"
    root.mkdir()
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*GIT, *words], cwd=root, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for its tests
    plain = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, encoding="utf-8", check=False
    )
    assert plain.returncode and "dubious" in plain.stderr
    before = build._digest(root)
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    subprocess.run([*GIT, "commit", "-q", "--allow-empty", "-m", "second"], cwd=root, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert build._digest(root) != before


def test_the_test_command_needs_no_home_folder() -> None:
    script = (paths.ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
    assert 'export MPLCONFIGDIR="$PWD/' in script


def test_figures_are_small_and_the_same_each_time():
    import io

    import matplotlib.pyplot as plt
    import numpy as np
    from PIL import Image

    from layerbook.notebook import plots

    def drawn():
        fig, ax = plt.subplots()
        ax.plot(np.sin(np.arange(200) / 9), label="a line")
        ax.imshow(np.random.default_rng(0).random((20, 20)), extent=(0, 50, -1, 0), aspect="auto")
        ax.legend()
        full = io.BytesIO()
        fig.savefig(full, format="png")
        small = plots.png(fig)
        plt.close(fig)
        return full.getvalue(), small

    (full, small), (_, again) = drawn(), drawn()
    assert small == again and len(small) < 0.6 * len(full)
    with Image.open(io.BytesIO(small)) as image, Image.open(io.BytesIO(full)) as before:
        assert image.mode == "P" and len(image.getcolors(256)) > 8
        error = np.abs(
            np.asarray(image.convert("RGB"), float) - np.asarray(before.convert("RGB"), float)
        )
        assert error.mean() < 1.5, "no colour moves visibly"
