"""Tiny random networks of many architectures, stored as model folders: a tokenizer of bytes, sizes
of a few thousand weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}assistant:"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", {"sliding_window": 8}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "neox": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", {}),
    "bert": ("BertConfig", {}),
    "cohere": ("CohereConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "opt": ("OPTConfig", {"word_embed_proj_dim": 64, "ffn_dim": 128}),
    "llama-mlp-bias": ("LlamaConfig", {"mlp_bias": True}),
    "granite-scaled": ("GraniteConfig", {"logits_scaling": 8.0, "residual_multiplier": 0.2}),
    "neox-sequential": ("GPTNeoXConfig", {"use_parallel_residual": False}),
}


def config(family: str, **changes: Any) -> Any:
    """A small configuration of a family."""
    name, own = FAMILIES[family]
    kind = getattr(transformers, name)
    return kind(
        **{k: v for k, v in SIZES.items() if k != "head_dim" or hasattr(kind(), k)} | own | changes
    )


def network(family: str, seed: int = 0, encoder: bool = False, **changes: Any) -> Any:
    """A random network of a family, none of whose norms and biases is one or zero throughout, in
    evaluation mode.
    """
    torch.manual_seed(seed)
    loader = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    model = loader.from_config(config(family, **changes), attn_implementation="eager")
    for p in model.parameters():
        p.data += (0.2 if p.dim() == 1 else 0.05) * torch.randn(p.shape)
    return model.eval().requires_grad_(False)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """A tokenizer of single bytes, with marks for beginning, end and filling."""
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    wrapped.chat_template = template
    return wrapped


def folder(
    where: Path, family: str, encoder: bool = False, template: str | None = TEMPLATE, **changes: Any
) -> Path:
    """A stored network with its tokenizer."""
    network(family, encoder=encoder, **changes).save_pretrained(where)
    tokenizer(template).save_pretrained(where)
    return where
