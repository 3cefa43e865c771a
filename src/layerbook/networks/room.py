"""What is stored of the networks that were trained here, and how a paper reads it.

A network lies in `results/models/<name>`: `card.json`, which says how it was made and how it does,
and one folder for each part with its `model.safetensors`. How they are made is told by
`layerbook.networks.making` and `layerbook.networks.recipes`; no paper imports either, so that a
change of the making alone lets every measurement stand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
Module = TypeVar("Module", bound=nn.Module)


class NetworkError(ValueError):
    """A stored network that cannot be read; the message says how to get it back."""


def _remedy(folder: Path) -> str:
    return (
        f"get it back with 'git checkout -- results/models/{folder.name}', or train it: "
        f"layerbook train {folder.name}"
    )


def card(folder: Path | str) -> dict[str, Any]:
    """The card of a stored network.

    Raises:
        FileNotFoundError: there is none.
        NetworkError: it is damaged.
    """
    folder = Path(folder)
    try:
        return json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no network, its card.json is missing: {_remedy(folder)}"
        ) from None
    except ValueError as error:
        raise NetworkError(f"{folder}/card.json is damaged ({error}): {_remedy(folder)}") from None


def state(folder: Path | str, place: str = "", prefix: str = "") -> dict[str, Tensor]:
    """Weights of a stored part by name, in single precision.

    Args:
        folder: of the network.
        place: folder of the part below it.
        prefix: what the names of this part start with, where several share a file; it is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: the file holds nothing with this prefix.
        NetworkError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / place / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {_remedy(Path(folder))}")
    try:
        with safe_open(file, "pt") as stored:
            names = [name for name in stored.keys() if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): stored.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise NetworkError(f"{file} is damaged ({error}): {_remedy(Path(folder))}") from None
    if not tensors:
        raise KeyError(f"{Path(folder).name} holds no part {prefix.rstrip('.')!r} in {place!r}")
    return {n: x.float() if x.is_floating_point() else x for n, x in tensors.items()}


def tied(model: nn.Module) -> list[str]:
    """Names of parameters that are stored under an earlier name, because they are one with it."""
    names, seen = [], set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            names.append(name)
        seen.add(id(parameter))
    return names


def fill(model: Module, folder: Path | str, place: str = "", prefix: str = "") -> Module:
    """The model with the stored weights of a part, frozen and in evaluation mode.

    Raises:
        FileNotFoundError, KeyError, NetworkError: as `state`; NetworkError also where the weights
            are those of another architecture.
    """
    tensors = state(folder, place, prefix)
    try:
        keys = model.load_state_dict(tensors, strict=False)
        wrong = [f"lacks {k}" for k in keys.missing_keys if k not in tied(model)]
        wrong += [f"has {k} besides" for k in keys.unexpected_keys]
    except RuntimeError as error:  # a shape that does not fit
        wrong = [str(error).splitlines()[-1].strip()]
    if wrong:
        raise NetworkError(
            f"{folder}/{place} holds another architecture ({wrong[0]}): {_remedy(Path(folder))}"
        )
    return model.eval().requires_grad_(False)


def transformers_model(kind: str, folder: Path | str, place: str = "", **options: Any) -> Any:
    """A stored model of the transformers library in single precision, frozen.

    Args:
        kind: name of its class there.
        options: handed on, such as `attn_implementation`.

    Raises:
        FileNotFoundError: there is no such folder.
        NetworkError: its files are damaged.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = Path(folder) / place
    if not where.is_dir():
        raise FileNotFoundError(f"{where} is missing: {_remedy(Path(folder))}")
    try:
        model = getattr(transformers, kind).from_pretrained(
            where, dtype=torch.float32, local_files_only=True, use_safetensors=True, **options
        )
    except Exception as error:  # the library raises whatever its readers do
        reason = str(error).strip().splitlines()[0][:200]
        raise NetworkError(f"{where} cannot be read ({reason}): {_remedy(Path(folder))}") from None
    return model.eval().requires_grad_(False)
