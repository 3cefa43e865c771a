"""Where a paper is published: the identifiers that a card may give, and the addresses that they
lead to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Field of the card -> (its name for readers, address). The card's schema says what each looks like.
SOURCES = {
    "arxiv": ("arXiv", "https://arxiv.org/abs/{}"),
    "doi": ("doi", "https://doi.org/{}"),
    "acl": ("ACL Anthology", "https://aclanthology.org/{}/"),
    "openreview": ("OpenReview", "https://openreview.net/forum?id={}"),
    "url": ("paper", "{}"),
}
# What a newcomer may paste: an identifier, an identifier with its prefix, or the address of its
#     page.
PASTED = (
    (
        "arxiv",
        r"(?:(?:https?://)?(?:www\.)?arxiv\.org/(?:abs|pdf|html)/|arxiv:\s*)?"
        r"(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?(?:\.pdf)?/?",
    ),
    ("doi", r"(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/\S+)"),
    (
        "acl",
        r"(?:https?://(?:www\.)?aclanthology\.org/)?([A-Z]\d{2}-\d{4}|\d{4}\.[a-z0-9_]+-[a-z0-9]+\.\d+)(?:\.pdf)?/?",
    ),
    ("openreview", r"https?://openreview\.net/(?:forum|pdf)\?id=([A-Za-z0-9_-]{6,30})(?:[&#]\S*)?"),
    ("openreview", r"openreview:\s*([A-Za-z0-9_-]{6,30})"),
    ("url", r"(https?://\S+)"),
)
EXAMPLES = "2401.00001, cs/0101001, 10.1000/182, 2024.acl-long.1, openreview:AbCdEfGhIj or https://example.org/paper"


def recognise(text: str) -> tuple[str, str]:
    """The card's field and its value for an identifier or address as people paste it.

    Raises ValueError, with examples, for text that is neither.
    """
    for field, pattern in PASTED:
        if found := re.fullmatch(
            pattern, text.strip(), flags=re.I if field in ("doi", "url") else 0
        ):
            return field, found[1]
    raise ValueError(
        f"{text[:100]!r} names no paper that can be linked; write for example {EXAMPLES}"
    )


def links(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a page shows of a paper's sources, as (text, address); nothing is escaped yet."""
    out = []
    for field, (name, address) in SOURCES.items():
        if field in card:
            shown = (
                name
                if field == "url"
                else f"{name}:{card[field]}"
                if field in ("arxiv", "doi")
                else f"{name} {card[field]}"
            )
            out.append(
                (shown, address.format(_quoted(card[field]) if field == "doi" else card[field]))
            )
    return out


def _quoted(doi: str) -> str:
    """A DOI as part of an address: some hold <, > or #."""
    from urllib.parse import quote

    return quote(doi, safe="/:;().-_")


def bibliography(file: Path) -> list[str]:
    """Keys of a BibTeX file, in order; none when there is no such file."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return [
        key
        for kind, key in re.findall(r"^@(\w+)\s*\{\s*([^\s,}]+)\s*,", text, flags=re.M)
        if kind.lower() not in ("comment", "string", "preamble")
    ]
