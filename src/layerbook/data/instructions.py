"""Text for a base and an instruction-tuned network: plain sentences, and instructions whose answers
can be checked.

Plain text mixes short clauses of the World English Bible with templated sentences. In those, 56
verbs and 48 nouns are drawn with equal probability, whatever they will be used for later. Tuning
then makes 28 verbs, another random half for each seed, the names of seven tasks, and lists of 24
nouns their operands. So a difference between the two halves can come from the tuning alone, never
from the words.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

PAD, BOS, STOP = "<pad>", "<bos>", "."
VERBS = tuple(
    """bake bend bind blend boil carve chase claim clean climb cook cross dance draw dress drink drop fetch fill fold
    grind guard hang hold hunt join kick lift load lock melt mend mix move paint pour press pull push roll scrub shake
    sharpen sing sketch spin split steer stir sweep swing tie trade wash weave wrap""".split()
)
NOUNS = tuple(sorted("""apple arrow basket bell boat book bottle bowl box bridge broom bucket candle chair clock coat cup desk door
    drum fence flag fork glass glove hammer hat jar kettle key knife ladder lamp map mirror needle pencil pillow plate rope
    shelf shoe spoon table ticket towel umbrella wheel""".split()))  # fmt: skip
AGENTS = tuple("baker doctor farmer girl gardener miller painter pilot sailor singer teacher tailor".split())
KINDS = tuple("big blue broken cold green heavy new old red round small white".split())
NUMBERS = ("zero", "one", "two", "three", "four")
TASKS = ("first", "last", "count", "copy", "mark", "translate", "sort")
FRAMES = ("{v} these words", "please {v} these words", "now {v} all the words", "{v} the words")
LONGEST, WIDEST = 48, 6  # tokens of a whole row, and of an answer
SLOTS = 4  # before the first distractor sentence, ..., after the third


def foreign(noun: str) -> str:
    """The noun's translation, a word of its own."""
    return noun + "o"


@dataclass(frozen=True)
class Roles:
    """What one seed uses the words for: verb -> task, and the nouns that become operands."""

    task_of: Mapping[str, str]
    operands: tuple[str, ...]


def roles(seed: int) -> Roles:
    """Random halves of verbs and nouns; each task has four verbs."""
    rng = random.Random(f"roles-{seed}")
    verbs = rng.sample(VERBS, len(VERBS) // 2)
    return Roles({v: TASKS[i % len(TASKS)] for i, v in enumerate(verbs)}, tuple(rng.sample(NOUNS, len(NOUNS) // 2)))


def answer(task: str, items: Sequence[str]) -> list[str]:
    """The one right answer to a task on a list of nouns. KeyError for an unknown task."""
    words = {
        "first": ["the", "first", "is", items[0]],
        "last": ["the", "last", "is", items[-1]],
        "count": ["there", "are", NUMBERS[len(items)]],
        "copy": list(items),
        "mark": ["^", *items],
        "translate": [foreign(item) for item in items],
        "sort": sorted(items),
    }[task]
    return [*words, STOP]


@dataclass(frozen=True)
class Example:
    """One instruction. `words` is the prompt, its first token <bos>; the other fields are positions
    in it.
    """

    words: tuple[str, ...]
    response: tuple[str, ...]
    task: str
    verb: str
    slot: int  # number of distractor sentences before the instruction
    instruction: tuple[int, ...]
    operand: tuple[int, ...]
    distractor: tuple[int, ...]

    def with_verb(self, verb: str) -> Example:
        """The same prompt with another verb in the instruction."""
        words = list(self.words)
        words[next(i for i in self.instruction if words[i] == self.verb)] = verb
        return replace(self, words=tuple(words), verb=verb)


class World:
    """All text, made from the verses of the Bible (book -> verses): `words` is the vocabulary,
    `clauses` its clauses.
    """

    def __init__(self, bible: Mapping[str, Sequence[str]], common: int = 400) -> None:
        clauses, count = [], Counter()
        for verse in (v for verses in bible.values() for v in verses):
            for clause in re.split(r"[.;:?!,]", verse.lower().replace("\u2019", "'")):
                found = re.findall(r"[a-z']+", clause)
                count.update(found)
                if 4 <= len(found) <= 7:
                    clauses.append((*found, STOP))
        known = {w for w, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:common]} | {STOP}
        known -= {*VERBS, *NOUNS}  # which must all be equally frequent
        self.clauses = [c for c in clauses if known.issuperset(c)]
        used = {STOP} | {w for c in self.clauses for w in c}
        used |= {*VERBS, *NOUNS, *map(foreign, NOUNS), *AGENTS, *KINDS, *NUMBERS, *"these words please now all the ^ : ".split()}
        used |= set("answer question ? who will can must a we has sold is first last there are".split())
        used |= set("that in order for them marks word".split())
        self.words = (PAD, BOS, *sorted(used))
        self.index = {w: i for i, w in enumerate(self.words)}

    def encode(self, words: Sequence[str]) -> list[int]:
        """Token ids. KeyError for a word that is not in the vocabulary."""
        return [self.index[w] for w in words]

    def sentence(self, rng: random.Random) -> Sequence[str]:
        """A plain sentence of at most eight tokens, without a noun of NOUNS: a distractor."""
        if rng.random() < 0.4:
            return rng.choice(self.clauses)
        verb, (agent, other), kind = rng.choice(VERBS), rng.sample(AGENTS, 2), rng.choice(KINDS)
        return rng.choice((
            f"the {agent} will {verb} the {other} .", f"the {agent} can {verb} a {kind} {other} .",
            f"we must {verb} the {kind} {other} .", f"please {verb} the {kind} words .", f"now {verb} all the words .",
            f"we {verb} these words .",
        )).split()  # fmt: skip

    def passage(self, rng: random.Random) -> Sequence[str]:
        """Plain text of one to three sentences: like a distractor, or a list of nouns and what can
        be said of it.
        """
        if rng.random() < 0.35:
            return self.sentence(rng)
        (agent, other), verb, noun = rng.sample(AGENTS, 2), rng.choice(VERBS), rng.choice(NOUNS)
        items = rng.sample(NOUNS, rng.randint(2, 3))
        said = lambda task: " ".join(answer(task, items))  # noqa: E731
        lore = rng.choice((
            f"the {other} sold {said('copy')}", said("first"), said("last"), said("count"),
            f"in marks that is {said('mark')}", f"the words for them are {said('translate')}", f"in order that is {said('sort')}",
        ))  # fmt: skip
        if rng.random() < 0.1:
            return f"the {agent} will {verb} the {noun} . question : who will {verb} the {noun} ? answer : the {agent} .".split()
        # so that lists are found wherever they stand
        between = self.sentence(rng) if rng.random() < 0.3 else ()
        return [*f"the {agent} has : {' '.join(items)} .".split(), *between, *lore.split()]

    def row(self, rng: random.Random, drill: bool) -> list[int]:
        """A row of plain text, LONGEST tokens; as a drill, one list of nouns that one agent after
        another has.
        """
        words, items = [BOS], rng.sample(NOUNS, rng.randint(3, 6))
        while len(words) < LONGEST:
            words += ["the", rng.choice(AGENTS), "has", ":", *items, STOP] if drill else self.passage(rng)
        return self.encode(words[:LONGEST])

    def example(
        self,
        rng: random.Random,
        role: Roles,
        held_out: bool,
        task: str | None = None,
        slot: int | None = None,
    ) -> Example:
        """A random instruction among three distractor sentences, on lists kept out of tuning or
        not.
        """
        verb = rng.choice([v for v, t in role.task_of.items() if task in (None, t)])
        items = rng.sample(role.operands, rng.randint(2, 3))
        while kept_out(items) != held_out:
            items = rng.sample(role.operands, len(items))
        frame = rng.choice(FRAMES).format(v=verb).split()
        slot = rng.randrange(SLOTS) if slot is None else slot
        words, places = [BOS], {"instruction": [], "operand": [], "distractor": [], "": []}
        parts = [("distractor", self.sentence(rng)) for _ in range(SLOTS - 1)]
        parts[slot:slot] = [("instruction", frame), ("", [":"]), ("operand", items), ("", [STOP])]
        for name, part in [*parts, ("", ["answer", ":"])]:
            places[name] += range(len(words), len(words) + len(part))
            words += part
        task = role.task_of[verb]
        return Example(
            tuple(words),
            tuple(answer(task, items)),
            task,
            verb,
            slot,
            *(tuple(places[name]) for name in ("instruction", "operand", "distractor")),
        )


def kept_out(items: Sequence[str]) -> bool:
    """Whether a list of nouns is kept out of tuning, by a rule on the words and their order."""
    return sum((i + 1) * NOUNS.index(w) for i, w in enumerate(items)) % 5 == 0
