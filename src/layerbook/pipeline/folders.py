"""Private folders in place of those in the home folder, where that cannot be written or does not
exist.

Kernels put sockets into Jupyter's runtime folder, IPython and matplotlib keep their state at home.
A daemon's user, a container and a batch job often have no home to write to. `settle` names a folder
under the temporary one instead, in the
variables that those libraries read. A script that starts kernels by itself takes over the same:
`eval "$(layerbook folders)"`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir


def _usual(environment: MutableMapping[str, str]) -> dict[str, Path]:
    """Variable -> the folder that its library would write to."""
    home = Path(os.path.expanduser("~"))
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    defaults = {
        "JUPYTER_RUNTIME_DIR": Path(jupyter_runtime_dir()),
        "IPYTHONDIR": home / ".ipython",
        "MPLCONFIGDIR": config / "matplotlib",
        "HF_HOME": cache / "huggingface",
        "TORCH_HOME": cache / "torch",
    }
    return {name: Path(environment.get(name) or folder) for name, folder in defaults.items()}


def writable(folder: Path) -> bool:
    """True when the folder can be written, or could be made and written."""
    try:
        place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(
            dir=place
        ):  # asking for rights is not enough: root has them on a read-only disk, too
            return True
    except (OSError, StopIteration):
        return False


def private() -> Path:
    """This user's own folder under the temporary one: always the same, so that killed processes
    leave no pile of them.

    Raises:
        FileNotFoundError: no temporary folder can be written (`tempfile` says which it tried).
    """
    place = Path(tempfile.gettempdir(), f"lb-{os.getuid()}")  # short: paths of Unix sockets are
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lb-"))
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return place if ours else Path(tempfile.mkdtemp(prefix="lb-"))  # somebody else was first


def settle(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Point each library whose usual folder cannot be written to a private one; return the
    variables that were set.
    """
    lost = [name for name, folder in _usual(environment).items() if not writable(folder)]
    if not lost:
        return {}
    place = private()
    chosen = {name: str(place / name.lower()) for name in lost}
    for folder in chosen.values():
        os.makedirs(folder, mode=0o700, exist_ok=True)
    environment.update(chosen)
    return chosen
