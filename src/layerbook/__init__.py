"""Papers about what happens in which layer of a network, run and checked claim by claim.

Importing the package settles whose code runs: that of the checkout in whose folders the work is
done. An editable install belongs to one checkout; a command, a notebook or a test in another one (a
`git worktree`, a copy that DVC runs an experiment in) must use the code beside it, or the evidence
there would be attributed to files that did not make it.
"""

import importlib as _importlib
import os as _os
import sys as _sys
from pathlib import Path as _Path

ROOT_VARIABLE = "LAYERBOOK_ROOT"


def checkout_above(folder: _Path) -> _Path | None:
    """The nearest checkout at or above a folder: one with a pyproject.toml that declares this very
    project.
    """
    for candidate in (folder, *folder.parents):
        project = candidate / "pyproject.toml"
        try:
            if project.is_file() and 'name = "layerbook"' in project.read_text(encoding="utf-8"):
                return candidate
        except (OSError, UnicodeDecodeError):
            continue  # a folder that may not be read is no checkout of ours
    return None


def checkout_here() -> _Path | None:
    """The checkout of the working folder; None where there is none, or the working folder is gone."""
    try:
        return checkout_above(_Path.cwd().resolve())
    except FileNotFoundError:
        return None


def code_of(checkout: _Path) -> _Path:
    """Where the package's code lies in a checkout."""
    return (checkout / "src" / __name__).resolve()


def code_that_runs() -> _Path:
    """Where the code lies that this process runs."""
    return _Path(__file__).resolve().parent


def _hand_over() -> None:
    """Let the package of the wanted checkout take this one's place, if it is another."""
    named = _os.environ.get(ROOT_VARIABLE)
    checkout = _Path(named).resolve() if named else checkout_here()
    if checkout is None or code_of(checkout) == code_that_runs():
        return
    source = str(checkout / "src")
    if _sys.path[:1] == [source] or not (code_of(checkout) / "__init__.py").is_file():
        return  # handed over already, or nothing there to hand over to
    _sys.path.insert(0, source)
    # A module may put another in its own place: the import that is under way returns what stands in
    # sys.modules.
    del _sys.modules[__name__]
    _importlib.import_module(__name__)


_hand_over()
