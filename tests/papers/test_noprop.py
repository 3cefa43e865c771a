"""NoProp's method cells against closed forms, brute force and plain layers; and what happens when
they are broken.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from layerbook.pipeline import method

M = method.load("noprop")
T, CLASSES = 4, 3
SPEC = {"m": CLASSES, "d": CLASSES, "side": 8, "channels": (4, 4), "hidden": 12}
ALL, LOOP = [list(range(1, T + 1))], [[t] for t in range(1, T + 1)]


def toy(n: int, key: int, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 1, 8, 8] whose class is the height of a bright bar; learnable in seconds, not
    trivial.
    """
    g = torch.Generator().manual_seed(key)
    y = torch.randint(CLASSES, (n,), generator=g)
    x = noise * torch.randn(n, 1, 8, 8, generator=g)
    x[torch.arange(n), 0, 2 * y + 1] += 1.0
    return x, y


@pytest.fixture(scope="module")
def trained():
    x, y = toy(512, 0)
    return M.train_dt(x, y, torch.eye(CLASSES), SPEC, ALL, 30, 0, batch=64)


def test_schedule_runs_from_noise_to_label_and_has_the_known_increments():
    ab = M.alpha_bar(10)
    assert ab.dtype == torch.float64 and (ab.diff() > 0).all() and ab[0] < 1e-12 and ab[-1] == 0.99
    known = [0.025, 0.079, 0.151, 0.262, 0.459, 0.861, 1.86, 5.18, 26.0, 964]
    np.testing.assert_allclose(M.snr(M.alpha_bar(10, top=0.999)).diff(), known, rtol=0.02)


def test_posterior_coefficients_match_brute_force_gaussian_conditioning():
    ab, u, d = M.alpha_bar(6).numpy(), 1.7, 7
    a, b, c = (v.numpy() for v in M.coefficients(M.alpha_bar(6)))
    # Joint covariance of (z_T, ..., z_0) given u from the noising chain itself, z_{t-1} =
    # sqrt(alpha) z_t + noise.
    A, mean = np.zeros((d, d)), np.zeros(d)
    A[6, 6], mean[6] = np.sqrt(1 - ab[6]), np.sqrt(ab[6]) * u
    for t in range(6, 0, -1):
        alpha = ab[t - 1] / ab[t]
        A[t - 1] = np.sqrt(alpha) * A[t]
        A[t - 1, t - 1], mean[t - 1] = np.sqrt(1 - alpha), np.sqrt(alpha) * mean[t]
    S = A @ A.T
    for t in range(1, 7):
        past = list(range(t))  # conditioning on all of z_0..z_{t-1}: only the last may matter
        gain = np.linalg.pinv(S[np.ix_(past, past)], hermitian=True) @ S[past, t]
        np.testing.assert_allclose(gain[-1], b[t - 1], atol=1e-9)
        np.testing.assert_allclose(gain[:-1], 0, atol=1e-9)
        np.testing.assert_allclose(S[t, t] - S[t, past] @ gain, c[t - 1], atol=1e-9)
        np.testing.assert_allclose((mean[t] - gain @ mean[past]) / u, a[t - 1], atol=1e-9)


def test_chain_with_perfect_blocks_ends_in_the_right_distribution():
    class Perfect(torch.nn.Module):
        def forward(self, x, z):
            return torch.tensor([50.0, 0.0]).expand(1, len(x), 2)

    ab, seen = M.alpha_bar(5), []
    net = [Perfect() for _ in range(5)], lambda z: seen.append(z) or z, torch.eye(2), ab
    M.chain(net, torch.zeros(200_000, 1, 1, 1), M.rng(3), chunk=200_000)
    z = seen[0]
    np.testing.assert_allclose(z.mean(0), [np.sqrt(0.99), 0], atol=2e-3)
    np.testing.assert_allclose(z.var(0), 0.01, rtol=0.02)


@pytest.mark.parametrize("group", [0, 2])
def test_a_group_of_blocks_is_an_ordinary_network(group):
    torch.manual_seed(0)
    stack = M.Blocks([(5, t) for t in range(3)], **SPEC).double()
    x, z = torch.randn(16, 1, 8, 8).double(), torch.randn(3, 16, CLASSES).double()
    out = stack(x, z)[group]

    def pick(p):
        return p.detach().chunk(3)[group]

    def linear(k, a):
        return a @ pick(stack.weight[k])[0] + pick(stack.bias[k])[0]

    def norm(a):
        return (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()

    h = x
    for conv in stack.conv:  # ReLU before pooling, as written in the paper
        h = F.max_pool2d(F.relu(F.conv2d(h, pick(conv.weight), pick(conv.bias), padding=1)), 2)
    first = F.relu(linear("z", z[group]))
    joined = torch.cat(
        [norm(linear("x", h.flatten(1))), norm(first + F.relu(linear("skip", first)))], 1
    )
    torch.testing.assert_close(out, linear("out", F.relu(norm(linear("join", joined)))))
    single = stack.eval().split()[group]
    torch.testing.assert_close(single(x, z[group][None])[0], stack(x, z)[group])


def test_initial_weights_depend_on_the_block_key_alone():
    together, alone = M.Blocks([(1, 1), (1, 2)], **SPEC).split()[1], M.Blocks([(1, 2)], **SPEC)
    assert all(torch.equal(p, q) for p, q in zip(together.parameters(), alone.parameters()))


def test_block_loss_matches_a_loop_over_its_formula():
    torch.manual_seed(1)
    x, y = toy(8, 1)
    W, ab, ts = torch.randn(CLASSES, CLASSES), M.alpha_bar(T).float(), [2, 4]
    stack, head, eps = (
        M.Blocks([(0, t) for t in ts], **SPEC).eval(),
        M.readout(W),
        torch.randn(2, 2, 8, CLASSES),
    )
    got = M.block_losses(stack, head, W, x, y, ts, ab, eps)
    for k, t in enumerate(ts):
        total, single = 0.0, stack.split()[k]
        for i in range(8):
            u = W[y[i]]
            z_in = ab[t - 1].sqrt() * u + (1 - ab[t - 1]).sqrt() * eps[k, 0, i]
            z_T = ab[T].sqrt() * u + (1 - ab[T]).sqrt() * eps[k, 1, i]
            u_hat = single(x[i : i + 1], z_in[None, None])[0, 0].softmax(-1) @ W
            weight = T / 2 * 0.1 * (ab[t] / (1 - ab[t]) - ab[t - 1] / (1 - ab[t - 1]))
            # KL is 0: ab_0 = 0
            total += weight * (u_hat - u).square().sum() - head(z_T).log_softmax(-1)[y[i]]
        torch.testing.assert_close(got[k], total / 8, rtol=1e-4, atol=1e-5)


def test_prior_term_is_the_divergence_between_the_two_gaussians():
    torch.manual_seed(2)
    x, y = toy(8, 1)
    W, ab, eps = (
        torch.randn(CLASSES, CLASSES),
        M.alpha_bar(T).float(),
        torch.randn(1, 2, 8, CLASSES),
    )
    leaky = ab.clone()
    leaky[0] = 0.3  # some label left in z_0; block 4 itself never sees it
    stack, head = M.Blocks([(0, 4)], **SPEC).eval(), M.readout(W)
    more = M.block_losses(stack, head, W, x, y, [4], leaky, eps) - M.block_losses(
        stack, head, W, x, y, [4], ab, eps
    )
    normal = torch.distributions.Normal
    kl = (
        torch.distributions.kl_divergence(normal(0.3**0.5 * W[y], 0.7**0.5), normal(0.0, 1.0))
        .sum(-1)
        .mean()
    )
    torch.testing.assert_close(more[0], kl, rtol=1e-3, atol=1e-4)


def blocks_of(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for block in net[0] for p in block.parameters()])


def test_one_step_training_equals_algorithm_1_and_order_changes_no_bit():
    x, y = toy(64, 2)
    train = lambda x, W, groups: blocks_of(M.train_dt(x, y, W, SPEC, groups, 3, 7, batch=16))  # noqa: E731
    double = [
        train(x.double(), torch.eye(CLASSES).double(), g) for g in (ALL, LOOP, [[2, 4], [1, 3]])
    ]
    for other in double[1:]:
        torch.testing.assert_close(double[0], other, rtol=0, atol=1e-6)
    assert torch.equal(train(x, torch.eye(CLASSES), LOOP), train(x, torch.eye(CLASSES), LOOP[::-1]))
    learned = [train(x, torch.nn.Parameter(torch.eye(CLASSES)), g) for g in (LOOP, LOOP[::-1])]
    assert not torch.equal(*learned)


def test_a_shared_random_stream_would_make_the_order_matter():
    broken = method.load(
        "noprop", rng="G = torch.Generator().manual_seed(0)\ndef rng(*key):\n    return G"
    )
    x, y = toy(64, 2)
    moved = []
    for groups in (LOOP, LOOP[::-1]):
        broken.G.manual_seed(0)
        moved.append(
            blocks_of(broken.train_dt(x, y, torch.eye(CLASSES), SPEC, groups, 1, 7, batch=16))
        )
    assert not torch.equal(*moved)


def test_no_gradient_crosses_blocks_but_backprop_reaches_all():
    x, y = toy(32, 3)
    W, ab = torch.eye(CLASSES), M.alpha_bar(T).float()
    stack = M.Blocks([(0, t) for t in ALL[0]], **SPEC)
    losses = M.block_losses(
        stack, M.readout(W), W, x, y, ALL[0], ab, torch.randn(T, 2, 32, CLASSES)
    )
    table = np.array([M.gradients(loss, [stack]) for loss in losses])
    assert (np.diag(table) > 0).all() and (table - np.diag(np.diag(table)) == 0).all()
    net = M.BackpropNet([0], W, T, SPEC)
    loss = F.cross_entropy(net(x, torch.randn(1, 32, CLASSES))[0], y)
    assert min(M.gradients(loss, net.blocks)) > 0


def test_side_by_side_networks_train_as_they_would_alone():
    data = [toy(64, k) for k in (4, 5)]
    xs, ys = [x.double() for x, _ in data], [y for _, y in data]
    W = torch.eye(CLASSES).double()
    both = M.train_end_to_end(M.BackpropNet([1, 2], W, 2, SPEC), xs, ys, [1, 2], CLASSES, 2, 16)
    alone = M.train_end_to_end(M.BackpropNet([2], W, 2, SPEC), xs[1:], ys[1:], [2], CLASSES, 2, 16)
    for p, q in zip(both.parameters(), alone.parameters()):
        torch.testing.assert_close(p.chunk(2, 1 if p is both.w else 0)[1], q, rtol=0, atol=1e-6)


def test_the_meter_counts_what_autograd_keeps():
    x = torch.randn(1000, requires_grad=True)
    meter = M.SavedBytes()
    with meter:
        y = x.sigmoid().sigmoid().exp()  # each saves its own output, 4,000 bytes
        assert meter.now == meter.peak == 3 * 4000
        y.sum().backward()
    assert meter.now == 0
    w = torch.randn(10, 1000, requires_grad=True)
    with (again := M.SavedBytes([w])):
        (w @ x.detach()).sum().backward()  # saves w and x: w is skipped
    assert again.peak == 4000


def test_memory_is_flat_in_depth_one_block_at_a_time_and_only_then():
    x, y = toy(32, 6)
    depths, kinds = (
        [2, 5, 10],
        ("NoProp-DT", "NoProp-DT, one step", "checkpointing", "back-propagation"),
    )
    held = {
        k: np.array(
            [[M.saved_bytes(*M.one_step(k, t, SPEC, torch.eye(CLASSES), x, y), x) for t in depths]]
        )
        for k in kinds
    }
    r = {k: M.ratios(held, k, depths) for k in kinds[:3]}
    assert r["NoProp-DT"]["ratio"] < 0.6 and r["NoProp-DT"]["slope_ratio"] < 0.2
    assert r["checkpointing"]["ratio"] < 0.6
    # the broken version
    assert r["NoProp-DT, one step"]["ratio"] > 0.8 and r["NoProp-DT, one step"]["slope_ratio"] > 0.8


def test_checkpointing_changes_no_gradient():
    x, y = toy(16, 7)
    grads = []
    for kind in ("back-propagation", "checkpointing"):
        torch.manual_seed(0)
        parameters, go = M.one_step(kind, 3, SPEC, torch.eye(CLASSES), x, y)
        go()
        grads.append([p.grad for p in parameters])
    for p, q in zip(*grads):
        torch.testing.assert_close(p, q)


def chain_accuracy(net, data=None) -> float:
    x, y = data or toy(1000, 99)
    return M.accuracy(M.chain(net, x, M.rng(1))[1], y)


def test_the_opposite_schedule_breaks_the_chain(trained):
    assert chain_accuracy(trained) > 0.8
    x, y = toy(512, 0)  # diffusion models' habit: alpha_bar falls from label to noise
    net = M.train_dt(
        x, y, torch.eye(CLASSES), SPEC, ALL, 30, 0, ab=M.alpha_bar(T).flip(0), batch=64
    )
    test_x, test_y = toy(1000, 99)
    quiet = [
        M.accuracy(M.chain(n, test_x, M.rng(1), noise=False)[1], test_y) for n in (trained, net)
    ]
    assert quiet[0] > 0.8 and quiet[1] < 0.5


def test_training_on_clean_labels_breaks_the_chain(trained):
    broken = method.load("noprop", noised="def noised(u, ab, eps):\n    return u + 0 * eps")
    x, y = toy(512, 0)
    net = broken.train_dt(x, y, torch.eye(CLASSES), SPEC, ALL, 30, 0, batch=64)
    assert chain_accuracy(net) < chain_accuracy(trained) - 0.2


def test_shuffled_labels_and_missing_images_give_chance(trained):
    x, y = toy(512, 0)
    test_x, test_y = toy(3000, 98)
    error = (2 / 9 / 3000) ** 0.5
    blank = M.train_dt(x[:, :0], y, torch.eye(CLASSES), SPEC, ALL, 4, 0, batch=64)
    assert abs(chain_accuracy(blank, (test_x[:, :0], test_y)) - 1 / 3) < 4 * error
    shuffle = lambda y, k: y[torch.randperm(len(y), generator=M.rng(k))]  # noqa: E731
    misled = M.train_dt(x, shuffle(y, 1), torch.eye(CLASSES), SPEC, ALL, 4, 0, batch=64)
    assert abs(chain_accuracy(misled, (test_x, shuffle(test_y, 2))) - 1 / 3) < 4 * error
    assert abs(chain_accuracy(trained, (test_x, test_y)) - 1 / 3) > 10 * error


def test_the_plain_network_ignores_the_label_entrance():
    x, _ = toy(8, 8)
    net = M.PlainNet([(0, 1)], **SPEC).eval()
    assert torch.equal(net(x, torch.zeros(1, 8, CLASSES)), net(x, torch.randn(1, 8, CLASSES)))


def test_learned_schedule_is_monotone_with_the_right_derivative():
    schedule = M.LearnedSchedule().double()
    with torch.no_grad():
        for p in list(schedule.parameters())[1:]:
            p.add_(torch.randn(p.shape, generator=M.rng(0)).double())
    t = torch.linspace(0, 1, 50).double().requires_grad_()
    gamma, slope = schedule(t)
    torch.testing.assert_close(torch.autograd.grad(gamma.sum(), t)[0], slope)
    assert (slope < 0).all()
    torch.testing.assert_close(gamma[[0, -1]].detach(), schedule.ends.detach().flip(0).double())


@pytest.mark.parametrize(
    ("name", "learned"), [("ct", False), ("ct", True), ("fm", False), ("fm", True)]
)
def test_continuous_variants_learn_the_toy_task(name, learned):
    x, y = toy(512, 0, noise=0.4)
    W = torch.nn.Parameter(M.embedding(CLASSES, 2, 0).data) if learned else torch.eye(CLASSES)
    spec = {**SPEC, "d": W.shape[1], "hidden": 32}
    net = M.train_continuous(
        M.ct_loss if name == "ct" else M.fm_loss, x, y, W, spec, 40, 0, batch=64
    )
    test_x, test_y = toy(500, 97, noise=0.4)
    assert M.accuracy(M.sample(net, test_x, 40, M.rng(2), name == "fm"), test_y) > 0.8


def test_prototypes_are_the_most_central_images():
    x = torch.tensor([0.0, 1.0, 2.0, 50.0, 5.0, 7.0, 8.0, 9.5, 20.0]).reshape(-1, 1, 1, 1)
    W = M.prototypes(x, torch.tensor([0] * 4 + [1] * 5), 2)
    assert W.flatten().tolist() == [1.0, 8.0]


def test_learned_embedding_starts_orthogonal_with_unit_rows():
    torch.testing.assert_close(
        M.embedding(4, 4, 0) @ M.embedding(4, 4, 0).T, torch.eye(4), atol=1e-5, rtol=0
    )
    assert M.embedding(100, 20, 0).square().sum(1).mean().item() == pytest.approx(1, abs=1e-4)
