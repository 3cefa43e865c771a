"""Where raw assets come from: package clients, mirrors, plain downloads, and the archives that
these bring.

No address of a package registry stands here: the clients know theirs, and LAYERBOOK_MIRROR names
what stands in for them.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import pooch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk is called
# Folders or addresses, separated by spaces and quoted where they hold any, with package files or a
# copy of data/.
MIRROR = "LAYERBOOK_MIRROR"
TIMEOUT = 20  # seconds of silence after which a server counts as absent


class SourceError(RuntimeError):
    """A source did not supply a file; disk_full: for want of room in the temporary folder."""

    def __init__(self, message: str, disk_full: bool = False) -> None:
        super().__init__(message)
        self.disk_full = disk_full


def _call(command: list[str], folder: Path) -> None:
    """Run a client in a folder; raise SourceError with its first line of complaint if it fails."""
    if shutil.which(command[0]) is None:
        raise SourceError(f"the program {Path(command[0]).name} is not installed here")
    done = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    complaints = [line for line in lines if line.lower().startswith(("error", "e:", "npm err"))] or lines
    full = any("ENOSPC" in line or "No space left" in line for line in lines)
    raise SourceError(complaints[0][:200] if complaints else f"exit status {done.returncode}", full)


def _sole(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"the client brought {len(found)} files of the kind {pattern}, not one")
    return found[0]


def pip_package(package: str, version: str, folder: Path) -> Path:
    """Download a wheel into a folder with this interpreter's pip; return its path."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError("pip is not installed in this Python environment")
    _call(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1",
         f"--timeout={TIMEOUT}", "--disable-pip-version-check", "--quiet", f"{package}=={version}"],
        folder,
    )  # fmt: skip
    return _sole(folder, "*.whl")


def npm_package(package: str, version: str, folder: Path) -> Path:
    """Download an npm package into a folder; return the path of its .tgz."""
    _call(
        ["npm", "pack", "--ignore-scripts", "--silent", "--loglevel=error", "--fetch-retries=1",
         "--fetch-retry-mintimeout=1000", f"--fetch-timeout={TIMEOUT * 1000}", f"{package}@{version}"],
        folder,
    )  # fmt: skip
    return _sole(folder, "*.tgz")


def apt_package(package: str, version: str, folder: Path) -> Path:
    """Download a Debian package into a folder; return the path of its .deb.

    If the machine's package index does not know the version, a fresh index is read into the folder:
    the machine's own stays as it is, and no administrator's rights are needed.
    """
    common = ["-q", "-o", "Acquire::Retries=1", "-o", f"Acquire::http::Timeout={TIMEOUT}",
              "-o", "APT::Sandbox::User=root"]  # fmt: skip
    get = ["apt-get", *common, "download", f"{package}={version}"]
    try:
        _call(get, folder)
    except SourceError:
        private = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        _call(["apt-get", *common, *private, "-o", "APT::Update::Error-Mode=any", "update"], folder)
        _call([*get, *private], folder)
    return _sole(folder, "*.deb")


def file_names(client: str, package: str, version: str) -> list[str]:
    """What the file of a package is called where its client keeps it (npm's own two ways for a
    scoped name).
    """
    if client == "pip":
        return [f"{package.replace('-', '_')}-{version}-py3-none-any.whl"]
    if client == "apt":
        return [f"{package}_{version.replace(':', '%3a')}_all.deb"]
    scope, _, name = package.rpartition("/")
    names = [f"{name}-{version}.tgz"]
    return [f"{scope.removeprefix('@')}-{names[0]}", *names] if scope else names


def mirrors() -> list[str]:
    """The folders and addresses that LAYERBOOK_MIRROR names. Raises SourceError for an open
    quotation mark.
    """
    try:
        return shlex.split(os.environ.get(MIRROR, ""))
    except ValueError:
        raise SourceError(f"{MIRROR} has a quotation mark that is never closed: {os.environ[MIRROR]}") from None


def from_mirror(place: str, name: str, folder: Path) -> Path:
    """Return the path of a mirror's file, downloaded into a folder if it is not on this disk.
    Raises SourceError.
    """
    if "://" in place:
        return download(f"{place.rstrip('/')}/{urllib.parse.quote(name)}", folder)
    file = Path(place).expanduser() / name
    if not file.is_file():
        raise SourceError(f"there is no {name}")
    return file


CLIENTS = {"pip": pip_package, "npm": npm_package, "apt": apt_package}


def download(url: str, folder: Path) -> Path:
    """Download a plain file into a folder; return its path. Raises SourceError."""
    pooch.get_logger().setLevel("WARNING")
    bars = sys.stderr is not None and sys.stderr.isatty()
    downloader = pooch.HTTPDownloader(progressbar=bars, timeout=TIMEOUT)
    try:
        return Path(pooch.retrieve(url, known_hash=None, path=folder, downloader=downloader))
    # whichever the HTTP library raises: no connection, 404, a broken transfer
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL
        raise SourceError(f"download failed ({type(error).__name__})", full) from error


def _seek_content(deb: BinaryIO) -> None:
    """Move to the file tree inside a Debian package: an ar archive of members with 60-byte headers."""
    while (header := deb.read(60)).endswith(b"`\n"):
        if header.startswith(b"data.tar"):
            return
        size = int(header[48:58])
        deb.seek(size + size % 2, os.SEEK_CUR)
    raise SourceError("the Debian package is damaged: it holds no data.tar")


def members(package: Path, wanted: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (name, stream) of the wanted members of a wheel, an npm or a Debian package, in its
    order.
    """
    if zipfile.is_zipfile(package):
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                if name in wanted:
                    with archive.open(name) as stream:
                        yield name, stream
        return
    with package.open("rb") as raw:
        debian = raw.read(8) == b"!<arch>\n"
        if debian:
            _seek_content(raw)
        else:
            raw.seek(0)
        with tarfile.open(fileobj=raw, mode="r|*") as archive:
            for entry in archive:
                # npm packs everything into one folder; paths in a Debian package start with "./"
                name = entry.name.removeprefix("./") if debian else entry.name.partition("/")[2]
                if name in wanted and entry.isfile():
                    yield name, archive.extractfile(entry)
