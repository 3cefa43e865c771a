"""What a long run shows: a live display in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any


def clock(seconds: float) -> str:
    """Minutes and seconds, as in 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display:
    """Progress of papers that run side by side.

    Args:
        expected: seconds that each took the last time, in the order in which they will start.
        at_once: how many run together.
    """

    def __init__(self, expected: dict[str, float], at_once: int) -> None:
        self.expected, self.at_once = expected, max(1, at_once)
        self.began: dict[str, float] = {}
        self.over: set[str] = set()
        self.failed = 0
        self._live: Any = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty() and self.expected:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.__exit__(*error)
            self._live = None

    def left(self) -> float:
        """Seconds until all is done, if papers take as long as the last time."""
        now, rest = time.monotonic(), 0.0
        for slug, seconds in self.expected.items():
            if slug not in self.over:
                rest += (
                    max(seconds - (now - self.began[slug]), 0.0) if slug in self.began else seconds
                )
        return rest / min(self.at_once, max(1, len(self.expected) - len(self.over)))

    def say(self, text: str) -> None:
        """One line, above the live display or in the log."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def started(self, slug: str) -> None:
        """A paper began."""
        self.began[slug] = time.monotonic()
        if not self._live:
            self.say(
                f"start  {slug} (took {clock(self.expected[slug])} the last time; {clock(self.left())} left in all)"
            )

    def finished(self, slug: str, seconds: float, error: str) -> None:
        """A paper ended, well or with `error`."""
        self.over.add(slug)
        self.failed += bool(error)
        self.say(
            f"{'FAILED' if error else 'done  '} {slug} after {clock(seconds)}"
            + (f": {error.splitlines()[0]}" if error else "")
        )

    def tick(self) -> None:
        """Refresh the live display."""
        if self._live:
            self._live.update(self.text())

    def text(self) -> str:
        """The live display's text: what runs, what is next, time left."""
        now = time.monotonic()
        runs = [
            f"  {s}  {clock(now - self.began[s])} of about {clock(self.expected[s])}"
            for s in self.began
            if s not in self.over
        ]
        following = [s for s in self.expected if s not in self.began]
        head = f"{len(self.over)} of {len(self.expected)} done" + (
            f", {self.failed} failed" if self.failed else ""
        )
        return "\n".join(
            [
                f"{head}; about {clock(self.left())} left",
                *runs,
                f"  next: {', '.join(following[:4]) or 'none'}",
            ]
        )
