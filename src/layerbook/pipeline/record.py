"""Records: what a run measured, and by what, in results/<tier>/<slug>.json.

A record holds each raw array once and no verdict: those stand beside it, in <slug>.verdicts.json
(`layerbook.pipeline.verdicts`). It is only worth something while what it was measured by is still
what lies in the checkout; `problems` says where it is not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema

from layerbook import paths
from layerbook.pipeline import advice, deps, digests, method, receipts

SCHEMA = 2
VERSIONED = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "matplotlib", "papermill")
TIERS = ("cpu", "gpu")


def file_of(slug: str, tier: str, suffix: str = ".json") -> Path:
    """Where the record (.json) or the executed notebook (.ipynb) of a paper lies."""
    return paths.RESULTS / tier / f"{slug}{suffix}"


def sha256(file: Path) -> str:
    """SHA-256 of a file, hex."""
    stat = file.stat()
    return _sha256(str(file), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)


@lru_cache(maxsize=4096)
def _sha256(file: str, *_stamp: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measured_by(slug: str) -> dict[str, str]:
    """Digest of all that a paper's measurements depend on, by path from the root.

    Notebook, card and modules are taken by what they mean (`layerbook.pipeline.digests`), data and
    networks by their bytes.

    Raises:
        FileNotFoundError: a prepared asset or trained model is missing.
    """
    out = digests.method_of(slug)
    for path in deps.substrates(slug):
        if not path.exists():
            name = path.relative_to(paths.ROOT).as_posix()
            raise FileNotFoundError(
                f"{name} is missing: run 'make data' (fetches what is missing, then prepares it)"
            )
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            out[file.relative_to(paths.ROOT).as_posix()] = sha256(file)
    return out


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONED}


def build(
    measurements: dict[str, Any], used: dict[str, str], seconds: float, notebook: bytes
) -> dict[str, Any]:
    """Turn a run's measurements into its record.

    Args:
        measurements: what `Run.measurements` handed over.
        used: `measured_by` as it was before the run.
        seconds: wall-clock time of the notebook.
        notebook: the executed notebook that is stored beside the record.
    """
    slug, tier = measurements["paper"], measurements["tier"]
    keep = {
        k: measurements[k]
        for k in ("device", "peak_memory_mb", "peak_gpu_memory_mb")
        if k in measurements
    }

    def raw(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        fields = ("name", "statement", "values", "varies")
        return [{k: row[k] for k in fields if k in row} for row in rows]

    return finite(
        {
            "schema": SCHEMA,
            "paper": slug,
            "tier": tier,
            "seconds": round(seconds, 1),
            **keep,
            "versions": versions(),
            "parameters": measurements["parameters"],
            "measured_by": used,
            "notebook": {
                "path": f"results/{tier}/{slug}.ipynb",
                "sha256": hashlib.sha256(notebook).hexdigest(),
            },
            "measured": measurements["measured"],
            "units": measurements["units"],
            "gates": measurements["gates"],
            "findings": raw(measurements["findings"]),
            "profiles": raw(measurements["profiles"]),
        }
    )


def finite(value: Any) -> Any:
    """Plain JSON has no NaN: non-finite numbers become null (the verdict already says so)."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(record: dict[str, Any]) -> str:
    """The one textual form of a record: short lists of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    out, depth, buffer = [], 0, []
    for line in text.split("\n"):  # join lists that hold nothing but scalars
        stripped = line.strip()
        if depth or stripped.endswith("["):
            buffer.append(line)
            depth += stripped.endswith(("[", "{")) - (stripped.rstrip(",") in ("]", "}"))
            if depth == 0:
                flat = not any(b.strip().endswith(("{", "}", "},")) for b in buffer)
                out += [buffer[0] + " ".join(b.strip() for b in buffer[1:])] if flat else buffer
                buffer = []
        else:
            out.append(line)
    return "\n".join(out) + "\n"


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "record.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})


def fault(content: Any, kind: str, slug: str, tier: str) -> str:
    """What is wrong with the content of a record ('measurements') or of its verdicts ('verdicts');
    '' for nothing.
    """
    error = jsonschema.exceptions.best_match(_validator(kind).iter_errors(content))
    if error is not None:
        where = ".".join(map(str, error.absolute_path))
        return f"{where or 'it'}: {error.message[:200]}"
    if (content["paper"], content["tier"]) != (slug, tier):
        return f"it is of {content['paper']} at the {content['tier']} tier"
    lists = [("findings", f["values"]) for f in content["findings"] if "values" in f]
    lists += [("profiles", p["values"]) for p in content.get("profiles", [])]
    if kind == "measurements":
        lists += [
            (c, values) for c, arrays in content["measured"].items() for values in arrays.values()
        ]
        lists += list(content["gates"].items())
    for where, values in lists:
        if not all(v is None or type(v) in (int, float) for v in values):
            return f"{where}: an array holds what is no number"
    return ""


def load(file: Path, kind: str, slug: str, tier: str, remedy: str) -> dict[str, Any]:
    """Content of a record or verdicts file, in the very form in which it was written.

    Raises:
        ValueError: it is damaged, lacks fields or was edited by hand; the message ends with
            `remedy`.
        FileNotFoundError: there is none.
    """
    name = file.relative_to(paths.ROOT).as_posix() if file.is_relative_to(paths.ROOT) else file.name
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        wrong = fault(content, kind, slug, tier)
        if not wrong and dumps(content) != text:
            wrong = "it is not in the form in which it was written: it was cut short or edited"
    except json.JSONDecodeError as error:
        wrong = f"not valid JSON ({error})"
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        wrong = f"not readable ({error})"
    if wrong:
        back = advice.restore(name)
        raise ValueError(f"{name}: {wrong}; {f'{back}, or ' if back else ''}{remedy}")
    return content


def read(slug: str, tier: str) -> dict[str, Any]:
    """A stored record. Raises ValueError when it is not usable, FileNotFoundError when there is
    none.
    """
    return load(
        file_of(slug, tier),
        "measurements",
        slug,
        tier,
        f"rerun the paper: make rerun PAPER={slug} TIER={tier}",
    )


def replace(target: Path, content: bytes) -> None:
    """Write a file at once or not at all: temporary file in the same folder, flushed, renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def problems(slug: str, tier: str, strict: bool = False) -> list[str]:
    """Why the stored evidence of a paper is not fresh; an empty list when it is.

    Args:
        strict: what was run here but is not yet in dvc.lock is a problem too.
    """
    from layerbook.pipeline import (
        verdicts,
    )  # brings scipy: seconds that a check of hashes alone need not wait for

    found = changes(slug, tier, strict)
    try:
        found += verdicts.problems(slug, tier)
    except (ValueError, FileNotFoundError) as error:
        found += [] if str(error) in found or not file_of(slug, tier).is_file() else [str(error)]
    unrecorded = _unrecorded(slug, tier, (".verdicts.json",)) if strict else []
    return found + [
        text if "git checkout" in text else f"{text}: dvc repro decide" for text in unrecorded
    ]


def changes(slug: str, tier: str, strict: bool = False) -> list[str]:
    """Why a paper has to run again, from files and their digests, without deciding anything; []
    when it has not.
    """
    file, notebook = file_of(slug, tier), file_of(slug, tier, ".ipynb")
    missing = [f.name for f in (file, notebook) if not f.is_file()]
    if missing:
        return [f"results/{tier}/{name} is missing" for name in missing]
    try:
        record, now = read(slug, tier), measured_by(slug)
        out = _differences(record["measured_by"], now) + other_parameters(
            slug, tier, record["parameters"]
        )
        if digests.of_notebook(notebook) != now[f"notebooks/{slug}.ipynb"]:
            out.append(f"{notebook.name}: its code cells are not those of notebooks/{slug}.ipynb")
    except (ValueError, FileNotFoundError, SyntaxError) as error:
        return [str(error)]
    if sha256(notebook) != record["notebook"]["sha256"]:
        out.append(
            f"results/{tier}/{slug}.ipynb is not the notebook that this record was made with"
        )
    if strict or not receipts.holds(slug, tier):
        out += _unrecorded(slug, tier, (".json", ".ipynb"))
    return out


def _differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    out = [
        f"{name} changed since the run"
        for name in sorted(set(then) & set(now))
        if then[name] != now[name]
    ]
    out += [f"{name} was not an input of the run" for name in sorted(set(now) - set(then))]
    return out + [f"{name} is no longer an input" for name in sorted(set(then) - set(now))]


def expected_parameters(slug: str, tier: str) -> dict[str, Any]:
    """Parameters with which evidence is made: the notebook's own defaults, then params.yaml, at
    this tier.
    """
    file = paths.ROOT / "params.yaml"
    stored = deps.fast_yaml(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return (
        method.defaults(slug)
        | dict((stored or {}).get("papers", {}).get(slug) or {})
        | {"tier": tier}
    )


def other_parameters(slug: str, tier: str, ran: dict[str, Any]) -> list[str]:
    """Which parameters of a run are not those with which evidence is made."""
    wanted = expected_parameters(slug, tier)
    say = lambda values, name: repr(values[name]) if name in values else "nothing"  # noqa: E731
    return [
        f"parameter {name} was {say(ran, name)} in the run, but notebook and params.yaml give {say(wanted, name)}"
        for name in sorted({*ran, *wanted})
        if name not in ran or name not in wanted or ran[name] != wanted[name]
    ]


def _unrecorded(slug: str, tier: str, suffixes: tuple[str, ...]) -> list[str]:
    """Which of a paper's stored files are not those that dvc.lock records."""
    out: list[str] = []
    try:
        locked = receipts.locked()
    except ValueError as error:
        return [str(error)]
    for suffix in suffixes:
        file = file_of(slug, tier, suffix)
        name = file.relative_to(paths.ROOT).as_posix()
        if name in locked and file.is_file() and receipts.md5(file) != locked[name]:
            out.append(f"{name} is not the file that dvc.lock records")
    return out
