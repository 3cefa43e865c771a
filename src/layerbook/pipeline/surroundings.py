"""The environment that a paper's kernel sees: what was left in a shell must not change stored
evidence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# Each of these changes numbers, figures or the size of a run, and is easily left in a shell.
THREADS = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_DYNAMIC",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
)
FIGURES = ("MPLBACKEND", "MATPLOTLIBRC")
OWN = "LAYERBOOK_"
KEPT = ("LAYERBOOK_ROOT", "LAYERBOOK_DEBUG")


def unwanted(name: str) -> bool:
    """True for a variable that the runner sets itself, or leaves to what is registered."""
    return name in THREADS or name in FIGURES or (name.startswith(OWN) and name not in KEPT)


def clean(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment (default: this process's) without the variables that change results."""
    return {
        k: v
        for k, v in (os.environ if environment is None else environment).items()
        if not unwanted(k)
    }
