"""A tiny random network of the same architecture as a model: what it computes shows what the model
is.

Two layers of the model's own class, a few thousand numbers: built and run in milliseconds, without
a weight of the model. Whether blocks add up to a residual stream, whether the network is causal
and what its norm computes are properties of the class and of the switches in its configuration,
which the twin shares.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

HEAD_DIM, HEADS, TOKENS = 40, 4, 64  # 40: any usual share of rotary channels of it is even
WIDTH = HEADS * HEAD_DIM


def shrunk(config: Any) -> Any:
    """A model's configuration with two layers and small sizes; its kinds and switches stay."""
    small = copy.deepcopy(config)
    heads = config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None)
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "vocab_size": TOKENS,
        "intermediate_size": 2 * WIDTH,
        "n_inner": None,
        "head_dim": HEAD_DIM,
        "embedding_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": 2 * WIDTH,
        "max_position_embeddings": TOKENS,
        "num_key_value_heads": HEADS if grouped == heads else 1 if grouped == 1 else 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    for name, value in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(small, name, value)
    if getattr(config, "layer_types", None):
        small.layer_types = list(config.layer_types[:2])
    # Long contexts stretch the rotary frequencies by a list as long as a head: of no matter here.
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_type" in rope:
        keep = ("rope_theta", "partial_rotary_factor")
        small.rope_parameters = {"rope_type": "default"} | {k: rope[k] for k in keep if k in rope}
    for name, value in vars(config).items():
        if "dropout" in name and isinstance(value, float):
            setattr(small, name, 0.0)
    return small


def build(config: Any, loader: Any) -> Any:
    """The twin, in evaluation mode, its norms and biases no longer ones and zeros.

    Args:
        config: the model's configuration.
        loader: transformers.AutoModelForCausalLM or AutoModel.

    Raises:
        ValueError: the class is not known to the loader, or cannot be built so small.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            twin = loader.from_config(
                shrunk(config), dtype=torch.float32, attn_implementation="eager"
            )
        except Exception as error:  # whatever a class raises for sizes that it does not take
            raise ValueError(str(error).strip().split("\n")[0]) from None
        for parameter in twin.parameters():
            parameter.data.add_(
                0.2 * torch.randn(parameter.shape)
                if parameter.dim() == 1
                else 0.05 * torch.randn(parameter.shape)
            )
    return twin.eval().requires_grad_(False)


def sample() -> torch.Tensor:
    """Token ids [1, 6] for the twin."""
    return torch.tensor([[5, 17, 33, 48, 9, 21]])


@torch.no_grad()
def looks_ahead(twin: Any) -> bool:
    """Whether an output depends on a later token: so it does in an encoder, and not in a decoder."""
    one, other = sample(), sample()
    other[0, -1] = 40
    first, second = (twin(input_ids=ids)[0][:, :-1] for ids in (one, other))
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5)
