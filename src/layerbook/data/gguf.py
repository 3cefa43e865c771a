"""A LLaMA-style model in a GGUF file -> a Hugging Face model folder, de-quantized to float16.

Transformers reads GGUF files too, but slowly, into a model that it will not save again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from layerbook.data.manifest import AssetError

# GGUF tensor name -> transformers name, within a block and outside
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def tensor_name(name: str) -> str:
    """Translate a GGUF tensor name to transformers' name; KeyError for one that LLaMA does not
    have.
    """
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{BLOCK[part]}.{kind}"
    return f"{OUTSIDE[stem]}.{kind}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of query and key rows, [heads * d, in] -> same shape.

    GGUF interleaves the two rows that rotary position embedding rotates together (0, d/2, 1, d/2 +
    1, ...); transformers keeps them in two halves of each head.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tokenizer_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Build the `tokenizers` description of the byte-level BPE that a GGUF file holds.

    SmolLM's pre-tokenizer ("smollm") splits off every digit, then splits as GPT-2 does.
    """
    if (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError("only SmolLM's tokenizer is known")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    control = 3  # GGUF's token type of special tokens
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **plain} for i, t in enumerate(types) if t == control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def model_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Translate GGUF's LLaMA fields to transformers' configuration."""
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_act": "silu",
        "dtype": "float16",
        "initializer_range": 0.02,
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        # stored as float32: the shortest decimal is the value that was meant (1e-05)
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
        "vocab_size": fields["llama.vocab_size"],
        "use_cache": True,
        **{key: fields[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "eos_token_id")},
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _weights(reader: Any, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """Return every tensor of a GGUF reader under transformers' name and order of rows, in float16."""
    from gguf import dequantize

    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)  # float32
        if tensor.name.endswith("attn_q.weight"):
            weight = unpermute(weight, heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = unpermute(weight, kv_heads)
        if not (np.abs(weight) <= np.finfo(np.float16).max).all():
            raise ValueError(f"{tensor.name} is not finite in float16")
        weights[tensor_name(tensor.name)] = np.ascontiguousarray(weight, dtype=np.float16)
    return weights


def convert(path: Path, out: Path) -> None:
    """Write config, weights (float16) and tokenizer of a GGUF model into an existing folder.

    Raises AssetError for a file that is cut short, damaged or not a LLaMA-style model.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        heads, kv_heads = (fields[f"llama.attention.head_count{suffix}"] for suffix in ("", "_kv"))
        weights = _weights(reader, heads, kv_heads)
        tokenizer = tokenizer_json(fields)
        config = model_config(fields, tied="lm_head.weight" not in weights)
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
        raise AssetError(
            f"smollm2: {path.name} is cut short, damaged or no LLaMA-style GGUF model ({error}). "
            "Fetch it again: layerbook assets fetch smollm2"
        ) from error
    special = {
        f"{role}_token": fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    documents = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in config if key.endswith("_token_id")},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            **special,
        },
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (out / name).write_text(text + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
