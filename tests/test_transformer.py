"""Sites and interventions on tiny random models of every layout, against a forward pass written out
by hand.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from layerbook.layers import transformer as tf

B, T, D, N, VOCAB, WINDOW = 2, 6, 16, 3, 40, 3
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 32,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GATED = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2}
BUILD = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**GATED)),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**GATED)),
    "mistral": (
        hf.MistralForCausalLM,
        hf.MistralConfig(**GATED, sliding_window=WINDOW, head_dim=4),
    ),
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=D,
            n_layer=N,
            n_head=4,
            n_positions=32,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        ),
    ),
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SMALL, intermediate_size=24)),
    "bert": (
        hf.BertForMaskedLM,
        hf.BertConfig(**{**SMALL, "pad_token_id": 0}, intermediate_size=24),
    ),
}
DECODERS = [name for name in BUILD if name != "bert"]
# the others compute norms or the softmax in float32, whatever the model is in
EXACT = (
    "gpt2",
    "bert",
)
IDS = torch.randint(1, VOCAB, (B, T), generator=torch.Generator().manual_seed(1))
PAD = torch.tensor([[1] * T, [1] * (T - 2) + [0] * 2])
every = pytest.mark.parametrize("name", BUILD)
decoders = pytest.mark.parametrize("name", DECODERS)
kernels = pytest.mark.parametrize("kernel", ["eager", "sdpa"])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name, kernel="eager", dtype=torch.float64, kinds=BUILD):
    torch.manual_seed(0)
    cls, config = kinds[name]
    model = (
        cls._from_config(copy.deepcopy(config), attn_implementation=kernel)
        .to(dtype)
        .eval()
        .requires_grad_(False)
    )
    for p in (
        model.parameters()
    ):  # gains and biases too: at their initial values they would hide mistakes
        p += 0.1 * torch.randn_like(p)
    return model


def close(name, a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10 if name in EXACT else 2e-5)


def allowed(name, pad=None):
    """Pairs that may attend [B, T, T]: causal, within the window, no padding."""
    i = torch.arange(T)
    ok = torch.ones(T, T, dtype=torch.bool) if name == "bert" else i[:, None] >= i
    if name == "mistral":
        ok = ok & (i[:, None] - i < WINDOW)
    return ok.expand(B, T, T) & (True if pad is None else pad[:, None].bool())


def by_hand(name, model, ids=IDS, pad=None, cut=(), edit=lambda site, layer, h: h):
    """The forward pass written out: sites (lists), and logits of a decoder. cut: layer -> pairs [B,
    T, T] to be masked.
    """
    base, sites = model.base_model, {"resid": [], "attn": [], "mlp": []}
    places = torch.arange(ids.shape[1])[None]

    def see(site, layer, h):
        sites[site].append(edit(site, layer, h))
        return sites[site][-1]

    if name == "gpt2":
        h, blocks, norm = base.wte(ids) + base.wpe(places), base.h, base.ln_f
    elif name == "bert":
        h, blocks, norm = base.embeddings(ids), base.encoder.layer, None
    elif name == "gpt_neox":
        h, blocks, norm = base.embed_in(ids), base.layers, base.final_layer_norm
    else:
        h, blocks, norm = base.embed_tokens(ids), base.layers, base.norm
    for i, b in enumerate(blocks):
        ok = allowed(name, pad) & ~(cut[i] if i in cut else torch.zeros(B, T, T, dtype=torch.bool))
        mask = torch.zeros(B, 1, T, T, dtype=h.dtype).masked_fill(~ok[:, None], -1e9)
        h = see("resid", i, h)
        if name == "gpt2":
            x = h + see("attn", i, b.attn(b.ln_1(h), attention_mask=mask)[0])
            h = x + see("mlp", i, b.mlp(b.ln_2(x)))
        elif name == "bert":
            a = see("attn", i, b.attention.output.dense(b.attention.self(h, mask)[0]))
            x = b.attention.output.LayerNorm(a + h)
            h = b.output.LayerNorm(see("mlp", i, b.output.dense(b.intermediate(x))) + x)
        elif name == "gpt_neox":
            a = see(
                "attn",
                i,
                b.attention(
                    b.input_layernorm(h), mask, position_embeddings=base.rotary_emb(h, places)
                )[0],
            )
            h = see("mlp", i, b.mlp(b.post_attention_layernorm(h))) + a + h
        else:
            rope = base.rotary_emb(h, places)
            a = b.self_attn(
                hidden_states=b.input_layernorm(h), position_embeddings=rope, attention_mask=mask
            )[0]
            x = h + see("attn", i, a)
            h = x + see("mlp", i, b.mlp(b.post_attention_layernorm(x)))
    h = see("resid", len(blocks), h)
    return SimpleNamespace(
        **sites, logits=model.get_output_embeddings()(norm(h)) if norm is not None else model.cls(h)
    )


def pairs(targets, sources):
    cut = torch.zeros(B, T, T, dtype=torch.bool)
    cut[:, torch.tensor(targets)[:, None], torch.tensor(sources)] = True
    return cut


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- recording


@kernels
@every
def test_capture_equals_the_pass_by_hand_and_the_hidden_states(name, kernel):
    model = build(name, kernel)
    net = tf.Stack(model)
    for pad in (None, PAD):
        got, want = tf.capture(net, IDS, mask=pad), by_hand(name, model, pad=pad)
        for site in tf.SITES:
            assert (
                got[site].shape == (N + (site == "resid"), B, T, D) and not got[site].requires_grad
            )
            close(name, got[site], torch.stack(getattr(want, site)))
        assert pad is not None or hooks(model) == 0  # the next line leaves hooks of its own
        states = model(IDS, attention_mask=pad, output_hidden_states=True).hidden_states
        close(name, got["resid"][:-1], torch.stack(states[:-1]))
        close(name, net.norm(got["resid"][-1]) if net.norm else got["resid"][-1], states[-1])


def test_capture_at_chosen_positions():
    net = tf.Stack(build("gpt2"))
    whole = tf.capture(net, IDS)["mlp"]
    last = torch.tensor([[-1], [3]])
    for positions, want in (
        (slice(1, 3), whole[:, :, 1:3]),
        ([-1, 0], whole[:, :, [-1, 0]]),
        (2, whole[:, :, [2]]),
        (last, torch.stack([whole[:, 0, [-1]], whole[:, 1, [3]]], 1)),
    ):
        torch.testing.assert_close(tf.capture(net, IDS, ("mlp",), positions=positions)["mlp"], want)
    with pytest.raises(ValueError, match="mask of booleans"):
        tf.capture(net, IDS, positions=PAD.bool())
    with pytest.raises(ValueError, match=r"\[9\] are not all among the 6"):
        tf.capture(net, IDS, positions=[9])
    with pytest.raises(ValueError, match="no site 'heads'; there are resid, attn, mlp"):
        tf.capture(net, IDS, ("heads",))
    assert hooks(net.model) == 0


def test_watch_keeps_the_graph():
    model = build("llama").requires_grad_(True)
    with tf.watch(tf.Stack(model), ("attn",)) as seen:
        value = model(IDS).logits.sum()
    assert torch.autograd.grad(value, seen["attn"][1])[0].abs().sum() > 0


@kernels
@every
def test_resume_equals_the_full_pass(name, kernel):
    model = build(name, kernel)
    net = tf.Stack(model)
    calls, resid = (
        tf.entries(net, IDS, mask=PAD),
        tf.capture(net, IDS, ("resid",), mask=PAD)["resid"],
    )
    assert len(calls) == N and all("attention_mask" in kwargs for _, kwargs in calls)
    torch.testing.assert_close(torch.stack([h for h, _ in calls]), resid[:-1])
    for start in range(N):
        torch.testing.assert_close(tf.resume(net, resid[start], calls, start), resid[-1])
    torch.testing.assert_close(tf.resume(net, resid[0], calls, 0, 2), resid[2])
    torch.testing.assert_close(
        tf.resume(net, resid[1].repeat(3, 1, 1), calls, 1), resid[-1].repeat(3, 1, 1)
    )
    with pytest.raises(ValueError, match="the calls are of 2 prompts of 6 positions"):
        tf.resume(net, resid[0][:1], calls, 0)


@decoders
def test_lens_of_the_last_state_is_the_output(name):
    model = build(name)
    net = tf.Stack(model)
    resid = tf.capture(net, IDS, ("resid",))["resid"]
    torch.testing.assert_close(tf.lens(net, resid[-1]), model(IDS).logits)
    assert tf.lens(net, resid).shape == (N + 1, B, T, VOCAB)


def test_lens_is_refused_without_a_final_norm_or_an_unembedding():
    for model in (build("bert"), build("gpt2").base_model):
        net = tf.Stack(model)
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} has no final norm and unembedding"
        ):
            tf.lens(net, torch.zeros(D))


# --- which models


def test_an_unknown_layout_is_refused_by_a_message_that_names_the_known_ones():
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=VOCAB, d_model=D, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    )
    for model in (t5, torch.nn.Linear(2, 2)):
        with pytest.raises(
            ValueError, match="known are Gemma 2, LLaMA, Qwen2, Mistral, GPT-2, GPT-NeoX, BERT"
        ):
            tf.Stack(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_familiar_names_with_other_arithmetic_are_refused(dtype):
    kinds = {
        "granite": (hf.GraniteForCausalLM, hf.GraniteConfig(**GATED, residual_multiplier=0.5)),
        "plain": (hf.GraniteForCausalLM, hf.GraniteConfig(**GATED)),
        "scaled": (hf.GraniteForCausalLM, hf.GraniteConfig(**GATED, logits_scaling=3.0)),
    }
    with pytest.raises(ValueError, match="do not add up to a residual stream"):
        tf.Stack(build("granite", dtype=dtype, kinds=kinds))
    assert tf.Stack(build("plain", dtype=dtype, kinds=kinds)).head is not None
    # logits are more than norm and unembedding
    assert tf.Stack(build("scaled", dtype=dtype, kinds=kinds)).head is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gemma_2_adds_what_its_norms_return(dtype):
    kinds = {
        "gemma2": (
            hf.Gemma2ForCausalLM,
            hf.Gemma2Config(**GATED, head_dim=4, query_pre_attn_scalar=4, sliding_window=WINDOW),
        )
    }
    model = build("gemma2", dtype=dtype, kinds=kinds)
    net = tf.Stack(model)
    assert net.sites["attn"][0] is model.model.layers[0].post_attention_layernorm
    # with the soft cap
    torch.testing.assert_close(tf.lens(net, tf.capture(net, IDS)["resid"][-1]), model(IDS).logits)


@every
def test_other_precisions_are_accepted(name):
    for dtype in (torch.float32, torch.bfloat16):
        net = tf.Stack(build(name, "sdpa", dtype))
        with (
            tf.knock_out(net, [1], [0], [-1]),
            tf.skip(net, 2, "attn"),
            tf.replace(net, {("mlp", 0): lambda h: h.double() * 2}),
        ):
            assert tf.capture(net, IDS)["resid"].dtype == dtype


# --- replacing


@every
def test_replace_equals_the_pass_by_hand(name):
    model = build(name)
    net, plain = tf.Stack(model), by_hand(name, model).logits
    for site in tf.SITES:
        for layer in range(N + (site == "resid")):

            def fn(h):
                return torch.cat([h[:, :2], 3 * h[:, 2:3].flip(-1), h[:, 3:]], 1)

            want = by_hand(
                name, model, edit=lambda s, i, h, at=(site, layer): fn(h) if (s, i) == at else h
            ).logits
            with tf.replace(net, {(site, layer): fn}):
                close(name, model(IDS).logits, want)
            assert (want - plain).abs().max() > 1e-3  # so the agreement says something
    assert hooks(model) == 0
    close(name, model(IDS).logits, plain)


def test_patching_in_copies_equals_full_runs():
    model = build("mistral", "sdpa")
    net, other = tf.Stack(model), IDS.flip(0)
    clean, dirty, calls = tf.capture(net, IDS), tf.capture(net, other), tf.entries(net, other)
    layer = 1

    def put(h):
        copies = [
            torch.where(torch.arange(T)[:, None] == p, clean["mlp"][layer], c)
            for p, c in enumerate(h.split(B))
        ]
        return torch.cat(copies)

    with tf.replace(net, {("mlp", layer): put}):
        fast = tf.lens(
            net, tf.resume(net, dirty["resid"][layer].repeat(T, 1, 1), calls, layer)
        ).split(B)
    for p in range(T):
        with tf.replace(
            net,
            {
                ("mlp", layer): lambda h, p=p: torch.where(
                    torch.arange(T)[:, None] == p, clean["mlp"][layer], h
                )
            },
        ):
            torch.testing.assert_close(fast[p], model(other).logits)


def test_the_model_is_restored_after_an_exception():
    model = build("llama")
    net, plain = tf.Stack(model), model(IDS).logits
    for change in (
        lambda: tf.replace(net, {("attn", 0): torch.zeros_like}),
        lambda: tf.skip(net, [0, 1]),
        lambda: tf.watch(net),
        lambda: tf.knock_out(net, [0, 2], [0], [3]),
    ):
        with pytest.raises(KeyError), change():
            assert hooks(model) > 0
            model(IDS)
            raise KeyError
        assert hooks(model) == 0
    # also if the second of two changes does not exist, and if a change goes wrong within the pass
    with pytest.raises(ValueError, match="no layer 3: the layers of this model are 0 to 2"):
        with tf.replace(net, {("attn", 0): torch.zeros_like, ("attn", 3): torch.zeros_like}):
            pass
    for wrong in (lambda h: h[:, :1], lambda h: None):
        with (
            pytest.raises(ValueError, match="must return a tensor"),
            tf.replace(net, {("resid", 0): wrong}),
        ):
            model(IDS)
    assert hooks(model) == 0
    assert torch.equal(model(IDS).logits, plain)


# --- skipping

CHOSEN = torch.tensor(
    [[False, True, True, False, False, True], [True, False, False, False, True, False]]
)


@every
def test_skip_equals_the_pass_by_hand(name):
    model = build(name)
    net, plain = tf.Stack(model), model(IDS).logits
    for part in ("attn", "mlp"):
        want = by_hand(
            name,
            model,
            edit=lambda s, i, h, p=part: (
                h.masked_fill(CHOSEN[..., None], 0) if (s, i) == (p, 1) else h
            ),
        )
        with tf.skip(net, [1], part, CHOSEN):
            close(name, model(IDS).logits, want.logits)
        assert (plain - want.logits).abs().max() > 1e-3
    entered = by_hand(name, model).resid[1]
    want = by_hand(
        name,
        model,
        edit=lambda s, i, h: (
            torch.where(CHOSEN[..., None], entered, h) if (s, i) == ("resid", 2) else h
        ),
    )
    with tf.skip(net, 1, positions=CHOSEN):
        close(name, model(IDS).logits, want.logits)
    assert (plain - want.logits).abs().max() > 1e-3
    with (
        pytest.raises(ValueError, match="no part 'head'; there are layer, attn, mlp"),
        tf.skip(net, 1, "head"),
    ):
        pass


@decoders
def test_skipping_everything_leaves_the_embeddings(name):
    model = build(name)
    net = tf.Stack(model)
    embeddings = tf.capture(net, IDS, ("resid",))["resid"][0]
    with tf.skip(net, range(N)):
        torch.testing.assert_close(model(IDS).logits, tf.lens(net, embeddings))
    with tf.skip(net, range(N), "attn"), tf.skip(net, range(N), "mlp"):
        torch.testing.assert_close(model(IDS).logits, tf.lens(net, embeddings))


@decoders
def test_skipping_leaves_keys_and_values_as_they_were(name):
    model = build(name)
    net, plain = tf.Stack(model), model(IDS, use_cache=True).past_key_values
    layer, at, kept = 1, [1, 4], [0, 2, 3, 5]
    before = tf.capture(net, IDS)["resid"]
    with tf.skip(net, layer, positions=at):
        after, cache = tf.capture(net, IDS)["resid"], model(IDS, use_cache=True).past_key_values
    for kind in ("keys", "values"):
        same = [
            torch.equal(getattr(a, kind), getattr(b, kind))
            for a, b in zip(plain.layers, cache.layers)
        ]
        assert same == [True, True, False]  # later layers see the skipped state; this one does not
    assert torch.equal(after[layer + 1][:, at], before[layer][:, at])
    assert torch.equal(after[layer + 1][:, kept], before[layer + 1][:, kept])


def test_an_inner_change_acts_on_what_a_skipped_layer_passes_on():
    net = tf.Stack(build("gpt2"))
    with tf.skip(net, 1), tf.replace(net, {("resid", 1): torch.ones_like}):
        assert (tf.capture(net, IDS)["resid"][2] == 1).all()


# --- attention knockout


@kernels
@every
def test_knock_out_equals_a_hand_made_mask(name, kernel):
    model = build(name, kernel)
    net, cut = tf.Stack(model), pairs([3, 5], [2, 4])
    for pad in (None, PAD):
        plain = model(IDS, attention_mask=pad).logits
        for layers in ([1], [0, 2], range(N)):
            want = by_hand(name, model, pad=pad, cut=dict.fromkeys(layers, cut)).logits
            with tf.knock_out(net, layers, sources=[2, 4], targets=[3, -1]):
                got = model(IDS, attention_mask=pad).logits
            close(name, got, want)
            assert (got - plain).abs().max() > 1e-3
    assert hooks(model) == 0


@kernels
@every
def test_cutting_all_sources_but_the_target_itself_leaves_its_own_value(name, kernel):
    model = build(name, kernel)
    net = tf.Stack(model)
    with tf.knock_out(net, 0, [p for p in range(T) if p != 4], [4]):
        got = tf.capture(net, IDS, ("attn",))["attn"][0]
    want = by_hand(name, model, cut={0: pairs([4], [p for p in range(T) if p != 4])}).attn[0]
    close(name, got, want)
    # a prompt of this token alone
    alone = tf.capture(net, IDS[:, 4:5], ("attn",), position_ids=torch.tensor([[4]]))["attn"][0]
    close(name, got[:, 4:5], alone)


def test_knock_out_by_a_mask_for_each_prompt_and_in_copies():
    model = build("llama", "sdpa")
    net = tf.Stack(model)
    sources, targets = torch.zeros(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    sources[0, 1], targets[0, 3], sources[1, 2], targets[1, 5] = True, True, True, True
    cut = targets[:, :, None] & sources[:, None]
    want = by_hand("llama", model, cut={1: cut})
    calls = tf.entries(net, IDS)
    with tf.knock_out(net, 1, sources, targets):
        close("llama", model(IDS).logits, want.logits)
        close(
            "llama",
            tf.resume(net, calls[1][0].repeat(3, 1, 1), calls, 1),
            want.resid[-1].repeat(3, 1, 1),
        )
    with tf.knock_out(net, 1, torch.tensor([[1], [2]]), torch.tensor([[3], [5]])):
        close("llama", model(IDS).logits, want.logits)
    with (
        tf.knock_out(net, 1, sources[:, :4], targets),
        pytest.raises(ValueError, match="do not fit 2 prompts of 6 positions"),
    ):
        model(IDS)


@every
def test_the_pattern_is_zero_where_it_was_cut_and_still_sums_to_one(name):
    model = build(name)
    net = tf.Stack(model)
    with tf.knock_out(net, [1], [0, 1], slice(2, None)):
        patterns = model(IDS, output_attentions=True).attentions
    assert (patterns[1][:, :, 2:, :2] == 0).all() and (patterns[0][:, :, 2, 1] > 0).all()
    torch.testing.assert_close(
        patterns[1].sum(-1), torch.ones(B, 4, T, dtype=torch.float64), rtol=0, atol=1e-6
    )


@kernels
def test_two_knock_outs_act_together(kernel):
    model = build("gpt_neox", kernel)
    net = tf.Stack(model)
    with tf.knock_out(net, 1, [0], [2]), tf.knock_out(net, 1, [1], [4]):
        close(
            "gpt_neox",
            model(IDS).logits,
            by_hand("gpt_neox", model, cut={1: pairs([2], [0]) | pairs([4], [1])}).logits,
        )


def test_knock_out_refuses_what_it_cannot_cut():
    model = build("gpt2", "sdpa")
    net = tf.Stack(model)
    with (
        tf.knock_out(net, 0, slice(None), [2]),
        pytest.raises(ValueError, match="cut off from every position"),
    ):
        model(IDS)
    cache = model(IDS[:, :3], use_cache=True).past_key_values
    with tf.knock_out(net, 0, [0], [1]):
        model(IDS, use_cache=True)  # a cache that is still empty is no obstacle
        with pytest.raises(ValueError, match="not in one that continues a cache"):
            model(IDS[:, 3:], past_key_values=cache)
    model.config._attn_implementation = "flash_attention_2"
    attention = net.attention[0]
    with (
        pytest.raises(ValueError, match="attn_implementation='eager' or 'sdpa'"),
        tf.knock_out(net, 0, [0], [1]),
    ):
        attention(torch.zeros(B, T, D, dtype=torch.float64), attention_mask=None)
