"""The environment: one lock for three kinds of machine, and `make env` with tiny stand-ins for
every package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from layerbook import paths

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")]  # fmt: skip
MACHINES = {
    "linux x86-64": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    },
    "linux aarch64": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "aarch64",
    },
    "macOS arm64": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "platform_machine": "arm64",
    },
}
# What torch 2.13.0 says that it requires, where it is the build that one gets from the plain
# registry on Linux.
TORCH = """
filelock
typing-extensions>=4.10.0
setuptools>=77.0.3
sympy>=1.13.3
networkx>=2.5.1
jinja2
fsspec>=0.8.5
cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.3; platform_system == "Linux"
cuda-bindings<14,>=13.0.3; platform_system == "Linux" and python_version < "3.15"
nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"
nvidia-cusparselt-cu13==0.8.1; platform_system == "Linux"
nvidia-nccl-cu13==2.29.7; platform_system == "Linux"
nvidia-nvshmem-cu13==3.4.5; platform_system == "Linux"
triton==3.7.1; platform_system == "Linux" and python_version < "3.15"
""".strip().splitlines()
CUDA = re.compile(r"(nvidia|cuda)-|triton$")


def machine(name: str, python: str) -> dict[str, str]:
    full = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "implementation_version": f"{python}.7",
    }
    blank = {"os_name": "posix", "platform_release": "", "platform_version": "", "extra": ""}
    return default_environment() | blank | full | MACHINES[name]


def active(environment: dict[str, str]) -> dict[str, Version]:
    """Package -> the version that the lock pins on a machine. Asserts that there is one at most."""
    found: dict[str, Version] = {}
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice"
            (specifier,) = pin.specifier
            assert specifier.operator == "==" and "+" not in specifier.version, pin
            found[name] = Version(specifier.version)
    return found


def requirements_of(name: str) -> list[str]:
    """What a package of the lock requires, as its installed metadata say; torch as published."""
    if name == "torch":
        return TORCH
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def unmet(environment: dict[str, str], asked: list[str], pins: dict[str, Version]) -> list[str]:
    """Walk requirements from those asked for, extras included; return what the pins don't satisfy."""
    bad, queue, seen = [], [("the project", Requirement(text), "") for text in asked], set()
    while queue:
        source, requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate(environment | {"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True):
            bad.append(f"{source} wants {requirement}, the lock has {pins.get(name)}")
            continue
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                queue += [(name, Requirement(text), wanted) for text in requirements_of(name)]
    return bad


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("name", list(MACHINES))
def test_the_lock_satisfies_every_requirement_on_every_machine(name: str, python: str) -> None:
    environment = machine(name, python)
    pins = active(environment)
    asked = PROJECT["dependencies"] + [
        text for group in PROJECT["optional-dependencies"].values() for text in group
    ]
    assert unmet(environment, asked, pins) == []
    assert ("appnope" in pins) == ("macOS" in name)
    assert any(CUDA.match(pin) for pin in pins) == ("linux" in name)


def test_the_lock_says_how_it_is_made_and_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "uv pip compile --universal --python-version 3.11 --all-extras" in text.splitlines()[1]
    assert "://" not in text and str(active(machine("linux x86-64", "3.11"))["torch"]) == "2.13.0"


def test_what_is_installed_here_is_the_locks_and_complete() -> None:
    environment = {**default_environment(), "extra": ""}
    pins = active(environment)
    installed = {
        canonicalize_name(d.name): Version(d.version)
        for d in importlib.metadata.distributions()
        if d.name
    }
    cuda = any(
        CUDA.match(Requirement(text).name) for text in importlib.metadata.requires("torch") or []
    )
    missing = {name for name in pins if name not in installed and (cuda or not CUDA.match(name))}
    assert missing == set(), "run 'make env'"
    assert {
        name: installed[name]
        for name in pins
        if name in installed and installed[name].public != pins[name].public
    } == {}
    bad = []
    for name in pins.keys() & installed.keys():
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            if wanted not in installed or not requirement.specifier.contains(
                installed[wanted], prereleases=True
            ):
                bad.append(f"{name}: {text}, here is {installed.get(wanted)}")
    assert bad == []


# ---- tools/environment.py and tools/install.py

TORCH_CODE = """
    __version__ = {version!r}
    class ones:
        def __init__(self, *shape): self.shape = shape
        def __matmul__(self, other): return self
        def sum(self): return self
        def item(self): return 12.0
    """
KERNEL_CODE = """
    import contextlib, io
    class Client:
        def execute_interactive(self, code, timeout, output_hook):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, {})
            output_hook({"content": {"text": out.getvalue()}})
        def stop_channels(self): pass
    class Manager:
        def shutdown_kernel(self, now): pass
    def start_new_kernel(startup_timeout): return Manager(), Client()
    """
BACKEND = """
    import zipfile
    def build_editable(folder, *rest):
        name = "layerbook-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
            info = "layerbook-0.1.0.dist-info/"
            wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: layerbook\\nVersion: 0.1.0\\n")
            wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
            wheel.writestr(info + "RECORD", "")
        return name
    """
LINES = """
# a lock
jupyter-client==1.0
nvidia-cudnn-cu13==9.0 ; sys_platform == 'linux' or sys_platform == 'darwin'
other==1.0
torch==2.13.0
elsewhere==1.0 ; sys_platform == 'emscripten'
"""


class Machine:
    """A checkout with nothing but the tools, a folder of tiny wheels that pip is offered, and a
    bare environment.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.shop = folder / "a checkout", folder / "shop"
        self.shop.mkdir()
        shutil.copytree(
            ROOT / "tools", self.root / "tools", ignore=shutil.ignore_patterns("__pycache__")
        )
        backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (self.root / "pyproject.toml").write_text(
            backend + '[project]\nname = "layerbook"\nversion = "0.1.0"\n', encoding="utf-8"
        )
        (self.root / "backend.py").write_text(textwrap.dedent(BACKEND), encoding="utf-8")
        (self.root / "requirements.lock").write_text(LINES, encoding="utf-8")
        self.env = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
            # fmt: skip
            "PIP_FIND_LINKS": str(self.shop),
            "PIP_RETRIES": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.wheel(
            "jupyter_client",
            "1.0",
            {"jupyter_client/manager.py": KERNEL_CODE, "jupyter_client/__init__.py": ""},
        )
        self.wheel("other", "1.0")
        self.wheel("nvidia_cudnn_cu13", "9.0")
        self.torch("2.13.0+cpu")

    def wheel(
        self,
        name: str,
        version: str,
        files: dict[str, str] | None = None,
        requires: tuple[str, ...] = (),
    ) -> None:
        info = f"{name}-{version}.dist-info/"
        needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
        with zipfile.ZipFile(self.shop / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for file, text in (files or {f"{name}.py": ""}).items():
                archive.writestr(file, textwrap.dedent(text))
            archive.writestr(
                info + "METADATA",
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            )
            archive.writestr(
                info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(info + "RECORD", "")

    def torch(self, version: str, requires: tuple[str, ...] = (), code: str = TORCH_CODE) -> None:
        for old in self.shop.glob("torch-*"):
            old.unlink()
        self.wheel("torch", version, {"torch.py": code.format(version=version)}, requires)

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys._base_executable, str(self.root / "tools" / "environment.py"), *arguments]
        return subprocess.run(
            command,
            env=self.env | variables,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )

    def installed(self) -> dict[str, str]:
        code = (
            "import importlib.metadata as m, json\n"
            # fmt: skip
            "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
        )
        done = subprocess.run(
            [self.root / ".venv/bin/python", "-c", code],
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return {k: v for k, v in json.loads(done.stdout).items() if k not in ("pip", "setuptools")}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the module venv that copies an environment made once: pip's own installation
    takes seconds.
    """
    folder = tmp_path_factory.mktemp("template")
    subprocess.run([sys._base_executable, "-m", "venv", folder / "made"], check=True)
    copying = f"import shutil, sys\nshutil.copytree({str(folder / 'made')!r}, sys.argv[1], symlinks=True)\n"
    (folder / "stub").mkdir()
    (folder / "stub" / "venv.py").write_text(copying, encoding="utf-8")
    return folder / "stub"


@pytest.fixture
def bare(tmp_path: Path, template: Path) -> Machine:
    made = Machine(tmp_path)
    made.env["PYTHONPATH"] = str(template)
    return made


def spent() -> float:
    """Seconds of computing of the programs started so far: unlike the clock's, no busy machine adds
    to them.
    """
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


ALWAYS = {"jupyter-client": "1.0", "other": "1.0", "layerbook": "0.1.0"}


def test_a_cpu_build_brings_no_cuda_and_a_second_call_does_nothing(bare: Machine) -> None:
    bare.wheel("torch", "2.13.0", requires=("nvidia-cudnn-cu13==9.0",))  # both builds are offered
    done = bare.make()
    assert done.returncode == 0, done.stderr
    assert bare.installed() == ALWAYS | {"torch": "2.13.0+cpu"}
    assert (
        "torch 2.13.0+cpu computes, a kernel answers" in done.stdout
        and "without CUDA" in done.stdout
    )
    began = spent()
    again = bare.make()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "") and spent() - began < 1

    (bare.root / "requirements.lock").write_text(
        LINES.replace("other==1.0\n", ""), encoding="utf-8"
    )
    assert "making it anew" in bare.make().stdout
    assert bare.installed() == {
        "jupyter-client": "1.0",
        "layerbook": "0.1.0",
        "torch": "2.13.0+cpu",
    }


def test_a_cuda_build_brings_what_its_own_metadata_ask_for(bare: Machine) -> None:
    bare.torch(
        "2.13.0", requires=("nvidia-cudnn-cu13==9.0", "nvidia-windows; sys_platform == 'win32'")
    )
    done = bare.make()
    assert done.returncode == 0, done.stderr
    assert bare.installed() == ALWAYS | {"torch": "2.13.0", "nvidia-cudnn-cu13": "9.0"}


def test_another_accelerators_packages_come_though_the_lock_has_none(bare: Machine) -> None:
    bare.torch("2.13.0+rocm", requires=("rocm-thing==3", "other>=1"))
    bare.wheel("rocm_thing", "3", requires=("deep",))
    bare.wheel("deep", "1")
    done = bare.make()
    assert done.returncode == 0, done.stderr
    assert bare.installed() == ALWAYS | {"torch": "2.13.0+rocm", "rocm-thing": "3", "deep": "1"}


def test_what_does_not_start_does_not_count_and_the_next_call_mends_it(bare: Machine) -> None:
    venv = bare.root / ".venv"
    (venv / "lib/python3.10/site-packages").mkdir(parents=True)  # as another Python leaves it
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to("/nowhere/python3.10")
    (venv / "pyvenv.cfg").write_text("home = /nowhere\nversion = 3.10.13\n", encoding="utf-8")
    bare.torch("2.13.0", code='raise ImportError("libcudnn.so.9: cannot open shared object file")')
    done = bare.make()
    assert done.returncode == 1 and not (venv / ".installed").exists()
    assert (
        "torch or a kernel does not start: ImportError: libcudnn.so.9" in done.stderr
        and "type: make env" in done.stderr
    )
    assert not (venv / "lib/python3.10").exists()

    bare.torch("2.13.0+cpu")
    assert bare.make().returncode == 0 and bare.installed()["torch"] == "2.13.0+cpu"


def test_a_folder_with_somebodys_work_in_it_is_left_alone(bare: Machine) -> None:
    (bare.root / ".venv").mkdir()
    (bare.root / ".venv/thesis.txt").write_text("mine", encoding="utf-8")
    done = bare.make()
    assert (
        done.returncode == 1
        and "holds thesis.txt" in done.stderr
        and "type: make env" in done.stderr
    )
    assert [entry.name for entry in (bare.root / ".venv").iterdir()] == ["thesis.txt"]


def uv(bare: Machine, text: str) -> Path:
    """A program named uv that keeps its arguments and settings, then does as `text` says."""
    folder = bare.root.parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "uv").write_text(
        f'#!/bin/sh\necho "$*|$UV_FIND_LINKS|$UV_NO_INDEX" >> "{folder}/log"\n' + text,
        encoding="utf-8",
    )
    (folder / "uv").chmod(0o755)
    bare.env["PATH"] = f"{folder}:{bare.env['PATH']}"
    return folder / "log"


def test_uv_is_used_where_it_is_and_chooses_no_torch(bare: Machine) -> None:
    log = uv(
        bare,
        'while [ "$1" != -r ]; do [ "$1" = --python ] && python="$2"; shift; done\n'
        # fmt: skip
        'grep -q "^torch" "$2" && exit 9\n"$python" -m pip install -q --no-deps -r "$2"\n',
    )
    assert bare.make().returncode == 0 and bare.installed() == ALWAYS | {"torch": "2.13.0+cpu"}
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert "--no-deps --compile-bytecode" in line and line.endswith(f"|{bare.shop}|true")
    (bare.root / ".venv/.lock").touch()  # as uv leaves it
    (bare.root / ".venv/.installed").unlink()
    assert bare.make().returncode == 0, "what uv leaves there is no reason to refuse the folder"


def test_pip_does_what_uv_cannot(bare: Machine) -> None:
    log = uv(bare, "echo broken >&2; exit 2\n")
    done = bare.make("--pip=--pre")  # an option that uv does not share: it is not even asked
    assert done.returncode == 0 and not log.exists()
    (bare.root / ".venv/.installed").unlink()
    done = bare.make()
    assert (
        done.returncode == 0
        and "trying pip" in done.stdout
        and len(log.read_text(encoding="utf-8").splitlines()) == 1
    )
    assert bare.installed() == ALWAYS | {"torch": "2.13.0+cpu"}


def test_no_network_is_said_in_a_sentence(bare: Machine) -> None:
    nowhere = "http://127.0.0.1:9/simple"  # pip says why only when it tries again
    done = bare.make(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=nowhere, PIP_RETRIES="1")
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: the package registry cannot be reached")
        and "PIP_INDEX_URL" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (bare.root / ".venv/.installed").exists()


def test_a_package_that_is_not_to_be_had_is_named(bare: Machine) -> None:
    (bare.shop / "other-1.0-py3-none-any.whl").unlink()
    done = bare.make()
    assert done.returncode == 1 and "No matching distribution found for other==1.0" in done.stderr


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Machine]:
    """The same on a disk of 12 MB, where not even pip fits."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here (1 December 2026)")
    yield Machine(disk)
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_called_that_and_gets_its_room_back(small: Machine) -> None:
    done = small.make()
    assert (
        done.returncode == 1
        and "the disk is full: the environment needs about 2.5 GB" in done.stderr
    )
    assert not (small.root / ".venv").exists(), "found out before anything was written"
    tool = small.root / "tools" / "install.py"
    # blind the check made in advance
    tool.write_text(
        tool.read_text(encoding="utf-8").replace("ROOM = 2.5e9", "ROOM = 1"), encoding="utf-8"
    )
    done = small.make()
    assert (
        done.returncode == 1
        and "the disk is full" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (small.root / ".venv").exists()
    subprocess.run(["mount", "-o", "remount,size=400m", str(small.root.parent)], check=True)
    assert small.make().returncode == 0 and small.installed() == ALWAYS | {"torch": "2.13.0+cpu"}


def module(name: str) -> object:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_missing_programs_and_modules_are_named(
    bare: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bare.make(PATH=str(bare.root))
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: git is not installed")
        and "apt-get install git" in done.stderr
    )
    install = module("install")
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name
    )
    with pytest.raises(
        install.Failed, match=r"lacks the module ensurepip\. .*apt-get install python3\.1\d-venv"
    ):
        install.preconditions()


def test_a_wrong_python_is_refused_by_what_pyproject_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = module("environment")
    allowed = SpecifierSet(PROJECT["requires-python"])
    for minor in range(6, 20):
        monkeypatch.setattr(tool.sys, "version_info", (3, minor, 0))
        assert (tool.refusal() is None) == (f"3.{minor}.0" in allowed), minor
    monkeypatch.setattr(tool.sys, "version_info", (3, 10, 13))
    monkeypatch.setattr(tool, "starts", lambda name: name == "python3.12")
    assert (
        "Layerbook needs Python 3.11 or 3.12, and" in tool.refusal()
        and "make env PYTHON=python3.12" in tool.refusal()
    )
    monkeypatch.setattr(tool, "starts", lambda name: False)
    assert "Install Python 3.11 or 3.12" in tool.refusal()


def others() -> list[str]:
    """Pythons on this machine that are too old or too new."""
    names = [f"python{version}" for version in ("2.7", "3.6", "3.8", "3.9", "3.10", "3.13", "3.14")]
    kept = sorted(Path.home().glob(".pyenv/versions/*/bin/python"))
    return [found for name in names if (found := shutil.which(name))] + [str(path) for path in kept]


def test_old_pythons_understand_their_refusal(bare: Machine) -> None:
    tried = 0
    for python in others():
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.run(
            [python, "-c", code], capture_output=True, encoding="utf-8", check=False
        )
        if version.returncode or version.stdout.strip() in ("3.11", "3.12"):
            continue  # a version manager's stand-in, or one that does
        tried += 1
        began = spent()
        command = [python, bare.root / "tools/environment.py"]
        done = subprocess.run(
            command, env=bare.env, capture_output=True, encoding="utf-8", check=False
        )
        assert (
            done.returncode == 1
            and f"is Python {version.stdout.strip()}." in done.stderr
            and "Traceback" not in done.stderr
        )
        assert spent() - began < 1 and not (bare.root / ".venv").exists()
    if not tried:
        pytest.skip("this machine has no other Python (1 December 2026)")


def test_make_names_the_python_that_is_missing(bare: Machine) -> None:
    shutil.copy(ROOT / "Makefile", bare.root)
    command = ["make", "env", "PYTHON=python9"]
    done = subprocess.run(
        command, cwd=bare.root, env=bare.env, capture_output=True, encoding="utf-8", check=False
    )
    assert (
        done.returncode
        and "error: python9 does not start here. Install Python 3.11 or 3.12" in done.stderr
    )


def test_the_documents_name_the_same_versions_and_settings() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("Python 3.11 or 3.12", "PIP_ARGS", "LAYERBOOK_MIRROR", "uv"):
        assert word in readme, word
    assert platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))


def test_a_checkout_with_letters_that_the_locale_lacks_is_found_all_the_same(tmp_path):
    """A path file as setuptools writes it stops Python from starting at all in such a locale."""
    place = tmp_path / "caf\u00e9 'x'" / "src"
    place.mkdir(parents=True)
    (place / "found_here.py").write_text("", encoding="utf-8")
    packages = tmp_path / "packages"
    packages.mkdir()
    file = packages / "__editable__.layerbook-0.1.0.pth"
    file.write_text(f"{place}\n", encoding="utf-8")
    module("install").spell_out(file)
    assert file.read_bytes().isascii()
    code = "import site, sys; site.addsitedir(sys.argv[1]); import found_here"
    for setting in ("C", "C.UTF-8"):
        environment = {"PATH": os.environ["PATH"], "LC_ALL": setting}
        command = [sys.executable, "-S", "-c", code, str(packages)]
        subprocess.run(command, env=environment, check=True)
