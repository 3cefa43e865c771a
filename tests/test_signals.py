"""Signals and faults: every command ends in one message, with its kernels, temporary folders and
locks gone.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from layerbook import cli, endings
from layerbook.pipeline import runner

SLEEP = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(120)"


def start(root, *command):
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=root,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def until(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def orderly(text, number):
    return (
        "Traceback" not in text
        and f"stopped by {signal.Signals(number).name}" in text
        and len(text.strip().splitlines()) == 1
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_rerun_leaves_nothing(house, number):
    house.paper(extra=SLEEP)
    child = start(house.root, "layerbook", "rerun", "toy")
    until(
        lambda: (house.root / "pid").exists() and (house.root / "pid").read_text(encoding="utf-8"),
        child,
    )
    kernel = int((house.root / "pid").read_text(encoding="utf-8"))
    child.send_signal(number)
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number and orderly(errors, number), errors
    assert (
        not alive(kernel)
        and not list((house.root / "build").glob("run-*"))
        and house.results() == {}
    )


def test_after_a_kill_the_next_command_clears_up(house):
    house.paper(extra=SLEEP)
    child = start(house.root, "layerbook", "rerun", "toy")
    until(lambda: (house.root / "pid").exists(), child)
    assert cli.main(["status"]) == 0 and list((house.root / "build").glob("run-toy-*")), (
        "a living run keeps its folder"
    )
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert cli.main(["status"]) == 0
    assert not list((house.root / "build").glob("run-*"))


SLOW = """\
import sys, time
from layerbook.{home} import {module}
def slow(*a, **k):
    print('under way', flush=True)
    time.sleep(60)
{module}.{name} = slow
sys.argv = {argv!r}
from layerbook import cli, endings
sys.exit({call})
"""
COMMANDS = {
    "check": ("authoring", "check", "check", "cli.main(['check', 'toy'])"),
    "new": ("authoring", "scaffold", "_notebook", "cli.main(['new', 'a-paper'])"),
    "fresh": ("pipeline", "record", "problems", "cli.main(['fresh'])"),
    "sync": ("pipeline", "stages", "sync", "cli.main(['sync'])"),
    "status": ("claims", "cards", "slugs", "cli.main(['status'])"),
    "clean": ("pipeline", "method", "read", "cli.main(['clean'])"),
    "data": ("pipeline", "store", "ensure", "cli.main(['data'])"),
    "run": ("pipeline", "driver", "plan", "cli.main(['run'])"),
    "assets": ("data", "fetch", "main_fetch", "cli.main(['assets', 'fetch'])"),
    "prepare": ("data", "prepare", "prepare", "cli.main(['prepare', 'mnist'])"),
    "train": ("networks", "making", "find", "cli.main(['train', 'resnet20', '--again'])"),
    "collect": ("families", "scores", "collect", "cli.main(['collect'])"),
    "compare": ("families", "comparison", "compare", "cli.main(['compare'])"),
    "digests": ("pipeline", "digests", "of_stages", "cli.main(['digests'])"),
    "render": ("pages", "build", "render", "cli.main(['render'])"),
    "build": ("pages", "build", "build_book", "cli.main(['build'])"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_in_one_line(house, name):
    home, module, function, call = COMMANDS[name]
    before = sorted(
        p for p in house.root.rglob("*") if "locks" not in p.parts and "__pycache__" not in p.parts
    )
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW.format(home=home, module=module, name=function, call=call, argv=["layerbook"]),
        ],
        cwd=house.root,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline() == "under way\n", child.communicate()
    child.send_signal(signal.SIGTERM)
    errors = child.communicate(timeout=30)[1]
    assert child.returncode == 128 + signal.SIGTERM and orderly(errors, signal.SIGTERM), errors
    assert (
        sorted(
            p
            for p in house.root.rglob("*")
            if "locks" not in p.parts and "__pycache__" not in p.parts
        )
        == before
    )


def failing(error):
    def fail():
        raise error

    return fail


def test_an_unexpected_fault_is_one_line_and_says_how_to_see_more(capsys, monkeypatch):
    monkeypatch.delenv(endings.DEBUG, raising=False)
    assert endings.command("layerbook x", failing(KeyError("findings"))) == endings.UNEXPECTED == 70
    text = capsys.readouterr().err
    assert (
        len(text.splitlines()) == 1
        and "KeyError: 'findings'" in text
        and "LAYERBOOK_DEBUG=1" in text
    )
    monkeypatch.setenv(endings.DEBUG, "1")
    assert endings.command("layerbook x", failing(KeyError("findings"))) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (runner.RunError("no room"), "layerbook x: no room"),
        (ValueError("bad value"), "layerbook x: bad value"),
        (
            PermissionError(13, "Permission denied", "results/a.json"),
            "layerbook x: results/a.json: Permission denied",
        ),
        (
            subprocess.CalledProcessError(3, ["python", "-m", "layerbook", "render"]),
            "'python -m layerbook render' failed with exit code 3",
        ),
    ],
)
def test_an_expected_fault_is_its_message(capsys, error, says):
    assert endings.command("layerbook x", failing(error)) == 1
    text = capsys.readouterr().err
    assert says in text and len(text.splitlines()) == 1


def test_handlers_are_put_back_and_nohup_is_respected():
    old = {n: signal.getsignal(n) for n in endings.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with endings.orderly():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert {n: signal.getsignal(n) for n in endings.SIGNALS} == old | {
            signal.SIGHUP: signal.SIG_IGN
        }
    finally:
        signal.signal(signal.SIGHUP, old[signal.SIGHUP])
