"""Kernels of both kinds where the home folder cannot be written, is not there, or belongs to
somebody else.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from layerbook import paths
from layerbook.pipeline import folders

RUN = "import sys; from layerbook.pipeline import runner; runner.run('toy', warm=sys.argv[1] == 'warm'); print('stored')"
NAMES = ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR", "HF_HOME", "TORCH_HOME")


def environment(root: Path, **changes: str) -> dict[str, str]:
    """What a daemon's process sees: no home, none of the variables that could stand in for it."""
    kept = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return kept | {paths.VARIABLE: str(root), "LAYERBOOK_TIER": ""} | changes


@pytest.mark.parametrize(("kind", "home"), [("warm", {"HOME": "/proc/nobody"}), ("cold", {"HOME": "/dev/null"}), ("warm", {})],
                         ids=["warm, impossible", "cold, a file", "warm, unset"])  # fmt: skip
def test_both_kinds_of_kernel_run_without_a_home(house, kind: str, home: dict[str, str]) -> None:
    package = str(Path(folders.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", RUN, kind],
        env=environment(house.root, PYTHONPATH=package, **home),
        # fmt: skip
        cwd=house.root,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    assert done.stdout.strip() == "stored", done.stderr[-600:]
    text = (house.root / "results/cpu/toy.ipynb").read_text(encoding="utf-8")
    assert '"stderr"' not in text, (
        "a library's complaint about the home folder became part of the evidence"
    )


def readable_python() -> str | None:
    """An interpreter of this version that any user may start; None when there is none."""
    for name in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
        try:
            if (
                subprocess.run(
                    [name, "-c", ""], user=65534, extra_groups=[], check=False
                ).returncode
                == 0
            ):
                return name
        except OSError:
            continue
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user (1 December 2026)")
@pytest.mark.parametrize(
    ("kind", "home"), [("warm", "unset"), ("warm", "read-only"), ("cold", "read-only")]
)
def test_another_user_without_a_home_of_their_own(house, kind: str, home: str) -> None:
    python = readable_python()
    if python is None:
        pytest.skip("this machine's Python lies where no other user may read it (1 December 2026)")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root, theirs = Path(folder, "a checkout"), Path(folder, "home")
        shutil.copytree(house.root, root)
        theirs.mkdir(mode=0o555)
        for place, below, files in os.walk(root):
            for name in (place, *(os.path.join(place, entry) for entry in below + files)):
                os.chown(name, 65534, 65534, follow_symlinks=False)
        search = os.pathsep.join(
            [str(Path(folders.__file__).parents[2]), sysconfig.get_paths()["purelib"]]
        )
        variables = environment(
            root, PYTHONPATH=search, **({"HOME": str(theirs)} if home == "read-only" else {})
        )
        done = subprocess.run(
            [python, "-c", RUN, kind],
            env=variables,
            cwd=root,
            user=65534,
            group=65534,
            extra_groups=[],
            # fmt: skip
            capture_output=True,
            encoding="utf-8",
            timeout=200,
            check=False,
        )
        assert done.stdout.strip() == "stored", done.stderr[-600:]
        assert list(theirs.iterdir()) == []


def test_a_home_that_can_be_written_is_used_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES + (
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "JUPYTER_DATA_DIR",
        "XDG_RUNTIME_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    variables: dict[str, str] = {}
    assert folders.settle(variables) == variables == {}
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
    monkeypatch.setenv("HOME", "/dev/null")
    assert tuple(folders.settle(variables)) == NAMES and all(
        Path(folder).is_dir() for folder in variables.values()
    )
    assert folders.settle(variables | {"HOME": "/dev/null"}).keys() <= {"JUPYTER_RUNTIME_DIR"}, (
        "once is enough"
    )


def test_the_private_folder_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = folders.private()
    assert place == folders.private() and stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    assert folders.private() != place, "one that others may write to is not trusted"
    place.rmdir()
    place.symlink_to(tmp_path / "elsewhere")
    assert folders.private() != place and not (tmp_path / "elsewhere").exists()


def test_a_script_takes_over_the_same_folders() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "layerbook", "folders"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        # fmt: skip
        env=os.environ | {"HOME": "/dev/null", "JUPYTER_RUNTIME_DIR": "/dev/null/x"},
    )
    assert [line.split("=")[0] for line in done.stdout.splitlines()][
        0
    ] == "export JUPYTER_RUNTIME_DIR"
    assert "layerbook folders" in (paths.ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
