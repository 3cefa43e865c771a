"""A clone holds the very bytes that the evidence names, whatever git is set to do to the ends of
lines.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from layerbook import paths

ROOT = paths.ROOT


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, encoding="utf-8", check=True
    ).stdout


def hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of each file as it lies there."""
    files = git("ls-files", "-z", cwd=folder).split("\0")[:-1]
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}


def copy(tmp_path: Path, name: str, *settings: str) -> dict[str, str]:
    """Commit this checkout's text files (and one network) in a repository, clone it with settings,
    hash the clone.
    """
    source = tmp_path / "source"
    if not source.is_dir():
        source.mkdir()
        git("init", "-q", cwd=source)
        listed = git(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
        ).split("\0")[:-1]
        networks = [file for file in listed if file.endswith(".safetensors")]
        smallest = min(networks, key=lambda file: (ROOT / file).stat().st_size)
        for file in set(listed) - set(networks) | {smallest}:
            if (ROOT / file).is_file():
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                (source / file).write_bytes((ROOT / file).read_bytes())
        git("add", "-A", cwd=source)
        git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all", cwd=source)
    git("clone", "-q", *settings, str(source), str(tmp_path / name), cwd=tmp_path)
    return hashes(tmp_path / name)


@pytest.mark.parametrize(
    "settings",
    [["core.autocrlf=true"], ["core.autocrlf=input"], ["core.autocrlf=true", "core.eol=crlf"]],
)
def test_a_clone_has_the_same_bytes_whatever_git_does_to_line_ends(
    tmp_path: Path, settings: list[str]
) -> None:
    found = copy(tmp_path, "clone", *(part for setting in settings for part in ("-c", setting)))
    assert len(found) > 100
    assert {
        file
        for file, digest in found.items()
        if digest != hashlib.sha256((ROOT / file).read_bytes()).hexdigest()
    } == set()


def test_binary_files_are_named_as_such() -> None:
    """Git's guess would do for most; a short array without a zero byte would be guessed wrong."""
    for name in ("x/model.safetensors", "x/y.npz", "x/y.png", "x/y.woff2", "x/y.gz"):
        assert git("check-attr", "text", name, cwd=ROOT).strip().endswith("unset"), name
