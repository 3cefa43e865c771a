"""Shapes and formats of tensors, checked at each call of the rooms that say them.

Importing this module, before any of these rooms, lets every function in them hold its arguments
and its result against their hints (jaxtyping, beartype). It is for tests alone: a run checks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
from beartype import BeartypeConf, beartype

ROOMS = ("layerbook.layers", "layerbook.quantize")

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float, too
HOOK = jaxtyping.install_import_hook(ROOMS, "shapecheck.checked")


@contextmanager
def off() -> Iterator[None]:
    """Check nothing inside."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
