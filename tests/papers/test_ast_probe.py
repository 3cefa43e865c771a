"""The method of AST-Probe against brute force, other libraries and closed forms; and what happens
when it is broken.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from layerbook.claims import cards, engine, roles
from layerbook.data import loaders, pycode
from layerbook.data.pycode import Node
from layerbook.layers import transformer as tf
from layerbook.pipeline import method

SOURCES = (
    "def f(a, b=1):\n    return a + b\n",
    "def g(x, *y):\n    for i in range(x):\n        if i in y:\n            yield i, x[i]\n    return None\n",
    "def h(self):\n    self.a = {k: v for k, v in self.b.items() if v}\n    return [1, 2, (3,)]\n",
    "def k(z):\n    try:\n        return z.q(1, w=2)\n    except ValueError as e:\n        raise KeyError from e\n",
    "def m(a):\n    while a > 0 and not a == 3:\n        a -= 1\n    assert a, 'text'\n    return lambda b: b if a else -b\n",
    "def n(p):\n    with open(p) as q:\n        z = q.read()[1:-1]\n    return z * 2 ** p\n",
) * 3  # fmt: skip


@pytest.fixture(scope="module")
def ap() -> SimpleNamespace:
    return method.load("ast-probe")


@pytest.fixture(scope="module")
def functions() -> list[tuple[tuple[str, ...], Node]]:
    found = []
    for source in SOURCES:
        leaves = pycode.leaves(source)
        found.append((tuple(leaf.text for leaf in leaves), pycode.syntax_tree(source, leaves)))
    return found


@pytest.fixture
def task(ap, functions):
    corpus = ap.Corpus([tree for _, tree in functions], range(12))
    h = torch.randn(
        2, corpus.first[-1], 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return SimpleNamespace(corpus=corpus, h=h, train=list(range(12)), valid=list(range(12, 18)))


# --- the encoding ---


def test_the_rows_of_a_small_tree_are_those_worked_out_by_hand(ap):
    tree = Node("S", (0, Node("X", (Node("Y", (1,)),)), Node("A", (Node("B", (2, 3)),)), 4))
    d, c, u = ap.encode(tree)
    assert d == [4, 3, 1, 2] and c == ["S", ap.EMPTY, "A<sep>B", ap.EMPTY]
    assert u == [ap.EMPTY, "X<sep>Y", ap.EMPTY, ap.EMPTY, ap.EMPTY]
    assert ap.decode(d, c, u) == tree


def ancestors(tree: Node, path: tuple = (), place: tuple = ()) -> dict[int, tuple]:
    """For each leaf the nodes above it, outermost first, each as (its place in the tree, its
    label).
    """
    found, here = {}, (*path, (place, tree.label))
    for k, child in enumerate(tree.children):
        found |= {child: here} if isinstance(child, int) else ancestors(child, here, (*place, k))
    return found


def test_random_trees_come_back_and_order_of_heights_is_that_of_ancestors(ap):
    rng, seen = np.random.default_rng(1), 0
    for _ in range(300):
        tree, n = ap.random_tree(rng, 0, 7)
        if isinstance(tree, int):
            continue
        d, c, u = ap.encode(tree)
        assert len(u) == n == len(d) + 1 == len(c) + 1
        # only the order counts
        assert ap.decode(d, c, u) == tree and ap.decode([x**3 + 1 for x in d], c, u) == tree
        above = ancestors(tree)
        for i in range(
            n - 1
        ):  # the label of a gap is that of the lowest common ancestor, unless it is artificial
            common = [a for a, b in zip(above[i], above[i + 1]) if a == b]
            if c[i] != ap.EMPTY:
                assert c[i].split(ap.SEPARATOR)[-1] == common[-1][1]
        seen += n > 5
    assert seen > 50


def test_a_predicted_tree_may_be_odd_but_never_breaks(ap):
    assert ap.decode([1, 1], [ap.EMPTY, "A"], [ap.EMPTY] * 3) == Node(
        ap.BAD_ROOT, (0, Node("A", (1, 2)))
    )
    assert ap.decode([2, 2, 2], ["A", "B", "C"], [ap.EMPTY] * 4) == Node(
        "A", (0, Node("B", (1, Node("C", (2, 3)))))
    )
    rng = np.random.default_rng(0)
    for n in range(2, 60):
        c = rng.choice(["A", "B<sep>C", ap.EMPTY], n - 1).tolist()
        tree = ap.decode(
            rng.normal(size=n - 1).tolist(), c, rng.choice(["U", ap.EMPTY], n).tolist()
        )
        assert list(ancestors(tree)) == list(range(n)) and ap.EMPTY not in {
            x[0] for x in ap.constituents(tree)
        }
    assert ap.decode(list(range(200, 0, -1)), ["A"] * 200, [ap.EMPTY] * 201).label == "A"


def test_trees_agree_with_the_nodes_of_ast(functions):
    for source, (words, tree) in zip(SOURCES, functions):
        labels = Counter()
        for node in ast.walk(ast.parse(source).body[0]):
            covers = (
                hasattr(node, "lineno")
                or isinstance(node, ast.comprehension | ast.withitem)
                or (
                    isinstance(node, ast.arguments)
                    and any(True for _ in ast.iter_child_nodes(node))
                )
            )
            labels[type(node).__name__] += covers
        stack, found, leaves = [tree], Counter(), []
        while stack:
            node = stack.pop()
            if isinstance(node, int):
                leaves.append(node)
            else:
                found[node.label] += 1
                stack += node.children[::-1]
        assert found == +labels and leaves == list(range(len(words)))


# --- scoring ---


def test_hits_are_those_of_multisets(ap):
    gold, predicted = (
        Counter({("A", 0, 3): 1, ("B", 1, 2): 2}),
        Counter({("A", 0, 3): 2, ("B", 1, 2): 1, ("C", 0, 1): 1}),
    )
    assert ap.score(gold, predicted) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    assert ap.score(gold, gold) == (1, 1, 1) and ap.score(gold, Counter({("D", 0, 3): 1})) == (
        0,
        0,
        0,
    )
    tree = Node("A", (Node("A", (0,)), Node("B", (Node("A", (1, 2)),))))
    assert ap.constituents(tree) == Counter([("A", 0, 2), ("A", 0, 0), ("B", 1, 2), ("A", 1, 2)])


# --- vectors ---


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_leaf_vectors_are_means_of_their_pieces(ap, functions, kind):
    torch.manual_seed(0)
    tokenizer = loaders.encoder("minilm")[1] if kind == "bert" else loaders.causal_lm("smollm2")[1]
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = (
        BertModel(BertConfig(**common)) if kind == "bert" else LlamaModel(LlamaConfig(**common))
    ).eval()
    texts = [words for words, _ in functions[:5]]
    found, at = ap.leaf_states(tf.Stack(model), tokenizer, texts, batch=3), 0
    for words in texts:
        # pieces never cross a space
        own = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
        first, last = ([101], [102]) if kind == "bert" else ([tokenizer.bos_token_id], [])
        ids = torch.tensor([first + sum(own, []) + last])
        states = torch.stack(model(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0]
        place = 1
        for pieces in own:
            # lone spaces are dropped
            kept = [place + k for k, piece in enumerate(pieces) if tokenizer.decode([piece]) != " "]
            wanted = states[:, kept].mean(1)
            # what Hugging Face gives as a decoder's last state is after the final norm
            upto = 2 if kind == "llama" else 3
            assert torch.allclose(found[:upto, at], wanted[:upto], atol=1e-5)
            place, at = place + len(pieces), at + 1
    assert at == found.shape[1]


def test_a_leaf_without_a_piece_is_an_error(ap, monkeypatch):
    model, tokenizer = loaders.encoder("minilm")
    plain = ap.pieces_of
    lossy = lambda t, w: (plain(t, w)[0], [-1 if i == 1 else i for i in plain(t, w)[1]])  # noqa: E731
    monkeypatch.setitem(plain.__globals__, "pieces_of", lossy)
    with pytest.raises(ValueError, match="1 leaves have no piece"):
        ap.leaf_states(tf.Stack(model), tokenizer, [("a", "b", "c")])


def test_random_layers_keep_the_embeddings_and_nothing_else(ap):
    model, tokenizer = loaders.encoder("minilm")
    first, again, other = (ap.random_layers(model, seed) for seed in (1, 1, 2))
    texts = [("def", "f", "(", ")"), ("a", "=", "b")]
    h, a, b, c = (
        ap.leaf_states(tf.Stack(m), tokenizer, texts) for m in (model, first, again, other)
    )
    assert torch.equal(h[0], a[0]) and torch.equal(a, b) and torch.equal(a[0], c[0])
    assert not torch.allclose(h[1], a[1]) and not torch.allclose(a[1], c[1])


def test_a_window_sees_its_neighbours_and_no_other_function(ap):
    h = torch.arange(1.0, 8)[:, None]
    first = [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [2, 3, 4, 0, 0]]
    assert ap.window(h, ["abcd", "xyz"]).tolist() == [
        *first,
        [0, 0, 5, 6, 7],
        [0, 5, 6, 7, 0],
        [5, 6, 7, 0, 0],
    ]


# --- the loss and its minimisation ---


def test_the_loss_is_the_papers_written_out(ap, task):
    probe = ap.new_probe(task.h, 4, task.corpus.labels, [3, 4])
    rows = [0, 4, 13]
    found = ap.losses(probe, task.h, task.corpus.batch(rows))
    for s in range(2):
        for k in range(2):
            B, vc, vu = (x[s, k].numpy() for x in probe)
            hinge, nats_c, nats_u = [], [], []
            for i in rows:
                d, c, u = task.corpus.codes[i]
                x = task.h[s, task.corpus.first[i] : task.corpus.first[i + 1]].numpy() @ B
                step = x[1:] - x[:-1]
                length = (step**2).sum(1)
                hinge += [
                    max(0, 1 - (length[a] - length[b]))
                    for a in range(len(d))
                    for b in range(len(d))
                    if d[a] > d[b]
                ]
                for vectors, names, label, scores in ((vc, 0, c, nats_c), (vu, 1, u, nats_u)):
                    z = (step if names == 0 else x) @ vectors
                    for t, name in enumerate(label):
                        if name in task.corpus.labels[names]:
                            scores.append(
                                math.log(np.exp(z[t]).sum())
                                - z[t, task.corpus.labels[names].index(name)]
                            )
            assert found[s, k].item() == pytest.approx(
                np.mean(hinge) + np.mean(nats_c) + np.mean(nats_u), abs=1e-9
            )
    B = probe.B[1, 1].numpy()
    assert ap.skew(probe.B)[1, 1].item() == pytest.approx(np.linalg.norm(B.T @ B - np.eye(4)) ** 2)


def test_training_is_adam_with_the_schedule_of_the_paper(ap, task):
    how = {"rank": 3, "rounds": 14, "steps": 4, "lr": 0.08, "patience": 3}
    found = ap.fit(task.h, task.corpus, task.train, task.valid, seeds=[5], **how)
    for s in range(2):
        h = task.h[s : s + 1]
        probe = [x.requires_grad_() for x in ap.new_probe(h, 3, task.corpus.labels, [5])]
        adam = torch.optim.Adam(probe, lr=0.08)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.1, patience=0)
        stream, best, waiting, kept = ap.order(task.train, 32, 0), math.inf, 0, None
        for _ in range(14):
            for _ in range(4):
                loss = ap.losses(
                    ap.Probe(*probe), h, task.corpus.batch(next(stream))
                ) + 5 * ap.skew(probe[0])
                adam.zero_grad()
                loss.sum().backward()
                adam.step()
            now = ap.losses(ap.Probe(*probe), h, task.corpus.batch(task.valid)).item()
            plateau.step(now)
            if now < best:
                best, waiting, kept = now, 0, [x.detach().clone() for x in probe]
            else:
                waiting += 1
            if waiting == 3:
                break
        assert adam.param_groups[0]["lr"] < 0.08  # the schedule has acted
        for x, y in zip(found, kept):
            assert torch.allclose(x[s], y[0], atol=1e-6)


def test_a_readable_tree_is_read_and_breaking_the_probe_loses_it(ap, functions):
    """Vectors that hold each tree by construction: F1 is 1, and it falls when a part of the method
    is broken.
    """
    corpus, g = (
        ap.Corpus([tree for _, tree in functions], range(18)),
        torch.Generator().manual_seed(0),
    )
    height, c, u = (
        torch.tensor([x for code in corpus.codes for x in pick(code)])
        for pick in (
            lambda code: [0, *np.cumsum([x**0.5 * (-1) ** i for i, x in enumerate(code[0])])],
            lambda code: [0, *(corpus.labels[0].index(x) for x in code[1])],
            lambda code: [corpus.labels[1].index(x) for x in code[2]],
        )
    )
    code_c = torch.nn.functional.one_hot(c, len(corpus.labels[0])).double()
    for i in corpus.first[:-1]:
        code_c[i] = 0
    for a, b in zip(corpus.first, corpus.first[1:]):
        code_c[a:b] = code_c[a:b].cumsum(0)
    code_u = torch.nn.functional.one_hot(u, len(corpus.labels[1])).double()
    h = torch.cat([100 * height[:, None].double(), code_c, code_u], 1)[None]
    nc, nu = code_c.shape[1], code_u.shape[1]
    vc = torch.cat([torch.zeros(1, nc), torch.eye(nc), torch.zeros(nu, nc)])
    vu = torch.cat([torch.zeros(1 + nc, nu), torch.eye(nu)])
    probe = ap.Probe(*(x.double()[None, None] for x in (torch.eye(h.shape[-1]), vc, vu)))
    rows = range(18)
    assert ap.scores(probe, h, corpus, rows)[0, 0, :, 2].mean() == 1
    shuffled = h[:, torch.randperm(h.shape[1], generator=g)]
    assert ap.scores(probe, shuffled, corpus, rows)[0, 0, :, 2].mean() < 0.4
    # an alignment that is off by one
    assert ap.scores(probe, h.roll(1, 1), corpus, rows)[0, 0, :, 2].mean() < 0.4
    assert ap.scores(probe._replace(vc=-probe.vc), h, corpus, rows)[0, 0, :, 2].mean() < 0.7


def test_unknown_labels_are_missed_and_never_learnt(ap, functions):
    corpus = ap.Corpus([tree for _, tree in functions], [0])
    batch = corpus.batch([1])
    assert (batch.c == -1).any() and {"For", "Yield"} <= {x[0] for x in corpus.gold[1]}
    probe = ap.new_probe(torch.zeros(1, 1, 5), 2, corpus.labels, [0])
    h = torch.randn(1, corpus.first[-1], 5, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(ap.losses(probe, h, batch)).all()
    assert "For" not in {x[0] for x in ap.parse(probe, h, corpus, [1])[0][0][0]}


def test_pairs_are_those_of_one_function(ap, task):
    batch = task.corpus.batch([2, 0, 5])
    owner = [k for k, i in enumerate((2, 0, 5)) for _ in task.corpus.codes[i][0]]
    d = [x for i in (2, 0, 5) for x in task.corpus.codes[i][0]]
    wanted = {
        (a, b) for a in range(len(d)) for b in range(len(d)) if owner[a] == owner[b] and d[a] > d[b]
    }
    assert set(zip(batch.high.tolist(), batch.low.tolist())) == wanted
    assert (batch.left[1:] - batch.left[:-1]).tolist().count(2) == 2  # no gap between two functions


# --- baselines and measurements ---


def test_partners_have_the_same_length_and_part(ap):
    sizes, parts = [3, 3, 4, 3, 4, 5, 3, 3], [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = ap.partners(sizes, parts, 0)
    assert sorted(found) == list(range(8)) and [i for i in range(8) if found[i] == i] == [2, 4, 5]
    assert all(sizes[i] == sizes[j] and (i < 4) == (j < 4) for i, j in enumerate(found))


def test_the_guess_branches_to_the_right(ap, functions):
    corpus = ap.Corpus([tree for _, tree in functions], range(18))
    (tree,) = ap.right_branching(corpus, range(18), [0])
    n = len(functions[0][0])
    spans = sorted((a, b) for _, a, b in tree.elements() if b > a)
    assert spans == [(a, n - 1) for a in range(n - 1)] and tree["FunctionDef", 0, n - 1] == 1


def test_layers_are_chosen_in_validation_and_units_are_modules(ap):
    # [layers, seeds, functions]
    valid = np.array([[[0.1, 0.3], [0.9, 0.9]], [[0.5, 0.5], [0.2, 0.2]]])
    table = np.arange(8).reshape(2, 2, 2)
    assert ap.choose(valid, table).tolist() == [[4, 5], [2, 3]]
    assert ap.by_module(np.array([[1.0, 3, 5]]), ["b", "a", "b"]).tolist() == [[3, 3]]
    found = ap.peak(valid, np.array([[[1.0, 1], [2, 2]], [[0.5, 0.5], [1, 1]]]), ["a", "b"])
    assert found["where"].tolist() == [1, 0] and found["drop"].tolist() == [0.5, 0.5]


def test_dealing_keeps_scores_and_takes_their_order(ap):
    x = np.arange(24.0).reshape(4, 2, 3)
    y = ap.dealt(x, 0)
    assert np.array_equal(np.sort(y, 0), np.sort(x, 0)) and not np.array_equal(x, y)
    # one order for all seeds of a function
    assert np.array_equal(y[:, 1] - y[:, 0], np.full((4, 3), 3.0))


# --- broken on purpose: verdicts ---

NOISE = np.linspace(-0.03, 0.03, 40)


def verdict(claim: str, control: dict, **arrays) -> str:
    card = cards.load("ast-probe")
    name = next(c["id"] for c in roles.of_claim(card, claim))
    rows = engine.decide(card, {claim: arrays, name: control}, {"G1": [1.0]}, "gpu")
    return next(r["verdict"] for r in rows["claims"] if r["id"] == claim)


def test_gains_decide_c1_and_untrained_weights_flip_it(ap):
    modules = [f"m{i // 2}" for i in range(40)]
    levels, seeds = (
        {"trained": 0.5, "random": 0.3, "bare": 0.28},
        np.stack([NOISE, NOISE[::-1], np.roll(NOISE, 7)]),
    )
    f1 = {name: level + seeds for name, level in levels.items()}
    f1["random"] = f1["random"] + 0.5 * np.roll(NOISE, 3)
    f1["bare"] = f1["bare"] - 0.5 * np.roll(NOISE, 9)
    null = ap.gains(np.roll(f1["random"], 1, 1), f1["random"], f1["bare"], modules)
    assert (
        verdict("C1", null, **ap.gains(f1["trained"], f1["random"], f1["bare"], modules))
        == "reproduced"
    )
    slight = f1["random"] + 0.04 + 0.2 * np.roll(NOISE, 11)
    assert verdict("C1", null, **ap.gains(slight, f1["random"], f1["bare"], modules)) == "weaker"
    assert (
        verdict("C1", null, **ap.gains(f1["bare"], f1["random"], f1["bare"], modules))
        == "not reproduced"
    )
    passing = ap.gains(f1["trained"], f1["random"], f1["bare"], modules)
    assert verdict("C1", passing, **passing) == "undecided"  # a control that passes


def test_thrift_decides_c3_and_dealt_ranks_flip_it(ap):
    ranks, modules = [4, 16, 64, 384], [f"m{i // 2}" for i in range(40)]
    curve = (
        np.array([0.3, 0.42, 0.5, 0.45])[:, None, None]
        + 0.2 * np.stack([NOISE] * 3)
        + 0.05 * np.roll(NOISE, 5)
    )
    curve = curve + 0.1 * np.random.default_rng(0).normal(size=(4, 1, 40)) * 0.1
    measured, control = (ap.thrift(ranks, x, x, modules) for x in (curve, ap.dealt(curve, 1)))
    pick = lambda x: {k: x[k] for k in ("enough", "four")}  # noqa: E731
    assert verdict("C3", pick(control), **pick(measured)) == "reproduced"
    flat = np.full_like(curve, 0.5) + 0.01 * curve
    assert (
        verdict("C3", pick(control), **pick(ap.thrift(ranks, flat, flat, modules)))
        == "not reproduced"
    )
    rising = curve[[0, 1, 3, 2]] * np.array([1, 1, 0.8, 1.2])[:, None, None]
    assert (
        verdict("C3", pick(control), **pick(ap.thrift(ranks, rising, rising, modules)))
        == "not reproduced"
    )
    assert (
        measured["drop"].mean() == pytest.approx(0.05, abs=0.01)
        and ap.thrift(ranks, rising, rising, modules)["drop"].mean() < 0
    )


def test_trees_of_other_functions_that_can_be_rebuilt_flip_c4(ap):
    modules, own, bare = [f"m{i // 2}" for i in range(40)], 0.55 + NOISE, 0.35 + NOISE[::-1]
    control = ap.belongs(own, bare, own, modules)
    assert (
        verdict("C4", control, **ap.belongs(0.25 + np.roll(NOISE, 4), bare, own, modules))
        == "reproduced"
    )
    assert (
        verdict(
            "C4", control, **ap.belongs(own - 0.02 + 0.1 * np.roll(NOISE, 4), bare, own, modules)
        )
        == "not reproduced"
    )
