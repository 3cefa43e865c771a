"""What `tools/environment.py` does once Python is known to be right: .venv from requirements.lock.

torch comes first, by pip, so that the build is the one that pip is offered (a CPU build, where
there is one). Its own metadata then decide whether the lock's CUDA packages are installed with the
rest. The environment counts as made when torch and a kernel were started in it; one that was not
made to the end, or by another Python, is removed and made anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, PROJECT = ROOT / "requirements.lock", ROOT / "pyproject.toml"
# names of the packages that only torch's CUDA build needs
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
STAMP = ".installed"
# What a venv consists of; a folder with anything else in it may be somebody's work, and is not
# removed.
PARTS = {"bin", "include", "lib", "lib64", "share", "etc", "pyvenv.cfg", "CACHEDIR.TAG", ".gitignore", ".lock", STAMP,
         STAMP + ".part"}  # fmt: skip
ROOM = 2.5e9  # bytes: the environment with torch's CPU build; with CUDA it takes about 8 GB
NOTHING = 3e7  # bytes: with less than this left, whatever failed did so for want of room
# Options of pip that uv understands in the same way; with any other in PIP_ARGS, pip does all the
# work.
SHARED = {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index"}

# Run by the environment's own Python: the requirements of the installed torch that hold here, as
# [name, text, specifier].
WANTED = """
import importlib.metadata, json
from pip._vendor.packaging.requirements import Requirement
found = [Requirement(r) for r in importlib.metadata.requires("torch") or []]
held = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
print(json.dumps([[r.name, f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}"] for r in held]))
"""


class Failed(RuntimeError):
    """The environment cannot be made; the message says why and what to do."""


def name_of(line: str) -> str:
    """The normalised name of the package in a line of a requirements file."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", line)[0]).lower()


def pins(text: str) -> dict[str, str]:
    """Package name -> its line of the lock."""
    lines = [line.strip() for line in text.splitlines()]
    return {name_of(line): line for line in lines if line and not line.startswith("#")}


def fingerprint() -> str:
    """What the environment is made from and where: changes with the lock, the project and the
    folder.
    """
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (LOCK, PROJECT):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def version() -> str:
    """The version of the Python that runs this, as 3.11."""
    return "{}.{}".format(*sys.version_info)


def whole(venv: Path, same_python: bool) -> bool:
    """True when the environment was made to its end in this very place, and its Python is still
    there.

    Args:
        same_python: ask for the version of the Python that runs this; otherwise any that Layerbook
            accepts does.
    """
    stamp, python = venv / STAMP, venv / "bin" / "python"
    if not stamp.is_file() or not python.exists():
        return False
    of, _, made = stamp.read_text(encoding="utf-8").partition(" ")
    return made == fingerprint() and (of == version() or not same_python)


def remove(venv: Path) -> None:
    """Remove an environment. Raises Failed if the folder holds what no environment does."""
    if venv.is_symlink() or venv.is_file():
        raise Failed(f"{venv} is no folder of its own; move it away, then type: make env")
    if not venv.is_dir():
        return
    foreign = sorted({entry.name for entry in venv.iterdir()} - PARTS)
    if foreign:
        raise Failed(
            f"{venv} holds {foreign[0]}, which no environment does; move the folder away, then type: make env"
        )
    shutil.rmtree(venv)


def preconditions() -> None:
    """Raises Failed for what is missing on this machine before anything is written."""
    if shutil.which("git") is None:
        raise Failed("git is not installed, and DVC needs it. Install it (Debian: apt-get install git; macOS: "
                     "xcode-select --install), then type: make env")  # fmt: skip
    if missing := [
        name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None
    ]:
        raise Failed(f"{sys.executable} lacks the module {missing[0]}. Install it (Debian: apt-get install "
                     f"python{version()}-venv), then type: make env")  # fmt: skip
    if shutil.disk_usage(ROOT).free < ROOM:
        raise Failed(full())


def full() -> str:
    """What to say when the disk is full."""
    temporary = Path(tempfile.gettempdir())
    free = ", ".join(
        f"{place} has {shutil.disk_usage(place).free / 1e9:.1f} GB" for place in (ROOT, temporary)
    )
    return (
        f"the disk is full: the environment needs about {ROOM / 1e9:.1f} GB (8 GB with torch's CUDA build), and {free} "
        # fmt: skip
        "free. Make room (TMPDIR may name another temporary folder), then type: make env"
    )


# What pip and uv say, and what it means. The first that is found is told.
MEANINGS = (
    (r"No space left on device|Errno 28|ENOSPC|Disk quota exceeded|os error 28", None),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate",
     "the package registry's certificate is not trusted here. Name your certificates in PIP_CERT, then type: make env"),
    (r"NewConnectionError|NameResolutionError|name resolution|Failed to establish a new connection|ConnectTimeout|"
     r"ReadTimeout|ProxyError|Max retries|Connection (refused|reset|broken|aborted)|timed out|RemoteDisconnected|IncompleteRead",
     "the package registry cannot be reached. Check the network, or name a mirror in PIP_INDEX_URL, then type: make env"),
    (r"Permission denied|Errno 13|Read-only file system|Errno 30",
     "a folder cannot be written. Make the checkout and the temporary folder writable, then type: make env"),
)  # fmt: skip


def meaning(text: str) -> str:
    """Say in a sentence what a failed installer's complaints mean."""
    for pattern, said in MEANINGS:
        if re.search(pattern, text):
            return said or full()
    if min(shutil.disk_usage(place).free for place in (ROOT, tempfile.gettempdir())) < NOTHING:
        return full()  # venv does not pass on what its pip complains of
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = (
        [line for line in lines if line.lower().startswith("error")]
        or lines
        or ["it gives no reason"]
    )
    return (f"the installer failed: {told[-1][:300]}. If the package registry lacks a package, name another in "
            "PIP_INDEX_URL or PIP_EXTRA_INDEX_URL; then type: make env")  # fmt: skip


def call(command: Sequence[str | Path], quiet: bool = False, **variables: str) -> str:
    """Run a program and return what it complained of; Failed, with what that means, if it fails."""
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    said, complaints = process.communicate()
    if process.returncode:
        raise Failed(meaning(complaints or said or ""))
    return said or ""


def pip_settings(python: Path) -> dict[str, str]:
    """pip's settings, from its files and the environment, that say where packages are."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = " ".join(value.strip("'\"").replace("\\n", " ").split())
    return settings


def uv_variables(settings: dict[str, str]) -> dict[str, str]:
    """The same for uv, which reads none of pip's settings."""
    links, index = settings.get("find-links"), settings.get("index-url")
    variables = {
        "UV_FIND_LINKS": ",".join(links.split()) if links else "",
        "UV_EXTRA_INDEX_URL": settings.get("extra-index-url", ""),
        "UV_DEFAULT_INDEX": index or "",
        "UV_NO_INDEX": "true"
        if settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
        else "",
        "SSL_CERT_FILE": settings.get("cert", ""),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip: all indexes are equal
    }
    return {name: value for name, value in variables.items() if value and not os.environ.get(name)}


def uv_program(arguments: Sequence[str]) -> str | None:
    """uv, where it is installed and understands PIP_ARGS."""
    options = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    return shutil.which("uv") if options <= SHARED else None


def install(python: Path, file: Path, arguments: Sequence[str]) -> None:
    """Install a file of pins, by uv where it is there and by pip otherwise, or when uv fails."""
    uv = uv_program(arguments)
    if uv:
        command = [
            uv,
            "pip",
            "install",
            "-q",
            "--python",
            python,
            "--no-deps",
            "--compile-bytecode",
            *arguments,
            "-r",
            file,
        ]
        try:
            call(command, **uv_variables(pip_settings(python)))
            return
        except Failed as error:
            print(f"uv did not do it ({error}); trying pip", flush=True)
    call([python, "-m", "pip", "install", "-q", "--no-deps", *arguments, "-r", file])


def divide(lock: dict[str, str], wanted: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Say what is installed after torch.

    Args:
        lock: the pins.
        wanted: (name, requirement) of all that the installed torch requires here.

    Returns:
        the lines of the lock to install (the CUDA packages among them only if torch wants one of
        those), and torch's requirements that the lock does not pin (another accelerator's).
    """
    names = {re.sub(r"[-_.]+", "-", name).lower(): text for name, text in wanted}
    cuda = any(CUDA.match(name) and name in lock for name in names)
    rest = [
        line for name, line in lock.items() if name != "torch" and (cuda or not CUDA.match(name))
    ]
    return rest, [text for name, text in names.items() if name not in lock]


def make(venv: Path, arguments: Sequence[str]) -> None:
    """Make the environment anew. Raises Failed."""
    lock, python = pins(LOCK.read_text(encoding="utf-8")), venv / "bin" / "python"
    print(f"making {venv} with Python {sys.version.split()[0]}", flush=True)
    call([sys.executable, "-m", "venv", venv], quiet=True)
    print(f"installing {lock['torch'].partition(';')[0].strip()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pins.txt")
        file.write_text(lock["torch"] + "\n", encoding="utf-8")
        call([python, "-m", "pip", "install", "--no-deps", *arguments, "-r", file])
        rest, others = divide(lock, json.loads(call([python, "-c", WANTED], quiet=True)))
        what = (
            "with the CUDA packages"
            if any(CUDA.match(name_of(line)) for line in rest)
            else "without CUDA packages"
        )
        print(f"installing the other packages, {what}", flush=True)
        file.write_text("\n".join(rest) + "\n", encoding="utf-8")
        install(python, file, arguments)
        if others:
            call([python, "-m", "pip", "install", "-q", *arguments, "-c", file, *others])
    editable(python)
    started(python)
    part = venv / (STAMP + ".part")
    part.write_text(f"{version()} {fingerprint()}", encoding="utf-8")
    os.replace(part, venv / STAMP)


def editable(python: Path) -> None:
    """Install this checkout itself, so that its code is used where it lies. Raises Failed."""
    strange = not str(ROOT).isascii()
    if strange:  # setuptools writes the checkout's path in the locale's encoding, which may lack it
        os.environ["LC_ALL"] = "C.UTF-8"
    call([python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ROOT])
    if strange:
        where = "import sysconfig; print(ascii(sysconfig.get_path('purelib')))"
        packages = ast.literal_eval(call([python, "-c", where], quiet=True))
        for file in Path(packages).glob("__editable__.layerbook-*.pth"):
            spell_out(file)


def spell_out(file: Path) -> None:
    """Rewrite a path file in ASCII: Python reads it in the locale of the day, whichever that is."""
    places = file.read_text(encoding="utf-8").splitlines()
    lines = [f"import sys; sys.path.append({ascii(place)})\n" for place in places if place]
    file.write_text("".join(lines), encoding="ascii")


def started(python: Path) -> None:
    """Start torch and a kernel in the environment. Raises Failed with the last line of what went
    wrong.
    """
    done = subprocess.run([python, ROOT / "tools" / "started.py"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace", check=False)  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Failed(f"everything is installed, but torch or a kernel does not start: {last[:300]}. "
                     "Mend that, then type: make env")  # fmt: skip
    print(done.stdout.strip(), flush=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process makes this checkout's environment."""
    with open(__file__, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is making this environment; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def main() -> int:
    """Bring .venv up to the lock; 0 when it is."""
    parser = argparse.ArgumentParser(prog="tools/environment.py", description=__doc__)
    parser.add_argument(
        "--venv", default=".venv", help="folder of the environment, relative to the checkout"
    )
    parser.add_argument(
        "--pip", default="", help="further options of pip, such as '--extra-index-url ADDRESS'"
    )
    parser.add_argument(
        "--anew-for-another-python",
        action="store_true",
        help="not content with one of another version",
    )
    options = parser.parse_args()
    venv, same = ROOT / options.venv, options.anew_for_another_python
    if (
        Path(sys.prefix).resolve() == venv.resolve()
    ):  # the environment must not remove the Python that makes it
        os.execv(
            sys._base_executable,
            [sys._base_executable, str(ROOT / "tools" / "environment.py"), *sys.argv[1:]],
        )
    if whole(venv, same):
        return 0
    try:
        preconditions()
        with alone():
            if whole(venv, same):
                return 0
            if venv.exists() or venv.is_symlink():
                print(
                    f"{venv} is unfinished, or made from another lock or by another Python: making it anew",
                    flush=True,
                )
                remove(venv)
            make(venv, shlex.split(options.pip))
    except (Failed, OSError) as error:
        print(
            f"error: {error if isinstance(error, Failed) else meaning(str(error))}", file=sys.stderr
        )
        if "the disk is full" in str(error):
            # it would be made anew in any case: give its room back
            shutil.rmtree(venv, ignore_errors=True)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; 'make env' starts again", file=sys.stderr)
        return 130
    return 0
