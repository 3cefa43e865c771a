"""The quantization papers on one footing: their layer scores as orders of one network's layers,
their recipes side by side.

    layerbook compare

is a stage of the pipeline; the family's page shows the result.

Every paper of the family records its score of each layer of one language model (`Run.profile`).
Here those scores meet the same layers, the same bits and the same text: how much harm does a layer
do when it alone is lowered, and how does the loss rise when the layers are lowered in the order
that a score gives? The recipes, with each paper's own kind of quantizer, follow in
`layerbook.families.recipes`. Nothing is decided here: the papers' own pages do that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from layerbook import paths
from layerbook.data import loaders
from layerbook.families import recipes, scores
from layerbook.layers import transformer as tf
from layerbook.quantize import bits as storage
from layerbook.quantize import grids as q
from layerbook.quantize import sweeps
from layerbook.quantize.swaps import Text, Weights, maps

FILE = "quantization.json"


@dataclass(frozen=True)
class Plan:
    """Sizes of the comparison; `group` weights share a scale, `counts` are numbers of lowered
    layers.
    """

    model: str = "smollm2"
    windows: int = 24
    tokens: int = 32
    calibration: int = 48
    context: int = 64
    levels: tuple[int, ...] = (3, 2)
    counts: tuple[int, ...] = (3, 6, 10, 15)
    orders: int = 20
    group: int = 64
    seed: int = 0


def cut(
    tokenizer: Any,
    verses: Mapping[str, Sequence[str]],
    books: Iterable[str],
    n: int,
    tokens: int,
    seed: int,
) -> Tensor:
    """Ids [n, tokens] of windows that begin at verses spread evenly over `books`, from a drawn
    first verse.
    """
    text = [verse.strip() for book in books for verse in verses[book]]
    step = len(text) // n
    first = int(np.random.default_rng(seed).integers(len(text) - n * step + 1))
    rows = [
        tokenizer(" ".join(text[s : s + tokens])).input_ids[:tokens]
        for s in range(first, first + n * step, step)
    ]
    return torch.tensor(rows)


def rounded(net: tf.Stack, bits: int, group: int) -> tuple[list[Weights], storage.Stored]:
    """All maps of every block rounded to the offset grid with 16-bit scales, and what they take."""
    banks, stored = [], storage.Stored()
    for block in maps(net):
        grids = {
            name: q.fit(m.weight, bits, group=group, offset=True, stored=torch.float16)
            for name, m in block.items()
        }
        banks.append({name: q.fake(m.weight, grids[name]) for name, m in block.items()})
        stored = sum(
            (storage.count(grids[name], m.weight.shape) for name, m in block.items()), stored
        )
    return banks, stored


def orders_of(
    found: Sequence[Mapping[str, Any]], harm: np.ndarray, plan: Plan
) -> dict[str, list[int]]:
    """Orders of the layers, the first lowered first: by each paper's score, by measured harm, by
    depth, and by chance.
    """
    n = len(harm)
    named = {f"{s['slug']}: {s['profile']}": sweeps.order(s["importance"]) for s in found}
    named |= {
        "measured harm": sweeps.order(harm),
        "from the front": list(range(n)),
        "from the back": list(range(n))[::-1],
    }
    drawn = sweeps.random_orders(n, plan.orders, [plan.seed, 1], paired=True)
    return named | {f"random {i}": o for i, o in enumerate(drawn)}


def _losses(text: Any, banks: Any) -> Any:
    """What a sweep calls: losses of the first n windows of a text with some layers from the banks."""
    return lambda _level, layers, n: text.losses({i: banks[i] for i in sorted(layers)}, n)


def sweep(
    net: tf.Stack, texts: tuple[Text, Text], found: Sequence[Mapping[str, Any]], plan: Plan
) -> list[dict[str, Any]]:
    """For each level: its bits, the harm of each layer alone on both texts, and every order's curve
    on the first.

    The second text serves the order by measured harm, so that no order has seen the text on which
    it is judged.
    """
    out = []
    high = rounded_bits(net, plan)
    for level in plan.levels:
        banks, stored = rounded(net, level, plan.group)
        judged, other = (sweeps.Sweep(_losses(t, banks), plan.windows) for t in texts)
        harm = {
            name: s.alone(level, net.n).mean(1)
            for name, s in (("judged", judged), ("other", other))
        }
        orders = orders_of(found, harm["other"], plan)
        curves = {}
        for name in tqdm(orders, f"orders at {level} bits", disable=None):
            curves[name] = judged.curve(level, orders[name], plan.counts)
        average = [high + k / net.n * (stored.per_weight - high) for k in (0, *plan.counts)]
        fractions = np.array([0, *plan.counts]) / net.n
        out.append(
            {
                "level": level,
                "bits": average,
                "all": judged.rise(level, range(net.n)).mean(),
                "harm": harm["judged"],
                "harm_other": harm["other"],
                "curves": curves,
                "areas": {name: sweeps.area(fractions, c) for name, c in curves.items()},
            }
        )
    return out


def rounded_bits(net: tf.Stack, plan: Plan) -> float:
    """Bits a weight of the high level: 4 in groups of 32, the form in which SmolLM2's weights came,
    so that it harms nothing.
    """
    return rounded(net, 4, 32)[1].per_weight


def plain(value: Any) -> Any:
    """JSON's types, numbers to six digits that count."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float | np.floating) else value


@torch.no_grad()
def compare(plan: Plan, found: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The whole comparison as plain data. `found`: scores in place of those that are recorded."""
    model, tokenizer = loaders.causal_lm(plan.model, attn_implementation="sdpa")
    net, verses = tf.Stack(model), loaders.bible()
    found = scores.read(net.n) if found is None else found
    judged = cut(
        tokenizer,
        verses,
        ["Matthew", "Mark", "Luke", "John", "Acts"],
        plan.windows,
        plan.tokens,
        plan.seed,
    )
    other = cut(tokenizer, verses, ["Isaiah", "Jeremiah"], plan.windows, plan.tokens, plan.seed)
    calibration = cut(
        tokenizer, verses, ["Genesis", "Exodus"], plan.calibration, plan.context, plan.seed
    )
    texts = (Text(net, judged), Text(net, other))
    return plain(
        {
            "schema": 1,
            "model": plan.model,
            "layers": net.n,
            "windows": plan.windows,
            "tokens": plan.tokens,
            "counts": plan.counts,
            "loss": texts[0].losses({}),
            "scores": found,
            "levels": sweep(net, texts, found, plan),
            "recipes": recipes.table(net, texts[0], calibration, found, plan.group),
        }
    )


def write(folder: Path = paths.RESULTS / "comparison") -> Path:
    """Compare, and write quantization.json into a folder: all of it or nothing. Returns its path.

    Raises:
        scores.ScoreError: the scores have not been collected, or are of another model.
        loaders.InputError: model or text is not prepared.
    """
    torch.set_num_threads(2)  # sums are ordered by thread
    result = compare(Plan())
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{FILE}.new"
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / FILE)
    return folder / FILE
