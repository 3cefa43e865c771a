"""How a command ends: in order after a signal, in one message after a fault, and never in a bare
traceback.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
DEBUG = "LAYERBOOK_DEBUG"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 128 + 13
PATIENCE = 2.0  # seconds in which further signals are taken for the same wish to stop


class Stopped(KeyboardInterrupt):
    """The process was asked to end; `number` is the signal."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def orderly() -> Iterator[None]:
    """Raise `Stopped` on SIGINT, SIGTERM and SIGHUP, so that every `finally` on the way out is
    passed.

    SIGINT counts even where a background shell had it ignored; SIGHUP stays ignored under nohup. In
    any other thread than the main one, to which signals do not come, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -PATIENCE

    def stop(number: int, _frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if (
            now - last >= PATIENCE
        ):  # a terminal that closes sends several; the first one is being followed already
            last = now
            raise Stopped(number)

    old = {}
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            old[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def apart(function: Callable[[], T], end: Callable[[], None]) -> T:
    """Call a function in a thread of its own, so that a signal cannot tear it in two.

    Args:
        function: what to do; its return value or exception is passed on.
        end: called again and again after a signal, until the function has come to its end.

    Raises:
        KeyboardInterrupt: a signal came; by then the function has ended.
    """
    with ThreadPoolExecutor(1) as pool:
        future: Future[T] = pool.submit(function)
        try:
            while wait([future], timeout=0.25).not_done:
                pass
        except KeyboardInterrupt:
            while wait([future], timeout=0.2).not_done:
                end()
            raise
    return future.result()


def command(
    name: str, function: Callable[[], int], explain: Callable[[BaseException], str] | None = None
) -> int:
    """Run a command; returns its exit code.

    An exception of this package, a ValueError and an error of the operating system are expected:
    their own message says what the user needs. Any other is a fault of the program.

    Args:
        name: as the user typed it; begins every message.
        function: the command itself.
        explain: the message for an exception, '' where it knows none; asked before the exception's
            own is taken.
    """
    try:
        with orderly():
            return function()
    except KeyboardInterrupt as stopped:
        number = getattr(stopped, "number", signal.SIGINT)
        # A fresh line: the terminal has just shown ^C.
        print(
            f"\n{name}: stopped by {signal.Signals(number).name}; nothing is half-written, and the same command can be "
            "run again",
            file=sys.stderr,
        )
        return 128 + number
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except subprocess.CalledProcessError as error:
        said = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
        return _fault(
            name,
            f"'{said}' failed with exit code {error.returncode}; what it printed above says why",
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        if explain and (told := explain(error)):
            return _fault(name, told)
        if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
            return _fault(name, str(error) or type(error).__name__)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            return _fault(name, f"{where}{error.strerror}" if error.strerror else str(error))
        if isinstance(error, ValueError):
            return _fault(name, str(error) or type(error).__name__)
        if os.environ.get(DEBUG):
            traceback.print_exc()
        print(
            f"{name}: unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a fault of Layerbook "
            f"itself; to see where it happened, set {DEBUG}=1 and run the command again",
            file=sys.stderr,
        )
        return UNEXPECTED


def _fault(name: str, message: str) -> int:
    if os.environ.get(DEBUG):
        traceback.print_exc()
    print(f"{name}: {message}", file=sys.stderr)
    return 1
