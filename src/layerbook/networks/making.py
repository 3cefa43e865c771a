"""How the small networks of this project are made: trained, rounded to what is stored, examined as
stored, and written at once or not at all.

Each is a `Network` in a module of `layerbook.networks.recipes`, which tells how one member is grown
and examined and when all of them pass their gate. Members train side by side in processes of their
own; one that is finished is kept, so that an interrupted training goes on where it was.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import multiprocessing
import pkgutil
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from layerbook import keeping, paths
from layerbook.networks import recipes, storing


class MakingError(RuntimeError):
    """A training that left nothing behind; the message says what to do."""


@dataclass
class Grown:
    """One member as its training leaves it.

    Attributes:
        models: its networks by role, "" for the only one.
        notes: what its card says of the training, JSON-ready.
        tokenizer: of the tokenizers library, or one of transformers, stored beside each of them.
        data: what `examine` wants to know besides, not stored.
    """

    models: dict[str, nn.Module]
    notes: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    data: Any = None


def _beside(seed: int, role: str) -> tuple[str, str]:
    return "-".join(part for part in (f"seed{seed}", role) if part), ""


def by_role(seed: int, role: str) -> tuple[str, str]:
    """Place of a network whose training has one member: a folder for each role."""
    return role, ""


@dataclass(frozen=True)
class Network:
    """A network that papers share, and how it is made.

    Attributes:
        name: of its folder in results/models and of its stage in the pipeline.
        about: prose of its card: description, architecture, data, seconds.
        recipe: a frozen dataclass with at least `seed` and `steps`.
        grow: trains the member of a seed: (recipe, seed, device) -> `Grown`.
        examine: how a member does, its networks holding what is stored: (recipe, seed, grown) ->
            a JSON-ready mapping.
        gate: what all members' examinations, by seed, must meet: a mapping with "passed".
        members: name of the recipe's field with the number of members, whose seeds follow that of
            the recipe; "" for one member.
        place: where a network is stored: (seed, role) -> its folder, and what its names start with
            where several share a file.
        more: further entries of the card: (recipe) -> mapping.
        dtype: in which the weights are stored.
        threads: of a member's training; sums are ordered by thread, so that it fixes the weights.
    """

    name: str
    about: Mapping[str, str]
    recipe: Any
    grow: Callable[[Any, int, torch.device], Grown]
    examine: Callable[[Any, int, Grown], dict[str, Any]]
    gate: Callable[[Any, Mapping[int, dict[str, Any]]], dict[str, Any]]
    members: str = ""
    place: Callable[[int, str], tuple[str, str]] = _beside
    more: Callable[[Any], dict[str, Any]] = lambda recipe: {}
    dtype: torch.dtype = torch.float32
    threads: int = 1

    def seeds(self, recipe: Any) -> list[int]:
        """Seeds of the members of a recipe."""
        count = getattr(recipe, self.members) if self.members else 1
        return [recipe.seed + k for k in range(count)]


def modules() -> dict[str, str]:
    """Name of each network -> the module that makes it."""
    names = [m.name for m in pkgutil.iter_modules(recipes.__path__, f"{recipes.__name__}.")]
    return {importlib.import_module(name).NETWORK.name: name for name in sorted(names)}


def find(name: str) -> Network:
    """The network of a name. Raises MakingError, naming the choices, when there is none."""
    known = modules()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise MakingError(f"no network {name!r}{guess} (there are: {', '.join(known)})")
    return importlib.import_module(known[name]).NETWORK


# ---- one member


def _member(module: str, recipe: Any, seed: int, home: str, device: str = "cpu") -> None:
    """Train, round, examine and store one member in a folder of its own; its report comes last."""
    network: Network = importlib.import_module(module).NETWORK
    before = torch.get_num_threads()
    torch.set_num_threads(network.threads)
    try:
        grown = network.grow(recipe, seed, torch.device(device))
        for model in grown.models.values():
            storing.round_to(model.cpu(), network.dtype)
        held_out = network.examine(recipe, seed, grown)
    finally:
        torch.set_num_threads(before)
    for role, model in grown.models.items():
        storing.write(
            model, Path(home) / "networks" / (role or "only"), network.dtype, grown.tokenizer
        )
    report = {
        "held_out": held_out,
        "training": grown.notes,
        "roles": list(grown.models),
        "parameters": sum(p.numel() for p in next(iter(grown.models.values())).parameters()),
    }
    (Path(home) / "report.json").write_text(json.dumps(report), encoding="utf-8")


# ---- all members


def _scratch(network: Network, recipe: Any) -> Path:
    """Where finished members wait for the others: a folder that another recipe, or another state of
    the code, does not share.
    """
    said = hashlib.sha256(repr((network.name, recipe)).encode())
    for folder in ("networks", "data", "layers"):
        for file in sorted((Path(recipes.__path__[0]).parents[1] / folder).rglob("*.py")):
            said.update(file.read_bytes())
    return paths.ROOT / "build" / "making" / f"{network.name}-{said.hexdigest()[:16]}"


def _finished(home: Path) -> bool:
    try:
        return bool(json.loads((home / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _train(network: Network, jobs: list[tuple], processes: int) -> None:
    """Train members, several at once. No process is left when this ends, however it ends.

    Raises:
        MakingError: a loss was not finite, or a process was killed.
    """
    show = {"desc": network.name, "total": len(jobs), "disable": None if len(jobs) > 1 else True}
    before = {child.pid for child in multiprocessing.active_children()}
    try:
        if processes == 1 or len(jobs) == 1:
            for job in tqdm(jobs, **show):
                _member(*job)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn) as pool:
            waiting = [pool.submit(_member, *job) for job in jobs]
            try:
                for done in tqdm(as_completed(waiting), **show):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _end(before)
                raise
    except FloatingPointError as error:
        raise MakingError(
            f"{network.name}: {error} in its recipe (layerbook.networks.recipes); finished members "
            "are kept"
        ) from None
    except BrokenProcessPool:
        raise MakingError(
            f"{network.name}: a process of its training was killed, most often for want of memory: "
            "close other programs or type --processes 1; finished members are kept"
        ) from None


def _end(before: Iterable[int]) -> None:
    """End the processes that were started since."""
    for child in multiprocessing.active_children():
        if child.pid not in set(before):
            child.terminate()


def _assemble(network: Network, recipe: Any, homes: Mapping[int, Path], target: Path) -> dict:
    """Put the members' files where they belong, and the card last. Returns the card."""
    reports = {
        seed: json.loads((home / "report.json").read_text(encoding="utf-8"))
        for seed, home in homes.items()
    }
    storing.assemble(
        (
            (home / "networks" / (role or "only"), *network.place(seed, role))
            for seed, home in homes.items()
            for role in reports[seed]["roles"]
        ),
        target,
    )
    first = next(iter(reports.values()))
    several = bool(network.members)
    pick = lambda key: {str(s): r[key] for s, r in reports.items()} if several else first[key]  # noqa: E731
    card = {
        "name": network.name,
        **network.about,
        "made_by": f"layerbook train {network.name}",
        "recipe": vars(recipe),
        **network.more(recipe),
        "parameters": first["parameters"],
        "training": pick("training"),
        "held_out": pick("held_out"),
        "gate": network.gate(recipe, {s: r["held_out"] for s, r in reports.items()}),
    }
    (target / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def make(
    network: Network,
    folder: Path,
    recipe: Any = None,
    processes: int = 2,
    again: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train a network and write it into a folder, whose former content is replaced at once.

    Args:
        recipe: in place of the network's own.
        processes: members trained side by side; the weights do not depend on it.
        again: train members anew that an interrupted training had finished.
        device: where to train.

    Returns:
        Its card; whether the gate is met stands in card["gate"]["passed"].

    Raises:
        MakingError: the training failed.
        OSError: the disk is full, or the folder cannot be written.
    """
    recipe = network.recipe if recipe is None else recipe
    scratch = _scratch(network, recipe)
    try:
        with keeping.lock(f"{scratch.name}.lock"):
            if again:
                shutil.rmtree(scratch, ignore_errors=True)
            return _make(network, folder, recipe, scratch, processes, str(device))
    except keeping.Held as held:
        raise MakingError(
            f"{network.name} is being trained already (process {held}): wait for it, or stop it"
        ) from None


def _make(
    network: Network, folder: Path, recipe: Any, scratch: Path, processes: int, device: str
) -> dict[str, Any]:
    homes = {seed: scratch / str(seed) for seed in network.seeds(recipe)}
    left = [seed for seed, home in homes.items() if not _finished(home)]
    for seed in left:
        shutil.rmtree(homes[seed], ignore_errors=True)
        homes[seed].mkdir(parents=True)
    module = network.grow.__module__
    jobs = [(module, recipe, seed, str(homes[seed]), device) for seed in left]
    _train(network, jobs, processes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    card = _assemble(network, recipe, homes, new)
    storing.exchange(new, folder)
    shutil.rmtree(scratch, ignore_errors=True)
    return card


def command(
    name: str,
    folder: Path | None = None,
    seed: int | None = None,
    steps: int | None = None,
    processes: int = 2,
    again: bool = False,
) -> int:
    """The command line's `layerbook train`: exit status 1 when the gate is not met.

    The folder that papers are measured on is only written by the network's own recipe, and only
    where its gate is met; what misses it is kept in build/failed.

    Raises:
        MakingError: there is no such network, the training failed, or another recipe than its own
            would have taken the place of the network that papers are measured on.
    """
    network = find(name)
    given = {k: v for k, v in (("seed", seed), ("steps", steps)) if v is not None}
    own = paths.MODELS / name
    target = own if folder is None else folder
    if given and target.resolve() == own.resolve():
        options = " ".join(f"--{k} {v}" for k, v in given.items())
        raise MakingError(
            f"results/models/{name} is what papers are measured on, so only its own recipe may write "
            f"it: name another folder, layerbook train {name} {options} --into FOLDER"
        )
    aside = paths.ROOT / "build" / "failed" / name if target is own else target
    began = time.perf_counter()
    card = make(network, aside, replace(network.recipe, **given), processes, again)
    passed = card["gate"]["passed"]
    seconds = time.perf_counter() - began
    print(f"{name}: trained in {seconds:.0f} s; gate {card['gate']}", file=sys.stderr)
    if not passed:
        kept = "" if aside == target else f"; it lies in build/failed/{name}, the old one stands"
        print(
            f"{name}: the quality gate is not met; nothing may be concluded from it{kept}",
            file=sys.stderr,
        )
    elif aside != target:
        storing.exchange(aside, target)
    return 0 if passed else 1
