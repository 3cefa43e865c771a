"""The list of raw assets, and whether the data folder agrees with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from layerbook.paths import DATA, ROOT

MANIFEST = Path(__file__).with_name("assets.yaml")


class AssetError(RuntimeError):
    """Assets cannot be had or are damaged; the message names them, what was tried and what to do."""


@dataclass(frozen=True)
class File:
    """One file: path relative to data/, member inside the package, content size in bytes and
    SHA-256.
    """

    path: str
    member: str
    size: int
    sha256: str
    url: str | None


@dataclass(frozen=True)
class Asset:
    """One entry of assets.yaml."""

    name: str
    client: str
    package: str
    version: str
    licence: str
    homepage: str
    description: str
    files: tuple[File, ...]
    gzip: bool = False
    whole: bool = False

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Problem:
    """A file of an asset that is not as listed."""

    asset: str
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.asset}: {self.path}: {self.what}"


def load(manifest: Path = MANIFEST) -> dict[str, Asset]:
    """Read the manifest: asset name -> Asset. Raises AssetError for a path that leaves the data
    folder.
    """
    assets = {}
    for name, entry in YAML(typ="safe").load(manifest).items():
        folder, prefix, original = entry.pop("to"), entry.pop("from", ""), entry.pop("original", None)
        suffix = ".gz" if entry.get("gzip") else ""
        files = []
        for file, (size, sha256) in entry.pop("files").items():
            path = Path(folder, file)
            if path.is_absolute() or ".." in path.parts:
                raise AssetError(f"{manifest.name}: {name}: {path} leads out of the data folder")
            member = "/".join(part for part in (prefix, file + suffix) if part)
            url = original.format(name=file) if original else None
            files.append(File(path.as_posix(), member, size, sha256, url))
        assets[name] = Asset(name=name, files=tuple(files), **entry)
    return assets


def choose(names: Iterable[str] | None, assets: dict[str, Asset]) -> list[Asset]:
    """Return the named assets (all for none). Raises AssetError, listing the known, for an unknown
    one.
    """
    wanted = list(names or assets)
    if unknown := [name for name in wanted if name not in assets]:
        raise AssetError(f"unknown asset: {', '.join(unknown)}. Known: {', '.join(assets)}")
    return [assets[name] for name in wanted]


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def fault(file: File, data: Path) -> str | None:
    """Say what is wrong with a file on disk; None if it is as listed."""
    path = data / file.path
    if not path.is_file():
        return "missing"
    if path.stat().st_size != file.size:
        return f"damaged or changed: {path.stat().st_size:,} bytes instead of {file.size:,}"
    return None if _digest(path, "sha256") == file.sha256 else "damaged or changed: another SHA-256 than listed"


def verify(names: Iterable[str] | None = None, data: Path = DATA, manifest: Path = MANIFEST) -> list[Problem]:
    """Hash every file of the named assets (default: all) and return what is not as listed; [] is
    good.

    With all assets, files in the data folder that no asset lists are problems too.
    """
    assets = load(manifest)
    chosen = choose(names, assets)
    found = [Problem(asset.name, file.path, wrong) for asset in chosen for file in asset.files if (wrong := fault(file, data))]
    if names is None and data.is_dir():
        listed = {file.path for asset in chosen for file in asset.files}
        present = (path.relative_to(data).as_posix() for path in data.rglob("*") if not path.is_dir())
        found += [Problem("none", path, "no asset lists this file: delete it") for path in sorted(present)
                  if path not in listed]  # fmt: skip
    return found


def directory_md5(folder: Path = DATA) -> str:
    """DVC's hash of a folder: the MD5 of a sorted JSON list of its files' MD5s and relative paths."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    listing = [{"md5": _digest(path, "md5"), "relpath": path.relative_to(folder).as_posix()} for path in files]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def check_against_dvc(record: Path = ROOT / "data.dvc", data: Path = DATA) -> list[str]:
    """Compare the data folder with the hash that data.dvc records; return the differences ([] is
    good).
    """
    if not record.is_file():
        return [f"{record.name} is missing"]
    recorded = YAML(typ="safe").load(record)["outs"][0]["md5"]
    found = directory_md5(data) if data.is_dir() else "no folder"
    return [] if found == recorded else [f"{record.name} records {recorded}, the data folder is {found}"]
