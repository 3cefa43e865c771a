"""Python functions as data: which of them a module holds, their docstrings, and their leaves
without layout.

Three pinned packages are read: django, networkx and sympy. Modules are dealt to fixed parts, so
that what one network is
trained on can never be what another experiment examines: the whole of networkx is set aside for
examination, and so are three in ten modules of the other two, chosen by a checksum of their path.
Near-copies within a package may still lie in two modules; `Copies` finds them.
"""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

PACKAGES = ("django", "sympy", "networkx")
PARTS = ("train",) * 7 + ("probe",) * 2 + ("valid",)
APART = "networkx"  # no network that is trained here has seen any of it
LAYOUT = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER", "ENCODING"}


class Function(NamedTuple):
    """A function or method that does not lie inside another one."""

    package: str
    module: str  # its path in the package
    name: str
    source: str  # from "def" on, without decorators, not indented
    docstring: str | None


class Leaf(NamedTuple):
    """A token that stays when layout is taken away; positions are (line from 1, column from 0)."""

    text: str
    start: tuple[int, int]
    end: tuple[int, int]


def part(package: str, module: str) -> str:
    """Where a module belongs: "train" (for networks), "probe" or "valid" (set aside), "test"
    (another package).
    """
    if package == APART:
        return "test"
    return PARTS[zlib.crc32(f"{package}/{module}".encode()) % len(PARTS)]


def _outermost(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from _outermost(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler))


def functions(package: str, module: str, text: str) -> list[Function]:
    """Functions and methods of a module in their order; one that is not valid code by itself is
    left out.

    SyntaxError if the module is not Python of the running version.
    """
    lines, found = text.splitlines(), []
    for node in _outermost(ast.parse(text).body):
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        try:
            # a text that reaches left of its function's indentation cannot be dedented
            ast.parse(source)
        except SyntaxError:
            continue
        found.append(Function(package, module, node.name, source, ast.get_docstring(node)))
    return found


def docstring_span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Start and end of a function's docstring, or None."""
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.lineno, first.col_offset), (first.end_lineno, first.end_col_offset)
    return None


def leaves(source: str) -> list[Leaf]:
    """Tokens of a function without comments, line ends, indentation and docstring; a text literal
    is one leaf.

    ValueError for a character outside of ASCII, for which columns of `ast` (bytes) and `tokenize`
    (characters) differ.
    """
    if not source.isascii():
        raise ValueError("a function with characters outside of ASCII")
    lines, found, depth, begin = source.split("\n"), [], 0, (0, 0)
    skipped = docstring_span(ast.parse(source).body[0])
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":  # from Python 3.12 on, a formatted literal is many tokens
            begin, depth = (token.start if not depth else begin), depth + 1
        elif kind == "FSTRING_END":
            depth -= 1
            if not depth:
                found.append(Leaf(_between(lines, begin, token.end), begin, token.end))
        elif not depth and kind not in LAYOUT and not (skipped and skipped[0] <= token.start and token.end <= skipped[1]):
            found.append(Leaf(token.string, token.start, token.end))
    return found


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    piece = list(lines[start[0] - 1 : end[0]])
    piece[-1] = piece[-1][: end[1]]
    piece[0] = piece[0][start[1] :]
    return "\n".join(piece)


class Node(NamedTuple):
    """An inner node: its label and its children in order, each a node or the number of a leaf."""

    label: str
    children: tuple


def _place(node: ast.AST) -> tuple | None:
    """Start and end (line, column) of the hull of a node and all below it; None if it has none."""
    below = [] if isinstance(node, ast.JoinedStr) else [p for child in ast.iter_child_nodes(node) if (p := _place(child))]
    if hasattr(node, "lineno"):
        below.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))
    return (min(p[0] for p in below), max(p[1] for p in below)) if below else None


def syntax_tree(source: str, leaves: Sequence[Leaf]) -> Node:
    """The tree of a function over its leaves: each hangs below the smallest node of `ast` whose
    place covers it.

    Nodes that cover no leaf vanish; one without a place of its own has the hull of its children.
    Nothing inside of a formatted text literal is read. ValueError where two nodes share a leaf and
    none lies in the other.
    """

    def build(node: ast.AST, own: list[int]) -> Node:
        below = () if isinstance(node, ast.JoinedStr) else ast.iter_child_nodes(node)
        parts = [(p, child) for child in below if (p := _place(child))]
        children, rest = [], own
        for (start, end), child in sorted(parts, key=lambda part: part[0]):
            covered = [i for i in own if start <= leaves[i].start and leaves[i].end <= end]
            if not set(covered) <= set(rest):
                raise ValueError("two nodes share a leaf")
            rest = [i for i in rest if i not in covered]
            if covered:
                children.append((covered[0], build(child, covered)))
        return Node(type(node).__name__, tuple(kid for _, kid in sorted(children + [(i, i) for i in rest], key=lambda kid: kid[0])))

    root = ast.parse(source).body[0]
    root.decorator_list = []
    return build(root, list(range(len(leaves))))


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Words with a space before each, and the place (start, end) of each word in that text."""
    places, at = [], 0
    for word in words:
        places.append((at + 1, at + 1 + len(word)))
        at += 1 + len(word)
    return "".join(f" {w}" for w in words), places


class Copies:
    """Remembers lists of words, and tells near-copies: more than `limit` of the distinct word
    triples shared (Jaccard).
    """

    def __init__(self, limit: float = 0.6) -> None:
        self.limit, self.sizes = limit, []
        self.index: dict[tuple[str, ...], list[int]] = {}

    def new(self, words: Sequence[str]) -> bool:
        """Whether `words` are no near-copy of any list that was new before; if so, they are
        remembered.
        """
        padded = ("", "", *words, "")
        own = set(zip(padded, padded[1:], padded[2:]))
        shared = Counter(i for t in own for i in self.index.get(t, ()))
        if any(n > self.limit * (len(own) + self.sizes[i] - n) for i, n in shared.items()):
            return False
        for t in own:
            self.index.setdefault(t, []).append(len(self.sizes))
        self.sizes.append(len(own))
        return True


def sources(packages: Mapping[str, Mapping[str, str]], wanted: str) -> Iterator[tuple[str, str, str]]:
    """(package, module, text) of all modules of one part, in a fixed order that mixes packages and
    folders.
    """
    rows = [(p, m) for p, modules in packages.items() for m in modules if part(p, m) == wanted]
    for package, module in sorted(rows, key=lambda r: zlib.crc32("/".join(reversed(r)).encode())):
        yield package, module, packages[package][module]


class Sample(NamedTuple):
    """A function: package/module, its leaves' words and its tree."""

    module: str
    words: tuple[str, ...]
    tree: Node


def samples(
    packages: Mapping[str, Mapping[str, str]],
    part: str,
    n: int,
    longest: int,
    each: int,
    tokenizers: Sequence[Any],
    copies: Copies,
    pieces: int = 190,
) -> list[Sample]:
    """The first `n` functions of a part with 8 to `longest` leaves, at most `each` of a module.
    ValueError if too few.
    """
    found: list[Sample] = []
    for package, module, text in sources(packages, part):
        taken = 0
        for function in sorted(functions(package, module, text), key=lambda f: zlib.crc32(f.name.encode())):
            if taken == each or not function.source.isascii() or len(function.source) > 5000:
                continue
            own = leaves(function.source)
            words = tuple(leaf.text for leaf in own)
            if not 8 <= len(words) <= longest or not copies.new(words):
                continue
            if all(len(tokenizer(joined(words)[0]).input_ids) <= pieces for tokenizer in tokenizers):
                found.append(Sample(f"{package}/{module}", words, syntax_tree(function.source, own)))
                taken += 1
            if len(found) == n:
                return found
    raise ValueError(f"{len(found)} functions in the part {part}; {n} are wanted")
