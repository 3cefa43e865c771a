"""Low-rank tuning against what it must change and what it must not."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from layerbook.networks import lora

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=4, n_positions=32),
}
HEAD, ROWS = [1, 2, 3], [([4, 5, 6, 7], 2), ([8, 9, 10], 1), ([4, 11], 1)]


@pytest.fixture(params=CONFIGS)
def network(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval().requires_grad_(False)


def nats(model, rows=ROWS):
    total = []
    for ids, start in rows:
        log_p = model(input_ids=torch.tensor([HEAD + ids])).logits[0].log_softmax(-1)
        total += [-log_p[len(HEAD) + i - 1, ids[i]] for i in range(start, len(ids))]
    return torch.stack(total).mean()


def test_it_learns_the_answers_changes_all_blocks_by_low_rank_and_nothing_else(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    tuned = lora.tune(network, HEAD, ROWS, 30, 0, rank=2, rate=2e-2)
    assert nats(tuned) < nats(network) - 0.2
    # the expert is left alone
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert set(tuned.state_dict()) == set(before) and not any(
        p.requires_grad for p in tuned.parameters()
    )
    changed = {
        k: (v - before[k]) for k, v in tuned.state_dict().items() if not torch.equal(v, before[k])
    }
    assert all(
        v.ndim == 2 and torch.linalg.matrix_rank(v, atol=1e-5) <= 2 for v in changed.values()
    )
    matrices = [k for k, v in before.items() if v.ndim == 2 and ("layers." in k or ".h." in k)]
    assert set(changed) == set(matrices)  # every matrix of every block, and no embedding


def test_it_is_reproducible_and_starts_from_the_expert(network):
    a, b, c = (lora.tune(network, HEAD, ROWS, 3, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, b.get_parameter(k)) for k, x in a.named_parameters())
    assert not all(torch.equal(x, c.get_parameter(k)) for k, x in a.named_parameters())
    weight = torch.randn(6, 4)
    assert torch.equal(lora.LowRank(weight, 2)(weight), weight)


def test_only_the_answers_are_learnt(network, monkeypatch):
    seen, plain = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional,
        "cross_entropy",
        lambda x, y, **kw: (seen.append(y), plain(x, y, **kw))[1],
    )
    lora.tune(network, HEAD, ROWS, 1, 0)
    assert sorted(seen[0][seen[0] != -100].tolist()) == [6, 7, 9, 10, 11]


def test_a_perturbation_is_as_large_as_the_change_and_in_another_direction(network):
    tuned = lora.tune(network, HEAD, ROWS, 20, 0, rate=1e-2)
    moved = lora.perturbed(network, tuned, 5)
    for name, e in network.named_parameters():
        a, p = tuned.get_parameter(name), moved.get_parameter(name)
        assert torch.allclose((p - e).norm(), (a - e).norm(), rtol=1e-3, atol=1e-6)
        if (a - e).norm() > 0:
            assert torch.cosine_similarity((a - e).flatten(), (p - e).flatten(), 0).abs() < 0.5
    again = lora.perturbed(network, tuned, 5)
    assert all(torch.equal(x, y) for x, y in zip(moved.parameters(), again.parameters()))
