"""Is a model folder fit to be loaded? Told from its file names and safetensors headers, in
milliseconds.

Weights are read from safetensors alone. A pickle can run any program while it is read, so a folder
that holds nothing else is refused by looking at the names of its files; none of them is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Formats that are no safetensors: pickles, which can run code, and those of other frameworks.
OTHER = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".onnx", ".gguf")
SMALL = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")  # beside weights
BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 100_000_000
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "tekken.json",
)


class CheckpointError(ValueError):
    """Files of a model that are missing, damaged or of a kind that is not loaded."""


def wanted_files(names: Iterable[str]) -> None:
    """Refuse a model whose files, given by name, hold no safetensors.

    Raises CheckpointError, which names what is there in their place.
    """
    names = sorted(names)
    if SINGLE in names or INDEX in names:
        return
    others = [n for n in names if n.lower().endswith(OTHER) and Path(n).name not in SMALL]
    if others:
        raise CheckpointError(
            f"its weights are in {others[0]} alone, and weights are never read from a pickle or "
            "another format than safetensors; take a version with model.safetensors, or, if you "
            "trust the file, save it anew with model.save_pretrained(folder)"
        )
    raise CheckpointError(
        f"it holds neither {SINGLE} nor {INDEX}, so it has no weights; copy the whole folder, or "
        "save the model anew with model.save_pretrained(folder)"
    )


def header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Format and shape of each tensor of a safetensors file, by its name; no weight is read.

    Raises CheckpointError for a file that is missing, cut off, too long or no safetensors.
    """
    again = f"copy or download {file.name} anew"
    if not file.is_file():
        raise CheckpointError(f"{file.name} is missing; {again}")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise CheckpointError(
                f"{file.name} is a pointer of Git LFS and not the file itself; "
                "run 'git lfs pull' in its folder"
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{file.name} is cut off or no safetensors file; {again}")
        text = stream.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = {name: (e["dtype"], tuple(map(int, e["shape"]))) for name, e in entries.items()}
        ranges = {name: tuple(map(int, e["data_offsets"])) for name, e in entries.items()}
        wrong = [
            n
            for n, (kind, shape) in found.items()
            if kind in BYTES and ranges[n][1] - ranges[n][0] != BYTES[kind] * math.prod(shape)
        ]
        end = max((stop for _, stop in ranges.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(f"the header of {file.name} is damaged; {again}") from None
    if wrong:
        raise CheckpointError(
            f"the header of {file.name} gives {wrong[0]} another length than its shape; {again}"
        )
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file.name} has {size:,} bytes where its header asks for "
            f"{8 + length + end:,}; {again}"
        )
    return found


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Format and shape of every tensor of a model folder, of all its parts together.

    Raises CheckpointError for a folder without safetensors, for a missing or damaged part, for an
    index that leads out of the folder or to another format, and for tensors that a part lacks.
    """
    wanted_files(p.name for p in folder.iterdir())
    if (folder / SINGLE).is_file():  # which transformers prefers, too
        return header(folder / SINGLE)
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(places.values()))
        strange = [p for p in parts if Path(p).name != p or not p.endswith(".safetensors")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{INDEX} is damaged; copy or download it anew") from None
    if strange:
        raise CheckpointError(
            f"{INDEX} names {strange[0]!r}, which is no safetensors file of this "
            "folder; take a version whose parts all are"
        )
    missing = [p for p in parts if not (folder / p).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of its {len(parts)} parts are missing, "
            f"{missing[0]} first; copy or download them"
        )
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part in parts:
        inside = header(folder / part)
        lacking = [name for name, where in places.items() if where == part and name not in inside]
        if lacking:
            raise CheckpointError(
                f"{part} lacks {lacking[0]}, which {INDEX} places there; copy or download both anew"
            )
        found |= inside
    return found


def usable(found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse weights in a format that no method here computes with, such as 8-bit numbers.

    Raises CheckpointError, which names the first such tensor.
    """
    for name, (kind, _shape) in found.items():
        if name.endswith((".weight", ".bias", "_scale", "qweight")) and kind not in FLOATS:
            raise CheckpointError(
                f"{name} is stored as {kind}, where {', '.join(FLOATS)} can be "
                "used; take a version of the model that is not quantized"
            )


def complete(found: Iterable[str], wanted: Iterable[str], prefix: str) -> None:
    """Refuse a checkpoint that lacks weights, which would be filled with random numbers.

    Args:
        found: names of the stored tensors.
        wanted: names that the network has, without those that are tied to others.
        prefix: of the network without its head; stored names may leave it out.

    Raises:
        CheckpointError: it names the first that is missing.
    """
    plain = lambda name: name.removeprefix(f"{prefix}.")  # noqa: E731
    old = {"gamma": "weight", "beta": "bias"}  # names of old checkpoints of BERT
    have = {plain(n) for n in found}
    have |= {
        ".".join([*n.split(".")[:-1], old[n.split(".")[-1]]])
        for n in have
        if n.split(".")[-1] in old
    }
    missing = [n for n in wanted if plain(n) not in have]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of its weights are missing from the files, "
            f"{missing[0]} first, and would be random; take the whole model"
        )


def config(folder: Path) -> dict[str, Any]:
    """The settings in config.json. Raises CheckpointError if there are none."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("it holds no config.json, so it is no model folder") from None
    except (OSError, ValueError):
        raise CheckpointError("its config.json is damaged; copy or download it anew") from None
    if not isinstance(found, dict) or "model_type" not in found:
        raise CheckpointError(
            "its config.json names no model_type, so it is no transformer's; "
            "give a Hugging Face model folder"
        )
    return found
