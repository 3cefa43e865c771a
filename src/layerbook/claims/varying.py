"""What differs between two equal runs on one machine: masked where it means nothing, marked where
it is a measurement.

A card marks a claim with `varies: time` when it measures seconds, and with `varies: threads` when
its values change with
the number of compute threads; a finding is marked where it is made (`Run.finding(...,
varies="time")`). A notebook cell that prints such values has the tag `varies`. Everything else of a
record but `seconds` and `peak_memory_mb` is the same in two runs, byte for byte.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerbook.claims import roles

MEANING = {"time": "depends on the machine's speed", "threads": "depends on the number of threads"}
# fields of a record that no two runs share
MEASURED = (
    "seconds",
    "peak_memory_mb",
    "peak_gpu_memory_mb",
)
TAG = "varies"  # of a notebook cell whose outputs hold such values

ANYWHERE = (
    (re.compile(r"0x[0-9a-fA-F]{8,16}\b"), "0x..."),  # where an object lies in memory
    (re.compile(r"\bipykernel_\d+/\d+\.py"), "ipykernel/cell.py"),
    (re.compile(r"\b(pid|PID|[Pp]rocess [Ii][Dd])([ :=#]+)\d+"), r"\1\2..."),
)
ON_STDERR = (
    (re.compile(r"\b([Pp]rocess[ :=#]+)\d+"), r"\1..."),
    (
        re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ", re.MULTILINE),
        r"\1 ",
    ),  # glog: date, time, thread
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?"), "(time)"),
    (re.compile(r"\[rank\d+\]:|\[\d{2,}\]"), ""),
)
# bars, which hold seconds
PROGRESS = re.compile(r"^.*(\d+%\|.*\||\b(it/s|s/it)\b).*$\n?", re.MULTILINE)


def mask(text: str, root: Path, stderr: bool = False) -> str:
    """A text of a notebook's output without process numbers, addresses and machine paths; on stderr
    also without times.
    """
    for pattern, instead in ANYWHERE:
        text = pattern.sub(instead, text)
    text = text.replace(str(root), ".")
    temporary = re.escape(tempfile.gettempdir())
    text = re.sub(rf"{temporary}/ipykernel/", "ipykernel/", text)
    text = re.sub(rf"{temporary}/[\w./-]+", "(temporary)", text)
    if str(Path.home()) != "/":
        text = text.replace(f"{Path.home()}/", "~/")
    if stderr:
        text = PROGRESS.sub("", "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n")))
        for pattern, instead in ON_STDERR:
            text = pattern.sub(instead, text)
    return text


def mask_outputs(outputs: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """A cell's outputs as they are stored.

    Two equal runs may flush their streams at different moments: pieces of stdout that follow each
    other are joined, and all that went to stderr stands last.
    """
    out: list[dict[str, Any]] = []
    for output in sorted(outputs, key=lambda o: o.get("name") == "stderr"):
        if out and output["output_type"] == "stream" and out[-1].get("name") == output["name"]:
            out[-1]["text"] += output["text"]
        else:
            out.append(output)
    return [kept for output in out if (kept := mask_output(output, root))]


def mask_output(output: dict[str, Any], root: Path) -> dict[str, Any] | None:
    """An output of a cell as it is stored; None when nothing of it is left."""
    stderr = output.get("name") == "stderr"
    data = output.get("data", {})
    for holder, key in ((output, "text"), *((data, k) for k in data if k.startswith("text/"))):
        if isinstance(holder.get(key), str):
            holder[key] = mask(holder[key], root, stderr)
    if isinstance(output.get("traceback"), list):
        output["traceback"] = [mask(line, root) for line in output["traceback"]]
    return None if stderr and not output["text"].strip() else output


def of_claims(card: Mapping[str, Any]) -> dict[str, str]:
    """Claim id -> what it varies with, for the claims that do; a control varies as the effect whose
    test it must fail.
    """
    own = {c["id"]: c["varies"] for c in card["claims"] if "varies" in c}
    return own | {
        c["id"]: own[effect] for c in card["claims"] for effect in roles.named(c) if effect in own
    }


def fixed(record: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """A record without all that may differ between two runs on one machine, for a comparison of
    two.

    Left out: seconds and memory; claims and findings that are marked; and where there are any,
    the hash of the notebook, which shows them.
    """
    marked = of_claims(card)
    out = {k: copy.deepcopy(v) for k, v in record.items() if k not in MEASURED}
    out["claims"] = [c for c in out.get("claims", []) if c["id"] not in marked]
    out["measured"] = {k: v for k, v in out.get("measured", {}).items() if k not in marked}
    out["findings"] = [f for f in out.get("findings", []) if "varies" not in f]
    if marked or len(out["findings"]) < len(record.get("findings", [])):
        out.pop("notebook", None)
    return out
