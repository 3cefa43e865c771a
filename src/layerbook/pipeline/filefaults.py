"""What may be wrong with a file that the project reads: every check of a file's form, each fault
worded once.

Every function takes a path, returns the content where that is of use, and raises FileFault with the
fault in words that follow the file's name ("is empty"). `layerbook.pipeline.advice` adds the name
and what to type.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
BENCH = {"rows": list, "machine": dict}


class FileFault(ValueError):
    """A file that the project reads is missing or damaged; the message names it, what is wrong, and
    what to type.
    """


def text_of(file: Path) -> str:
    """The text of a file. Raises FileFault: missing, empty, a folder, not readable, not text, with
    conflict markers.
    """
    if file.is_dir():
        raise FileFault("is a folder where a file belongs")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileFault("is missing") from None
    except UnicodeDecodeError:
        raise FileFault("is damaged: it is not UTF-8 text") from None
    except OSError as error:
        raise FileFault(f"cannot be read ({error.strerror})") from None
    if not text.strip():
        raise FileFault("is empty")
    if len(found := list(CONFLICT.finditer(text))) >= 2:
        line = text.count("\n", 0, found[0].start()) + 1
        raise FileFault(f"holds the conflict markers of an unfinished merge (line {line})")
    return text


def json_of(file: Path, kind: type = dict, /, **fields: Any) -> Any:
    """The content of a JSON file.

    Args:
        kind: what stands at its top level, dict or list.
        fields: the type, or types, of what a mapping must hold.

    Raises:
        FileFault: as `text_of`; not valid JSON; another type; a field that is missing or of another
            type.
    """
    try:
        found = json.loads(text_of(file))
    except json.JSONDecodeError as error:
        raise FileFault(f"is not valid JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise FileFault("is not valid JSON (nested too deeply)") from None
    return of_kind(found, kind, **fields)


def yaml_of(file: Path, kind: type = dict, /, **fields: Any) -> Any:
    """The content of a YAML file; arguments and faults as for `json_of`."""
    try:
        found = YAML(typ="safe").load(text_of(file))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FileFault(
            f"is not valid YAML (line {mark.line + 1 if mark else 1}: {error.problem})"
        ) from None
    except YAMLError as error:
        raise FileFault(f"is not valid YAML ({str(error).splitlines()[0]})") from None
    return of_kind(found, kind, **fields)


def of_kind(found: Any, kind: type, where: str = "", /, **fields: Any) -> Any:
    """`found` itself. Raises FileFault when it is no `kind`, or a mapping without one of the fields
    of these types.
    """
    names = {dict: "a mapping", list: "a list"}
    if not isinstance(found, kind):
        raise FileFault(
            f"holds {names.get(type(found), 'a single value')} where {names[kind]} is wanted{where}"
        )
    for name, wanted in fields.items():
        if name not in found:
            raise FileFault(f"lacks the field '{name}'{where}")
        if not isinstance(found[name], wanted) or isinstance(found[name], bool):
            raise FileFault(
                f"has a field '{name}' of the wrong type ({type(found[name]).__name__}){where}"
            )
    return found


def record_of(file: Path) -> dict[str, Any]:
    """A paper's record or its verdicts; what must stand inside is said by a schema. Raises
    FileFault.
    """
    from layerbook.pipeline import record

    found = json_of(file)
    kind = "verdicts" if file.name.endswith(".verdicts.json") else "measurements"
    if wrong := record.fault(found, kind, file.name.split(".")[0], file.parent.name):
        raise FileFault(f"is no file of {kind}: {wrong}")
    return found


def notebook_of(file: Path) -> nbformat.NotebookNode:
    """A notebook. Raises FileFault when it is not one, or has no cells."""
    found = json_of(file, cells=list, metadata=dict, nbformat=int)
    for number, cell in enumerate(found["cells"]):
        of_kind(
            cell, dict, f" in cell {number + 1}", cell_type=str, metadata=dict, source=(str, list)
        )
    if not found["cells"]:
        raise FileFault("has no cells")
    try:
        return nbformat.reads(json.dumps(found), as_version=4)
    except Exception as error:  # nbformat raises several unrelated types
        raise FileFault(f"is not a readable notebook ({str(error).splitlines()[0]})") from None


def discussion_of(file: Path) -> dict[str, dict[str, str]]:
    """A paper's discussion, claim -> prose; an empty file is one without entries. Raises FileFault."""
    try:
        found = yaml_of(file)
    except FileFault as fault:
        if str(fault) == "is empty":
            return {}
        raise
    for claim, prose in found.items():
        prose = of_kind(prose, dict, f" under '{claim}'")
        fields = {"reason": str} | ({"would_change": str} if "would_change" in prose else {})
        of_kind(prose, dict, f" under '{claim}'", **fields)
    return found


def config_of(file: Path) -> None:
    """DVC's configuration. Raises FileFault."""
    try:
        found = configparser.ConfigParser(interpolation=None)
        found.read_string(text_of(file))
    except configparser.Error as error:
        raise FileFault(f"is no valid configuration ({str(error).splitlines()[0]})") from None
    if not any(found.options(section) for section in found.sections()):
        raise FileFault("is no valid configuration (it sets nothing)")


def weights_of(file: Path) -> None:
    """The header of a safetensors file, which says how long the file is. Raises FileFault."""
    from safetensors import SafetensorError, safe_open

    if file.is_dir():
        raise FileFault("is a folder where a file belongs")
    try:
        with safe_open(file, "np") as stored:
            stored.keys()
    except FileNotFoundError:
        raise FileFault("is missing") from None
    except (SafetensorError, OSError) as error:
        raise FileFault(f"is damaged ({str(error).splitlines()[0]})") from None


def bibliography_of(file: Path) -> None:
    """A BibTeX file whose braces close. Raises FileFault."""
    text = text_of(file)
    if "@" not in text:
        raise FileFault("holds no entry")
    for entry in re.split(r"^(?=@\w+\s*\{)", text, flags=re.MULTILINE)[1:]:
        plain = re.sub(r"\\[{}]", "", entry)
        if plain.count("{") != plain.count("}"):
            raise FileFault(
                f"is cut short: the braces of {entry.splitlines()[0].rstrip(',')} do not close"
            )


def card_of(file: Path) -> None:
    """A paper's card. Raises FileFault with the first of its faults."""
    from layerbook.claims import cards

    text_of(file)
    try:
        cards.read(file)
    except cards.CardError as error:
        raise FileFault(f"is no valid card: {str(error).splitlines()[0]}") from None


def fault_of(file: Path, read: Callable[[Path], Any]) -> str:
    """What `read` finds wrong with a file, '' when nothing."""
    try:
        read(file)
    except FileFault as fault:
        return str(fault)
    return ""
