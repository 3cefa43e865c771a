"""Writing networks: rounded to what is stored, tied weights once, a folder at once or not at all."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerbook.networks import room


def round_to(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight the value that `dtype` stores of it; the model computes as it did."""
    with torch.no_grad():
        for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype).to(tensor.dtype))


def nested(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state is these tensors: dots in their names become modules within modules."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        home = root
        for part in path:
            if not hasattr(home, part):
                home.add_module(part, nn.Module())
            home = getattr(home, part)
        home.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root


def write(model: nn.Module, home: Path, dtype: torch.dtype, tokenizer: Any) -> None:
    """Store one model: a transformers model with its configuration, tied weights once."""
    from safetensors.torch import save_file
    from transformers import PreTrainedModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    home.mkdir(parents=True, exist_ok=True)
    stored = copy.deepcopy(model).to(dtype)
    if isinstance(stored, PreTrainedModel):
        stored.save_pretrained(home)
        (home / "generation_config.json").unlink(missing_ok=True)
    else:
        tensors = {k: v.contiguous() for k, v in stored.state_dict().items()}
        for tied in room.tied(stored):
            del tensors[tied]
        save_file(tensors, home / room.WEIGHTS)
    if tokenizer is not None:
        _wrapped(tokenizer).save_pretrained(home)
    (home / room.WEIGHTS).chmod(0o644)


def _wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def assemble(parts: Iterable[tuple[Path, str, str]], target: Path) -> None:
    """Put written networks where they belong.

    Args:
        parts: (folder of a network as `write` left it, its place below `target`, what its names
            start with where several share a file, else "").
    """
    from safetensors.torch import load_file, save_file

    shared: dict[str, dict[str, torch.Tensor]] = {}
    for source, place, prefix in parts:
        if prefix:
            own = load_file(source / room.WEIGHTS)
            shared.setdefault(place, {}).update({f"{prefix}{k}": v for k, v in own.items()})
        else:
            shutil.copytree(source, target / place, dirs_exist_ok=True)
    for place, tensors in shared.items():
        (target / place).mkdir(parents=True, exist_ok=True)
        save_file(tensors, target / place / room.WEIGHTS)
        (target / place / room.WEIGHTS).chmod(0o644)


def exchange(new: Path, target: Path) -> None:
    """Put a folder in place of another, which is there until the new one is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    shutil.move(new, target)
    shutil.rmtree(old, ignore_errors=True)
