"""Text is read and written as UTF-8 whatever the locale: every call says so, and nothing dies of an
ASCII terminal.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerbook import paths

SOURCES = [
    p
    for folder in ("src", "tests", "book/_ext")
    for p in sorted((paths.ROOT / folder).rglob("*.py"))
]
TEXT = {"read_text", "write_text"}
RUNNERS = {"run", "Popen", "check_output", "check_call", "call"}
# whose open() is not of text
BINARY_ONLY = {
    "os",
    "tarfile",
    "archive",
    "zipfile",
    "Image",
    "sources",
    "gzip",
    "lzma",
}

ASCII = os.environ | {
    "LC_ALL": "POSIX",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii:strict",
    "PYTHONPATH": str(paths.ROOT / "src"),
}


def silent_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that open, read, write or capture text without saying in which encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        named = {k.arg: k.value for k in node.keywords}
        if "encoding" in named or None in named:
            continue
        if name in TEXT:
            wanted = len(node.args) <= (name == "write_text")
        elif name == "open":
            wanted = not _binary(node, named)
        else:
            wanted = name in RUNNERS and bool({"text", "universal_newlines"} & named.keys())
        if wanted:
            yield node


def _binary(node: ast.Call, named: dict[str | None, ast.expr]) -> bool:
    """True for an open() of bytes, or of something that is no text file."""
    method = isinstance(node.func, ast.Attribute)
    if method and isinstance(node.func.value, ast.Name) and node.func.value.id in BINARY_ONLY:
        return True
    place = 0 if method else 1
    mode = named.get("mode") or (node.args[place] if len(node.args) > place else None)
    return isinstance(mode, ast.Constant) and "b" in str(mode.value)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("open('x')", 1),
        ("open('x', 'rb')", 0),
        ("p.open()", 1),
        ("p.open('w', encoding='utf-8')", 0),
        ("p.read_text()", 1),
        ("p.write_text(t)", 1),
        ("p.write_text(t, 'utf-8')", 0),
        ("subprocess.run(c, text=True)", 1),
        ("subprocess.run(c, capture_output=True)", 0),
        ("os.open(p, 0)", 0),
    ],
)
def test_the_search_knows_what_it_looks_for(code: str, number: int) -> None:
    assert len(list(silent_calls(ast.parse(code)))) == number


def test_every_call_names_its_encoding() -> None:
    found = [
        f"{file.relative_to(paths.ROOT)}:{call.lineno}"
        for file in SOURCES
        for call in silent_calls(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found, "say encoding='utf-8' here:\n" + "\n".join(found)


ASCII_PLACE = pytest.mark.skipif(
    not str(paths.ROOT).isascii(),
    reason="with its own remedies off, Python cannot name this checkout's folder (1 December 2026)",
)


@ASCII_PLACE
def test_a_terminal_that_knows_ascii_only_gets_every_line() -> None:
    """Strict ASCII on both streams, as in a POSIX locale with Python's own remedies off."""
    code = "from layerbook import terminal as f; f.lenient(); print('Holm \\u2713'); import sys; print(chr(233), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], env=ASCII, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    assert done.stdout == b"Holm \\u2713\n" and done.stderr == b"\\xe9\n"


@ASCII_PLACE
@pytest.mark.parametrize(
    "words", [["check", "\u2713"], ["assets", "fetch", "\u2713"], ["train", "\u2713"]]
)
def test_each_command_survives_such_a_terminal(words: list[str], tmp_path: Path) -> None:
    """A name in another script on strict ASCII: the command's own words and no traceback, and
    printing goes on.
    """
    code = f"from layerbook.cli import main\ncode = main({ascii(words)})\nprint(chr(0x2713))\nraise SystemExit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ASCII, cwd=tmp_path, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode("ascii", "replace")
    assert b"\\u2713" in done.stdout and done.returncode in (1, 2)
