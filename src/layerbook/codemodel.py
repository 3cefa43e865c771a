"""A small masked language model of Python code: `python -m layerbook.codemodel OUTDIR`.

BERT's layout and objective on functions of django and sympy, written as their leaves joined by spaces: no comments, no
docstrings, no line ends, no indentation. It is examined on modules that it has not seen, among them a whole package,
against the best guess that counts of neighbouring tokens allow. Vocabulary: byte-level BPE of the training functions.
The sizes of Recipe are those of a rehearsal: minutes on a CPU do not reach the gate. A GPU trains a larger one.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerbook import inputs, pycode, training

PAD, MASK, START, END = "<pad>", "<mask>", "<cls>", "<sep>"
SPECIAL = (PAD, MASK, START, END)  # ids 0 to 3


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    heads: int = 4
    vocabulary: int = 4096
    context: int = 192  # subwords of a function, both ends included; longer ones are cut into pieces
    steps: int = 1000
    tokens: int = 2048  # a batch, padding included
    learning_rate: float = 8e-4
    masked: float = 0.2  # share of the subwords to be guessed in training
    examined_share: float = 0.15  # the same when the network is examined
    examined: int = 120  # functions of each part
    gate: float = 0.2  # nats a masked subword by which it must beat the counts in every part


def texts(packages: Mapping[str, Mapping[str, str]], part: str, most: int | None = None) -> list[str]:
    """Functions of eight leaves or more of the modules of one part, as text of leaves, the first `most` of them."""
    found: list[str] = []
    for package, module, text in pycode.sources(packages, part):
        for function in pycode.functions(package, module, text):
            if function.source.isascii() and len(words := [leaf.text for leaf in pycode.leaves(function.source)]) >= 8:
                found.append(pycode.joined(words)[0])
        if most is not None and len(found) >= most:
            return found[:most]
    return found


def learn_tokenizer(lines: Iterable[str], size: int) -> Any:
    """A byte-level BPE tokenizer with `size` entries (at least 260), which puts START and END around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    ends = [(name, SPECIAL.index(name)) for name in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return tokenizer


def build(recipe: Recipe, seed: int | None = None) -> Any:
    """An untrained BertForMaskedLM of the recipe's sizes; `seed` replaces the recipe's.

    Weights are drawn wider than BERT's 0.02. Positions begin as waves (Vaswani et al. 2017), and the heads of the first
    layer begin by looking at one neighbour each; all later sublayers begin small, so that places stay distinct. Without
    this the network spends its few minutes on learning where its neighbours are, and knows nothing but frequencies.
    """
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(recipe.seed if seed is None else seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width,
            max_position_embeddings=recipe.context,
            type_vocab_size=1,
            pad_token_id=0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=recipe.width**-0.5,
        )
    )
    angle = torch.arange(recipe.context)[:, None] * 10000 ** (-torch.arange(0, recipe.width, 2) / recipe.width)
    waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    model.bert.embeddings.position_embeddings.weight.data.copy_(waves * (2 / recipe.width) ** 0.5)
    for number, layer in enumerate(model.bert.encoder.layer):
        layer.output.dense.weight.data *= 0.2
        layer.attention.output.dense.weight.data *= 0.2 if number else 1.0
    size, first = recipe.width // recipe.heads, model.bert.encoder.layer[0].attention.self
    first.query.weight.data.zero_()
    first.key.weight.data.zero_()
    for head, shift in zip(range(recipe.heads), (-1, 1, -2, 2) * recipe.heads):
        for k in range(0, size - 1, 2):  # a query turns its wave by the shift: it is most like the key at that distance
            turn, row = shift * 10000 ** (-k / recipe.width), head * size + k
            first.key.weight.data[row : row + 2, k : k + 2] = 2 * torch.eye(2)
            c, s = 2 * math.cos(turn), 2 * math.sin(turn)
            first.query.weight.data[row : row + 2, k : k + 2] = torch.tensor([[c, s], [-s, c]])
    return model


def load(folder: Path | str) -> tuple[Any, Any]:
    """The trained network with its output layer (BertForMaskedLM, frozen) and its tokenizer."""
    from transformers import AutoTokenizer, BertForMaskedLM

    folder = Path(folder) / "encoder"
    model = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def pieces(rows: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """Token ids with START and END at their ends, none longer than `context`: long rows are cut and given ends anew."""
    start, end, found = SPECIAL.index(START), SPECIAL.index(END), []
    for row in rows:
        inner, room = list(row[1:-1]), context - 2
        parts = [inner[i : i + room] for i in range(0, len(inner), room)]
        found += [[start, *p, end] for p in parts if len(p) >= min(8, len(inner))]
    return found


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [n, longest], filled up with PAD (id 0)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)


def batches(rows: Sequence[Sequence[int]], tokens: int, generator: torch.Generator) -> list[Tensor]:
    """Every row once, with rows of like length together, at most `tokens` places a batch, batches in random order."""
    order = sorted(torch.randperm(len(rows), generator=generator).tolist(), key=lambda i: len(rows[i]))
    found, now = [], []
    for i in order:
        if now and (len(now) + 1) * len(rows[i]) > tokens:
            found.append(now)
            now = []
        now.append(i)
    found.append(now)
    return [padded([rows[i] for i in found[b]]) for b in torch.randperm(len(found), generator=generator).tolist()]


def choose(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Places to be guessed, booleans [n, T]: about `share` of the subwords, none of SPECIAL, at least one in all."""
    free = ids >= len(SPECIAL)
    odds = torch.rand(ids.shape, generator=generator)
    chosen = free & (odds < share)
    return chosen if chosen.any() else free & (odds == odds[free].min())


def corrupt(ids: Tensor, chosen: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Of the chosen places, 80 % become MASK, 10 % another token at random and 10 % stay (BERT, Devlin et al. 2019)."""
    odds = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), vocabulary, ids.shape, generator=generator)
    seen = torch.where(chosen & (odds < 0.8), SPECIAL.index(MASK), ids)
    return torch.where(chosen & (odds >= 0.9), other, seen)


def guesses(model: Any, seen: Tensor, chosen: Tensor) -> Tensor:
    """Logits [chosen places, vocabulary] of a masked language model on ids [n, T] as seen."""
    states = model.bert(input_ids=seen, attention_mask=(seen != 0).long()).last_hidden_state
    return model.cls(states[chosen])


def train(recipe: Recipe, rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Any, list[float]]:
    """Train on token ids; returns the network, frozen and on the CPU, and the loss of every step in nats."""
    model, generator = build(recipe).to(device), torch.Generator().manual_seed(recipe.seed)
    queue: list[Tensor] = []

    def loss(step: int) -> Tensor:
        if not queue:
            queue.extend(batches(rows, recipe.tokens, generator))
        ids = queue.pop()
        chosen = choose(ids, recipe.masked, generator)
        seen = corrupt(ids, chosen, recipe.vocabulary, generator)
        logits = guesses(model, seen.to(device), chosen.to(device))
        return torch.nn.functional.cross_entropy(logits, ids[chosen].to(device))

    curve = training.fit(model, loss, training.Schedule(recipe.steps, recipe.learning_rate, weight_decay=0.05))
    return model.cpu(), curve


def counted(rows: Sequence[Sequence[int]], spots: Sequence[tuple[int, int, int]], size: int) -> tuple[Tensor, list[bool]]:
    """What counts in training `rows` say about (token before, token, token after) of unseen text.

    Returns the token's share by both neighbours, by the one before, by the one after and by add-one frequency, [spots, 4],
    and whether the first of these that knows the context would have guessed it.
    """
    tables: list[dict[Any, Counter[int]]] = [{(a, b): Counter() for a, _, b in spots}, {a: Counter() for a, _, _ in spots},
                                             {b: Counter() for _, _, b in spots}]  # fmt: skip
    single: Counter[int] = Counter()
    for row in rows:
        single.update(row)
        for a, x, b in zip(row, row[1:], row[2:]):
            for table, key in zip(tables, ((a, b), a, b)):
                if key in table:
                    table[key][x] += 1
    shares, right = [], []
    for a, x, b in spots:
        found = [table[key] for table, key in zip(tables, ((a, b), a, b))]
        shares.append([t[x] / max(1, t.total()) for t in found] + [(single[x] + 1) / (single.total() + size)])
        guess = next((t for t in found if t), single)
        right.append(max(guess, key=lambda k: (guess[k], -k)) == x)
    return torch.tensor(shares, dtype=torch.float64), right


def mixed_nats(shares: Tensor) -> float:
    """Mean nats of the mixture of the columns of `shares` [n, 4] whose weights suit these very places best (by EM)."""
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(200):
        weights = (weights * shares / (shares @ weights)[:, None]).mean(0)
    return -(shares @ weights).log().mean().item()


@torch.no_grad()
def examine(
    model: Any, tokenizer: Any, train_rows: Sequence[Sequence[int]], held: Mapping[str, Sequence[str]], recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Masked subwords of unseen functions, by part: nats and share of right guesses of the network and of the counts.

    Two things flatter the counts: their mixture is fitted to the very places that are examined, and they see the true
    neighbours where the network may see a mask.
    """
    table, spots = {}, []
    for part, lines in held.items():
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        ids = padded([pieces([tokenizer.encode(line).ids], recipe.context)[0] for line in lines])
        chosen = choose(ids, recipe.examined_share, generator)
        logits = guesses(model, torch.where(chosen, SPECIAL.index(MASK), ids), chosen)
        table[part] = {"masked": int(chosen.sum()),
                       "network": torch.nn.functional.cross_entropy(logits, ids[chosen]).item(),
                       "network_right": (logits.argmax(-1) == ids[chosen]).double().mean().item()}  # fmt: skip
        spots += [tuple(ids[i, j - 1 : j + 2].tolist()) for i, j in chosen.nonzero().tolist()]
    shares, right = counted(train_rows, spots, recipe.vocabulary)
    for scores, own, hits in zip(
        table.values(), *(x.split([s["masked"] for s in table.values()]) for x in (shares, torch.tensor(right).double()))
    ):
        scores |= {"counts": mixed_nats(own), "counts_right": hits.mean().item()}
    return {part: {name: round(value, 4) for name, value in scores.items()} for part, scores in table.items()}


def make(recipe: Recipe, folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Train, examine and save; returns the card."""
    packages = {name: inputs.python_code(name) for name in pycode.PACKAGES}
    lines = texts(packages, "train")
    tokenizer = learn_tokenizer(lines, recipe.vocabulary)
    rows = pieces([e.ids for e in tokenizer.encode_batch(lines)], recipe.context)
    model, curve = train(recipe, rows, device)
    held = {
        f"{name} ({part})": texts({name: packages[name]}, part, recipe.examined)
        for name in pycode.PACKAGES
        for part in ("probe", "valid", "test")
        if (part == "test") == (name == pycode.APART)
    }
    table = examine(model, tokenizer, rows, held, recipe)
    margin = min(scores["counts"] - scores["network"] for scores in table.values())
    right = min(scores["network_right"] - scores["counts_right"] for scores in table.values())
    card = {
        "name": "code-model",
        "description": "A small masked language model of Python functions, trained here.",
        "made_by": "python -m layerbook.codemodel",
        "architecture": "BERT: post-norm, GELU, learned positions, tied embeddings, no dropout",
        "data": "functions of django and sympy (BSD; prepared assets python-django, python-sympy) without three in ten modules; "
                "leaves joined by spaces; byte-level BPE of the same text",
        "tokens": {"functions": len(lines), "pieces": len(rows), "training_text": sum(map(len, rows))},
        "recipe": vars(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss_nats": round(sum(curve[-50:]) / len(curve[-50:]), 4),
        "held_out": table,
        "gate": {"least_nats_below_counts": recipe.gate, "worst": round(margin, 4), "worst_gain_in_right_guesses": round(right, 4),
                 "passed": margin >= recipe.gate and right > 0},
    }  # fmt: skip
    training.save({"encoder": model}, card, folder, tokenizer, dtype=torch.float16)
    return card


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 1 when the quality gate is not met."""
    return training.main("code-model", Recipe(), make, argv)


if __name__ == "__main__":
    sys.exit(main())
