"""Where things lie: one set of absolute paths, all of the checkout in which the work is done."""

from __future__ import annotations

import os
from pathlib import Path

import layerbook

VARIABLE = layerbook.ROOT_VARIABLE
MEASUREMENTS_VARIABLE = (
    "LAYERBOOK_MEASUREMENTS"  # the file to which a notebook hands its raw measurements
)


def find_root() -> Path:
    """Return the checkout: $LAYERBOOK_ROOT, else that of the working folder, else the one that this
    file lies in.

    Raises FileNotFoundError, saying how to name it, when there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise FileNotFoundError(f"{VARIABLE} is set to {named}, which is not a folder")
        return Path(named).resolve()
    found = layerbook.checkout_here() or layerbook.checkout_above(layerbook.code_that_runs())
    if found is None:
        raise FileNotFoundError(
            "no Layerbook checkout found above the working folder or the installed package: "
            f"install it editable from its checkout (pip install -e .), or set {VARIABLE} to that folder"
        )
    return found


ROOT = find_root()
DATA = ROOT / "data"  # raw assets, as published
PREPARED = ROOT / "build" / "prepared"  # the same in the form that notebooks read
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
MODELS = RESULTS / "models"  # small networks trained here
BOOK = ROOT / "book"
