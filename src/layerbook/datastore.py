"""`layerbook data`: every raw asset fetched and verified, every prepared one up to date."""

from __future__ import annotations

import json

from layerbook import assets, manifest, paths, prepare


def stale(name: str) -> bool:
    """True when build/prepared/<name> is missing or was made from other raw files than data/ holds."""
    card = paths.PREPARED / name / "card.json"
    if not card.is_file():
        return True
    if name == prepare.PHOTOS:
        return False
    wanted = {f.path: f.sha256 for f in manifest.load()[name].files}
    return json.loads(card.read_text(encoding="utf-8")).get("files") != wanted


def ensure() -> int:
    """Fetch what is missing, hold data/ against data.dvc, prepare what is stale; returns an exit code."""
    assets.fetch()
    differing = manifest.check_against_dvc() if (paths.ROOT / "data.dvc").is_file() else []
    for line in differing:
        print(line)
    if differing:
        print("data/ is not what data.dvc records. Remove what does not belong there; if the change is meant: dvc add data")
        return 1
    for name in prepare.MAKERS:
        if stale(name):
            print(f"preparing {name}")
            prepare.prepare(name)
    return 0
