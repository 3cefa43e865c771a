"""Concept depth: items that no word gives away, probes against scikit-learn, depths in closed form,
and what breaks when broken.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from layerbook.claims import cards, engine
from layerbook.data import loaders
from layerbook.layers import transformer as tf
from layerbook.pipeline import method

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
    "gpt2": GPT2Config(
        vocab_size=60,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gpt-neox": GPTNeoXConfig(**SMALL, max_position_embeddings=32),
}
FOLDS, PER_GROUP = 5, 24


@pytest.fixture(scope="module")
def cd() -> SimpleNamespace:
    return method.load("concept-depth")


@pytest.fixture(scope="module")
def deck(cd):
    return cd.deck(0, FOLDS, PER_GROUP, loaders.bible())


def network(kind: str) -> tf.Stack:
    """A random network of three layers with weights large enough to bend."""
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    for p in model.parameters():
        p.mul_(6) if p.ndim == 2 else p.add_(0.2 * torch.randn_like(p))
    return tf.Stack(model)


def made(cd, layers: int = 6, items: int = 12, seed: int = 0):
    """Random vectors [layers, 2 folds x 4 groups x items, 10] and a task of balanced labels for
    them.
    """
    task = cd.assemble([[("a", "b")] * (items // 2)] * 8)
    return torch.randn(layers, len(task.y), 10, generator=torch.Generator().manual_seed(seed)), task


# --- the items ---


def test_tasks_are_balanced_and_reproducible(cd, deck):
    assert set(deck) == {*cd.RANK, "one flip"}
    for name, t in deck.items():
        n = PER_GROUP if name != "one flip" else 8
        assert np.bincount(t.group).tolist() == [n] * (4 * FOLDS) and (t.fold == t.group // 4).all()
        assert all(t.y[t.group == g].mean() == 0.5 for g in range(4 * FOLDS))
    assert deck["source"].items == cd.deck(0, FOLDS, PER_GROUP, loaders.bible())["source"].items
    assert deck["cities"].items != cd.deck(1, FOLDS, PER_GROUP, loaders.bible())["cities"].items


@pytest.mark.parametrize(
    ("task", "entity"),
    [
        ("cities", r"The city of (.+) is in"),
        ("cities", r" is in (.+)\."),
        ("comparison", r"(\d+)"),
        ("digit", r"^(\w+)"),
        ("sentiment", r"(\w+)\.$"),
        ("sentiment", r"^The (\w+)"),
        ("matching", r"^(\w+):"),
        ("matching", r": (.+)"),
        ("four flips", r"(\w+) (?:flips|does)"),
        ("one flip", r"(\w+) (?:flips|does)"),
        ("language", r"(\w+)\.$"),
    ],
)
def test_no_entity_is_in_two_groups(deck, task, entity):
    t, home = deck[task], {}
    for item, g in zip(t.items, t.group):
        for found in re.findall(entity, item):
            assert home.setdefault(found, g) == g, found


def test_real_texts_come_from_one_module_or_book_per_group(cd, deck):
    module, known = {}, cd.functions()
    for item, g in zip(deck["matching"].items, deck["matching"].group):
        name, summary = item.split(": ", 1)
        assert module.setdefault(known[name][0], g) == g and not known[name][2]
        assert not any(
            p[:4] in known[name][1].lower() for p in re.split(r"_|\d", name.lower()) if len(p) > 2
        )
    t = deck["matching"]
    for item, y in zip(t.items, t.y):
        name, summary = item.split(": ", 1)
        assert (summary == known[name][1] + ".") == y


def test_no_rule_that_counts_flips_beats_five_in_eight(deck):
    t = deck["four flips"]
    count = np.array([len(re.findall(r"\w+ flips", item)) for item in t.items])
    best = max(max(((count >= c) == t.y).mean(), ((count < c) == t.y).mean()) for c in range(6))
    assert best == pytest.approx(0.625, abs=0.03)
    assert np.bincount(count[t.y == 1]).tolist() == [60, 0, 120, 0, 60]


@pytest.mark.parametrize("task", ["cities", "sentiment", "comparison", "matching", "four flips"])
def test_words_do_not_give_the_harder_tasks_away(deck, task):
    t = deck[task]
    x, hits = CountVectorizer(token_pattern=r"[\w-]+").fit_transform(t.items), []
    for fold in range(FOLDS):
        here, held = (t.fold == fold) & (t.group % 4 > 0), (t.fold == fold) & (t.group % 4 == 0)
        hits.append(LogisticRegression().fit(x[here], t.y[here]).predict(x[held]) == t.y[held])
    # 120 held-out items: chance stays below 0.6 with a probability of 0.99. Counting flips is right
    # in five cases of eight.
    assert np.mean(hits) < (0.7 if task == "four flips" else 0.6)


def test_labels_say_what_the_texts_say(cd, deck):
    for name in ("four flips", "one flip"):
        for item, y in zip(deck[name].items, deck[name].y):
            assert (len(re.findall(r"\w+ flips", item)) % 2 == 0) == y
    for item, y in zip(deck["comparison"].items, deck["comparison"].y):
        a, b = map(int, re.findall(r"\d+", item))
        assert (a > b) == y
    for item, y in zip(deck["cities"].items, deck["cities"].y):
        city, country = re.fullmatch(r"The city of (.+) is in (.+)\.", item).groups()
        assert (city in cd.CITIES[country]) == y
    for item, y in zip(deck["sentiment"].items, deck["sentiment"].y):
        assert ((item.split()[-1][:-1] in cd.GOOD.split()) != (" not " in item)) == y
    for item, y in zip(deck["digit"].items, deck["digit"].y):
        assert bool(re.search(r"\d", item)) == y


def test_cities_are_in_one_country_only(cd):
    towns = [town for v in cd.CITIES.values() for town in v]
    assert (
        len(towns) == len(set(towns))
        and len(cd.CITIES) >= 80
        and {len(v) for v in cd.CITIES.values()} == {3}
    )
    assert not any(c.lower() in town.lower() for c, v in cd.CITIES.items() for town in v)
    for text in (
        cd.NAMES.split(),
        cd.GOOD.split(),
        cd.BAD.split(),
        cd.NOUNS.replace("\n", " ").split(", "),
    ):
        assert len(set(text)) == len(text) and len(text) % 20 == 0


@pytest.mark.parametrize("n", [2, 400])
def test_too_few_or_too_many_items_are_refused(cd, n):
    with pytest.raises(ValueError, match="n_items"):
        cd.deck(0, FOLDS, n, loaders.bible())


# --- what is probed ---


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_are_those_of_single_runs_in_the_order_given(cd, kind):
    net = network(kind)
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 60, (n,), generator=g).tolist() for n in (5, 7, 5, 4, 7, 7, 5)]
    got = cd.represent(net, rows, batch=2)
    assert got.shape == (3, 7, 32)
    for i, row in enumerate(rows):
        assert torch.allclose(got[:, i], cd.recomputed(net, row), atol=1e-4)
    assert not net.mlp[0]._forward_pre_hooks


def test_site_is_the_norm_between_attention_and_mlp(cd):
    net, seen = network("llama"), []
    hook = net.blocks[1].post_attention_layernorm.register_forward_hook(
        lambda m, a, out: seen.append(out[:, -1])
    )
    got = cd.represent(net, [[3, 4, 5, 6]])
    hook.remove()
    hidden = net.model(torch.tensor([[3, 4, 5, 6]]), output_hidden_states=True).hidden_states
    assert torch.equal(got[1], seen[0]) and not torch.allclose(got[1], hidden[2][:, -1], atol=0.1)


# --- the probe ---


@pytest.mark.parametrize("case", ["plain", "separable", "unbalanced"])
def test_probe_is_the_minimum_that_scikit_learn_finds(cd, case):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 90, 40 if case != "separable" else 200)), rng.integers(0, 2, 90)
    if case == "unbalanced":
        y[:40] = 1
    splits = [(np.arange(60), np.arange(60, 90)), (np.arange(30, 90), np.arange(30))]
    train, test = (torch.tensor(np.array(part)) for part in zip(*splits))
    got = cd.log_odds(torch.tensor(x), torch.tensor(y), train, test).numpy()
    for s, (a, b) in enumerate(splits):
        for layer in range(2):
            pipe = make_pipeline(
                StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10000)
            ).fit(x[layer, a], y[a])
            assert np.allclose(got[s, layer], pipe.decision_function(x[layer, b]), atol=1e-4)
            assert cd.disagreement(torch.tensor(x[layer]), y, a, b) < 1e-4


def test_probe_says_so_when_it_has_not_converged(cd):
    x = torch.randn(1, 20, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="converged"):
        cd.logistic(x @ x.mT, torch.tensor([[0.0, 1.0] * 10], dtype=torch.float64), steps=1)


def test_a_constant_feature_is_harmless(cd):
    x, task = made(cd)
    x[:, :, 3] = 7.0
    assert np.isfinite(cd.curves(x, task).accuracy).all()


# --- curves ---


def test_curves_equal_brute_force(cd):
    x, task = made(cd)
    x[4:, :, 0] += 2.0 * torch.tensor(task.y)
    got = cd.curves(x, task)
    for f in range(2):
        outer, chosen = np.zeros((4, 6)), []
        groups = [4 * f + k for k in range(4)]

        def score(layer: int, hidden: list[int], asked: int, f: int = f) -> float:
            a, b = (task.fold == f) & ~np.isin(task.group, hidden), task.group == asked
            pipe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10000))
            return pipe.fit(x[layer, a].numpy(), task.y[a]).score(x[layer, b].numpy(), task.y[b])

        for k, g in enumerate(groups):
            outer[k] = [score(layer, [g], g) for layer in range(6)]
            inner = np.mean(
                [[score(layer, [g, h], h) for layer in range(6)] for h in groups if h != g], 0
            )
            chosen.append(outer[k, cd.smooth(inner).argmax()])
        assert np.allclose(got.accuracy[f], outer.mean(0)) and got.best[f] == pytest.approx(
            np.mean(chosen)
        )


def test_folds_do_not_touch_each_other(cd):
    x, task = made(cd)
    before, other = cd.curves(x, task), x.clone()
    other[:, task.fold == 1] = torch.randn_like(other[:, task.fold == 1])
    after = cd.curves(other, task)
    assert (before.accuracy[0] == after.accuracy[0]).all() and before.best[0] == after.best[0]
    assert (before.accuracy[1] != after.accuracy[1]).any()


def test_nested_accuracy_is_not_flattered_by_many_layers(cd):
    found = [cd.curves(*made(cd, layers=20, seed=s)) for s in range(6)]
    assert np.mean([c.accuracy.max(1) for c in found]) > 0.58
    assert abs(np.mean([c.best for c in found]) - 0.5) < 0.05


@pytest.mark.parametrize("start", [2, 5, 9])
def test_planted_depth_is_found_and_a_shuffle_of_layers_loses_it(cd, start):
    x, task = made(cd, layers=14)
    shown = cd.planted(x, task.y, start)
    assert torch.equal(shown[:start], x[:start])
    found = cd.depths(cd.smooth(cd.curves(shown, task).accuracy.mean(0)))["D95"] * 14
    assert abs(found - start) < 1.5
    turned = cd.depths(cd.smooth(cd.curves(shown.flip(0), task).accuracy.mean(0)))["D95"] * 14
    assert turned < 1.5


# --- depths ---


def test_depths_in_closed_form(cd):
    d = cd.depths([0.5, 0.5, 0.7, 0.9, 0.9])
    assert d == pytest.approx({"jump": 2 / 5, "literal": 4 / 5, "converging": 4 / 5, "D95": 3 / 5})
    high = cd.depths([0.95, 0.96, 0.95, 0.96])
    assert (
        np.isnan(high["jump"])
        and high["converging"] == 0
        and high["D95"] == 0
        and high["literal"] == 3 / 4
    )
    slow = cd.depths(0.5 + 0.02 * np.arange(11))
    assert np.isnan(slow["jump"]) and slow["D95"] == 10 / 11
    assert np.isnan(cd.depths([0.5, 0.6, 0.9, 0.5])["literal"])


def test_running_mean_repeats_the_ends(cd):
    assert np.allclose(cd.smooth([0, 3, 6, 9]), [1, 3, 6, 8])


def rising(cd, start: dict[str, int], seed: int = 0, layers: int = 20, folds: int = 5) -> dict:
    """Curves that rise to 0.9 at a known layer, a little different in each fold; start None: chance
    at every layer.
    """
    rng, out = np.random.default_rng(seed), {}
    for name in cd.RANK:
        at = start.get(name)
        a = 0.5 + 0.004 * rng.normal(size=(folds, layers))
        for f in range(folds):
            if at is not None:
                a[f, at + rng.integers(0, 4) :] += 0.4
        out[name] = cd.Curves(a, np.full(folds, 0.5 if at is None else 0.9))
    return out


EASY_FIRST = {"digit": 1, "language": 3, "source": 5, "cities": 9, "sentiment": 8, "comparison": 12}


def test_order_is_found_where_it_is(cd):
    found = cd.order(rising(cd, EASY_FIRST))
    assert (
        (found["rho"] > 0.8).all()
        and (found["rho_read"] > 0.7).all()
        and (found["gap"] > 0.3).all()
    )
    turned = cd.order(rising(cd, EASY_FIRST), lambda a: a[::-1])
    assert abs(turned["rho_read"]).mean() < 0.5 and abs(turned["gap"]).mean() < 0.1


def test_failed_tasks_alone_make_no_order(cd):
    """Tasks at chance count as deepest, which is an order of its own; the tasks that are read must
    show one as well.
    """
    same = cd.order(rising(cd, dict.fromkeys(("digit", "language", "source", "cities"), 4)))
    assert same["rho"].mean() > 0.6 and abs(same["rho_read"].mean()) < 0.6
    few = cd.order(rising(cd, {"digit": 1, "language": 5, "source": 9}))
    assert (few["rho_read"] == 0).all() and (few["gap"] == 0).all()
    assert all((v == 0).all() for v in cd.order(rising(cd, {})).values())


# --- variants ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [3, 8])
def test_rounded_weights_lie_on_their_grid_and_come_back(cd, kind, bits):
    net = network(kind)
    m = net.mlp[1].down_proj if kind == "llama" else net.mlp[1].c_proj
    before, embedding = m.weight.clone(), net.model.get_input_embeddings().weight.clone()
    with pytest.raises(KeyError), cd.rounded(net, bits):
        per_output = m.weight if kind == "llama" else m.weight.T
        original = before if kind == "llama" else before.T
        step = original.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        levels = per_output / step
        assert (
            torch.allclose(levels, levels.round(), atol=1e-3)
            and levels.abs().max() <= 2 ** (bits - 1) - 1 + 1e-3
        )
        assert ((per_output - original).abs() <= step / 2 + 1e-6).all() and not torch.equal(
            m.weight, before
        )
        raise KeyError
    assert torch.equal(m.weight, before) and torch.equal(
        net.model.get_input_embeddings().weight, embedding
    )


def test_untrained_copy_is_another_network_and_leaves_the_generator_alone(cd):
    net = network("llama")
    torch.manual_seed(5)
    a, b, c = (cd.untrained(net.model, s) for s in (1, 1, 2))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    weight = [m.get_input_embeddings().weight for m in (a, b, c, net.model)]
    assert (
        torch.equal(weight[0], weight[1])
        and not torch.equal(weight[0], weight[2])
        and not torch.equal(weight[0], weight[3])
    )


def test_bag_counts_tokens(cd):
    assert cd.bag([[5, 7, 5], [9, 7, 7]])[0].tolist() == [[2, 1, 0], [0, 2, 1]]


def test_prefixes_are_even_and_repeatable(cd):
    p = cd.prefixes(("aaa", "bbb"), 400, 3)
    assert p == cd.prefixes(("aaa", "bbb"), 400, 3) and 150 < p.count("aaa") < 250


# --- broken methods flip verdicts ---


def verdict(claim: str, measured: dict) -> str:
    card = cards.load("concept-depth")
    rows = engine.decide(card, measured, {}, "cpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


def test_order_of_layers_and_labels_decide_c1(cd):
    good, none = rising(cd, EASY_FIRST), rising(cd, {})
    dealt = {name: np.linspace(-0.2, 0.2, len(v)) for name, v in cd.order(good).items()}
    assert verdict("C1", {"C1": cd.order(good), "N1": dealt}) == "reproduced"
    backwards = cd.order(good, lambda a: a[::-1])
    assert verdict("C1", {"C1": backwards, "N1": dealt}) != "reproduced"
    assert verdict("C1", {"C1": cd.order(none), "N1": dealt}) != "reproduced"
    assert verdict("C1", {"C1": cd.order(good), "N1": cd.order(good)}) == "undecided"
    # a control without variation says nothing
    assert verdict("C1", {"C1": cd.order(good), "N1": cd.order(none)}) == "undecided"


def test_probes_on_shuffled_labels_decide_c2_and_c3(cd):
    x, task = made(cd, layers=4, items=24)
    x += 1.5 * torch.tensor(task.y)[None, :, None]
    true = np.tile(cd.curves(x, task).best, 3) + np.linspace(-0.01, 0.01, 6)
    dealt = np.concatenate(
        [np.random.default_rng(f).permutation(task.y[task.fold == f]) for f in range(2)]
    )
    guess = np.tile(cd.curves(x, task, dealt).best, 3) + np.linspace(-0.01, 0.01, 6)
    half = 0.5 + np.linspace(-0.01, 0.01, 6)
    n2 = {"four": true, "one": true}
    assert verdict("C2", {"C2": {"four": half, "one": true}, "N2": n2}) == "reproduced"
    assert verdict("C2", {"C2": {"four": half, "one": guess}, "N2": n2}) != "reproduced"
    n3 = {"gain": half - 0.5, "over_words": half - 0.5, "shuffled": half}
    assert (
        verdict(
            "C3",
            {
                "C3": {"gain": true - half[::-1], "over_words": true - 0.5, "shuffled": half},
                "N3": n3,
            },
        )
        == "reproduced"
    )
    assert (
        verdict(
            "C3",
            {"C3": {"gain": guess - true, "over_words": guess - 0.5, "shuffled": half}, "N3": n3},
        )
        != "reproduced"
    )
