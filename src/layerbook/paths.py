"""Where things lie: one set of absolute paths, independent of the working directory."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LAYERBOOK_ROOT"
MEASUREMENTS_VARIABLE = "LAYERBOOK_MEASUREMENTS"  # the file to which a notebook hands its raw measurements


def _is_root(folder: Path) -> bool:
    """True for a checkout: a pyproject.toml that declares this very project."""
    project = folder / "pyproject.toml"
    return project.is_file() and 'name = "layerbook"' in project.read_text(encoding="utf-8")


def find_root() -> Path:
    """Return the checkout: $LAYERBOOK_ROOT, else the nearest above this file, else above the working folder.

    Raises FileNotFoundError, saying how to name it, when there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise FileNotFoundError(f"{VARIABLE} is set to {named}, which is not a folder")
        return Path(named).resolve()
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if _is_root(folder):
                return folder
    raise FileNotFoundError(
        "no Layerbook checkout found above the installed package or the working folder: "
        f"install it editable from its checkout (pip install -e .), or set {VARIABLE} to that folder"
    )


ROOT = find_root()
DATA = ROOT / "data"  # raw assets, as published
PREPARED = ROOT / "build" / "prepared"  # the same in the form that notebooks read
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
MODELS = RESULTS / "models"  # small networks trained here
BOOK = ROOT / "book"
