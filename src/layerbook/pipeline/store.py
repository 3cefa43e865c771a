"""`layerbook data`: every raw asset fetched and verified, every prepared one up to date, no network
changed unasked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from layerbook import paths
from layerbook.data import fetch, manifest, prepare
from layerbook.pipeline import advice, deps, digests, filefaults


def stale(name: str) -> bool:
    """True when build/prepared/<name> is missing, damaged, or was made from other raw files than
    data/ holds.
    """
    card = paths.PREPARED / name / "card.json"
    try:
        made_from = filefaults.json_of(card)
    except filefaults.FileFault:
        return True
    if name == prepare.PHOTOS:
        return False
    wanted = {f.path: f.sha256 for f in manifest.load()[name].files}
    return made_from.get("files") != wanted


def _as_recorded(entry: dict[str, Any]) -> bool:
    """True when a file or folder of dvc.lock is there with the hash that stands beside it."""
    path: Path = paths.ROOT / entry["path"]
    if path.is_dir():
        return manifest.directory_md5(path) == entry["md5"]
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            == entry["md5"]
        )


def changed_networks() -> list[str]:
    """Trained networks that differ from dvc.lock while all that they were made from is as recorded
    there.

    `dvc repro` would train them anew, for hours, though nobody changed anything that asks for it. A
    network that is missing counts when git can bring it back.
    """
    lock = paths.ROOT / "dvc.lock"
    recorded = (
        deps.fast_yaml(lock.read_text(encoding="utf-8")).get("stages") or {}
        if lock.is_file()
        else {}
    )
    found, suspects = [], {}
    for name in deps.trained():
        stage = recorded.get(f"train-{name}")
        if isinstance(stage, dict) and not all(_as_recorded(out) for out in stage.get("outs", [])):
            suspects[name] = stage
    if suspects:
        digests.write()  # on a fresh clone there are none yet, and old ones would not tell
    for name, stage in suspects.items():
        folder = f"results/models/{name}"
        if all(_as_recorded(d) for d in stage.get("deps", [])) and (
            (paths.ROOT / folder).exists() or advice.restore(folder)
        ):
            found.append(name)
    return found


def ensure() -> int:
    """Fetch what is missing, hold data/ against data.dvc, prepare what is stale; returns an exit
    code.
    """
    if damaged := advice.survey(only=advice.PIPELINE):
        print("\n".join(damaged))
        return 1
    if changed := changed_networks():
        print(advice.changed_networks(changed))
        return 1
    fetch.fetch()
    differing = manifest.check_against_dvc() if (paths.ROOT / "data.dvc").is_file() else []
    for line in differing:
        print(line)
    if differing:
        print(
            "data/ is not what data.dvc records. Remove what does not belong there; if the change is meant: dvc add data"
        )
        return 1
    for name in prepare.MAKERS:
        if stale(name):
            print(f"preparing {name}")
            prepare.prepare(name)
    return 0
