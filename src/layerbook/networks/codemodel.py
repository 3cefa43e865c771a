"""A small encoder of Python code, code-model.

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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerbook.data import pycode
from layerbook.networks import room, training

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
    from transformers import AutoTokenizer

    model = room.transformers_model("EuroBertForMaskedLM", folder, "encoder")
    return model, AutoTokenizer.from_pretrained(Path(folder) / "encoder", local_files_only=True)


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
    streams = [rows_of(rows, recipe.context, generator) for rows in sources]
    entropy, credit = torch.nn.functional.cross_entropy, 0.0

    def loss_of(step: int) -> Tensor:
        nonlocal credit
        ids = torch.stack([next(streams[k % len(streams)]) for k in range(recipe.batch)])
        odds, share = course(step / recipe.steps)
        credit += odds
        if credit < 1:  # guess the next subword everywhere
            ids = ids.to(device)
            logits = model.lm_head(read(model, ids, both_sides=False)[:, :-1])
            return entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        credit -= 1  # masked steps are as evenly spread as their share allows
        chosen = choose(ids, share, generator)
        seen = corrupt(ids, chosen, recipe.vocabulary, generator)
        return entropy(guesses(model, seen.to(device), chosen.to(device)), ids[chosen].to(device))

    schedule = training.Schedule(
        recipe.steps,
        recipe.learning_rate,
        weight_decay=0.05,
        warmup=0.05,
        optimiser="muon",
        pace="linear",
        betas=(0.9, 0.95),
        matrix_rate=recipe.matrix_rate,
    )
    curve = training.fit(model.train(), loss_of, schedule, bar="code-model")
    return model.cpu(), curve
