"""RelP's method against closed forms, finite differences and brute force; and what happens when it
is broken.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from layerbook import paths
from layerbook.claims import cards, engine, roles
from layerbook.data import loaders
from layerbook.networks import tinygpt
from layerbook.pipeline import method

TINY = paths.MODELS / "tiny-gpt2"
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "gemma": GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=32),
    "gpt-neox": GPTNeoXConfig(**SMALL, max_position_embeddings=32),
}


@pytest.fixture(scope="module")
def relp() -> SimpleNamespace:
    return method.load("relp")


def network(config, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A random network whose weights are large enough to bend, in double precision."""
    torch.manual_seed(seed)
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        .to(dtype)
        .eval()
        .requires_grad_(False)
    )
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.mul_(6)
        elif name.endswith("bias"):
            p.normal_(std=0.3)
        else:
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def net(request, relp):
    return relp.parts(network(CONFIGS[request.param]))


def task(relp, n: int = 2, length: int = 7, changed: int = 3):
    """A family of random ids: prompts differ from their corruption at one position."""
    g = torch.Generator().manual_seed(1)
    clean = torch.randint(5, 60, (1, length), generator=g).repeat(n, 1)
    clean[:, changed] = torch.arange(n) + 5
    return relp.Family("random", clean, clean.flip(0), torch.tensor([[7, 9]] * n), changed, [])


def leak(relp, net, fam, names) -> float:
    value, z, rho = relp.coefficients(net, fam.corrupted, fam.answers, names)
    total = (z["resid"] * rho["resid"]).sum((-1, -2))
    return float(((total - value).abs().amax(1) / value.abs().mean()).max())


# --- the rules in closed form ---


def test_secants_have_their_closed_form_and_their_limit_at_zero(relp):
    x = torch.tensor([-30.0, -2.0, -1e-9, 0.0, 1e-12, 0.7, 40.0], dtype=torch.float64)
    assert torch.allclose(relp.secant(torch.nn.SiLU(), x), torch.sigmoid(x), atol=1e-12)
    assert torch.allclose(
        relp.secant(torch.nn.GELU(), x), 0.5 * (1 + torch.erf(x / math.sqrt(2))), atol=1e-12
    )
    # its secant is its derivative
    assert torch.equal(relp.secant(torch.nn.ReLU(), x), (x > 0).double())
    assert relp.secant(torch.nn.SiLU(), torch.zeros(1)).item() == 0.5
    assert relp.secant(torch.nn.GELU(approximate="tanh"), torch.zeros(1)).item() == 0.5
    with pytest.raises(ValueError, match="0 at 0"):
        relp.secant(torch.sigmoid, x)


def test_identity_rule_has_the_secant_for_slope_and_not_the_derivative(relp):
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    act = torch.nn.SiLU()
    (slope,) = torch.autograd.grad(relp.identity_rule(act, 0)(x).sum(), x)
    (derivative,) = torch.autograd.grad(act(x).sum(), x)
    assert torch.allclose(slope, torch.sigmoid(x))
    assert (slope - derivative).abs().max() > 0.2
    (off,) = torch.autograd.grad(relp.identity_rule(act, 0, strength=0.0)(x).sum(), x)
    (mirrored,) = torch.autograd.grad(relp.identity_rule(act, 0, strength=-1.0)(x).sum(), x)
    assert torch.allclose(off, derivative) and torch.allclose(mirrored, 2 * derivative - slope)


@pytest.mark.parametrize(
    "make",
    [lambda: torch.nn.LayerNorm(6), lambda: LlamaRMSNorm(6), lambda: GemmaRMSNorm(6)],
    ids=["LayerNorm", "RMSNorm", "RMSNorm with gain minus one"],
)
def test_ln_rule_has_the_jacobian_of_a_frozen_scale(relp, make):
    torch.manual_seed(0)
    norm = make()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(6)
    centred = isinstance(norm, torch.nn.LayerNorm)
    x0 = x - x.mean() if centred else x
    gain = norm.weight + 1 if isinstance(norm, GemmaRMSNorm) else norm.weight
    wanted = torch.diag(gain) @ (torch.eye(6) - (1 / 6 if centred else 0)) / x0.pow(2).mean().sqrt()
    got = torch.autograd.functional.jacobian(relp.ln_rule(norm), x)
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(torch.autograd.functional.jacobian(norm, x), wanted, atol=1e-2)


def test_ln_rule_refuses_a_norm_that_it_was_not_written_for(relp):
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x).tanh()

    with pytest.raises(ValueError, match="OddRMSNorm"):
        relp.ln_rule(OddRMSNorm(4))(torch.randn(3, 4))


def test_half_rule_halves_the_slope_of_both_factors(relp):
    net = relp.parts(network(CONFIGS["llama"]))
    x = torch.randn(1, 4, 32, dtype=torch.float64, requires_grad=True)
    (full,) = torch.autograd.grad(net.stack.mlp[0](x).sum(), x)
    with relp.rules(net, ("Half",)):
        y = net.stack.mlp[0](x)
        (half,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(half, full / 2) and torch.equal(y, net.stack.mlp[0](x))


# --- the rules in a whole network ---


@pytest.mark.parametrize(
    "names",
    [("LN",), ("Identity",), ("Half",), ("AH",), ("LN", "Identity", "Half", "AH")],
    ids="+".join,
)
def test_rules_leave_forward_values_alone_and_are_taken_back(relp, net, names):
    fam = task(relp)
    before, _, gradient = relp.coefficients(net, fam.corrupted, fam.answers)
    ruled, _, rho = relp.coefficients(net, fam.corrupted, fam.answers, names)
    after, _, again = relp.coefficients(net, fam.corrupted, fam.answers)
    assert (ruled - before).abs().max() == 0 and torch.equal(after, before)
    assert torch.equal(again["resid"], gradient["resid"])
    if names != ("Half",) or net.product[0] is not None:
        assert not torch.allclose(rho["resid"], gradient["resid"], rtol=1e-2, atol=1e-6)


def test_an_unknown_rule_is_refused(relp, net):
    with pytest.raises(ValueError, match="Identity"), relp.rules(net, ("identity",)):
        pass


def without_biases(config):
    model = network(config)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_four_rules_conserve_relevance_and_each_of_them_is_needed(relp, kind):
    net, fam = relp.parts(without_biases(CONFIGS[kind])), task(relp)
    # RMSNorm works in single precision whatever it is given; LayerNorm keeps double.
    assert leak(relp, net, fam, relp.ALL) < (1e-9 if kind.startswith("gpt") else 1e-4)
    for rule in relp.ALL:
        if rule != "Half" or net.product[0] is not None:
            assert leak(relp, net, fam, [r for r in relp.ALL if r != rule]) > 1e-2, (
                f"{rule} is not needed"
            )


def test_biases_break_conservation(relp):
    net = relp.parts(network(CONFIGS["gpt2"]))
    assert net.leaky and not relp.parts(network(CONFIGS["llama"])).leaky
    assert leak(relp, net, task(relp), relp.ALL) > 1e-2


@pytest.mark.parametrize(("cap", "leaky"), [(None, False), (2.0, True)])
def test_squashed_logits_break_conservation(relp, cap, leaky):
    net = relp.parts(
        network(
            Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=cap)
        )
    )
    assert net.leaky == leaky
    assert (
        leak(relp, net, task(relp), relp.ALL) > 1e-2
        if leaky
        else leak(relp, net, task(relp), relp.ALL) < 1e-4
    )


def test_conservation_cannot_tell_how_a_gate_shares(relp):
    """Half and half is a choice: an uneven split would conserve as well, so the slopes are tested
    by themselves above.
    """
    g, u = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (1.5, -0.7))
    y = torch.nn.functional.silu(g.detach()) / g.detach() * g
    uneven = 0.2 * y * u.detach() + 0.8 * y.detach() * u
    by_g, by_u = torch.autograd.grad(uneven, (g, u))
    assert torch.allclose(g * by_g + u * by_u, torch.nn.functional.silu(g) * u)


# --- patching and its first-order estimate ---


@pytest.mark.parametrize(
    "positions", [range(3, 7), range(7), [4, 6]], ids=["from the change on", "all", "some"]
)
def test_restarted_patching_equals_brute_force(relp, net, positions):
    fam, positions = task(relp), list(positions)
    _, z_clean, _ = relp.forward(net, fam.clean, fam.answers)
    _, z, cache = relp.forward(net, fam.corrupted, fam.answers, keep=True)
    for layer in range(3):
        fast = relp.patch_layer(net, fam, z_clean, z, cache, layer, positions)
        slow = torch.stack(
            [
                torch.stack([relp.patch_one(net, fam, z_clean, s, layer, p) for p in positions])
                for s in range(3)
            ]
        )
        assert torch.allclose(fast, slow, atol=1e-5)


def test_patching_the_changed_token_into_the_first_block_restores_the_clean_run(relp, net):
    fam = task(relp)
    clean, z_clean, _ = relp.forward(net, fam.clean, fam.answers)
    assert torch.allclose(relp.patch_one(net, fam, z_clean, 0, 0, fam.changed), clean, atol=1e-5)


def error_of_finite_differences(relp, net, eps: float, names=()) -> float:
    """Largest difference between the estimates and central differences of patching, as a share of
    the largest estimate.
    """
    fam = task(relp)
    _, z_clean, _ = relp.forward(net, fam.clean, fam.answers)
    _, z, rho = relp.coefficients(net, fam.corrupted, fam.answers, names)
    estimate = relp.score(z_clean, z, rho, span=1.0)
    components = [(s, layer, p) for s in range(3) for layer in range(3) for p in (fam.changed, 5)]

    def patched(share: float) -> torch.Tensor:
        part = {s: z[s] + share * (z_clean[s] - z[s]) for s in relp.SITES}
        return torch.stack([relp.patch_one(net, fam, part, *c).mean() for c in components])

    slope = (patched(eps) - patched(-eps)) / (2 * eps)
    wanted = torch.stack([estimate[c] for c in components])
    return float((slope - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def softmax_in_double(monkeypatch):
    """Eager attention casts its scores to float32 for the softmax in every layout but GPT-2's; here
    it does not.
    """
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)
    )


# Step and tolerance follow from the precision. A central difference errs by about eps^2 (the third
# derivative) plus rounding over eps. In double precision throughout, eps = 1e-4 makes both about
# 1e-8 of the largest estimate: 5e-9 and 9e-9 were measured, the tolerance is 1e-7. RMSNorm casts to
# float32 itself, so that rounding is 1e-7 of numbers larger than the effects and a longer step is
# best: at eps = 1e-2 up to 2e-4 was measured, the tolerance is 2e-3.
@pytest.mark.parametrize("kind", CONFIGS)
def test_without_rules_the_estimate_is_the_derivative_of_patching(relp, kind, softmax_in_double):
    eps, tolerance = (1e-4, 1e-7) if kind.startswith("gpt") else (1e-2, 2e-3)
    net = relp.parts(network(CONFIGS[kind]))
    assert error_of_finite_differences(relp, net, eps) < tolerance
    assert error_of_finite_differences(relp, net, eps, relp.DEFAULT) > 0.1, (
        "the rules are not a derivative of the forward pass"
    )


def test_finite_differences_of_gpt_neox_are_spoilt_by_the_softmax_in_single_precision_alone(relp):
    """Why the test above replaces the softmax: a float32 pattern turns a small step into a
    staircase.

    The slopes themselves are right: those taken through the float32 softmax are those of
    scaled-dot-product attention,
    which stays in double, to float32's precision; and with that attention finite differences agree
    as well.
    """
    net, fam = relp.parts(network(CONFIGS["gpt-neox"])), task(relp)
    assert error_of_finite_differences(relp, net, 1e-5) > 1e-3
    _, _, single = relp.coefficients(net, fam.corrupted, fam.answers)
    net.model.config._attn_implementation = "sdpa"
    assert error_of_finite_differences(relp, net, 1e-5) < 1e-6
    _, _, double = relp.coefficients(net, fam.corrupted, fam.answers)
    for site in relp.SITES:
        assert (single[site] - double[site]).abs().max() < 1e-6 * double[site].abs().max()


def test_passes_are_counted_as_they_happen(relp, net):
    fam = task(relp)
    with relp.count(net) as n:
        _, z_clean, _ = relp.forward(net, fam.clean, fam.answers)
    assert (n["forward"], n["backward"], n["work"]) == (2, 0, 2 * 7 * 3)
    with relp.count(net) as n:
        relp.coefficients(net, fam.corrupted, fam.answers, relp.DEFAULT)
    assert (n["forward"], n["backward"]) == (2, 2)
    _, z, cache = relp.forward(net, fam.corrupted, fam.answers, keep=True)
    with relp.count(net) as n:
        relp.patch_layer(net, fam, z_clean, z, cache, 1, [3, 4])
    # sites x positions x prompts; 4 tokens, 2 of 3 blocks
    assert (n["forward"], n["work"]) == (
        3 * 2 * 2,
        3 * 2 * 2 * 4 * 2,
    )


# --- agreement, prompts, layouts ---


def test_one_giant_component_cannot_hide(relp):
    rng = np.random.default_rng(0)
    truth, estimate = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    truth[2, 3] = estimate[2, 3] = 100.0
    a = relp.agreement(truth, estimate, np.ones_like(truth, bool))
    assert a["r"] > 0.95 and abs(a["rest"]) < 0.5
    perfect = relp.agreement(truth, 3 * truth, truth > -9)
    assert perfect == pytest.approx({"r": 1, "rest": 1, "all": 1, "rank": 1, "sign": 1, "top": 3})


def test_prompts_differ_in_one_token_and_are_answerable(relp):
    _, tokenizer = loaders.causal_lm(str(TINY))
    fam = relp.family(tokenizer, 0, 6, seed=3)
    assert (fam.clean != fam.corrupted).sum(1).tolist() == [1] * 6
    for row, (right, wrong) in zip(fam.clean.tolist(), fam.answers.tolist()):
        assert row.count(right) == 1 and row.count(wrong) == 2 and row[fam.changed] == wrong
    assert torch.equal(fam.clean, relp.family(tokenizer, 0, 6, seed=3).clean)
    assert not torch.equal(fam.clean, relp.family(tokenizer, 0, 6, seed=4).clean)
    for n in (0, 3, 1000):
        with pytest.raises(ValueError, match="even number"):
            relp.family(tokenizer, 0, n)


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            ffn_dim=32,
            vocab_size=60,
            word_embed_proj_dim=32,
        ),
        MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2),
    ],
    ids=["OPT", "Mixtral"],
)
def test_unknown_layouts_are_refused_with_the_choices(relp, config):
    with pytest.raises(ValueError, match="layout.*LLaMA.*GPT-NeoX"):
        relp.parts(AutoModelForCausalLM.from_config(config))


# --- the trained network, and broken methods on it ---


@pytest.fixture(scope="module")
def tiny(relp):
    model, tokenizer = loaders.causal_lm(str(TINY))
    net, fam = relp.parts(model), relp.family(tokenizer, 0, 4)
    clean, z_clean, _ = relp.forward(net, fam.clean, fam.answers)
    value, z, cache = relp.forward(net, fam.corrupted, fam.answers, keep=True)
    span = float(clean.mean() - value.mean())
    positions = list(range(fam.changed, fam.clean.shape[1]))
    truth = torch.zeros(3, len(net.stack.blocks), fam.clean.shape[1])
    for layer in range(len(net.stack.blocks)):
        patched = relp.patch_layer(net, fam, z_clean, z, cache, layer, positions).mean(-1)
        truth[:, layer, positions] = (patched - value.mean()) / span
    cells = torch.stack([(z_clean[s] - z[s]).norm(dim=-1).amax(1) for s in relp.SITES]).numpy() > 0

    def agree(site: int, names=relp.DEFAULT, back: bool = False, **how) -> float:
        _, _, rho = relp.coefficients(net, fam.corrupted, fam.answers, names, **how)
        there, here = (z, z_clean) if back else (z_clean, z)
        return relp.agreement(
            truth[site].numpy(), relp.score(there, here, rho, span)[site].numpy(), cells[site]
        )["r"]

    return agree


@pytest.mark.parametrize("site", [0, 1, 2], ids=["residual", "attention", "mlp"])
def test_patching_in_the_wrong_direction_turns_the_correlation_round(tiny, site):
    assert tiny(site) > 0.5
    assert tiny(site, back=True) == pytest.approx(-tiny(site))


def verdict(claim: str, arrays: dict, gates: dict | None = None) -> str:
    """A claim's verdict when its control is in order and only its own measurements change."""
    card, noise = cards.load("relp"), [0.01, -0.02, 0.015, -0.01, 0.005]
    control = next(c["id"] for c in roles.of_claim(card, claim))
    measured = {claim: arrays, control: dict.fromkeys(arrays, noise)}
    rows = engine.decide(card, measured, gates or {"G1": [1.0] * 5, "G2": [3.0] * 5}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


NOISE = np.linspace(-0.01, 0.01, 5)
GOOD = {"gain": 0.9 + NOISE, "z": 1.9 + NOISE, "rest": 0.5 + NOISE}


def test_switching_the_rules_off_flips_the_verdict(relp, tiny):
    assert verdict("C1", GOOD) == verdict("C7", GOOD) == "reproduced"
    off = tiny(2, names=())  # what a run measures in RelP's place when no rule is on
    assert off == tiny(2, names=relp.DEFAULT, strength=0.0)
    broken = {
        "gain": [np.arctanh(off) - np.arctanh(tiny(2, names=()))] * 5,
        "z": np.arctanh(off) + NOISE,
        "rest": [0.0] * 5,
    }
    assert verdict("C7", broken) != "reproduced"
    assert tiny(2) > off + 0.05


def test_shuffled_slopes_are_other_slopes(relp, tiny):
    assert tiny(2, slopes=relp.shuffled(1)) != tiny(2) and tiny(2, slopes=relp.uniform) != tiny(2)
    s = torch.arange(12.0).view(3, 4)
    dealt = relp.shuffled(5)(s, 2)
    assert torch.equal(dealt.sort(-1).values, s) and torch.equal(dealt, relp.shuffled(5)(s, 2))
    assert (relp.uniform(s, 0) == s.mean()).all()


# --- the training of the small network ---


def test_training_is_deterministic_and_keeps_its_examination_apart():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recipe = tinygpt.Recipe(layers=1, width=32, steps=3, batch=4)
        first, second = (tinygpt.train(recipe)[0].state_dict() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[k], second[k]) for k in first)
    train, held_out = tinygpt.name_pairs(0)
    assert not {frozenset(p) for p in train} & {frozenset(p) for p in held_out}
    ids = tinygpt.vocabulary()
    for template in tinygpt.TEMPLATES:
        prompt, answer = tinygpt.sentence(template, "Mary", "John", "John", "park", "ball")
        assert answer == "Mary" and all(w in ids for w in tinygpt.words(prompt))


def test_the_shipped_network_passes_its_gate_and_says_so():
    import json

    card = json.loads((TINY / "card.json").read_text(encoding="utf-8"))
    assert (
        card["gate"]["passed"] and min(card["held_out"]["accuracy"].values()) >= tinygpt.Recipe.gate
    )
    model, tokenizer = loaders.causal_lm(str(TINY))
    a, b = tinygpt.name_pairs(0)[1][0]
    prompt, answer = tinygpt.sentence(tinygpt.TEMPLATES[1], a, b, b, "park", "ball")
    logits = model(**tokenizer(prompt, return_tensors="pt")).logits
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == answer
