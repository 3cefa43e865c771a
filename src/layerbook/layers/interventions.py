"""Change what the layers of a transformer compute: replace, skip, knock_out. Import them from
`layerbook.layers.transformer`.

Positions, wherever asked for: None (all), a slice, an index or list of indices, integer indices
[batch, k] (a row per
prompt) or a mask of booleans [positions] or [batch, positions]. They count within one forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from layerbook.layers.transformer import Stack

Positions = None | int | slice | Sequence[int] | Tensor
PARTS = ("layer", "attn", "mlp")


def first(out: Any) -> Float[Tensor, "batch positions d"]:
    """The hidden states in a module's output, which is a tensor or a tuple that begins with it."""
    return out[0] if isinstance(out, tuple) else out


def like(out: Any, h: Float[Tensor, "batch positions d"]) -> Any:
    """Output `out` with h in the place of its hidden states."""
    return (h, *out[1:]) if isinstance(out, tuple) else h


def by_name(
    module: nn.Module, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Float[Tensor, "batch positions d"], dict[str, Any]]:
    """The hidden states and, by name, all other arguments with which a block or an attention is
    called.
    """
    named = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
    return named.pop("hidden_states"), named


def indices(positions: Any, h: Float[Tensor, "batch positions d"]) -> Tensor:
    """Positions in states h [batch, positions, d] as a tensor: booleans as they are, indices
    counted from the front.

    ValueError for an index beyond the last position.
    """
    given, length = torch.as_tensor(positions, device=h.device), h.shape[1]
    if given.dtype == torch.bool:
        return given
    if ((given < -length) | (given >= length)).any():
        raise ValueError(f"positions {given.tolist()} are not all among the {length} of the prompt")
    return given.long() % length


def chosen(
    positions: Positions, h: Float[Tensor, "batch positions d"]
) -> Bool[Tensor, "#batch positions"]:
    """Positions in states h [batch, positions, d] as booleans [1 or batch, positions]; ValueError
    if they do not fit.

    Rows for fewer prompts are repeated if the batch consists of copies of these prompts.
    """
    batch, length = h.shape[:2]
    mask = torch.zeros(1, length, dtype=torch.bool, device=h.device)
    if positions is None or isinstance(positions, slice):
        mask[:, positions or slice(None)] = True
        return mask
    given = indices(positions, h)
    if given.dtype == torch.bool:
        mask = given if given.ndim == 2 else given[None]
    elif given.ndim < 2:
        mask[:, given] = True
    else:
        mask = mask.repeat(len(given), 1).scatter(1, given, True)
    if mask.shape[1:] != (length,) or batch % len(mask):
        raise ValueError(
            f"positions of shape {list(given.shape)} do not fit {batch} prompts of {length} positions"
        )
    return mask if len(mask) == 1 else mask.repeat(batch // len(mask), 1)


@contextmanager
def replace(
    net: Stack, changes: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Within the block, each (site, layer) takes the value that its function makes of it: patching,
    ablation, steering.

    A function gets the tensor [batch, positions, d] and returns one of the same shape; it must not
    write into what it gets. Activation patching: Vig et al. 2020, "Investigating Gender Bias in
    Language Models Using Causal Mediation Analysis"; Meng et al. 2022, "Locating and Editing
    Factual Associations in GPT". ValueError for an unknown site or layer and for a different shape.
    """

    def checked(key: tuple[str, int], fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def change(h: Tensor) -> Tensor:
            new = fn(h)
            if not isinstance(new, Tensor) or new.shape != h.shape:
                got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise ValueError(
                    f"the function for {key} must return a tensor {list(h.shape)}, not {got}"
                )
            return new.to(h)

        return change

    with ExitStack() as undo:
        for key, fn in changes.items():
            undo.callback(net.on(*key, checked(key, fn)).remove)
        yield


@contextmanager
def skip(
    net: Stack, layers: int | Iterable[int], part: str = "layer", positions: Positions = None
) -> Iterator[None]:
    """Within the block, these layers, or one sublayer of each, add nothing to the residual stream
    at these positions.

    The output of a layer is then its input. Other positions still attend to the skipped ones, by
    the keys and values that the layer computes from its input as ever: only what leaves it is
    dropped. ValueError for an unknown part or layer, and in the forward pass for positions that do
    not fit.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")

    def bypass(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        h = first(out)
        entered = by_name(module, args, kwargs)[0] if part == "layer" else torch.zeros_like(h)
        return like(out, torch.where(chosen(positions, h)[..., None], entered, h))

    with ExitStack() as undo:
        for layer in net.layers(layers):
            module = net.blocks[layer] if part == "layer" else net.sites[part][layer]
            undo.callback(module.register_forward_hook(bypass, with_kwargs=True).remove)
        yield


def _cut(
    module: Any,
    h: Float[Tensor, "batch positions d"],
    named: Mapping[str, Any],
    cut: Bool[Tensor, "#batch 1 queries keys"],
) -> Tensor:
    """The mask of an attention call on states h without the pairs `cut` [1 or batch, 1, queries,
    keys].
    """
    mask, length = named.get("attention_mask"), h.shape[1]
    cached = [v for v in named.values() if hasattr(v, "get_seq_length")]
    if any(c.get_seq_length(module.layer_idx) for c in cached):
        raise ValueError(
            "attention can be cut in a whole sequence only, not in one that continues a cache"
        )
    if mask is None and module.config._attn_implementation in ("eager", "sdpa"):
        # Without a mask the attention of a decoder is causal by a flag, which counts only as long
        # as there is no mask.
        causal = named.get("is_causal")
        allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=h.device)
        allowed = (
            allowed.tril()
            if (getattr(module, "is_causal", True) if causal is None else causal)
            else allowed
        )
        mask = torch.zeros_like(allowed, dtype=h.dtype).masked_fill(~allowed, float("-inf"))
    elif isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2:] == (length, length):
        # A mask to be added marks what is cut by the lowest number or by -inf, and may hold a bias
        # otherwise.
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    else:
        raise ValueError(
            "attention can be cut only where it is masked pair by pair: load the model with "
            "attn_implementation='eager' or 'sdpa'"
        )
    if (allowed.any(-1) & ~(allowed & ~cut).any(-1)).any():
        raise ValueError(
            "a target is cut off from every position that it may attend to, itself included"
        )
    return mask.masked_fill(allowed & cut, False if mask.dtype == torch.bool else float("-inf"))


@contextmanager
def knock_out(
    net: Stack, layers: int | Iterable[int], sources: Positions, targets: Positions
) -> Iterator[None]:
    """Within the block, target positions (queries) do not attend to source positions (keys) in
    these layers.

    The scores of these pairs become -inf before the softmax, in all heads; what was allowed else
    stays so. Attention
    knockout: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive
    Language Models". Works
    with eager and with sdpa attention; ValueError for others, in a pass that continues a cache, for
    positions that do not fit, and for a target to which no key is left.
    """

    def blind(
        module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        h, named = by_name(module, args, kwargs)
        cut = chosen(targets, h)[:, None, :, None] & chosen(sources, h)[:, None, None, :]
        return (h,), {**named, "attention_mask": _cut(module, h, named, cut)}

    with ExitStack() as undo:
        for layer in net.layers(layers):
            undo.callback(
                net.attention[layer].register_forward_pre_hook(blind, with_kwargs=True).remove
            )
        yield
