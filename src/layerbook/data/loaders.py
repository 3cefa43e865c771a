"""Loaders: a prepared asset or a model's name in, arrays or a network out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from layerbook import paths


class InputError(RuntimeError):
    """An input is missing, damaged or of the wrong kind; the message says which and what to do."""


def _prepared(name: str, path: str | Path | None, file: str) -> Path:
    found = Path(path if path is not None else paths.PREPARED / name) / file
    if not found.is_file():
        raise InputError(
            f"{name}: {found} is missing. Make it with: "
            f"layerbook assets fetch {name} && layerbook prepare {name}"
        )
    return found


def _arrays(name: str, path: str | Path | None, file: str) -> dict[str, np.ndarray]:
    found = _prepared(name, path, file)
    try:
        return load_file(found)
    except SafetensorError as error:
        raise InputError(f"{name}: {found} is damaged ({error}). Make it anew: layerbook prepare {name}") from error


def fashion_mnist(path: str | Path | None = None) -> dict[str, np.ndarray]:
    """Fashion-MNIST: train_x [60000, 28, 28], train_y [60000], test_x [10000, 28, 28], test_y; all
    uint8.
    """
    return _arrays("fashion-mnist", path, "images.safetensors")


def mnist(path: str | Path | None = None) -> dict[str, np.ndarray]:
    """10,000 MNIST digits in class order: x uint8 [10000, 28, 28], y uint8 [10000]."""
    return _arrays("mnist", path, "digits.safetensors")


def photos(path: str | Path | None = None) -> dict[str, np.ndarray]:
    """Scikit-learn's two photographs: {"china", "flower"}, each uint8 [427, 640, 3] (RGB)."""
    return _arrays("sklearn-photos", path, "photos.safetensors")


def bible(path: str | Path | None = None) -> dict[str, list[str]]:
    """World English Bible: book name -> its verses in order, plain text; 66 books in canonical
    order.
    """
    found = _prepared("web-bible", path, "verses.json")
    return json.loads(found.read_text(encoding="utf-8"))


def python_code(package: str, path: str | Path | None = None) -> dict[str, str]:
    """Source of a Python package ("django", "networkx" or "sympy"): path of each module -> its
    text, sorted by path.
    """
    found = _prepared(f"python-{package}", path, "sources.json")
    return json.loads(found.read_text(encoding="utf-8"))


def _hush() -> None:
    """Keep loading bars and advisory warnings out of notebooks; a terminal keeps its download bars."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def find_model(name: str | Path) -> str:
    """Resolve a model's name: a folder, a prepared asset, a network of results/models, else the
    name itself.

    The last is taken for a Hugging Face id. Raises InputError for a known asset that is not
    prepared.
    """
    for folder in (Path(name).expanduser(), paths.PREPARED / name, paths.MODELS / name):
        if (folder / "config.json").is_file():
            return str(folder)
    if str(name) in ("smollm2", "minilm"):
        _prepared(str(name), None, "config.json")
    if Path(name).expanduser().is_dir():
        raise InputError(f"model folder {name} holds no config.json: it is not a Hugging Face model folder")
    return str(name)


def _from_pretrained(loader: Any, name: str | Path, **options: Any) -> Any:
    """Call loader.from_pretrained: folders and cached models without the network, then the hub.

    The hub is asked once whether it has the model before the download starts: without a connection,
    that fails within seconds where from_pretrained would try again for half a minute and more.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    _hush()
    where = find_model(name)
    try:
        try:
            return loader.from_pretrained(where, local_files_only=True, **options)
        except OSError:
            if Path(where).is_dir():
                raise
        HfApi().model_info(where, timeout=10)
        return loader.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, SafetensorError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip()
    except Exception as error:  # no connection: its class depends on the hub client's version
        if "connect" not in type(error).__name__.lower() and "timeout" not in type(error).__name__.lower():
            raise
        reason = "no connection to the Hugging Face hub, and the model is not in its local cache"
    raise InputError(
        f"model {str(name)!r} cannot be used as a causal language model: it is neither 'smollm2', nor a "
        "usable model folder, nor an id that the Hugging Face hub or its local cache could supply. "
        f"Reason given: {reason.splitlines()[0] if reason else 'none'}"
    )


def check_model(name: str | Path) -> Any:
    """Return the model's transformers configuration without loading weights; InputError if there is
    none.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, name)


def _load(kind: str, source: Any, dtype: torch.dtype, device: str | torch.device | None, attention: str) -> tuple[Any, Any]:
    """Model of the class transformers.<kind> and its tokenizer; `source` as in `causal_lm`."""
    import transformers

    if hasattr(source, "params"):
        device = device if device is not None else source.device
        run, source = source, source.params["model"]
        if source in run.card["substrate"]:
            run.input(source)  # so that the record names it
    tokenizer = _from_pretrained(transformers.AutoTokenizer, source)
    # Weights come from safetensors alone, never from a pickle, which could run any program.
    model = _from_pretrained(getattr(transformers, kind), source, dtype=dtype, attn_implementation=attention,
                             use_safetensors=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device or "cpu").eval().requires_grad_(False), tokenizer


def causal_lm(source: Any, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None,
              attn_implementation: str = "eager") -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    source: a run (its `model` parameter and device are used), "smollm2", a model folder or a
    Hugging Face id.
    Attention is eager by default: only that implementation returns attention weights.
    Returns (model, tokenizer); raises InputError for a model that cannot be had.
    """
    return _load("AutoModelForCausalLM", source, dtype, device, attn_implementation)


def encoder(source: Any, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None,
            attn_implementation: str = "eager") -> tuple[Any, Any]:
    """Load a network without its head, such as "minilm", and its tokenizer; otherwise as
    `causal_lm`.
    """
    return _load("AutoModel", source, dtype, device, attn_implementation)
