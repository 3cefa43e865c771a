"""Discussions: why a claim did not come out, in `book/discussion/<slug>.yaml`, held against the
paper's card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from layerbook import yamlfile
from layerbook.claims import cards


class DiscussionError(cards.CardError):
    """A discussion that may not be shown; the message lists every fault with its line."""


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a discussion."""
    return json.loads(
        (Path(__file__).parent / "discussion.schema.json").read_text(encoding="utf-8")
    )


def read(file: Path, card: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Read and validate the discussion of one paper; an absent or empty file says nothing about any
    claim.

    Args:
        file: book/discussion/<slug>.yaml.
        card: the paper's validated card.

    Raises:
        DiscussionError: with discussion/file:line of each fault.
    """
    if not file.is_file():
        return {}
    try:
        document = yamlfile.read(file)
        if document.data is None:
            return {}
        faults = [
            (document.line(where), text) for where, text in cards.faults_of(document.data, schema())
        ]
        if not faults:
            ids = [claim["id"] for claim in card["claims"]]
            faults = [
                (
                    document.line([claim]),
                    f"{claim} is no claim of notebooks/{file.name}, which has {', '.join(ids)}",
                )
                for claim in document.data
                if claim not in ids
            ]
        document.refuse(faults)
    except yamlfile.YamlFault as error:
        lines = str(error).split("\n")
        raise DiscussionError("\n".join(f"discussion/{line}" for line in lines)) from None
    except OSError as error:
        raise DiscussionError(
            f"discussion/{file.name}: cannot be read ({error.strerror})"
        ) from None
    return document.data


def orphans(folder: Path) -> list[str]:
    """Discussions in a folder that belong to no paper, as messages."""
    papers = {*cards.slugs(), *cards.drafts()}
    return [
        f"discussion/{file.name}: there is no notebooks/{file.name}: rename the discussion, or remove it"
        for file in sorted(folder.glob("*.yaml"))
        if file.stem not in papers
    ]
