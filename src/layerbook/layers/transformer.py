"""Look into a transformer: record, replace and skip what its layers compute, and cut their
attention.

Three sites per block, named after the residual stream (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"): "resid", the stream that enters block l (index n: the output
of the last block, before the final norm), and "attn" and "mlp", what the two sublayers of block l
add to it. Everything is done by hooks, which are taken away when a `with` block is left, by an
error too. Nested interventions act together, the outer one first. Positions may be given in several
ways, which `layerbook.layers.interventions` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from layerbook.layers.interventions import (
    Positions,
    by_name,
    first,
    indices,
    knock_out,
    like,
    replace,
    skip,
)

__all__ = ["LAYOUTS", "SITES", "Call", "Layout", "Positions", "Stack", "capture", "entries", "knock_out", "lens", "replace",
           "resume", "skip", "watch"]  # fmt: skip

SITES = ("resid", "attn", "mlp")
# what a block is called with: hidden states [batch, positions, d] and keywords
Call = tuple[Tensor, dict[str, Any]]


class Layout(NamedTuple):
    """Where a family of models keeps its parts: dotted names below the model without head, and
    below a block.
    """

    models: str
    blocks: str
    norm: str | None  # None: no final norm, since each block ends with one (post-norm encoders)
    attention: str  # the module that is called with the attention mask
    attn: str  # the module whose output is added to the residual stream
    mlp: str


LAYOUTS = (
    # Gemma 2 and OLMo 2 normalise what a sublayer has computed before they add it.
    Layout(
        "Gemma 2",
        "layers",
        "norm",
        "self_attn",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    Layout("LLaMA, Qwen2, Mistral", "layers", "norm", "self_attn", "self_attn", "mlp"),
    Layout("GPT-2", "h", "ln_f", "attn", "attn", "mlp"),
    Layout("GPT-NeoX", "layers", "final_layer_norm", "attention", "attention", "mlp"),
    Layout(
        "BERT", "encoder.layer", None, "attention.self", "attention.output.dense", "output.dense"
    ),
)


def _part(owner: Any, name: str) -> Any:
    for step in name.split("."):
        owner = getattr(owner, step, None)
    return owner


class Stack:
    """The blocks of a transformer and the modules at their sites.

    model: a Hugging Face model, with or without a head, with the layout of LLaMA, Qwen2 or Mistral,
    Gemma 2, GPT-2,
    GPT-NeoX or BERT (a post-norm encoder). ValueError for another one. It is not enough that the
    names fit: a short forward pass must show that each block of a pre-norm model adds "attn" and
    "mlp" to its input and nothing else
    (not done for a model in training mode, whose dropout would disturb it).

    blocks, attention (those called with the mask), mlp: lists of modules, one per layer; n: number
    of blocks.
    sites: {"attn", "mlp"} -> modules whose outputs are these sites; they differ from the former in
    Gemma 2 and BERT.
    norm: final norm or None. head: unembedding or None, also None if it does not map the normed
    stream to the logits.
    """

    def __init__(self, model: Any) -> None:
        base = getattr(model, "base_model", model)
        for layout in LAYOUTS:
            blocks = _part(base, layout.blocks)
            found = [[_part(b, name) for name in layout[3:]] for b in blocks or []]
            norm = _part(base, layout.norm) if layout.norm else None
            if (
                not found
                or any(m is None for row in found for m in row)
                or (norm is None) != (layout.norm is None)
            ):
                continue
            self.model, self.blocks, self.n, self.norm = model, list(blocks), len(found), norm
            self.attention, attn, mlp = map(list, zip(*found))
            self.sites = {"attn": attn, "mlp": mlp}
            self.mlp = [getattr(b, "mlp", m) for b, m in zip(blocks, mlp)]
            self.head = model.get_output_embeddings() if norm is not None else None
            if model.training or self._adds_up():
                return
        raise ValueError(
            f"{type(model).__name__} has a layout that is not known, or its blocks do not add up to a residual stream; known are "
            f"{', '.join(layout.models for layout in LAYOUTS)} and models built like them"
        )

    @torch.no_grad()
    def _adds_up(self) -> bool:
        """Whether each block adds its two sites to its input, to rounding; drops a head that does
        more than unembed.
        """
        ids = torch.arange(3, device=next(self.model.parameters()).device)[None]
        if self.norm is None:
            return True
        acts = capture(self, ids)
        resid, attn, mlp = acts["resid"], acts["attn"], acts["mlp"]
        size = resid[1:].abs() + resid[:-1].abs() + attn.abs() + mlp.abs()
        rounding = 4 * torch.finfo(resid.dtype).eps
        if self.head is not None:
            logits, seen = self.model(input_ids=ids, use_cache=False).logits, lens(self, resid[-1])
            if (
                seen.shape != logits.shape
                or (seen - logits).abs().max() > max(1e-5, 4 * rounding) * logits.abs().max()
            ):
                self.head = None
        return bool(((resid[1:] - resid[:-1] - attn - mlp).abs() <= rounding * size).all())

    def layers(self, layers: int | Iterable[int]) -> list[int]:
        """`layers` as a list; ValueError if one of them does not exist."""
        wanted = [int(i) for i in layers] if isinstance(layers, Iterable) else [int(layers)]
        if bad := [i for i in wanted if not 0 <= i < self.n]:
            raise ValueError(
                f"no layer {', '.join(map(str, bad))}: the layers of this model are 0 to {self.n - 1}"
            )
        return wanted

    def on(self, site: str, layer: int, fn: Callable[[Tensor], Tensor | None]) -> Any:
        """Hook `fn` to a site; it gets the tensor [batch, positions, d] and may return another.
        Returns the handle.

        ValueError for a site or layer that does not exist (layer n only for "resid").
        """
        if site not in SITES:
            raise ValueError(f"no site {site!r}; there are {', '.join(SITES)}")
        if not (site == "resid" and layer == self.n):
            self.layers(layer)

        def entering(
            module: nn.Module, args: tuple, kwargs: dict[str, Any]
        ) -> tuple[tuple, dict[str, Any]] | None:
            if args:
                new = fn(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            new = fn(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        def leaving(module: nn.Module, args: tuple, out: Any) -> Any:
            new = fn(first(out))
            return None if new is None else like(out, new)

        if site == "resid" and layer < self.n:
            return self.blocks[layer].register_forward_pre_hook(entering, with_kwargs=True)
        module = self.blocks[-1] if site == "resid" else self.sites[site][layer]
        return module.register_forward_hook(leaving)


def _select(
    h: Float[Tensor, "batch positions d"], positions: Positions
) -> Float[Tensor, "batch k d"]:
    """The states [batch, k, d] at k positions; ValueError for a mask, which may choose a different
    number per prompt.
    """
    if positions is None:
        return h  # itself and no view of it, so that gradients for it can be asked for
    if isinstance(positions, slice):
        return h[:, positions]
    index = indices(positions, h)
    if index.dtype == torch.bool:
        raise ValueError(
            "activations are recorded at a slice or at indices, not at a mask of booleans"
        )
    return h[:, index.reshape(-1)] if index.ndim < 2 else h.take_along_dim(index[..., None], 1)


@contextmanager
def watch(
    net: Stack, sites: Sequence[str] = SITES, positions: Positions = None
) -> Iterator[dict[str, list[Any]]]:
    """Collect the sites of the next forward pass, as they stand in the graph: site -> list of
    [batch, positions, d].
    """
    seen: dict[str, list[Any]] = {site: [None] * (net.n + (site == "resid")) for site in sites}

    def keep(site: str, layer: int) -> Callable[[Tensor], None]:
        def fn(h: Tensor) -> None:
            seen[site][layer] = _select(h, positions)

        return fn

    with ExitStack() as undo:
        for site, row in seen.items():
            for layer in range(len(row)):
                undo.callback(net.on(site, layer, keep(site, layer)).remove)
        yield seen


def _run(
    net: Stack,
    ids: Int[Tensor, "batch positions"] | None,
    mask: Shaped[Tensor, "batch positions"] | None,
    inputs: Mapping[str, Any],
) -> None:
    """One forward pass without cache and, since it is of no use here, without the head."""
    base = getattr(net.model, "base_model", net.model)
    base(input_ids=ids, attention_mask=mask, use_cache=False, **inputs)


@torch.no_grad()
def capture(
    net: Stack,
    ids: Int[Tensor, "batch positions"] | None,
    sites: Sequence[str] = SITES,
    mask: Shaped[Tensor, "batch positions"] | None = None,
    positions: Positions = None,
    **inputs: Any,
) -> dict[str, Float[Tensor, "layers batch _ d"]]:
    """Record sites in one forward pass of token ids [batch, positions].

    mask: 1 for tokens, 0 for padding [batch, positions]. positions: where to record; no mask of
    booleans.
    inputs: further arguments of the model, such as position_ids. Returns site -> [layers, batch,
    positions, d], with
    n + 1 layers for "resid"; no gradients. ValueError for an unknown site.
    """
    with watch(net, sites, positions) as seen:
        _run(net, ids, mask, inputs)
    return {site: torch.stack(rows) for site, rows in seen.items()}


@torch.no_grad()
def entries(
    net: Stack,
    ids: Int[Tensor, "batch positions"] | None,
    mask: Shaped[Tensor, "batch positions"] | None = None,
    **inputs: Any,
) -> list[Call]:
    """What each block is called with in a forward pass: hidden states [batch, positions, d] and
    keyword arguments.
    """
    calls: list[Call] = []
    with ExitStack() as undo:
        for block in net.blocks:
            hook = block.register_forward_pre_hook(
                lambda *call: calls.append(by_name(*call)), with_kwargs=True
            )
            undo.callback(hook.remove)
        _run(net, ids, mask, inputs)
    return calls


def _copies(value: Any, batch: int, times: int) -> Any:
    """Repeat tensors that have one entry per prompt, also inside of tuples; those made for any
    batch are left alone.
    """
    if isinstance(value, tuple):
        return tuple(_copies(v, batch, times) for v in value)
    per_prompt = isinstance(value, Tensor) and value.ndim and len(value) == batch > 1
    return value.repeat(times, *[1] * (value.ndim - 1)) if per_prompt else value


def resume(
    net: Stack,
    h: Float[Tensor, "batch positions d"],
    calls: Sequence[Call],
    start: int,
    stop: int | None = None,
) -> Float[Tensor, "batch positions d"]:
    """Run blocks start to stop - 1 (default: all that follow) from hidden states h [batch,
    positions, d].

    calls: from `entries`, of the same prompts. h may hold several copies of the batch, one after
    the other, as by
    h.repeat(k, 1, 1): what the blocks get beside h is repeated with it. Gradients follow the
    caller's mode. Returns the hidden states that enter block `stop`, to which `lens` gives logits.
    ValueError if batch or positions do not fit.
    """
    stop = net.n if stop is None else stop
    batch, length = calls[0][0].shape[:2]
    if not 0 <= start <= stop <= net.n or h.shape[1] != length or len(h) % batch:
        raise ValueError(
            f"cannot run blocks {start} to {stop} of {net.n} on states {list(h.shape)}: the calls are of {batch} "
            f"prompts of {length} positions"
        )
    for layer in range(start, stop):
        kwargs = {name: _copies(v, batch, len(h) // batch) for name, v in calls[layer][1].items()}
        h = first(net.blocks[layer](h, **kwargs))
    return h


def lens(net: Stack, h: Float[Tensor, "*places d"]) -> Float[Tensor, "*places vocabulary"]:
    """Logits [..., vocabulary] of residual states [..., d]: final norm, unembedding and, if the
    model has it, soft cap.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"). ValueError for a model
    without a final norm or an unembedding.
    """
    if net.norm is None or net.head is None:
        raise ValueError(
            f"{type(net.model).__name__} has no final norm and unembedding that turn residual states into its logits"
        )
    logits, cap = net.head(net.norm(h)), getattr(net.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
