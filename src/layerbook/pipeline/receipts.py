"""What says that stored files are the ones that a run wrote: dvc.lock, and until it is told, a
receipt in build/stored.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from layerbook import paths
from layerbook.pipeline import deps


def md5(file: Path) -> str:
    """MD5 of a file, hex: the hash that DVC keeps."""
    stat = file.stat()
    return _md5(str(file), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)


@lru_cache(maxsize=512)
def _md5(file: str, *_stamp: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def locked() -> dict[str, str]:
    """Output files that dvc.lock records, path from the root -> MD5; empty when there is no
    dvc.lock.

    Raises:
        ValueError: dvc.lock is not readable.
    """
    file = paths.ROOT / "dvc.lock"
    return _locked(file.read_text(encoding="utf-8")) if file.is_file() else {}


@lru_cache(maxsize=4)
def _locked(text: str) -> dict[str, str]:
    again = "take the committed one back: git checkout dvc.lock"
    try:
        stages = (deps.fast_yaml(text) or {}).get("stages") or {}
        return {
            out["path"]: out["md5"]
            for stage in stages.values()
            for out in stage.get("outs", [])
            if "md5" in out
        }
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"dvc.lock cannot be read ({str(error).splitlines()[0]}); {again}"
        ) from None


def _file(slug: str, tier: str) -> Path:
    return paths.ROOT / "build" / "stored" / tier / f"{slug}.json"


def _now(slug: str, tier: str) -> dict[str, str]:
    files = [paths.RESULTS / tier / f"{slug}{suffix}" for suffix in (".json", ".ipynb")]
    return {f.name: md5(f) for f in files}


def leave(slug: str, tier: str) -> None:
    """Say that a run of this checkout has just stored what lies in results/: dvc.lock does not know
    it yet.
    """
    file = _file(slug, tier)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_now(slug, tier)) + "\n", encoding="utf-8")


def holds(slug: str, tier: str) -> bool:
    """True while record and notebook are those that a run of this checkout stored last."""
    try:
        return json.loads(_file(slug, tier).read_text(encoding="utf-8")) == _now(slug, tier)
    except (OSError, ValueError):
        return False
