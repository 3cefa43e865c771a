"""What a notebook talks to: parameters in, raw measurements out.

`start` checks the parameters before any compute; the returned `Run` takes measurements under the
ids of the card and hands them to the engine. A notebook cannot write a verdict.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import layerbook
from layerbook import paths
from layerbook.claims import cards, engine, varying
from layerbook.data import loaders
from layerbook.models import capabilities
from layerbook.notebook import namespaces, tables

T = TypeVar("T")
# stored notebooks hold no progress bars
warnings.filterwarnings("ignore", message="IProgress not found")
TIER_VARIABLE = "LAYERBOOK_TIER"
THREADS = torch.get_num_threads()  # as this kernel began, whatever a notebook sets later


class ParameterError(ValueError):
    """An unknown parameter, a value out of range, or a combination that cannot run."""


class MeasurementError(ValueError):
    """Measurements that do not fit the card."""


def start(slug: str, namespace: Mapping[str, Any]) -> Run:
    """Begin a run: validate the card and every parameter, seed, set threads.

    Args:
        slug: the paper.
        namespace: the notebook's `globals()`; plain values in it are its parameters.

    Raises:
        ParameterError, cards.CardError
    """
    card = cards.load(slug)
    specs = cards.COMMON_PARAMETERS | card.get("parameters", {})
    run = Run(card, check_parameters(slug, specs, namespaces.parameters(namespace, specs)))
    check_models(run, specs)
    run.reseed(run.seed)
    return run


def check_models(run: Run, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse models that the method cannot take, and parameters that this tier does not use.

    Raises ParameterError that names parameter, value, what is lacking and what would do.
    """
    for name, spec in specs.items():
        value, absent = run.params[name], spec.get("absent")
        where = f"{run.slug}: {name} = {value!r}"
        if value == absent and absent is not None:
            continue
        if run.tier not in spec.get("tiers", (run.tier,)):
            raise ParameterError(
                f"{where} is used at the {' and '.join(spec['tiers'])} tier alone, and "
                f"this is {run.tier}; leave it at {absent!r}, or set the tier"
            )
        if "kind" not in spec:
            continue
        takes = spec.get("takes", "smollm2, a Hugging Face model folder or identifier")
        for model in [m.strip() for m in value.split(",")] if spec.get("several") else [value]:
            try:
                capabilities.check(model, spec["kind"], spec.get("needs", ()), takes, run.params)
            except (capabilities.Unfit, loaders.InputError) as error:
                raise ParameterError(f"{where}: {error}") from None


def check_parameters(
    slug: str, specs: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters, checked. Raises ParameterError that names the choices."""
    unknown = sorted(set(given) - set(specs))
    if unknown:
        listing = "; ".join(f"{n}: {s['help']}" for n, s in specs.items())
        raise ParameterError(
            f"{slug} has no parameter {', '.join(map(repr, unknown))}. It takes {listing}"
        )
    missing = sorted(set(specs) - set(given))
    if missing:
        raise ParameterError(f"{slug}: the parameters cell lacks {', '.join(missing)}")
    for name, spec in specs.items():
        value = given[name]
        where = f"{slug}: {name} = {value!r}"
        if "choices" in spec and value not in spec["choices"]:
            raise ParameterError(f"{where}; choices: {', '.join(map(str, spec['choices']))}")
        if "min" in spec or "max" in spec:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ParameterError(f"{where} is not a number")
            if not spec.get("min", -np.inf) <= value <= spec.get("max", np.inf):
                raise ParameterError(
                    f"{where}; it must lie in [{spec.get('min', '-inf')}, {spec.get('max', 'inf')}]"
                )
        if "kind" in spec and (not isinstance(value, str) or not (value or "absent" in spec)):
            raise ParameterError(
                f"{where}; give smollm2, a Hugging Face causal LM id or a local folder"
            )
    return dict(given)


class Run:
    """One run of one paper's notebook at one tier."""

    def __init__(self, card: dict[str, Any], params: dict[str, Any]) -> None:
        self.card, self.params, self.slug = card, params, card["slug"]
        wanted = os.environ.get(TIER_VARIABLE) or params["tier"]
        if wanted not in cards.COMMON_PARAMETERS["tier"]["choices"]:
            choices = ", ".join(cards.COMMON_PARAMETERS["tier"]["choices"])
            raise ParameterError(f"{TIER_VARIABLE}={wanted!r}; choices: {choices}")
        cuda = torch.cuda.is_available()
        device = params["device"]
        if device == "cuda" and not cuda:
            raise ParameterError(
                "device = 'cuda', but torch sees no CUDA device; use device = 'auto' or 'cpu'"
            )
        if wanted == "gpu" and (not cuda or device == "cpu"):
            raise ParameterError(
                "tier = 'gpu' needs a CUDA device; use tier = 'cpu', or 'gpu-dry' to rehearse its path "
                "at tiny size"
            )
        if wanted == "auto":
            wanted = "gpu" if cuda and device != "cpu" else "cpu"
        self.dry = wanted == "gpu-dry"
        self.tier = "gpu" if self.dry else wanted
        # The cpu and smoke tiers stay on the CPU even beside a GPU, so that their evidence means
        # the same everywhere.
        use_cuda = cuda and (device == "cuda" or (device == "auto" and self.tier == "gpu"))
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.seed: int = params["seed"]
        self._measured: dict[str, dict[str, list[float]]] = {}
        self._units: dict[str, list[str]] = {}
        self._gates: dict[str, list[float]] = {}
        self._findings: list[dict[str, Any]] = []
        self._profiles: list[dict[str, Any]] = []
        self.reseed(self.seed)
        # What an earlier run in this kernel switched: its notebook may have turned gradients off.
        torch.set_grad_enabled(True)
        if torch.get_num_threads() != THREADS:
            torch.set_num_threads(THREADS)
        threads = os.environ.get("LAYERBOOK_THREADS")
        if threads:
            torch.set_num_threads(int(threads))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    @staticmethod
    def reseed(seed: int) -> None:
        """Seed Python's, numpy's and torch's global generators."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
        torch.manual_seed(seed)

    def pick(self, *, smoke: T, cpu: T, gpu: T) -> T:
        """The value for this tier; a rehearsal of the gpu tier takes the smoke value."""
        return smoke if self.dry or self.tier == "smoke" else cpu if self.tier == "cpu" else gpu

    def input(self, name: str) -> Path:
        """Folder of a prepared asset or a trained model that the card lists under `substrate`.

        Raises:
            MeasurementError: the card does not list it (its record would not be tied to it).
            FileNotFoundError: it has not been prepared; the message says how.
        """
        if name not in self.card["substrate"]:
            raise MeasurementError(
                f"{name!r} is not in the card's substrate: {', '.join(self.card['substrate'])}"
            )
        for folder in (paths.PREPARED / name, paths.MODELS / name):
            if folder.is_dir():
                return folder
        raise FileNotFoundError(
            f"{name} is not prepared: run 'make data' (fetches what is missing, then prepares it)"
        )

    def _numbers(self, name: str, values: Any) -> list[float]:
        flat = np.asarray(
            values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64
        )
        if flat.ndim == 0:
            flat = flat[None]
        if flat.ndim != 1:
            raise MeasurementError(f"{name}: one number per unit, a list; got shape {flat.shape}")
        return [float(v) for v in flat]

    def record(
        self,
        claim: str,
        values: Sequence[float] | None = None,
        /,
        *,
        units: Sequence[str] | None = None,
        **arrays: Sequence[float],
    ) -> None:
        """Hand over the raw per-unit measurements of a claim.

        Args:
            claim: its id in the card.
            values: the measurements, when its tests read a single unnamed array, shape (n,).
            units: names of the units, for the reader.
            arrays: the measurements by the names that its tests read.

        Raises:
            MeasurementError: unknown id, recorded twice, or other arrays than registered.
        """
        registered = cards.registered_arrays(self.card)
        if claim not in registered:
            raise MeasurementError(
                f"{self.slug} registers no claim {claim!r}; it has {', '.join(registered)}"
            )
        if claim in self._measured:
            raise MeasurementError(f"{claim} was recorded already; a run measures each claim once")
        given = dict(arrays) if values is None else {"": values, **arrays}
        if set(given) != registered[claim]:
            say = lambda names: ", ".join(sorted(n or "(one unnamed array)" for n in names))  # noqa: E731
            raise MeasurementError(f"{claim} registers {say(registered[claim])}, got {say(given)}")
        self._measured[claim] = {k: self._numbers(f"{claim} {k}", v) for k, v in given.items()}
        if units is not None:
            self._units[claim] = [str(u) for u in units]

    def gate(self, gate: str, values: Sequence[float] | float) -> None:
        """Hand over what a gate is judged by. Raises MeasurementError on an unknown id."""
        ids = [g["id"] for g in self.card.get("gates", [])]
        if gate not in ids:
            raise MeasurementError(
                f"{self.slug} registers no gate {gate!r}; it has {', '.join(ids) or 'none'}"
            )
        self._gates[gate] = self._numbers(gate, values)

    def finding(
        self, name: str, statement: str, values: Sequence[float], varies: str | None = None
    ) -> None:
        """Report a measured quantity that carries no verdict.

        Args:
            varies: "time" for one that measures seconds, "threads" for one that changes with the
                number of threads; two runs on one machine are not expected to agree on it.

        Raises:
            MeasurementError: another word.
        """
        if varies is not None and varies not in varying.MEANING:
            raise MeasurementError(
                f"finding {name!r}: varies = {varies!r}; choices: {', '.join(varying.MEANING)}"
            )
        row = engine.finding(name, statement, self._numbers(name, values))
        self._findings.append(row | ({"varies": varies} if varies else {}))

    def profile(self, name: str, statement: str, values: Sequence[float]) -> None:
        """Report one number for each layer of the model, without verdict: the family's page sets
        them side by side.
        """
        self._profiles.append(
            {"name": name, "statement": statement, "values": self._numbers(name, values)}
        )

    def fact(self, text: str, holds: Any) -> None:
        """Print a fact that must hold at every tier; its cell is compared on every re-execution."""
        print(f"{'holds' if bool(holds) else 'FAILS'}: {text}")

    def claims(self) -> None:
        """Show the registered claims, before anything is measured."""
        from IPython.display import HTML, display

        display(HTML(tables.registered(self.card)))

    def decide(self) -> dict[str, list[dict[str, Any]]]:
        """The engine's verdicts on what has been recorded so far."""
        return engine.decide(self.card, self._measured, self._gates, self.tier, self.dry)

    def finish(self) -> None:
        """Show the verdicts, and hand the measurements to the pipeline if it asked for them."""
        from IPython.display import HTML, display

        result = self.decide()
        display(HTML(tables.verdicts(self.card, result, self._findings)))
        target = os.environ.get(paths.MEASUREMENTS_VARIABLE)
        if target:
            Path(target).write_text(
                json.dumps(self.measurements(), indent=1, allow_nan=True), encoding="utf-8"
            )

    def measurements(self) -> dict[str, Any]:
        """Everything the record needs from inside the run, JSON-ready."""
        # ru_maxrss: kB on Linux, bytes on macOS
        scale = 1024 if sys.platform != "darwin" else 1024**2
        memory = {
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale)
        }
        name = f"cpu, {torch.get_num_threads()} threads"
        if self.device.type == "cuda":
            memory["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
            name = torch.cuda.get_device_name()
        return {
            "paper": self.slug,
            "tier": self.tier,
            "dry": self.dry,
            "device": name,
            **memory,
            "code": str(layerbook.code_that_runs()),
            "parameters": self.params,
            "measured": self._measured,
            "units": self._units,
            "gates": self._gates,
            "findings": self._findings,
            "profiles": self._profiles,
        }
