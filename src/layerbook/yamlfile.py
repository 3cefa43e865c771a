"""YAML files that people write, read strictly: plain data, each fault with its line, and nothing
that YAML guesses.

YAML has more than a card needs: tags that build objects, anchors, keys that are no text, words that
one reader takes
for text and another for true or false. Whatever could be read in two ways is refused, and the
message says what to write.
"""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 256_000
LARGEST = 1e100  # of any number; beyond it, arithmetic with floats overflows
TAG = "tag:yaml.org,2002:"
WORDS = frozenset("y n yes no on off".split())  # true or false in YAML 1.1, text in YAML 1.2
# They turn the direction of the text around them, or are not seen at all: what is shown would not
# be what is written.
INVISIBLE = frozenset(
    "\u200b\u200e\u200f\u061c\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


class YamlFault(ValueError):
    """A file that may not be used; the message lists every fault with file and line."""


class Document:
    """What a file says.

    Attributes:
        name: the file's name, for messages.
        data: mappings, lists, text, finite numbers, booleans and None.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name, self.data = name, None
        self._lines: dict[tuple[Any, ...], int] = {(): 1}
        self._faults: list[tuple[int, str]] = []
        self._seen: set[int] = set()
        if directive := re.search(r"^%.*", text, flags=re.M):
            raise YamlFault(
                f"{name}:1: the line {directive[0][:40]!r} changes how YAML is read: take it out"
            )
        try:
            root = YAML(typ="safe", pure=True).compose(text)
            self.data = self._value(root, ()) if root is not None else None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise YamlFault(f"{name}:{line}: not valid YAML: {error.problem}") from None
        except YAMLError as error:
            reason = str(error).splitlines()[0] if str(error) else "unreadable"
            raise YamlFault(f"{name}:1: not valid YAML: {reason[:200]}") from None
        except RecursionError:
            raise YamlFault(f"{name}:1: lists or mappings are nested too deeply") from None
        except (
            ValueError,
            AttributeError,
            TypeError,
            LookupError,
            NotImplementedError,
            AssertionError,
        ) as error:
            # ruamel raises these on a few broken texts
            raise YamlFault(f"{name}:1: not valid YAML: {str(error)[:200]}") from None
        self.refuse(self._faults)

    def line(self, where: tuple[Any, ...] | list[Any]) -> int:
        """The line, from 1, on which the value at a path stands; that of the nearest value above it
        when there is none.
        """
        path = tuple(where)
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def refuse(self, faults: list[tuple[int, str]]) -> None:
        """Raise YamlFault with these faults (line, text), in order; nothing when there are none."""
        if faults:
            raise YamlFault(
                "\n".join(f"{self.name}:{line}: {text}" for line, text in sorted(faults))
            )

    def _fault(self, node: Node, where: tuple[Any, ...], text: str) -> None:
        at = f"{'.'.join(map(str, where))}: " if where else ""
        self._faults.append((node.start_mark.line + 1, at + text))

    def _value(self, node: Node, where: tuple[Any, ...]) -> Any:
        if id(node) in self._seen or node.anchor:
            self._fault(
                node,
                where,
                "anchors and aliases (&name, *name) are not used here: write the value out",
            )
            return None
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, where)
        if isinstance(node, SequenceNode):
            if node.tag != f"{TAG}seq":
                self._fault(node, where, f"the tag {node.tag[:60]} is not used here: leave it out")
            for k, item in enumerate(node.value):
                self._lines[*where, k] = item.start_mark.line + 1
            return [self._value(item, (*where, k)) for k, item in enumerate(node.value)]
        return self._scalar(node, where)

    def _mapping(self, node: MappingNode, where: tuple[Any, ...]) -> dict[str, Any]:
        if node.tag != f"{TAG}map":
            self._fault(node, where, f"the tag {node.tag[:60]} is not used here: leave it out")
        out: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag != f"{TAG}str":
                self._fault(key, where, _no_key(key))
                continue
            name = self._text(key, where)
            if name in out:
                self._fault(key, where, f"{name[:60]!r} stands here twice: keep one")
            self._lines[*where, name] = key.start_mark.line + 1
            out[name] = self._value(value, (*where, name))
        return out

    def _text(self, node: ScalarNode, where: tuple[Any, ...]) -> str:
        for c in node.value:
            if (
                c in INVISIBLE
                or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
                or ord(c) & 0xFFFE == 0xFFFE
            ):
                self._fault(
                    node,
                    where,
                    f"the invisible character U+{ord(c):04X} is not allowed: take it out",
                )
                break
        return node.value

    def _scalar(self, node: ScalarNode, where: tuple[Any, ...]) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
        if kind == "str":
            if node.style is None and text.lower() in WORDS:
                self._fault(
                    node,
                    where,
                    f'some YAML readers take {text} for true or false: write "{text}" for the word',
                )
            return self._text(node, where)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self._number(node, where, kind)
        what = "a bare date" if kind == "timestamp" else f"the tag {node.tag[:60]}"
        self._fault(node, where, f"{what} is not used here: write text in quotes")
        return None

    def _number(self, node: ScalarNode, where: tuple[Any, ...], kind: str) -> float:
        text = node.value.replace("_", "")
        try:
            value = (
                int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
                if kind == "int"
                else _float(text)
            )
        except ValueError:
            value = math.nan
        if abs(value) <= LARGEST:
            return value
        self._fault(
            node,
            where,
            f"{node.value[:40]} is no finite number that can be computed with: write an ordinary number",
        )
        return 0


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _no_key(key: Node) -> str:
    if isinstance(key, ScalarNode) and key.tag == f"{TAG}null":
        return "YAML reads the key null as nothing: for the value of a test that means no effect write null_value"
    shown = f" ({key.value[:40]})" if isinstance(key, ScalarNode) else ""
    return f"a key must be text, and this one is not{shown}: put it in quotes, or choose another"


def read(file: Path) -> Document:
    """Read one file. Raises YamlFault with file and line of each fault, FileNotFoundError when it
    is not there.
    """
    content = file.read_bytes()
    if len(content) > MAX_BYTES:
        raise YamlFault(
            f"{file.name}:1: the file has {len(content):,} bytes, more than {MAX_BYTES:,}"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise YamlFault(f"{file.name}:{line}: not UTF-8 text: save the file as UTF-8") from None
    return Document(file.name, text)
