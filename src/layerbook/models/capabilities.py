"""What a method needs of a network: each capability once, with its check and its explanation.

A card's parameter of kind `causal-lm` or `encoder` lists under `needs` the capabilities that the
method relies on. `check` holds a model against them before anything is computed, by its files'
names and headers, its configuration, its tokenizer, and a tiny twin of its class: no weight is
loaded. A capability that takes a value is written `name=value` (`layers=8`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerbook.layers import transformer as tf
from layerbook.models import twins
from layerbook.models.candidates import Model, Unfit, Unknown

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
TEMPLATED = "Name the colours of a rainbow."


Check = Callable[[Model, str, Mapping[str, Any]], str | None]


class Capability(NamedTuple):
    """A property of networks: what it is for the reader, and what says that a model lacks it."""

    explanation: str
    lacking: Check


CAPABILITIES: dict[str, Capability] = {}


def capability(name: str, explanation: str) -> Callable[[Check], Check]:
    """Register a check, which returns what a model lacks, or None."""

    def register(function: Check) -> Check:
        CAPABILITIES[name] = Capability(explanation, function)
        return function

    return register


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def submodules(stack: tf.Stack, name: str) -> list[nn.Module | None]:
    """The module `name` of each block, None where there is no such module."""
    return [dict(block.named_modules()).get(name) for block in stack.blocks]


@capability("residual-stream", "a layout whose blocks each add attention and MLP to the stream")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    return None if model.stack else "it has no residual stream"


@capability("pre-norm", "each MLP reads a norm of the stream, as in all but OLMo 2 and encoders")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    stack = model.stack
    acts = tf.capture(stack, twins.sample())
    read = model.outputs_of(stack.mlp[0], lambda x, _y: x)
    streams = [acts["resid"][0], acts["resid"][0] + acts["attn"][0]]
    norms = [m for m in stack.blocks[0].children() if "norm" in type(m).__name__.lower()]
    if stack.norm is not None and any(close(n(h), read) for n in norms for h in streams):
        return None
    return "its MLP does not read a norm of the residual stream"


@capability("sequential-blocks", "the MLP reads what the attention of the same block has added")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    config = model.config
    parallel = [
        n
        for n in ("use_parallel_residual", "parallel_attn", "parallel_attention")
        if getattr(config, n, False)
    ]
    return f"its attention and MLP run side by side ({parallel[0]})" if parallel else None


@capability("unembedding", "logits are the unembedding of the normed stream, soft cap included")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    if model.stack.head is None or model.stack.norm is None:
        return "its logits are not the unembedding of the normed residual stream"
    return None


@capability("plain-unembedding", "logits are head(last hidden state), not capped or scaled")
@torch.no_grad()
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    head, twin, ids = model.twin.get_output_embeddings(), model.twin, twins.sample()
    config = model.config
    changed = [
        n
        for n in ("final_logit_softcapping", "logits_scaling", "logit_scale")
        if getattr(config, n, None) not in (None, 1, 1.0)
    ]
    if changed:
        return f"its logits are changed after the unembedding ({changed[0]})"
    if head is None or not close(
        head(twin.base_model(input_ids=ids)[0]), twin(input_ids=ids).logits
    ):
        return "its logits are more than the unembedding of its last hidden state"
    return None


@capability("llama-linears", "seven separate linear maps a block, named as in LLaMA")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    base = model.twin.base_model
    if any(not hasattr(base, n) for n in ("layers", "norm")) or not hasattr(model.twin, "lm_head"):
        return "its parts are not named as in LLaMA (model.layers, model.norm, lm_head)"
    for name in LINEARS:
        if not all(isinstance(m, nn.Linear) for m in submodules(model.stack, name)):
            return f"its blocks have no linear map {name}"
    return None


@capability("linear-maps", "all matrices of a block belong to linear maps (not GPT-2's Conv1D)")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    for block in model.stack.blocks:
        held = {id(m.weight) for m in block.modules() if isinstance(m, nn.Linear)}
        for name, p in block.named_parameters():
            if p.dim() > 1 and id(p) not in held:
                return f"{name} of its blocks is not the weight of a linear map"
    return None


@capability("dense-mlp", "one MLP a block, whose output is that of its last linear map")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    for mlp in model.stack.mlp:
        maps = [
            m
            for m in mlp.modules()
            if getattr(m, "weight", None) is not None and m.weight.dim() == 2
        ]
        if not maps or any(p.dim() > 2 for p in mlp.parameters()):
            return "its MLP is a mixture of experts or of another kind"
        wrote = [model.outputs_of(m, lambda _x, y: y) for m in (maps[-1], mlp)]
        if (
            wrote[0] is None
            or wrote[0].numel() != wrote[1].numel()
            or not close(wrote[0].flatten(), wrote[1].flatten())
        ):
            return "the last linear map of its MLP does not write the MLP's output"
    return None


@capability("rms-norm", "norms before attention are x / rms(x) * weight, not 1 + weight")
@torch.no_grad()
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    x = torch.linspace(-2, 3, twins.WIDTH)[None]
    for norm in submodules(model.stack, "input_layernorm"):
        weight = getattr(norm, "weight", None)
        if weight is None:
            return "its blocks have no input_layernorm with a weight"
        if not close(norm(x), x * x.pow(2).mean().rsqrt() * weight):
            return f"{type(norm).__name__} does not compute x / rms(x) * weight"
    return None


@capability("plain-queries", "queries and keys are linear in what they read: no biases, no norms")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    for name in ("q_proj", "k_proj"):
        for m in submodules(model.stack, f"self_attn.{name}"):
            if not isinstance(m, nn.Linear):
                return f"its blocks have no linear map self_attn.{name}"
            if m.bias is not None:
                return f"its self_attn.{name} has a bias"
    if any(
        m is not None
        for n in ("q_norm", "k_norm")
        for m in submodules(model.stack, f"self_attn.{n}")
    ):
        return "its queries and keys go through a norm of their own"
    return None


@capability("no-mlp-bias", "no biases in the MLP")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    found = [n for mlp in model.stack.mlp for n, _p in mlp.named_parameters() if n.endswith("bias")]
    return f"its MLP has biases ({found[0]})" if found else None


@capability("layers", "at least so many layers")
def _(model: Model, value: str, _params: Mapping[str, Any]) -> str | None:
    n = model.config.num_hidden_layers
    return f"it has {n} layers where at least {value} are needed" if n < int(value) else None


@capability("groups", "layers' inputs can be cut into groups of this size, or of this parameter's")
def _(model: Model, value: str, params: Mapping[str, Any]) -> str | None:
    size = int(params[value] if value in params else value)
    config = model.config
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    for width in (config.hidden_size, heads, getattr(config, "intermediate_size", None) or size):
        if width % size:
            known = f"{value} = {size}" if value in params else f"{size}"
            return f"its layers of {width} inputs cannot be cut into groups of {known}"
    return None


@capability("fast-tokenizer", "a tokenizer that tells where in the text each token stands")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    if getattr(model.tokenizer, "is_fast", False):
        return None
    return "its tokenizer does not tell where tokens stand in the text (no tokenizer.json)"


@capability("start-token", "a tokenizer that marks the beginning of a text, or has a token for it")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    marked = model.tokenizer("word", return_special_tokens_mask=True)["special_tokens_mask"]
    if any(marked) or model.tokenizer.bos_token_id is not None:
        return None
    return "its tokenizer has no token for the beginning of a text"


@capability("end-token", "a tokenizer with a token for the end of a text")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    if model.tokenizer.eos_token_id is None:
        return "its tokenizer has no token for the end of a text"
    return None


@capability("chat-template", "a tokenizer that lays out a conversation, and keeps what is said")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    if not getattr(model.tokenizer, "chat_template", None):
        return "its tokenizer has no chat template"
    said = [{"role": "user", "content": TEMPLATED + "\n"}]
    try:
        text = model.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's author
        return f"its chat template fails on one user message ({str(error).splitlines()[0][:120]})"
    return None if TEMPLATED in text else "its chat template does not keep the words of a message"


@capability("words-apart", "a text's tokens stay the same when a word is written behind it")
def _(model: Model, _value: str, _params: Mapping[str, Any]) -> str | None:
    asked, whole = (model.tokenizer(t).input_ids for t in ("Q: Where?\nA:", "Q: Where?\nA: Here"))
    return (
        None
        if whole[: len(asked)] == asked
        else "its tokenizer changes a text's tokens when a word follows"
    )


@capability("same-tokenizer", "cuts text into the tokens of another parameter's model")
def _(model: Model, value: str, params: Mapping[str, Any]) -> str | None:
    text, other = "In the beginning was the Word.", Model(params[value], model.kind)
    if model.tokenizer(text).input_ids == other.tokenizer(text).input_ids:
        return None
    return f"its tokenizer is not that of {value} = {params[value]!r}"


@capability("same-shape", "has as many layers, heads and channels as another parameter's model")
def _(model: Model, value: str, params: Mapping[str, Any]) -> str | None:
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    other = Model(params[value], model.kind).config
    for name in sizes:
        mine, its = getattr(model.config, name), getattr(other, name)
        if mine != its:
            return f"its {name} is {mine}, that of {value} = {params[value]!r} is {its}"
    return None


def check(
    name: str, kind: str, needs: Sequence[str], takes: str, params: Mapping[str, Any]
) -> None:
    """Hold a model against what a method needs of it, without loading a weight.

    Args:
        name: a folder, an asset or network of this project, or a Hugging Face id.
        kind: "causal-lm" or "encoder".
        needs: names of capabilities, some with "=value".
        takes: what models would do, for the reader.
        params: all parameters of the run, to which some capabilities refer.

    Raises:
        Unfit: what the model lacks and what would do, in one sentence.
        inputs.InputError: there is no such model.
    """
    model = Model(name, kind)
    stored = model.tensors()  # first of all: no weight file is opened before its kind is known
    try:
        lacking = _unfit(model, needs, params)
    except Unknown as error:
        lacking = str(error)
    if lacking:
        raise Unfit(f"{lacking}; it takes {takes}")
    if model.tokenizer.vocab_size > model.config.vocab_size:
        raise Unfit(
            f"its tokenizer has {model.tokenizer.vocab_size:,} tokens and the network "
            f"{model.config.vocab_size:,}: give it the tokenizer with which it was trained"
        )
    model.whole(stored)


def _unfit(model: Model, needs: Sequence[str], params: Mapping[str, Any]) -> str | None:
    """The first thing that a model lacks, and what it is needed for."""
    ahead, type_ = twins.looks_ahead(model.twin), model.config.model_type
    if ahead and model.kind == "causal-lm":
        return (
            f"a network of type {type_!r} lets each token see those that follow, and this method "
            "needs a causal language model"
        )
    if not ahead and model.kind == "encoder":
        return (
            f"a network of type {type_!r} does not let a token see those that follow, and this "
            "method needs an encoder"
        )
    for need in needs:
        word, _, value = need.partition("=")
        lacking = CAPABILITIES[word].lacking(model, value, params)
        if lacking:
            return f"{lacking}, and this method needs {CAPABILITIES[word].explanation}"
    return None
