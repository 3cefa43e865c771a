"""Text streams that never fail for want of a character."""

from __future__ import annotations

import sys


def lenient() -> None:
    """Let this process print anything: what its terminal's encoding lacks is written as an escape
    (\\\\u2713).

    For the first line of a command. Streams that are not text files (a notebook's, a test's) are
    left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors in ("strict", "surrogateescape"):
            reconfigure(errors="backslashreplace")
