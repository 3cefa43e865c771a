"""Functions, leaves and trees of Python source, and the parts that modules are dealt to."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections import Counter

import pytest

from layerbook.data import loaders, pycode

MODULE = '''
import os

if os:
    def first(a):
        """What it does.

        More of it.
        """
        # a comment
        return a  # another


class Thing:
    """A class."""

    @property
    def second(self) -> int:
        def inner():
            return 1
        return inner() + \\
            2

    async def third(self, *, b='x'  'y'):
        async with b: pass

try:
    pass
except OSError:
    def fourth(): return 4
'''


def words(source: str) -> list[str]:
    return [leaf.text for leaf in pycode.leaves(source)]


def test_functions_are_the_outermost_ones_with_their_docstrings():
    found = pycode.functions("p", "m.py", MODULE)
    assert [f.name for f in found] == ["first", "second", "third", "fourth"]
    assert found[0].docstring == "What it does.\n\nMore of it." and found[1].docstring is None
    assert (
        found[1].source.startswith("def second(self) -> int:\n    def inner():")
        and "@" not in found[1].source
    )
    for function in found:
        ast.parse(function.source)
    with pytest.raises(SyntaxError):
        pycode.functions("p", "m.py", "print 1")


def test_a_function_that_cannot_stand_alone_is_left_out():
    text = "class A:\n    def f(self):\n        return '''\nx'''\n    def g(self): return 1\n"
    assert [f.name for f in pycode.functions("p", "m.py", text)] == ["g"]


def test_leaves_are_the_tokens_without_layout_comments_and_docstring():
    first, second, third, _ = pycode.functions("p", "m.py", MODULE)
    assert words(first.source) == "def first ( a ) : return a".split()
    assert words(second.source)[-4:] == ["(", ")", "+", "2"] and "inner" in words(second.source)
    assert "'x'" in words(third.source) and "'y'" in words(third.source)
    for function in (first, second, third):
        lines = function.source.split("\n")
        for leaf in pycode.leaves(function.source):
            assert lines[leaf.start[0] - 1][leaf.start[1] : leaf.end[1]] == leaf.text
    with pytest.raises(ValueError, match="ASCII"):
        pycode.leaves("def f(): return 'é'")


def test_a_formatted_literal_is_one_leaf_whatever_the_version():
    source = 'def f(a):\n    return f"x{a + 1:>{a}} {f\'{a}\'}" + rf"""{a}\n{a}"""\n'
    assert words(source)[-3:] == ["f\"x{a + 1:>{a}} {f'{a}'}\"", "+", 'rf"""{a}\n{a}"""']
    tree = pycode.syntax_tree(source, pycode.leaves(source))
    literal = tree.children[-1].children[1]
    assert (
        literal.label == "BinOp"
        and [c.label for c in literal.children if isinstance(c, pycode.Node)] == ["JoinedStr"] * 2
    )


def test_a_tree_hangs_each_leaf_below_the_smallest_node():
    source = "def f(a, b=2):\n    return a.c(b)\n"
    leaf = {word: i for i, word in enumerate(words(source)) if words(source).count(word) == 1}
    tree = pycode.syntax_tree(source, pycode.leaves(source))
    assert tree.label == "FunctionDef" and [c if isinstance(c, int) else c.label for c in tree.children] == [
        0, 1, 2, "arguments", leaf[":"] - 1, leaf[":"], "Return"]  # fmt: skip
    call = tree.children[-1].children[1]
    assert (call.label, call.children[0].label) == ("Call", "Attribute") and call.children[
        0
    ].children[1:] == (leaf["."], leaf["c"])
    assert [c.label for c in tree.children[3].children if isinstance(c, pycode.Node)] == [
        "arg",
        "arg",
        "Constant",
    ]


def test_trees_of_real_functions_hold_every_leaf_once_in_order():
    count, modules = 0, loaders.python_code("networkx")
    for module in list(modules)[40:70]:
        for function in pycode.functions("networkx", module, modules[module]):
            if not function.source.isascii() or len(function.source) > 3000:
                continue
            leaves, stack, found = pycode.leaves(function.source), [], []
            stack = [pycode.syntax_tree(function.source, leaves)]
            while stack:
                node = stack.pop()
                if isinstance(node, int):
                    found.append(node)
                else:
                    assert node.children
                    stack += node.children[::-1]
            assert found == list(range(len(leaves)))
            count += 1
    assert count > 50


def test_joined_words_stand_where_it_is_said():
    text, places = pycode.joined(["def", "f", "'a b'"])
    assert text == " def f 'a b'" and [text[a:b] for a, b in places] == ["def", "f", "'a b'"]


def test_parts_are_disjoint_fixed_and_of_the_right_size():
    packages = {name: loaders.python_code(name) for name in pycode.PACKAGES}
    found = {
        part: [(p, m) for p, m, _ in pycode.sources(packages, part)]
        for part in ("train", "probe", "valid", "test")
    }
    assert sorted(sum(found.values(), [])) == sorted((p, m) for p in packages for m in packages[p])
    assert {p for p, _ in found["test"]} == {"networkx"} and not any(
        p == "networkx" for p, _ in found["train"]
    )
    share = len(found["train"]) / (len(packages["django"]) + len(packages["sympy"]))
    assert 0.65 < share < 0.75 and {p for p, _ in found["train"][:40]} == {"django", "sympy"}
    assert found["valid"][:1] == [
        next((p, m) for p, m, _ in pycode.sources(dict(reversed(packages.items())), "valid"))
    ]


def jaccard(a: list[str], b: list[str]) -> float:
    triples = [set(zip(["", "", *x, ""], ["", *x, ""], [*x, ""])) for x in (a, b)]
    return len(triples[0] & triples[1]) / len(triples[0] | triples[1])


def test_copies_are_those_by_brute_force():
    base = [
        f"def {n} ( a , b ) : return a {o} b . c ( {n} )".split() for n in "fghk" for o in "+-*"
    ] + [["x", "=", "1"], ["y"]]
    copies, kept = pycode.Copies(0.6), []
    for words_ in base:
        wanted = all(jaccard(words_, other) <= 0.6 for other in kept)
        assert copies.new(words_) == wanted
        if wanted:
            kept.append(words_)
    assert 3 < len(kept) < len(base) and not copies.new(base[0])


def test_samples_are_bounded_and_share_nothing(monkeypatch):
    packages = {name: loaders.python_code(name) for name in pycode.PACKAGES}
    tokenizer = lambda text: type("Coded", (), {"input_ids": text.split(" ")})  # noqa: E731
    copies = pycode.Copies()
    test, probe = (
        pycode.samples(packages, part, 30, 30, 3, [tokenizer], copies, pieces=40)
        for part in ("test", "probe")
    )
    assert len(test) == len(probe) == 30 and max(Counter(s.module for s in test).values()) == 3
    assert all(8 <= len(s.words) <= 30 for s in test + probe) and all(
        s.module.startswith("networkx/") for s in test
    )
    assert max(jaccard(list(a.words), list(b.words)) for a in test for b in probe) <= 0.6
    with pytest.raises(ValueError, match="functions in the part valid"):
        pycode.samples(
            {name: dict(list(p.items())[:20]) for name, p in packages.items()},
            "valid",
            10**4,
            30,
            3,
            [],
            copies,
        )


def test_tokens_agree_with_tokenize_where_there_is_no_layout():
    source = textwrap.dedent("def f(x): return [x, *x][1:] @ x if x else ...")
    kinds = (tokenize.NEWLINE, tokenize.ENDMARKER)
    assert words(source) == [
        t.string
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type not in kinds
    ]
