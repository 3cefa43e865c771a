"""One look for all figures: colour-blind safe, readable in print, with a text alternative."""

from __future__ import annotations

import io

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette, ordered for lines on a white ground.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C"]
C = {"ours": COLORS[0], "paper": COLORS[1], "rival": COLORS[4], "control": COLORS[7]}


def style() -> None:
    """Set the book's matplotlib defaults. Applied on import."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.figsize": (7.2, 3.6),
            "figure.constrained_layout.use": True,
            # it comes with matplotlib, so that no figure depends on what is installed
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.labelsize": 10,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.prop_cycle": cycler(color=COLORS),
            "image.cmap": "viridis",
            "svg.hashsalt": "layerbook",
        }
    )


def show(fig: Figure, alt: str) -> None:
    """Display a figure as PNG with `alt`, a full-sentence text alternative, and close it.

    Raises:
        ValueError: the text alternative is missing or too short to describe anything.
    """
    if len(alt.split()) < 6:
        raise ValueError("plots.show needs alt=..., a sentence that says what the figure shows")
    from IPython.display import display

    display(
        {"image/png": png(fig), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}}
    )
    plt.close(fig)


def png(fig: Figure) -> bytes:
    """A figure as PNG with a palette of at most 256 colours: a third of the bytes, no visible loss."""
    drawn, small = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        # No dithering: flat areas stay flat, and equal figures stay equal bytes.
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    return small.getvalue()


style()
