"""Plain facts that need no network: tables of questions whose answers are of one kind, and multiple
choice made of them.

Sources: the standard library (HTTP status codes, modules, months, names of characters), the order
of the books in the
prepared Bible, and a list of capitals. Within a table every answer is as often true as any other,
and false equally often, so that neither its frequency nor its style tells a true answer from a
false one.
"""

from __future__ import annotations

import calendar
import importlib
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Japan Tokyo, China Beijing, Russia Moscow, "
    "Egypt Cairo, Greece Athens, Austria Vienna, Poland Warsaw, Ireland Dublin, Cuba Havana, Peru Lima, Kenya Nairobi, "
    "Iraq Baghdad, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, Canada Ottawa, Iran Tehran, "
    "Hungary Budapest"
)
FUNCTIONS = (
    "math.sqrt random.shuffle json.dumps os.getcwd re.findall itertools.chain shutil.copyfile time.sleep copy.deepcopy "
    "heapq.heappush csv.reader socket.gethostname hashlib.sha256 functools.reduce statistics.median subprocess.Popen "
    "base64.b64encode bisect.insort textwrap.dedent urllib.request.urlopen"
)
CODES = (200, 201, 202, 204, 301, 304, 400, 401, 403, 404, 405, 408, 409, 410, 411, 429, 500, 501, 502, 504)
CHARACTERS = "@&%#*+=~^$!?;<>|"
Table = list[tuple[str, str]]  # question, true answer
OPTIONS = 4


class Question(NamedTuple):
    """A multiple-choice question; the first option is true. half: 0 or 1, options of one half do
    not occur in the other.
    """

    text: str
    options: list[str]
    half: int


def following(names: Sequence[str], what: str) -> Table:
    """Questions for the successor of each name but the last."""
    return [(f"Which {what} comes after {a}?", b) for a, b in zip(names, names[1:])]


def functions() -> Table:
    """Questions for the module that has a function. AttributeError if it has not."""
    found = []
    for module, _, name in (path.rpartition(".") for path in FUNCTIONS.split()):
        getattr(importlib.import_module(module), name)
        found.append((f"Which Python module has {name}?", module))
    return found


def tables(books: Iterable[str]) -> dict[str, Table]:
    """All tables by name; `books`: those of the Bible in their order, of which every third is asked
    for.
    """
    return {
        "capital": [(f"What is the capital of {land}?", city) for land, city in map(str.split, CAPITALS.split(", "))],
        "status": [(f"What does the HTTP status code {c} mean?", HTTPStatus(c).phrase) for c in CODES],
        "module": functions(),
        "book": following(list(books), "book of the Bible")[::3],
        "month": following(list(calendar.month_name)[1:], "month"),
        "sign": [(f"What is the character {c} called?", unicodedata.name(c).lower()) for c in CHARACTERS],
    }


def quiz(facts: Mapping[str, Table], seed: int, limit: int | None = None) -> list[Question]:
    """Multiple choice from tables of at least eight facts, each divided by `seed` into halves, of
    at most `limit` facts each.

    False options are three other answers of the same half, in a cycle. ValueError for a half that
    is too small.
    """
    found = []
    for name, rows in facts.items():
        rows = random.Random(f"{name}-{seed}").sample(rows, len(rows))
        for half in (0, 1):
            part = rows[half::2][:limit]
            if len(part) < OPTIONS:
                raise ValueError(f"half of the table {name} holds {len(part)} facts, {OPTIONS} are needed")
            answers = [answer for _, answer in part]
            found += [Question(text, [answers[(i + s) % len(part)] for s in range(OPTIONS)], half)
                      for i, (text, _) in enumerate(part)]
    return found
