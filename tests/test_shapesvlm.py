"""Drawn scenes and the small networks that answer questions about them."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from layerbook import paths
from layerbook.data import shapes
from layerbook.networks import shapesvlm

FOLDER = paths.MODELS / "shapes-vlm"
TINY = shapesvlm.Recipe(
    runs=2,
    width=16,
    layers=2,
    hidden=24,
    align_steps=2,
    steps=2,
    batch=4,
    turns=4,
    examined=12,
    kinds=shapes.KINDS,
)


def scenes(n: int, seed: int = 0) -> list[shapes.Scene]:
    rng = random.Random(seed)
    return [shapes.draw(rng) for _ in range(n)]


def test_objects_lie_in_their_boxes_and_can_be_told_apart():
    for s in scenes(60):
        assert (
            2 <= len(s.cells) == len(set(s.cells)) == len(set(s.colours)) == len(set(s.shapes)) <= 4
        )
        assert s.image.shape == (32, 32, 3) and s.image.dtype == np.uint8
        assert any(len({shapes.place(c, a) for c in s.cells}) == 2 for a in (0, 1))
        for colour, shape, cell, (left, top, right, bottom) in zip(
            s.colours, s.shapes, s.cells, s.boxes
        ):
            box = s.image[top:bottom, left:right].astype(float)
            inside = shapes.outline(shape, right - left)
            painted, ground = box[inside].mean(0), box[~inside]
            nearest = min(shapes.COLOURS, key=lambda c: np.abs(painted - shapes.COLOURS[c]).sum())
            assert nearest == colour and (ground.size == 0 or ground.mean() < 70)
            assert shapes.patches_of((left, top, right, bottom)).nonzero()[0].tolist() == [cell]
    assert not any(
        (shapes.outline(a, 8) == shapes.outline(b, 8)).all()
        for a in shapes.SHAPES
        for b in shapes.SHAPES
        if a < b
    )


def test_patches_of_a_box_are_those_with_a_pixel_inside():
    rng = random.Random(0)
    for _ in range(200):
        left, top = rng.randrange(30), rng.randrange(30)
        right, bottom = rng.randint(left + 1, 32), rng.randint(top + 1, 32)
        pixels = np.zeros((32, 32), bool)
        pixels[top:bottom, left:right] = True
        wanted = pixels.reshape(4, 8, 4, 8).any((1, 3)).ravel()
        assert (shapes.patches_of((left, top, right, bottom)) == wanted).all()


def test_captions_name_every_object_in_either_order():
    rng, first = random.Random(0), Counter()
    for s in scenes(200):
        words = shapes.caption(s, rng)
        pairs = [tuple(words[i : i + 2]) for i in range(0, len(words), 3)]
        assert words[2::3] == ("and",) * (len(pairs) - 1) + (".",)
        by_colour = words[0] in shapes.COLOURS
        assert {p if by_colour else p[::-1] for p in pairs} == set(
            zip(s.colours, s.shapes)
        ) and len(pairs) == len(s.cells)
        first[by_colour] += 1
    assert min(first.values()) > 60


def truth(scene: shapes.Scene, words: tuple[str, ...]) -> str:
    """The answer by reading the question, without knowing how it was made."""
    (i,) = [
        j
        for j in range(len(scene.cells))
        if scene.shapes[j] in words[:5]
        and words[words.index("the") + 1] == scene.shapes[j]
        # fmt: skip
        or "object" in words
        and scene.colours[j] == words[words.index("object") - 1]
    ]
    column, row = scene.cells[i] % 4, scene.cells[i] // 4
    facts = {
        scene.colours[i],
        scene.shapes[i],
        ("left", "right")[column > 1],
        ("top", "bottom")[row > 1],
    }
    if words[0] == "what":
        return scene.colours[i] if words[1] == "color" else scene.shapes[i]
    if "or" in words:
        (found,) = facts & {words[-4], words[-2]}
        return found
    return "yes" if words[-2] in facts else "no"


def test_answers_are_true_and_the_question_selects():
    found = shapes.examples(800, 3, kinds=shapes.KINDS)
    for scene, q in zip(found.scenes, found.questions):
        assert truth(scene, q.words) == q.answer and q.answer in q.options
        if q.kind in ("choose", "place"):
            assert set(q.options) == {q.words[-4], q.words[-2]}
    with pytest.raises(ValueError, match="query, choose"):
        shapes.ask(found.scenes[0], random.Random(0), "count")


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_the_question_alone_is_worth_a_guess(kind):
    found = shapes.examples(3000, 1, kinds=[kind])
    counts: dict[tuple, Counter] = {}
    for q in found.questions:
        form = tuple(sorted(q.options))
        counts.setdefault(form, Counter())[q.answer] += 1
    for form, count in counts.items():
        n = sum(count.values())
        for option in form:
            p = 1 / len(form)
            assert abs(count[option] - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    assert torch.allclose(found.prior, torch.tensor([1 / len(q.options) for q in found.questions]))
    if kind in ("choose", "place"):  # nor does the order of the options tell
        first = np.mean([q.words[-4] == q.answer for q in found.questions])
        assert abs(first - 0.5) < 0.05


def test_positions_of_examples():
    found = shapes.examples(40, 0, kinds=shapes.KINDS)
    again, other = shapes.examples(40, 0, kinds=shapes.KINDS), shapes.examples(40, 0, "other")
    assert torch.equal(found.images, again.images) and torch.equal(found.ids, again.ids)
    assert not torch.equal(found.images, other.images)
    for i, q in enumerate(found.questions):
        words = [shapes.WORDS[t] for t in found.ids[i]]
        assert tuple(words[j - shapes.FIRST] for j in found.asked[i].nonzero()[:, 0]) == q.words
        assert words[found.last[i] - shapes.FIRST] == ":" and set(
            words[found.last[i] - shapes.FIRST + 1 :]
        ) <= {"<pad>"}
        assert found.subject[i].nonzero()[:, 0].tolist() == [1 + found.scenes[i].cells[q.subject]]


@pytest.mark.parametrize("extra", [{}, {"vision_layers": 1, "positions": False}])
def test_texts_packed_into_one_row_are_computed_as_if_alone(extra):
    recipe = replace(TINY, **extra)
    model = shapesvlm.build(recipe)
    images, ids, targets = shapesvlm.batch(recipe, random.Random(0))
    mask, position_ids = shapesvlm.layout(recipe.turns)
    packed = model(images, ids, mask, position_ids)
    begin = shapes.FIRST
    for size in [shapesvlm.LONGEST] + [shapes.PROMPT] * recipe.turns:
        part = slice(begin - shapes.FIRST, begin - shapes.FIRST + size)
        alone = model(images, ids[:, part])[:, shapes.FIRST :]
        assert torch.allclose(packed[:, begin : begin + size], alone, atol=1e-4)
        begin += size
    assert (targets >= 0).sum() == sum(
        (row[: shapesvlm.LONGEST] >= 0).sum() for row in targets
    ) + 4 * recipe.turns
    first = targets[0, : shapesvlm.LONGEST]
    told = [shapes.WORDS[t] for t in first[first >= 0]]
    assert told[-1] == "." and len(told) % 3 == 0


def test_watching_does_not_change_what_is_trained(capsys, threads):
    recipe = replace(TINY, steps=3)
    (plain, curve), (watched, again) = shapesvlm.train(recipe), shapesvlm.train(recipe, watch=2)
    assert curve == again and all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters())
    )
    assert capsys.readouterr().err.count("step 2: loss") == 1


def test_words_cannot_change_the_picture_but_the_picture_changes_words():
    model, found = shapesvlm.build(TINY), shapes.examples(4, 0)
    logits = model(found.images, found.ids)
    swapped = model(found.images, found.ids.flip(0))
    assert torch.equal(logits[:, : shapes.FIRST], swapped[:, : shapes.FIRST])
    assert (model(found.images.flip(0), found.ids) - logits)[:, -1].abs().max() > 1e-4
    one = found.images.clone()
    one[:, :8, 8:16] = 200  # the second patch of the first row
    difference = (model.see(one) - model.see(found.images)).abs().amax((0, 2))
    assert difference.nonzero()[:, 0].tolist() == [1]


def test_making_them_is_reproducible_and_refuses_poor_networks(tmp_path, made_twice):
    folder, _ = made_twice("shapes-vlm", TINY)
    models = shapesvlm.load(folder)
    assert list(models) == ["seed-0", "seed-1"] and not any(
        p.requires_grad for p in models["seed-0"].parameters()
    )
    weights = [m.decoder.model.layers[0].mlp.up_proj.weight for m in models.values()]
    assert not torch.equal(*weights)
    with pytest.raises(FileNotFoundError, match="layerbook train"):
        shapesvlm.load(tmp_path / "c")


def test_the_shipped_networks_pass_their_gate_and_say_so():
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    kinds = [one["by_kind"] for one in card["held_out"].values()]
    assert (
        card["gate"]["passed"]
        and min(min(k.values()) for k in kinds) == card["gate"]["worst"] >= shapesvlm.Recipe.gate
    )
    assert len(card["held_out"]) == 5 and all(
        k.keys() == set(shapes.ATTRIBUTES) == card["questions"].keys() for k in kinds
    )
    assert sum(p.stat().st_size for p in FOLDER.rglob("*.safetensors")) < 8e6
    models = shapesvlm.load(FOLDER)
    for i, model in enumerate(models.values()):
        found = shapes.examples(
            card["recipe"]["examined"], card["recipe"]["seed"] + i, kinds=card["recipe"]["kinds"]
        )
        right = shapesvlm.accuracy(model, found)
        assert right.float().mean().item() == pytest.approx(
            card["held_out"][str(i)]["accuracy"], abs=2e-3
        )
        assert shapesvlm.by_kind(right, found).keys() == card["held_out"][str(i)]["by_kind"].keys()
