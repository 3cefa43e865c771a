"""A small encoder of Python code: `python -m layerbook.networks.codemodel OUTDIR`.

An encoder with LLaMA's blocks (EuroBERT's layout) that has read functions of django and sympy,
written as their leaves joined
by spaces: no comments, no docstrings, no line ends, no indentation. It is examined on modules that
it has not seen, among
them a whole package, against the best guess that counts of neighbouring tokens allow. Vocabulary:
byte-level BPE of the training functions.

Two things bring it past that gate within minutes on a CPU, where plain masked training stayed far
behind. It learns to guess the next token, too, with attention cut to what came before: every place
teaches something, and not only the masked ones (one network for both, as in Charpentier and Samuel
2024, "GPT or BERT: why not both?"). And the matrices of its blocks are moved by Muon (Jordan et al.
2024), which orthogonalises each step, in place of AdamW.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from layerbook.data import loaders, pycode
from layerbook.networks import codecounts, training

NETWORK = "code-model"  # the name of its folder and of its stage in the pipeline

PAD, MASK, START, END = "<pad>", "<mask>", "<cls>", "<sep>"
SPECIAL = (PAD, MASK, START, END)  # ids 0 to 3


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    heads: int = 4
    vocabulary: int = 2048
    context: int = (
        192  # subwords of a function, both ends included; longer ones are cut into pieces
    )
    steps: int = 2400
    batch: int = 16  # rows of `context` subwords; functions follow one another in them
    matrix_rate: float = 0.02  # Muon's, for the matrices of the blocks
    learning_rate: float = 3e-3  # AdamW's, for everything else
    examined_share: float = 0.15  # of the subwords are masked when the network is examined
    examined: int = 120  # functions of each part
    gate: float = 0.2  # nats a masked subword by which it must beat the counts in every part


def course(done: float) -> tuple[float, float]:
    """Share of the steps that guess masked subwords, and share of the subwords masked in them,
    after `done` of the training.
    """
    return (0.3 if done < 0.4 else 0.6 if done < 0.8 else 1.0), (0.35 if done < 0.6 else 0.2)


def texts(
    packages: Mapping[str, Mapping[str, str]], part: str, most: int | None = None
) -> list[str]:
    """Functions of eight leaves or more of the modules of one part, as text of leaves, the first
    `most` of them.
    """
    found: list[str] = []
    for package, module, text in pycode.sources(packages, part):
        for function in pycode.functions(package, module, text):
            if (
                function.source.isascii()
                and len(words := [leaf.text for leaf in pycode.leaves(function.source)]) >= 8
            ):
                found.append(pycode.joined(words)[0])
        if most is not None and len(found) >= most:
            return found[:most]
    return found


def learn_tokenizer(lines: Iterable[str], size: int) -> Any:
    """A byte-level BPE tokenizer with `size` entries (at least 260), which puts START and END
    around a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    ends = [(name, SPECIAL.index(name)) for name in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    return tokenizer


def build(recipe: Recipe, seed: int | None = None) -> Any:
    """An untrained EuroBertForMaskedLM of the recipe's sizes; `seed` replaces the recipe's."""
    from transformers import EuroBertConfig, EuroBertForMaskedLM

    torch.manual_seed(recipe.seed if seed is None else seed)
    return EuroBertForMaskedLM(
        EuroBertConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            intermediate_size=8 * recipe.width // 3 // 32 * 32 or 32,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            initializer_range=recipe.width**-0.5 / 2,
            pad_token_id=SPECIAL.index(PAD),
            mask_token_id=SPECIAL.index(MASK),
            bos_token_id=SPECIAL.index(START),
            eos_token_id=SPECIAL.index(END),
        )
    )


def load(folder: Path | str) -> tuple[Any, Any]:
    """The trained network with its output layer (EuroBertForMaskedLM, frozen) and its tokenizer."""
    from transformers import AutoTokenizer, EuroBertForMaskedLM

    folder = Path(folder) / "encoder"
    model = EuroBertForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )


def pieces(rows: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """Token ids with START and END at their ends, none longer than `context`: long rows are cut and
    given ends anew.
    """
    start, end, found = SPECIAL.index(START), SPECIAL.index(END), []
    for row in rows:
        inner, room = list(row[1:-1]), context - 2
        parts = [inner[i : i + room] for i in range(0, len(inner), room)]
        found += [[start, *p, end] for p in parts if len(p) >= min(8, len(inner))]
    return found


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [n, longest], filled up with PAD (id 0)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)


def rows_of(
    functions: Sequence[Sequence[int]], context: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless rows [context] of functions in random order, one after the other, all of them once
    before any twice.
    """
    while True:
        order = torch.randperm(len(functions), generator=generator).tolist()
        flat = torch.tensor([token for i in order for token in functions[i]])
        if len(flat) < context:
            raise ValueError(f"{len(flat)} subwords do not fill one row of {context}")
        yield from flat[: len(flat) // context * context].view(-1, context)


def choose(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Places to be guessed, booleans [n, T]: about `share` of the subwords, none of SPECIAL, at
    least one in all.
    """
    free = ids >= len(SPECIAL)
    odds = torch.rand(ids.shape, generator=generator)
    chosen = free & (odds < share)
    return chosen if chosen.any() else free & (odds == odds[free].min())


def corrupt(ids: Tensor, chosen: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Of the chosen places, 80 % become MASK, 10 % another token at random and 10 % stay (BERT,
    Devlin et al. 2019).
    """
    odds = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), vocabulary, ids.shape, generator=generator)
    seen = torch.where(chosen & (odds < 0.8), SPECIAL.index(MASK), ids)
    return torch.where(chosen & (odds >= 0.9), other, seen)


def read(model: Any, ids: Tensor, both_sides: bool = True) -> Tensor:
    """Last hidden states [n, T, d] of ids [n, T]; PAD is seen by nobody, and without `both_sides`
    neither is what comes after.
    """
    mask = (ids != SPECIAL.index(PAD)).long()
    if not both_sides:
        mask = (
            torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            & (mask == 1)[:, None, None, :]
        )
    return model.model(input_ids=ids, attention_mask=mask).last_hidden_state


def guesses(model: Any, seen: Tensor, chosen: Tensor) -> Tensor:
    """Logits [chosen places, vocabulary] of a masked language model on ids [n, T] as seen."""
    return model.lm_head(read(model, seen)[chosen])


def train(
    recipe: Recipe, sources: Sequence[Sequence[Sequence[int]]], device: torch.device | str = "cpu"
) -> tuple[Any, list[float]]:
    """Train on the token ids of each source's functions, every source giving as many rows of a
    batch as any other.

    Returns the network, frozen and on the CPU, and the loss of every step in nats (of the next or
    of masked subwords). FloatingPointError when a loss is not finite, with the step.
    """
    model, generator = build(recipe).to(device), torch.Generator().manual_seed(recipe.seed)
    streams, entropy = (
        [rows_of(rows, recipe.context, generator) for rows in sources],
        torch.nn.functional.cross_entropy,
    )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in model.named_parameters() if p.ndim == 1 or ".layers." not in name]
    optimisers = [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.05),
        # fmt: skip
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    pace = [
        torch.optim.lr_scheduler.LambdaLR(
            o,
            lambda i: min(
                (i + 1) / (0.05 * recipe.steps), 1.0, max(0.02, 2 * (1 - i / recipe.steps))
            ),
        )
        for o in optimisers
    ]
    curve, credit = [], 0.0
    model.train()
    for step in tqdm(range(recipe.steps), desc="code model", disable=None):
        ids = torch.stack([next(streams[k % len(streams)]) for k in range(recipe.batch)])
        odds, share = course(step / recipe.steps)
        credit += odds
        if credit >= 1:  # as evenly spread as the share of these steps allows
            credit -= 1
            chosen = choose(ids, share, generator)
            seen = corrupt(ids, chosen, recipe.vocabulary, generator)
            loss = entropy(
                guesses(model, seen.to(device), chosen.to(device)), ids[chosen].to(device)
            )
        else:
            ids = ids.to(device)
            loss = entropy(
                model.lm_head(read(model, ids, both_sides=False)[:, :-1]).flatten(0, 1),
                ids[:, 1:].flatten(),
            )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss.item()}: lower the learning rates"
            )
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*optimisers, *pace):
            one.step()
        curve.append(loss.item())
    return model.cpu().eval().requires_grad_(False), curve


@torch.no_grad()
def examine(
    model: Any,
    tokenizer: Any,
    train_rows: Sequence[Sequence[int]],
    held: Mapping[str, Sequence[str]],
    recipe: Recipe,
) -> dict[str, dict[str, float]]:
    """Masked subwords of unseen functions, by part: nats and share of right guesses of the network
    and of the counts.

    Two things flatter the counts: their mixture is fitted to the very places that are examined, and
    they see the true
    neighbours where the network may see a mask.
    """
    table, spots = {}, []
    for part, lines in held.items():
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        ids = padded([pieces([tokenizer.encode(line).ids], recipe.context)[0] for line in lines])
        chosen = choose(ids, recipe.examined_share, generator)
        logits = guesses(model, torch.where(chosen, SPECIAL.index(MASK), ids), chosen)
        table[part] = {
            "masked": int(chosen.sum()),
            "network": torch.nn.functional.cross_entropy(logits, ids[chosen]).item(),
            # fmt: skip
            "network_right": (logits.argmax(-1) == ids[chosen]).double().mean().item(),
        }
        spots += [tuple(ids[i, j - 1 : j + 2].tolist()) for i, j in chosen.nonzero().tolist()]
    shares, right = codecounts.counted(train_rows, spots, recipe.vocabulary)
    for scores, own, hits in zip(
        table.values(),
        *(
            x.split([s["masked"] for s in table.values()])
            for x in (shares, torch.tensor(right).double())
        ),
    ):
        scores |= {"counts": codecounts.mixed_nats(own), "counts_right": hits.mean().item()}
    return {
        part: {name: round(value, 4) for name, value in scores.items()}
        for part, scores in table.items()
    }


def make(recipe: Recipe, folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Train, examine and save; returns the card."""
    packages = {name: loaders.python_code(name) for name in pycode.PACKAGES}
    lines = {
        name: texts({name: packages[name]}, "train")
        for name in pycode.PACKAGES
        if name != pycode.APART
    }
    tokenizer = learn_tokenizer(
        (line for some in lines.values() for line in some), recipe.vocabulary
    )
    sources = [[e.ids for e in tokenizer.encode_batch(some)] for some in lines.values()]
    rows = [row for some in sources for row in some]
    model, curve = train(recipe, sources, device)
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
        "description": "A small encoder of Python functions, trained here on masked and on next subwords.",
        "made_by": "python -m layerbook.networks.codemodel",
        "architecture": "EuroBERT: LLaMA's blocks (RMSNorm before each sublayer, SwiGLU, rotary positions), attention to both "
                        "sides, tied embeddings, no dropout; stored in half precision",
        "data": "functions of django and sympy (BSD; prepared assets python-django, python-sympy) without three in ten modules; "
                "leaves joined by spaces; byte-level BPE of the same text",
        "subwords": {name: sum(map(len, some)) for name, some in zip(lines, sources)},
        "seconds": "1482 on two cores beside two other jobs",
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
