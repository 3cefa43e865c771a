"""The projection head's method cells against optimisers, brute force and scikit-learn; and what
breaking them does.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import RidgeClassifier
from torch import nn

from layerbook.claims import engine
from layerbook.pipeline import method

M = method.load("projection-head")
PHI = torch.tensor([0.4, 0.6, 1.0, 1.5, 2.0], dtype=torch.float64)
SIGMA = torch.full_like(PHI, 0.6)
S, S_PLUS, W_END = torch.diag(PHI**2 + SIGMA**2), torch.diag(PHI**2), M.post_weight(PHI, SIGMA)


def descend(kind: str, depth: int, scale: float, steps: int = 8000):
    start = M.initial(kind, 5, depth, scale, [0, 1, 2])
    return start, M.descend(start, S, S_PLUS, 0.01, steps)


# --- linear theory
# ---------------------------------------------------------------------------------------------------


def test_population_loss_is_the_expectation_over_samples():
    g, W = M.rng(0), M.initial("gaussian", 5, 2, 0.5, [0])
    n = 400_000
    sign = [(torch.randint(2, (n, 5), generator=g) * 2 - 1).double() for _ in range(2)]
    x, plus, minus = (
        s * PHI + SIGMA * torch.randn(n, 5, generator=g, dtype=torch.float64)
        for s in (sign[0], sign[0], sign[1])
    )
    f, f_plus, f_minus = (v @ (W[1][0] @ W[0][0]).T for v in (x, plus, minus))
    sampled = -2 * (f * f_plus).sum(1).mean() + (f * f_minus).sum(1).square().mean()
    torch.testing.assert_close(sampled, M.spectral_loss(W, S, S_PLUS)[0], rtol=0.01, atol=0.02)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_step_of_descent_is_autograd(depth):
    W = [w.requires_grad_() for w in M.initial("gaussian", 5, depth, 0.4, [3, 4])]
    grads = torch.autograd.grad(M.spectral_loss(W, S, S_PLUS).sum(), W)
    for new, w, g in zip(M.descend(W, S, S_PLUS, 0.01, 1), W, grads):
        torch.testing.assert_close(new, w - 0.01 * g, rtol=1e-12, atol=1e-12)


def test_closed_form_is_what_a_general_optimiser_finds():
    def value_and_gradient(v):
        M_ = torch.tensor(v.reshape(5, 5), requires_grad=True)
        loss = M.spectral_loss([M_], S, S_PLUS)
        return loss.item(), torch.autograd.grad(loss, M_)[0].numpy().ravel()

    start = np.random.default_rng(0).normal(size=25)
    found = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(np.linalg.norm(found.x.reshape(5, 5), axis=0), W_END, rtol=1e-6)
    np.testing.assert_allclose(found.fun, -(S_PLUS @ S.inverse()).square().sum(), rtol=1e-9)


@pytest.mark.parametrize(("depth", "scale"), [(2, 0.2), (3, 0.4)])
def test_layer_weights_are_powers_of_the_final_weights(depth, scale):
    start, end = descend("orthogonal", depth, scale)
    for k, layer in enumerate(M.feature_weights(end)):
        torch.testing.assert_close(
            layer, (W_END ** ((k + 1) / depth)).expand_as(layer), rtol=1e-5, atol=1e-6
        )
        for v in layer:
            assert np.polyfit(np.log(W_END.numpy()), np.log(v.numpy()), 1)[0] == pytest.approx(
                (k + 1) / depth, abs=1e-4
            )
        assert M.log_slope(M.feature_weights(end).numpy(), k) == pytest.approx(
            (k + 1) / depth, abs=1e-4
        )
    assert (M.imbalance(end) - M.imbalance(start)).abs().max() < 1e-9


def test_imbalance_is_conserved_from_any_start_up_to_the_step_size():
    start = M.initial("gaussian", 5, 3, 0.4, [0])
    end = [M.descend(start, S, S_PLUS, lr, int(4 / lr)) for lr in (0.004, 0.002)]
    drift = [(M.imbalance(W) - M.imbalance(start)).abs().max().item() for W in end]
    # first order in the step size: conserved by the flow
    assert drift[1] < 0.01 and 1.6 < drift[0] / drift[1] < 2.4


def test_an_unbalanced_start_breaks_the_square_root_by_more_than_the_registered_bound():
    weights = M.feature_weights(descend("gaussian", 2, 0.2, 20000)[1])
    learned = (weights[1] / W_END - 1).abs() < 0.02  # the end is right all the same
    assert (learned.sum(-1) >= 4).all()
    assert (((weights[0] / weights[1].sqrt() - 1).abs() * learned).amax(-1) > 0.02).all()


def test_the_wrong_gradient_flips_c1():
    broken = method.load(
        "projection-head",
        one="""
_right = descend
def descend(W, Sigma, Sigma_plus, lr, steps):
    return _right(W[:1], Sigma, Sigma_plus, lr, steps) + W[1:]
""",
    )
    W = broken.descend(M.initial("orthogonal", 5, 2, 0.2, [0, 1, 2]), S, S_PLUS, 0.01, 500)
    weights = M.feature_weights(W)
    slopes = [np.polyfit(np.log(b.numpy()), np.log(a.numpy()), 1)[0] for a, b in zip(*weights)]
    card = {
        "claims": [
            {
                "id": "C1",
                "kind": "identity",
                "unit": "seed",
                "tier": "smoke",
                "tests": [{"of": "slope_2", "every": {"between": [0.48, 0.52]}}],
            }
        ]
    }
    assert (
        engine.decide(card, {"C1": {"slope_2": slopes}}, {}, "cpu")["claims"][0]["verdict"]
        == "not reproduced"
    )


# --- diagonal network
# ------------------------------------------------------------------------------------------------


def test_symmetric_relu_is_odd_and_dead_up_to_its_threshold():
    z = torch.linspace(-2, 2, 401)
    expected = torch.sign(z) * (z.abs() - 0.3).clamp(min=0)
    torch.testing.assert_close(M.symmetric_relu(z, 0.3), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(M.symmetric_relu(z, 0.0), z)


def test_thresholds_lose_weak_features_in_the_head_and_their_absence_loses_none():
    phi, sigma = torch.logspace(-1, 0.5, 32), torch.full((32,), 0.6)
    h, z, _ = M.train_diagonal(phi, sigma, 0.15, 0, 4, steps=400)
    lost = (h != 0) & (z == 0)
    assert (lost.sum(1) > 0).all() and not lost[:, 24:].any() and not ((h == 0) & (z != 0)).any()
    h, z, _ = M.train_diagonal(phi, sigma, 0.0, 0, 4, steps=400)
    assert (z != 0).all()


def test_log_slope_is_the_least_squares_slope_of_each_network():
    weights = np.random.default_rng(0).uniform(0.1, 1, size=(3, 4, 6))
    expected = [
        np.polyfit(np.log(last), np.log(layer), 1)[0] for layer, last in zip(weights[1], weights[2])
    ]
    np.testing.assert_allclose(M.log_slope(weights, 1), expected)


def test_before_the_first_step_thresholds_alone_lose_features():
    phi, sigma, b = torch.logspace(-1, 0.5, 32), torch.full((32,), 0.6), 0.15
    # both layers start from these weights
    w = M.train_diagonal(phi, sigma, 0.0, 0, 4, steps=0)[0] / phi
    h, z, _ = M.train_diagonal(phi, sigma, b, 0, 4, steps=0)
    before = (w * phi - b).clamp(min=0)
    assert (
        torch.equal((h != 0) & (z == 0), (before > 0) & (w * before <= b))
        and ((h != 0) & (z == 0)).any(1).all()
    )


def test_without_a_threshold_the_diagonal_network_reaches_the_linear_closed_form():
    phi, sigma = torch.tensor([0.8, 1.0, 1.5]), torch.full((3,), 0.6)
    h, z, _ = M.train_diagonal(phi, sigma, 0.0, 1, 3, steps=1500, n=512)
    w = M.post_weight(phi, sigma)
    torch.testing.assert_close(z / phi, w.expand(3, 3), rtol=0.06, atol=0)
    assert (h / phi - (z / phi).sqrt()).abs().max() < 1e-3  # and the layers stay balanced


# --- losses
# ----------------------------------------------------------------------------------------------------------


def test_nt_xent_matches_a_loop_over_its_formula():
    z, tau, B = torch.randn(10, 6, generator=M.rng(1), dtype=torch.float64), 0.4, 5
    u = [v / v.norm() for v in z]
    total = 0.0
    for i in range(2 * B):
        j = i + B if i < B else i - B
        others = sum(np.exp(float(u[i] @ u[k]) / tau) for k in range(2 * B) if k != i)
        total -= np.log(np.exp(float(u[i] @ u[j]) / tau) / others)
    assert M.nt_xent(z, tau).item() == pytest.approx(total / (2 * B), rel=1e-10)


def test_sup_con_matches_a_loop_over_its_formula_and_skips_the_lonely():
    z, y, tau = (
        torch.randn(9, 4, generator=M.rng(2), dtype=torch.float64),
        [0, 0, 0, 1, 1, 2, 2, 2, 3],
        0.5,
    )
    u, rows = [v / v.norm() for v in z], []
    for i in range(9):
        partners = [k for k in range(9) if k != i and y[k] == y[i]]
        others = sum(np.exp(float(u[i] @ u[k]) / tau) for k in range(9) if k != i)
        if partners:
            rows.append(
                -np.mean([np.log(np.exp(float(u[i] @ u[k]) / tau) / others) for k in partners])
            )
    assert len(rows) == 8
    assert M.sup_con(z, torch.tensor(y), tau).item() == pytest.approx(np.mean(rows), rel=1e-10)


def test_nt_xent_is_sup_con_with_one_label_per_pair_and_has_finite_gradients():
    z = torch.randn(12, 5, generator=M.rng(3), dtype=torch.float64, requires_grad=True)
    a, b = M.nt_xent(z, 0.5), M.sup_con(z, torch.arange(6).repeat(2), 0.5)
    torch.testing.assert_close(a, b)
    for grad in (torch.autograd.grad(a, z)[0], torch.autograd.grad(b, z)[0]):
        assert grad.isfinite().all() and grad.abs().max() > 0
    torch.testing.assert_close(M.nt_xent(3 * z, 0.5), a)  # cosine: the scale of z is free


# --- heads, scenes, training
# -----------------------------------------------------------------------------------------


def scenes(strength: float = 0.7):
    g = M.rng(4)
    digits = torch.zeros(64, 8, 8)
    for i in range(64):
        digits[i, 1 + 2 * (i % 3) : 3 + 2 * (i % 3), 1:7] = 1.0  # three classes: height of a bar
    return M.Scenes(digits, torch.rand(2, 48, 60, generator=g), 16, strength), np.arange(64) % 3


def test_blending_covers_only_ink_that_is_kept():
    made, _ = scenes()
    ground, digit = torch.full((2, 16, 16), 0.25), made.digits[:2]
    out = made.blend(ground, digit, torch.tensor([True, False]))
    assert torch.equal(out[1], ground[1]) and torch.equal(
        out[0][digit[0] == 0], ground[0][digit[0] == 0]
    )
    torch.testing.assert_close(out[0][digit[0] == 1].unique(), torch.tensor([0.3 * 0.25 + 0.7]))


@pytest.mark.parametrize("p_drop", [0.0, 0.75, 1.0])
def test_each_view_drops_its_digit_with_the_given_probability(p_drop):
    made, _ = scenes(1.0)
    x = torch.cat([made.pairs(M.rng(5, k), 500, p_drop) for k in range(4)])[:, 0]
    present = (
        torch.stack([(x[:, 5 + 2 * k : 7 + 2 * k, 5:11] == 1).all((1, 2)) for k in range(3)])
        .any(0)
        .float()
    )
    assert present.mean().item() == pytest.approx(1 - p_drop, abs=0.03)
    if p_drop == 0.75:  # the two views of a pair decide independently
        first, second = (
            torch.cat([c[:500] for c in present.split(1000)]),
            torch.cat([c[500:] for c in present.split(1000)]),
        )
        assert (first * second).mean().item() == pytest.approx(1 / 16, abs=0.02)


def test_contrast_normalisation_removes_brightness_and_contrast():
    x = torch.rand(1, 40, 40, generator=M.rng(6))
    inner = (slice(None), slice(8, 32), slice(8, 32))
    a, b = M.normalise_contrast(x, 9)[inner], M.normalise_contrast(0.6 * x + 0.3, 9)[inner]
    assert (
        (a - b).abs().max() < 0.06
        and abs(a.mean() - 0.5) < 0.02
        and (x - 0.6 * x - 0.3).abs().max() > 0.09
    )


def train(g, seed: int, steps: int = 15, p_drop: float = 0.5):
    torch.manual_seed(seed)
    f, made = M.encoder(16, (4, 8), 12), scenes()[0]
    M.fit(
        f,
        g,
        lambda z, _: M.nt_xent(z, 0.5),
        lambda r: (made.pairs(r, 32, p_drop), None),
        steps,
        M.rng(7, seed),
    )
    return f


def test_kappa_one_is_no_head_bit_for_bit_and_kappa_two_is_not():
    x = scenes()[0].clean(M.rng(8))
    plain, one, two = (
        M.features(train(g, 0), g, x)[0]
        for g in (nn.Identity(), M.Reweight(12, 1.0), M.Reweight(12, 2.0))
    )
    assert np.array_equal(plain, one) and not np.array_equal(plain, two)


def test_reweighting_is_fixed_and_decays_by_kappa():
    head = M.Reweight(6, 1.5)
    assert not list(head.parameters())
    torch.testing.assert_close(head(torch.ones(6)), torch.tensor([1.5**-j for j in range(6)]))
    before = head.weight.clone()
    train(M.Reweight(12, 1.5), 0)
    assert torch.equal(head.weight, before)


def test_training_lowers_the_loss_and_leaves_a_frozen_head_alone():
    frozen = nn.Linear(12, 12, bias=False).requires_grad_(False)
    before, made = frozen.weight.clone(), scenes()[0]

    def loss(f):
        with torch.no_grad():
            return M.nt_xent(frozen(f.train()(made.pairs(M.rng(9), 200, 0.0) - 0.5)), 0.5).item()

    assert loss(train(frozen, 1, 60, 0.0)) < loss(train(frozen, 1, 0)) - 0.1
    assert torch.equal(frozen.weight, before)


# --- probes
# ----------------------------------------------------------------------------------------------------------


def blobs(n: int = 400, d: int = 6):
    g = np.random.default_rng(0)
    y = g.integers(4, size=n)
    return g.normal(size=(n, d)) + 1.5 * np.eye(4, d)[y], y


def test_few_shot_ridge_matches_its_normal_equations():
    h, y = blobs()
    order = np.random.default_rng([5, 0]).permutation(len(y))
    train_ = np.concatenate([order[y[order] == c][:20] for c in range(4)])
    test = np.setdiff1d(order, train_)
    a = h - h[train_].mean(0)
    a = a / np.sqrt((a[train_] ** 2).sum(1).mean())
    best = None
    for alpha in np.logspace(-4, 2, 7):  # leave-one-out by the hat matrix
        X, T = a[train_], np.where(y[train_][:, None] == np.arange(4), 1.0, -1.0)
        T_mean = T.mean(0)
        hat = X @ np.linalg.solve(X.T @ X + alpha * np.eye(6), X.T) + 1 / len(X)
        error = (((T - hat @ (T - T_mean) - T_mean) / (1 - np.diag(hat))[:, None]) ** 2).mean()
        if best is None or error < best[0]:
            best = (
                error,
                alpha,
                np.linalg.solve(X.T @ X + alpha * np.eye(6), X.T @ (T - T_mean)),
                T_mean,
            )
    mine = ((a[test] @ best[2] + best[3]).argmax(1) == y[test]).mean()
    theirs = RidgeClassifier(alpha=best[1]).fit(a[train_], y[train_]).score(a[test], y[test])
    assert M.few_shot(h, y, (5,), draws=1) == pytest.approx(mine) == pytest.approx(theirs)


def test_few_shot_ignores_units_but_not_weights_and_shuffled_labels_give_chance():
    h, y = blobs(2000)
    weights = np.array([1e-3, 1, 1, 1, 1, 1])
    assert M.few_shot(h, y, (1,)) == pytest.approx(M.few_shot(1e4 * h, y, (1,)))
    assert M.few_shot(h * weights, y, (1,)) < M.few_shot(h, y, (1,)) - 0.02
    assert M.few_shot(h * weights, y, (1,), standardise=True) == pytest.approx(
        M.few_shot(h, y, (1,), standardise=True)
    )
    assert M.few_shot(h, np.random.default_rng(3).permutation(y), (1,)) == pytest.approx(
        0.25, abs=0.04
    )


def test_theory_probe_prefers_the_layer_before_the_head_only_when_the_label_is_disturbed_and_labels_are_few():
    def gap(sigma_0, labels, ridge):
        post = np.array([1 / (1 + sigma_0**2)] + [1.0] * 19)
        scores = [
            [M.theory_probe(v, (k,), labels, ridge) for v in (post**0.5, post)] for k in range(60)
        ]
        return -np.diff(scores).mean()

    assert gap(1.0, 10, 1e-3) > 0.04 and gap(0.0, 10, 1e-3) == 0 and gap(1.0, 400, 1e-10) == 0


def test_spectrum_and_class_share_on_known_matrices():
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 5)))[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    assert M.spectrum(basis * 3.0) == (pytest.approx(0, abs=1e-9), pytest.approx(5))
    s = np.array([4.0, 2.0, 1.0, 1.0, 1.0])
    assert M.spectrum(basis * s)[0] == pytest.approx(s.std() / s.mean())
    y = np.repeat([0, 1], 25)
    assert M.class_share(np.eye(2)[y], y) == pytest.approx(1)
    assert (
        M.class_share(np.random.default_rng(2).normal(size=(5000, 3)), np.arange(5000) % 2) < 0.01
    )


# --- breaking the method
# ---------------------------------------------------------------------------------------------


def coarse(steps: int, shuffle: bool) -> tuple[float, float]:
    """Small SupCon network told two of four classes: what a random head keeps beyond the trained
    one, and the coarse accuracy.
    """
    g = M.rng(10)
    fine = torch.randint(4, (1500,), generator=g)
    x = 0.15 * torch.randn(1500, 1, 16, 16, generator=g) + 0.5
    for i in range(1500):
        x[i, 0, 3 * int(fine[i]) + 2 : 3 * int(fine[i]) + 4, 4:12] += 0.3
    label = (fine % 2)[torch.randperm(1500, generator=g)] if shuffle else fine % 2
    torch.manual_seed(0)
    f, head, other = M.encoder(16, (4, 8), 16), M.mlp_head(16), M.mlp_head(16)

    def batch(r):
        which = torch.randint(1000, (128,), generator=r)
        return x[which], label[which]

    M.fit(f, head, lambda z, t: M.sup_con(z, t, 0.5), batch, steps, M.rng(11))
    y, (_, z), (_, z_random) = (
        fine[1000:].numpy(),
        M.features(f, head, x[1000:]),
        M.features(f, other, x[1000:]),
    )
    return M.few_shot(z_random, y, (12,), shots=5) - M.few_shot(z, y, (12,), shots=5), M.few_shot(
        z, y % 2, (12,)
    )


def test_shuffled_labels_flip_the_gate_of_c5():
    gate = [{"id": "G1", "statement": "learned", "test": {"every": {"above": 0.9}}}]

    def met(shuffle):
        return engine.decide(
            {"gates": gate, "claims": []}, {}, {"G1": [coarse(150, shuffle)[1]] * 3}, "cpu"
        )["gates"][0]["met"]

    assert met(False) and not met(True)


def test_a_head_trained_long_enough_loses_more_than_a_random_one_and_an_untrained_head_does_not():
    assert coarse(400, False)[0] > 0.05 > abs(coarse(0, False)[0])


def after_head(steps: int, p_drop: float) -> float:
    """Few-shot accuracy after the head on three kinds of bar, trained with NT-Xent on the toy
    scenes.
    """
    torch.manual_seed(0)
    f, g = M.encoder(16, (8, 16), 16), M.mlp_head(16)
    made, y = scenes()
    M.fit(
        f,
        g,
        lambda z, _: M.nt_xent(z, 0.5),
        lambda r: (made.pairs(r, 64, p_drop), None),
        steps,
        M.rng(20, 0),
    )
    x = torch.cat([made.clean(M.rng(21, k)) for k in range(6)])
    return M.few_shot(M.features(f, g, x)[1], np.tile(y, 6), (22,), shots=6)


def test_the_head_keeps_the_digit_that_both_views_share_and_not_the_one_they_lack():
    shared, dropped, untrained = after_head(150, 0.0), after_head(150, 1.0), after_head(0, 0.0)
    assert shared > 0.9 > 0.5 > dropped and untrained < 0.5


def test_partners_chosen_wrongly_teach_nothing():
    global M
    right = after_head(150, 0.0)
    M = method.load(
        "projection-head",
        wrong="""
def nt_xent(z, tau):
    z, partner = F.normalize(z, dim=1), torch.arange(len(z)).roll(1)
    return F.cross_entropy((z @ z.T / tau).fill_diagonal_(-torch.inf), partner)
""",
    )
    try:
        assert after_head(150, 0.0) < right - 0.3
    finally:
        M = method.load("projection-head")


def test_features_of_an_eval_network_do_not_depend_on_the_batch():
    f, head = M.encoder(16, (4, 8), 12), M.mlp_head(12)
    x = torch.rand(30, 1, 16, 16, generator=M.rng(13))
    h, z = M.features(f, head, x)
    np.testing.assert_allclose(M.features(f, head, x[:7])[0], h[:7], atol=1e-6)
    np.testing.assert_allclose(
        F.linear(
            F.relu(F.linear(torch.tensor(h).float(), *head[0].parameters())), *head[2].parameters()
        ).detach(),
        z,
        atol=1e-5,
    )
