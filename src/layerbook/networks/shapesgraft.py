"""A picture encoder grafted onto a pre-trained language model, which learns to answer questions
about drawn scenes.

The two stages are those of LLaVA (Liu et al. 2023): first the encoder learns to speak to a language
model that is left as it is, then all weights are trained. The text around the picture is plain, so
that any causal language model will do.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layerbook.data import shapes
from layerbook.networks import shapesvlm, training

# before the picture, before and after the question
SAYS = (
    "Picture:",
    "\nQuestion:",
    "\nAnswer in one word:",
)


class Graft(nn.Module):
    """Encoder, drawn by `seed`, in front of a copy of a Hugging Face causal language model."""

    def __init__(self, language: Any, tokenizer: Any, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.language, self.tokenizer = copy.deepcopy(language), tokenizer
        self.see = shapesvlm.Encoder(shapesvlm.Recipe(), language.config.hidden_size).to(
            language.device
        )
        with torch.no_grad():
            self.see.length.fill_(language.get_input_embeddings().weight.float().std())

    def prompts(self, found: shapes.Examples) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """What the language model reads [n, T, d], position of the answer [n], its first token [n],
        groups of positions.

        groups: "image", "question" (its words alone) and "last", booleans [n, T]. Padding is on the
        right.
        """

        def code(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False).input_ids

        front, before, after = map(code, SAYS)
        asked = [code(" " + " ".join(q.words[:-1]) + "?") for q in found.questions]
        texts = [before + q + after for q in asked]
        n, start, length, device = (
            len(texts),
            len(front) + shapes.PATCHES,
            max(map(len, texts)),
            self.language.device,
        )
        embed = self.language.get_input_embeddings()
        words = embed(torch.tensor([t + [t[-1]] * (length - len(t)) for t in texts], device=device))
        opening = embed(torch.tensor([front] * n, device=device))
        embeds = torch.cat([opening, self.see(found.images.to(device)).to(words), words], 1)
        span, begin, last = (
            torch.arange(embeds.shape[1]),
            start + len(before),
            torch.tensor([start + len(t) - 1 for t in texts]),
        )
        size = torch.tensor([len(q) for q in asked])[:, None]
        groups = {
            "image": ((span >= len(front)) & (span < start)).expand(n, -1), "last": span == last[:, None],
            "question": (span >= begin) & (span < begin + size),
        }  # fmt: skip
        return (
            embeds,
            last,
            torch.tensor([code(" " + q.answer)[0] for q in found.questions]),
            groups,
        )


def train(graft: Graft, steps: tuple[int, int], batch: int, seed: int) -> None:
    """Train the encoder alone for steps[0], then everything for steps[1], on new scenes in each
    step; leaves it frozen.
    """
    device = graft.language.device

    def loss_of(step: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeds, last, answer, _ = graft.prompts(
                shapes.examples(batch, seed, f"graft-{stage}-{step}")
            )
            h = graft.language.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            logits = graft.language.get_output_embeddings()(h[torch.arange(batch), last])
        return nn.functional.cross_entropy(logits.float(), answer.to(device))

    for stage, (n, rate) in enumerate(zip(steps, (2e-3, 1e-4))):
        graft.train().requires_grad_(True)
        graft.language.requires_grad_(stage == 1)
        training.fit(graft, loss_of, training.Schedule(n, rate, 0.0))
