"""Records: a run's measurements, verdicts and provenance in results/<tier>/<slug>.json.

A record is only worth something while the files that it names still are the files that made it;
`problems` says where they are not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerbook import cards, deps, method, paths

SCHEMA = 1
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


def inputs(slug: str) -> dict[str, str]:
    """SHA-256 of every file that a paper's result depends on, by its path from the root.

    Raises:
        FileNotFoundError: a prepared asset or trained model is missing.
    """
    out = {}
    for name in deps.of_paper(slug):
        path = paths.ROOT / name
        if not path.exists():
            raise FileNotFoundError(f"{name} is missing: run 'make data' (fetches what is missing, then prepares it)")
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            out[file.relative_to(paths.ROOT).as_posix()] = sha256(file)
    return out


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONED}


def build(measurements: dict[str, Any], used: dict[str, str], seconds: float, notebook: bytes) -> dict[str, Any]:
    """Turn a run's measurements into its record: the only place where verdicts get into a file.

    Args:
        measurements: what `Run.measurements` handed over.
        used: `inputs` as they were before the run.
        seconds: wall-clock time of the notebook.
        notebook: the executed notebook that is stored beside the record.
    """
    from layerbook import claims  # brings scipy: seconds that a check of hashes alone need not wait for

    slug, tier = measurements["paper"], measurements["tier"]
    card = deps.card(slug)
    result = claims.decide(card, measurements["measured"], measurements["gates"], tier, measurements["dry"])
    for row in result["claims"]:
        if measurements["units"].get(row["id"]):
            row["units"] = measurements["units"][row["id"]]
    keep = {k: measurements[k] for k in ("device", "peak_memory_mb", "peak_gpu_memory_mb") if k in measurements}
    return _finite({
        "schema": SCHEMA, "paper": slug, "tier": tier, "seconds": round(seconds, 1), **keep, "versions": versions(),
        "parameters": measurements["parameters"], "inputs": used,
        "notebook": {"path": f"results/{tier}/{slug}.ipynb", "sha256": hashlib.sha256(notebook).hexdigest()},
        "gates": result["gates"], "claims": result["claims"], "findings": measurements["findings"],
        "profiles": measurements["profiles"],
    })


def _finite(value: Any) -> Any:
    """JSON has no NaN: non-finite numbers become null (the verdict already says so)."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
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


def read(slug: str, tier: str) -> dict[str, Any]:
    """A stored record. Raises ValueError when it is not readable, FileNotFoundError when there is none."""
    file = file_of(slug, tier)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} is not valid JSON ({error}); rerun the paper: make rerun PAPER={slug} TIER={tier}") from None
    if record.get("schema") != SCHEMA or record.get("paper") != slug:
        raise ValueError(f"{file.name} is no record of {slug} with schema {SCHEMA}")
    return record


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


def problems(slug: str, tier: str) -> list[str]:
    """Why the stored evidence of a paper is not fresh; an empty list when it is."""
    found = changes(slug, tier)
    if not file_of(slug, tier).is_file() or not file_of(slug, tier, ".ipynb").is_file():
        return found
    try:
        return found + _redecide(slug, read(slug, tier)) + _source_differs(slug, file_of(slug, tier, ".ipynb"))
    except (ValueError, cards.CardError):
        return found


def changes(slug: str, tier: str) -> list[str]:
    """That part of `problems` which files and their hashes show, without deciding anything again."""
    file, notebook = file_of(slug, tier), file_of(slug, tier, ".ipynb")
    missing = [f.name for f in (file, notebook) if not f.is_file()]
    if missing:
        return [f"results/{tier}/{name} is missing" for name in missing]
    try:
        record = read(slug, tier)
        now = inputs(slug)
    except (ValueError, FileNotFoundError, cards.CardError) as error:
        return [str(error)]
    then = record["inputs"]
    out = [f"{name} changed since the run" for name in sorted(set(then) & set(now)) if then[name] != now[name]]
    out += [f"{name} was not an input of the run" for name in sorted(set(now) - set(then))]
    out += [f"{name} is no longer an input" for name in sorted(set(then) - set(now))]
    if sha256(notebook) != record["notebook"]["sha256"]:
        out.append(f"results/{tier}/{slug}.ipynb is not the notebook that this record was made with")
    return out


def _redecide(slug: str, record: dict[str, Any]) -> list[str]:
    """Recompute every verdict from the stored values: an edited verdict cannot stay unseen."""
    from layerbook import claims

    card = deps.card(slug)
    tests = {c["id"]: claims.control_tests(c, {d["id"]: d for d in card["claims"]}) for c in card["claims"]}
    measured: dict[str, dict[str, list[float]]] = {}
    nan = lambda values: [math.nan if v is None else v for v in values]  # noqa: E731
    for row in record["claims"]:
        if row["id"] not in tests:
            return [f"{row['id']} is in the record but not in the card"]
        arrays = {}
        for test, values in zip(tests[row["id"]], [row["values"], *(a["values"] for a in row["also"])], strict=False):
            if values:
                arrays.setdefault(test.get("of", ""), nan(values))
        if arrays:
            measured[row["id"]] = arrays
    gates = {g["id"]: nan(g["values"]) for g in record["gates"]}
    again = claims.decide(card, measured, gates, record["tier"])["claims"]
    stored = {r["id"]: r for r in record["claims"]}
    out = [f"{r['id']} is in the card but not in the record" for r in again if r["id"] not in stored]
    for r in again:
        if r["id"] in stored and (r["verdict"] != stored[r["id"]]["verdict"] or not _close(r, stored[r["id"]])):
            out.append(f"{r['id']}: its stored verdict ({stored[r['id']]['verdict']}) does not follow from its stored values "
                       f"({r['verdict']})")
    return out


def _close(a: dict[str, Any], b: dict[str, Any]) -> bool:
    flat = lambda r: [r["estimate"], *(r["interval"] or [])]  # noqa: E731
    x, y = flat(a), flat(b)
    return len(x) == len(y) and all((u is None) == (v is None) and (u is None or math.isclose(u, v, rel_tol=1e-6, abs_tol=1e-12))
                                    for u, v in zip(x, y, strict=True))


def _source_differs(slug: str, executed: Path) -> list[str]:
    source = [c.source for c in method.read(paths.NOTEBOOKS / f"{slug}.ipynb").cells]
    ran = [c.source for c in method.read(executed).cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return [] if source == ran else [f"{executed.name}: its cells are not those of notebooks/{slug}.ipynb"]
