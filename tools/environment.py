"""Make the environment: `python3.11 tools/environment.py`, which is what `make env` calls.

This file refuses a Python that does not do, so it must run on any: no syntax and no module here
that Python 2.7 lacks. The work itself is in `tools/install.py`.
"""

from __future__ import print_function

import os
import subprocess
import sys

LOWEST, BEYOND = (3, 11), (3, 13)  # `requires-python` of pyproject.toml says the same
NAMES = ["python%d.%d" % (LOWEST[0], minor) for minor in range(LOWEST[1], BEYOND[1])]
VERSIONS = " or ".join(name[len("python") :] for name in NAMES)


def starts(name):
    """True when a program of this name runs (a version manager's stand-in may be there and refuse)."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call([name, "-c", ""], stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


def refusal():
    """Why this Python does not do, and what to type instead; None when it does."""
    if os.name != "posix":
        return "error: Layerbook runs on Linux and macOS; on Windows, use it inside WSL"
    if LOWEST <= sys.version_info[:2] < BEYOND:
        return None
    found = [name for name in NAMES if starts(name)]
    advice = (
        "Type: make env PYTHON=" + found[0]
        if found
        else "Install Python " + VERSIONS + ", then type: make env"
    )
    return "error: Layerbook needs Python %s, and %s is Python %d.%d. %s" % (
        (VERSIONS, sys.executable) + tuple(sys.version_info[:2]) + (advice,)
    )


if __name__ == "__main__":
    said = refusal()
    if said:
        sys.exit(said)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import install

    sys.exit(install.main())
