"""The comparison of the quantization papers: swapped weights, recipes and orders on a tiny random
LLaMA, and the page.
"""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

from layerbook.families import comparison, recipes, scores
from layerbook.layers import transformer as tf
from layerbook.pages import quantization_page
from layerbook.pages.papers import BookError
from layerbook.quantize import gptq, swaps
from layerbook.quantize import grids as q

N, VOCAB = 4, 50
IDS = torch.randint(1, VOCAB, (6, 10), generator=torch.Generator().manual_seed(1))
PLAN = comparison.Plan(windows=6, tokens=10, levels=(4, 2), counts=(1, 2), orders=4, group=16)
IMPORTANCE = {"turning": [3.0, 1.0, 2.0, 4.0], "curvature": [1.0, 2.0, 3.0, 4.0]}
FOUND = [
    {"slug": "layerwise-quant", "profile": k, "statement": "s", "values": v, "importance": v}
    for k, v in IMPORTANCE.items()
]


@pytest.fixture
def net():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=N,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return tf.Stack(hf.LlamaForCausalLM(config).eval().requires_grad_(False))


@pytest.fixture
def room(net):
    return recipes.look(net, IDS, 16)


def by_hand(net, new):
    """Losses with other weights, by a deep copy and the whole network."""
    model = copy.deepcopy(net.model)
    for i, weights in new.items():
        for name, w in weights.items():
            model.model.layers[i].get_submodule(name).weight.data = w
    logp = model(IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    return (-logp).clamp(max=np.log(VOCAB)).mean(1).double().numpy()


@pytest.mark.parametrize("blocks", [(), (0,), (2, 3), (1,)])
def test_losses_from_where_the_change_begins_are_those_of_the_whole_network(net, blocks):
    before = copy.deepcopy(net.model.state_dict())
    new = {i: {name: m.weight + 0.1 for name, m in swaps.maps(net)[i].items()} for i in blocks}
    text = swaps.Text(net, IDS, per_call=4)
    np.testing.assert_allclose(text.losses(new), by_hand(net, new), atol=1e-5)
    assert len(text.losses(new, 3)) == 3
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())


def test_swapped_weights_are_put_back_after_an_error(net):
    w = net.model.model.layers[1].mlp.up_proj.weight.clone()
    with pytest.raises(RuntimeError, match="stop"), swaps.swapped(net, {1: {"mlp.up_proj": w * 2}}):
        assert torch.equal(net.model.model.layers[1].mlp.up_proj.weight, w * 2)
        raise RuntimeError("stop")
    assert torch.equal(net.model.model.layers[1].mlp.up_proj.weight, w)


def test_moments_of_maps_that_read_one_input_are_one(net):
    found = swaps.moments(net, IDS, per_call=4)
    assert set(found) == {(i, name) for i, block in enumerate(swaps.maps(net)) for name in block}
    h = net.model.model.layers[0].input_layernorm(net.model.model.embed_tokens(IDS)).flatten(0, 1)
    for name in ("q_proj", "k_proj", "v_proj"):
        torch.testing.assert_close(found[0, f"self_attn.{name}"], h.T @ h, rtol=1e-4, atol=1e-4)
    alone = gptq.moments(lambda: net.model(IDS), {"down": net.model.model.layers[3].mlp.down_proj})[
        "down"
    ]
    torch.testing.assert_close(found[3, "mlp.down_proj"], alone, rtol=1e-4, atol=1e-4)


def test_balance_changes_nothing_until_something_is_rounded(net, room, monkeypatch):
    text = swaps.Text(net, IDS)
    quantized = recipes.losses(recipes.balanced(room, "x", 4, True), room, text)
    monkeypatch.setattr(q, "fake", lambda x, grid: x)
    monkeypatch.setattr(q, "fake_quantize", lambda x, *a, **k: x)
    exact = recipes.losses(recipes.balanced(room, "x", 4, True), room, text)
    np.testing.assert_allclose(exact, text.losses({}), atol=1e-4)
    assert abs(quantized - exact).max() > 1e-3


def test_recipes_store_what_they_say_and_spared_maps_stay(room):
    made = {r.name: r for r in (make() for make in recipes.recipes(room, IMPORTANCE))}
    assert {r.slug for r in made.values()} >= {"", "layerwise-quant", "hawq", "spike-aware-quant"}
    assert made["rounded, 3 bits"].stored.per_weight == 3 + 32 / 16
    half = made["4 bits, half of the layers 3, by LIM"]
    for i in range(N):  # blocks 1 and 2 have the lowest scores
        w = half.weights[i, "mlp.up_proj"].reshape(-1, 16)
        assert max(len(set(row.tolist())) for row in w) <= (8 if i in (1, 2) else 16)
        assert max(len(set(row.tolist())) for row in w) > (4 if i in (1, 2) else 8)
    spared = made["W8A8, projections with spikes spared"]
    worst = max(room.spikes, key=room.spikes.get)
    assert spared.weights[worst] is room.linear[worst].weight and worst not in spared.reads
    assert spared.stored.per_weight > made["W8A8, one range a tensor"].stored.per_weight


def test_the_whole_comparison_and_that_a_reversed_score_takes_the_other_end(net, room):
    texts = (swaps.Text(net, IDS), swaps.Text(net, IDS.flip(1)))
    found = comparison.sweep(net, texts, FOUND, PLAN)
    first = found[1]
    expected = text_rise(net, texts[0], first["level"], [1, 2])
    assert first["curves"]["layerwise-quant: turning"][2] == pytest.approx(expected, abs=1e-6)
    turned = comparison.sweep(
        net, texts, [{**FOUND[0], "importance": [-v for v in IMPORTANCE["turning"]]}], PLAN
    )[1]
    assert turned["curves"]["layerwise-quant: turning"][2] == pytest.approx(
        text_rise(net, texts[0], 2, [0, 3]), abs=1e-6
    )
    least = np.argsort(first["harm_other"], kind="stable")[:2]
    assert first["curves"]["measured harm"][2] == pytest.approx(
        text_rise(net, texts[0], 2, least.tolist()), abs=1e-6
    )
    assert set(least) != set(np.argsort(first["harm"])[:2]), (
        "or this test could not tell the two texts apart"
    )
    assert first["curves"]["from the front"][1] == pytest.approx(first["harm"][0])
    assert first["bits"][0] == 5.0 and first["bits"][1] == pytest.approx(5 - (5 - 2 - 32 / 16) / N)
    assert (
        np.isfinite(comparison.plain(found)[0]["harm"]).all()
        and len(first["curves"]) == 2 + 3 + PLAN.orders
    )


def text_rise(net, text, bits, blocks):
    banks, _ = comparison.rounded(net, bits, PLAN.group)
    return float((text.losses({i: banks[i] for i in blocks}) - text.losses({})).mean())


def a_record(folder, slug, profiles, model="smollm2"):
    rows = [{"name": k, "statement": "s", "values": v} for k, v in profiles.items()]
    (folder / f"{slug}.json").write_text(
        json.dumps({"parameters": {"model": model}, "profiles": rows}), encoding="utf-8"
    )


def test_scores_are_read_from_records_and_turned_so_that_high_is_important(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scores, "SCORES", (scores.Score("a", "up"), scores.Score("b", "down", False))
    )
    a_record(tmp_path, "a", {"up": [1, 2]})
    a_record(tmp_path, "b", {"down": [3, 4]})
    found = scores.collect(folder=tmp_path)
    assert [s["importance"] for s in found] == [[1, 2], [-3, -4]]
    for broken in ({"down": [3]}, {"down": [3, None]}, {}):
        a_record(tmp_path, "b", broken)
        with pytest.raises(scores.ScoreError, match="make rerun PAPER=b"):
            scores.collect(folder=tmp_path)
    a_record(tmp_path, "b", {"down": [3, 4]}, model="another")
    with pytest.raises(scores.ScoreError, match="b.json has no profile"):
        scores.collect(folder=tmp_path)
    (file := tmp_path / "scores.json").write_text(json.dumps(found), encoding="utf-8")
    assert scores.read(2, file) == found
    for layers, where in ((3, file), (2, tmp_path / "none.json")):
        with pytest.raises(scores.ScoreError, match="dvc repro collect-layer-scores"):
            scores.read(layers, where)


def test_collected_scores_do_not_change_with_a_rerun_of_equal_values(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "collect", lambda: FOUND)
    file = tmp_path / "a" / "scores.json"
    assert scores.write(file) == FOUND
    first = file.read_bytes()
    scores.write(file)
    assert file.read_bytes() == first and scores.read(len(FOUND[0]["values"]), file) == FOUND
    for by, stays in ((1e-7, True), (1e-4, False)):  # another processor's rounding; another score
        moved = [dict(f, values=[v * (1 + by) for v in f["values"]]) for f in FOUND]
        monkeypatch.setattr(scores, "collect", lambda moved=moved: moved)
        scores.write(file)
        assert (file.read_bytes() == first) == stays


@pytest.fixture
def stored(net, room, tmp_path, monkeypatch):
    """A comparison of the tiny network, and papers with the profiles that it used."""
    texts = (swaps.Text(net, IDS), swaps.Text(net, IDS.flip(1)))
    levels = comparison.sweep(net, texts, FOUND, PLAN)
    found = {
        "model": "smollm2",
        "layers": N,
        "counts": PLAN.counts,
        "scores": FOUND,
        "levels": levels,
        "recipes": recipes.table(net, texts[0], IDS, FOUND, 16),
    }
    file = tmp_path / quantization_page.FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(comparison.plain(found)), encoding="utf-8")
    rows = [{"name": s["profile"], "statement": "s", "values": s["values"]} for s in FOUND]
    paper = SimpleNamespace(
        slug="layerwise-quant",
        short="Layer-wise",
        main="cpu",
        records={"cpu": {"parameters": {"model": "smollm2"}, "profiles": rows}},
    )
    monkeypatch.setattr(
        scores, "SCORES", tuple(scores.Score("layerwise-quant", name) for name in IMPORTANCE)
    )
    return tmp_path, paper


def test_the_page_shows_every_recipe_and_every_order(stored):
    root, paper = stored
    parts = quantization_page.fragments(root, [paper])
    names = [
        r["name"]
        for r in json.loads((root / quantization_page.FILE).read_text(encoding="utf-8"))["recipes"]
    ]
    assert parts["family-quantization-recipes"].count("lb-mark") == len(names) == 13
    assert all(f". {name}<" in parts["family-quantization-recipes"] for name in names)
    assert "papers/layerwise-quant.html" in parts["family-quantization-recipes"]
    assert parts["family-quantization-orders"].count("<svg") == len(FOUND) + 2
    assert parts["family-quantization-correlates"].count("<svg") == len(FOUND) + len(PLAN.levels)
    assert ">nan" not in "".join(parts.values())


def test_a_comparison_older_than_a_record_is_refused(stored):
    root, paper = stored
    paper.records["cpu"]["profiles"][0]["values"] = [3.0, 1.0, 2.0, 5.0]
    with pytest.raises(BookError, match="dvc repro compare-quantization"):
        quantization_page.fragments(root, [paper])
    assert (
        "layerwise-quant has no record"
        in quantization_page.fragments(root, [])["family-quantization-orders"]
    )
    (root / quantization_page.FILE).unlink()
    with pytest.raises(BookError, match="is missing"):
        quantization_page.fragments(root, [paper])


def test_the_share_of_random_orders_beaten_counts_larger_areas():
    level = {
        "areas": {"x": 1.0, "random 0": 2.0, "random 1": 0.5, "random 2": 1.0, "random 3": 1.5}
    }
    assert quantization_page.beaten(level, "x") == 0.5


def test_numbers_of_points_that_lie_together_do_not_cover_each_other():
    points = [(100.0, 100.0), (104.0, 103.0), (100.0, 108.0)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for i, point in enumerate(points):
        quantization_page._label(*point, str(i), taken)
    a, b, c = taken[3:]
    apart = lambda p, q_: p[2] <= q_[0] or q_[2] <= p[0] or p[3] <= q_[1] or q_[3] <= p[1]  # noqa: E731
    assert apart(a, b) and apart(a, c) and apart(b, c)
