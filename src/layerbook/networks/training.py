"""What the training of every small network shares: optimiser and schedule, saving, and the command
line.

A network that papers share is trained once, by a DVC stage of its own, which runs its module:

    python -m layerbook.networks.<module> OUTDIR

It leaves safetensors files and a `card.json` that says how they were made and whether the quality
gate was met.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up, cosine decay to zero and clipped gradients."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.1
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # greatest norm of the gradient


def fit(model: nn.Module, loss_of: Callable[[int], Tensor], schedule: Schedule) -> list[float]:
    """Minimise the scalar `loss_of(step)` over the parameters of `model` that require a gradient.

    Returns the loss of every step; the model is left frozen and in evaluation mode.
    FloatingPointError when a loss is not finite, with the step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
    )
    warmup = max(1, round(schedule.steps * schedule.warmup))
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min(
            (i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, i / schedule.steps)))
        ),
    )
    curve = []
    for step in range(schedule.steps):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss.item()}: lower the learning rate"
            )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimiser.step()
        decay.step()
        curve.append(loss.item())
    model.eval().requires_grad_(False)
    return curve


def save(
    models: Mapping[str, nn.Module],
    card: Mapping[str, Any],
    folder: Path,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write every model into a folder of its own below `folder`, and the card last: a folder
    without one is unfinished.

    A Hugging Face model is saved with its configuration, and with `tokenizer` (of the tokenizers
    library, or one of transformers) if there is one; any other module as `model.safetensors`. With
    the name "" it goes into `folder` itself. `dtype` changes what is stored, not the model given.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    (folder / "card.json").unlink(missing_ok=True)
    for name, model in models.items():
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        state = {
            k: v.detach().to(dtype if dtype and v.is_floating_point() else v.dtype)
            for k, v in model.state_dict().items()
        }
        if isinstance(model, PreTrainedModel):
            model.save_pretrained(home, state_dict=state)
            (home / "generation_config.json").unlink(missing_ok=True)
        else:
            save_file({k: v.contiguous() for k, v in state.items()}, home / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(home)
        (home / "model.safetensors").chmod(0o644)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def main(
    name: str,
    recipe: Any,
    make: Callable[[Any, Path], dict[str, Any]],
    argv: list[str] | None = None,
) -> int:
    """Command line of a network's module: train by `make(recipe, folder)`, which saves and returns
    the card.

    recipe: a frozen dataclass with at least the fields `seed` and `steps`, which --seed and --steps
    replace.
    The card must hold {"gate": {"passed": bool, ...}}. Exit status 1 when the gate is not met.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m layerbook.{Path(sys.argv[0]).stem}", description=f"Train {name}."
    )
    parser.add_argument(
        "outdir", type=Path, help=f"folder to write (results/models/{name} in this checkout)"
    )
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--steps", type=int, default=recipe.steps)
    options = parser.parse_args(argv)
    # sums are ordered by thread: a fixed number keeps the weights reproducible
    torch.set_num_threads(2)
    began = time.perf_counter()
    card = make(replace(recipe, seed=options.seed, steps=options.steps), options.outdir)
    print(
        f"{name}: trained in {time.perf_counter() - began:.0f} s; gate {card['gate']}",
        file=sys.stderr,
    )
    if not card["gate"]["passed"]:
        print(
            f"{name}: the quality gate is not met; nothing may be concluded from it",
            file=sys.stderr,
        )
    return 0 if card["gate"]["passed"] else 1
