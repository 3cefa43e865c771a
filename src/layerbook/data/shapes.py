"""Drawn scenes with captions and questions, for small networks that look at pictures.

A scene is a dark square picture of GRID x GRID cells, in some of which lies one coloured shape. No
two objects of a scene share a colour or a shape, so that "the circle" and "the red object" each
name one of them. Every question is about one object and would have another answer for at least one
other object of the scene: the picture without the question does not tell the answer, and the
question without the picture leaves all its answers equally likely.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# cells on a side, pixels on a side of a cell; one cell is one patch of the picture
GRID, CELL = 4, 8
PATCHES, SIDE = GRID * GRID, GRID * CELL
COLOURS = {"red": (225, 45, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 215, 50),
           "purple": (165, 55, 190), "white": (235, 235, 235)}  # fmt: skip
SHAPES = ("square", "circle", "triangle", "cross", "diamond", "ring")
AXES = (("left", "right"), ("top", "bottom"))
KINDS = ("query", "choose", "verify", "place")
ATTRIBUTES = KINDS[:3]  # those about a colour or a shape
SUFFIX = ("one", "word", ":")  # after each question; the answer is read at the last of them
WORDS = ("<pad>", "<bos>", "?", *SUFFIX, "caption", ".", "and", "what", "color", "shape", "is", "the", "object", "or", "yes",
         "no", *COLOURS, *SHAPES, *AXES[0], *AXES[1])  # fmt: skip
CODE = {word: i for i, word in enumerate(WORDS)}
FIRST = 1 + PATCHES  # position of the first word: "<bos>" and the picture come before
PROMPT = 8 + len(SUFFIX)  # most words of a question with its suffix


class Scene(NamedTuple):
    """A picture, uint8 [SIDE, SIDE, 3], and its objects in random order: colours, shapes, cells
    (row by row), boxes.

    A box is (left, top, right, bottom) in pixels, the last two exclusive.
    """

    image: np.ndarray
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    cells: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]


class Question(NamedTuple):
    """A question in words, its answer, the answers that the words admit, and the object that it is
    about.
    """

    kind: str
    words: tuple[str, ...]
    answer: str
    options: tuple[str, ...]
    subject: int


@lru_cache
def outline(shape: str, size: int) -> np.ndarray:
    """Pixels of a shape, booleans [size, size]. KeyError for an unknown one."""
    middle = (size - 1) / 2
    y, x = np.mgrid[:size, :size] - middle
    radius = np.hypot(x, y)
    return {
        "square": np.ones((size, size), bool),
        "circle": radius <= size / 2,
        "triangle": 2 * np.abs(x) <= y + middle + 0.5,
        "cross": np.minimum(np.abs(x), np.abs(y)) <= size / 6,
        "diamond": np.abs(x) + np.abs(y) <= size / 2,
        "ring": (radius <= size / 2) & (radius > size / 4),
    }[shape]


def patches_of(box: tuple[int, int, int, int]) -> np.ndarray:
    """Patches, booleans [PATCHES], that hold at least one pixel of a box."""
    left, top, right, bottom = box
    rows, columns = np.arange(PATCHES) // GRID * CELL, np.arange(PATCHES) % GRID * CELL
    return (rows < bottom) & (rows + CELL > top) & (columns < right) & (columns + CELL > left)


def place(cell: int, axis: int) -> str:
    """On which side of the picture a cell lies: axis 0 left or right, axis 1 top or bottom."""
    return AXES[axis][(cell // GRID if axis else cell % GRID) >= GRID // 2]


def draw(rng: random.Random, objects: int | None = None) -> Scene:
    """A scene of two to four objects (or as many as given) that do not all lie in the same quarter
    of the picture.
    """
    n = objects or rng.randint(2, 4)
    noise = np.random.default_rng(rng.getrandbits(32))
    image = noise.normal(40, 15, (SIDE, SIDE, 3))
    colours, shapes = rng.sample(tuple(COLOURS), n), rng.sample(SHAPES, n)
    cells = rng.sample(range(PATCHES), n)
    while all(len({place(c, axis) for c in cells}) == 1 for axis in (0, 1)):
        cells = rng.sample(range(PATCHES), n)
    boxes = []
    for colour, shape, cell in zip(colours, shapes, cells):
        size = rng.choice((7, 8))
        left, top = (CELL * k + rng.randint(0, CELL - size) for k in (cell % GRID, cell // GRID))
        boxes.append((left, top, left + size, top + size))
        paint = noise.normal(0, 15, (size, size, 3)) + np.array(COLOURS[colour]) * rng.uniform(0.85, 1.05)
        region = image[top : top + size, left : left + size]
        region[...] = np.where(outline(shape, size)[..., None], paint, region)
    return Scene(image.clip(0, 255).astype(np.uint8), tuple(colours), tuple(shapes), tuple(cells), tuple(boxes))


def caption(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """What is to be seen, objects in random order: "red circle and blue square ." or "circle red
    and square blue .".

    Each order of the two words teaches one way to look an object up: by its colour, and by its
    shape.
    """
    order, first = rng.sample(range(len(scene.cells)), len(scene.cells)), rng.random() < 0.5
    pairs = ((scene.colours[i], scene.shapes[i]) if first else (scene.shapes[i], scene.colours[i]) for i in order)
    words = [w for pair in pairs for w in ("and", *pair)]
    return (*words[1:], ".")


def ask(scene: Scene, rng: random.Random, kind: str) -> Question:
    """A question of one of the KINDS about a random object. ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"no kind of question {kind!r}; there are {', '.join(KINDS)}")
    i, by_shape = rng.randrange(len(scene.cells)), rng.random() < 0.5
    if kind == "place":
        differ = [a for a in (0, 1) if len({place(c, a) for c in scene.cells}) == 2]
        axis = rng.choice(differ)
        values, options = [place(c, axis) for c in scene.cells], AXES[axis]
    else:  # asked for its colour, an object is named by its shape, and the other way round
        values, options = (scene.colours, tuple(COLOURS)) if by_shape else (scene.shapes, SHAPES)
    name = ("the", scene.shapes[i]) if by_shape else ("the", scene.colours[i], "object")
    answer, foil = values[i], rng.choice([v for v in values if v != values[i]])
    if kind == "query":
        words = ("what", "color" if by_shape else "shape", "is", *name, "?")
    elif kind == "verify":
        claimed, answer, options = *rng.choice(((answer, "yes"), (foil, "no"))), ("yes", "no")
        words = ("is", *name, claimed, "?")
    else:
        options = tuple(rng.sample((answer, foil), 2))
        words = ("is", *name, options[0], "or", options[1], "?")
    return Question(kind, words, answer, options, i)


class Examples(NamedTuple):
    """Questions with their pictures and prompts; T = FIRST + PROMPT positions: "<bos>", patches,
    words, "<pad>".

    Words are padded on the right, where a causal network does not see them from any position that
    matters.
    """

    scenes: list[Scene]
    questions: list[Question]
    images: Tensor  # uint8 [n, SIDE, SIDE, 3]
    ids: Tensor  # words of the prompts [n, PROMPT]
    answer: Tensor  # token [n]
    last: Tensor  # position of the last word of the prompt [n]
    asked: Tensor  # booleans [n, T]: words of the question itself, without the suffix
    subject: Tensor  # booleans [n, T]: patches of the object that the question is about
    prior: Tensor  # share of right answers by guessing among the options [n]


def encode(words: Sequence[str]) -> list[int]:
    """Tokens of words. KeyError for a word that is not in the vocabulary."""
    return [CODE[w] for w in words]


def examples(n: int, seed: int, stream: str = "held-out", kinds: Sequence[str] = ATTRIBUTES) -> Examples:
    """n questions, of the kinds in turn, each with a picture of its own. Another stream gives other
    scenes.
    """
    rng = random.Random(f"{stream}-{seed}")
    scenes = [draw(rng) for _ in range(n)]
    questions = [ask(scene, rng, kinds[i % len(kinds)]) for i, scene in enumerate(scenes)]
    prompts = [encode((*q.words, *SUFFIX)) for q in questions]
    span, length = torch.arange(FIRST + PROMPT), torch.tensor([len(q.words) for q in questions])
    subject = torch.zeros(n, FIRST + PROMPT, dtype=torch.bool)
    for row, scene, question in zip(subject, scenes, questions):
        row[1:FIRST] = torch.from_numpy(patches_of(scene.boxes[question.subject]))
    return Examples(
        scenes, questions, torch.from_numpy(np.stack([s.image for s in scenes])),
        torch.tensor([p + [CODE["<pad>"]] * (PROMPT - len(p)) for p in prompts]),
        torch.tensor([CODE[q.answer] for q in questions]), FIRST + length + len(SUFFIX) - 1,
        (span >= FIRST) & (span < FIRST + length[:, None]), subject,
        torch.tensor([1 / len(q.options) for q in questions]),
    )  # fmt: skip
