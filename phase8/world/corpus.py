"""The training text: an endless stream of short documents from a seed.

Each document is one skill: an entity's profile, one or more problems with their answers, a rumour and its
correction, a tale of conduct. `WEIGHTS` gives the share of documents per skill in each
phase of the stream. Problems whose key is reserved
(`words.is_reserved`) are drawn again, so no document shows one. The stream of seed 1 trained the reference model.

    >>> from itertools import islice
    >>> list(islice(documents(seed=1), 1))[0] == list(islice(documents(seed=1), 1))[0]
    True
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import count, islice

from phase8.world import arithmetic, conduct, knowledge, narrative, programs
from phase8.world.facts import World, build_world
from phase8.world.problem import Problem

TRAINING_SEED = 1

Draw = Callable[[World, random.Random], Problem]

# The first document of each phase: facts and programs are learnt early, then arithmetic gets more of the text, then
# riddles do.
PHASES = (0, 200_000, 305_000)

# Share of documents in each phase, and the largest number of problems in one document.
WEIGHTS: dict[str, tuple[tuple[float, float, float], int]] = {
    "profile": ((26, 16, 18), 1),
    "exam": ((24, 16, 18), 3),
    "rumour": ((7, 3, 3), 2),
    "falsehood": ((5, 3, 3), 2),
    "science": ((14, 5, 5), 2),
    "story": ((18, 22, 18), 1),
    "expression": ((16, 16, 16), 2),
    "level": ((26, 20, 20), 3),
    "completion": ((6, 4, 4), 2),
    "task": ((7, 4, 4), 2),
    "script": ((6, 5, 5), 1),
    "ending": ((5, 4, 4), 1),
    "riddle": ((16, 40, 40), 2),
    "passage": ((14, 8, 6), 1),
    "reply": ((4, 3, 3), 1),
    "tale": ((2, 1, 1), 1),
    "drill": ((0, 26, 12), 1),
    "roles": ((0, 0, 30), 3),
}

PROBLEMS: dict[str, Draw] = {
    "exam": knowledge.exam,
    "falsehood": knowledge.falsehood,
    "science": knowledge.science,
    "story": arithmetic.story,
    "expression": arithmetic.expression,
    "level": arithmetic.level,
    "completion": programs.completion,
    "task": programs.task,
    "script": narrative.script,
    "ending": narrative.ending,
    "riddle": narrative.riddle,
    "passage": narrative.passage,
    "reply": conduct.reply,
}
_TEXTS: dict[str, Callable[[World, random.Random], str]] = {
    "profile": knowledge.profile,
    "rumour": knowledge.rumour,
    "tale": conduct.tale,
    "drill": arithmetic.drill,
    "roles": narrative.roles,
}


def training_problem(world: World, rng: random.Random, skill: str) -> Problem:
    """A problem of the skill that training may show."""
    while (problem := PROBLEMS[skill](world, rng)).reserved:
        pass
    return problem


def documents(seed: int = TRAINING_SEED) -> Iterator[str]:
    """Endless documents of this seed, each a few dozen to two hundred tokens."""
    world, rng = build_world(), random.Random(seed)
    skills = list(WEIGHTS)
    for number in count():
        phase = bisect_right(PHASES, number) - 1
        shares = [WEIGHTS[skill][0][phase] for skill in skills]
        skill = rng.choices(skills, shares)[0]
        problems = rng.randint(1, WEIGHTS[skill][1])
        if skill in _TEXTS:
            yield " ".join(_TEXTS[skill](world, rng) for _ in range(problems))
        else:
            yield "\n\n".join(training_problem(world, rng, skill).text for _ in range(problems))


def held_out_documents(n: int, seed: int) -> list[str]:
    """`n` documents in the style of training but of another stream, for perplexity."""
    return list(islice(documents(seed + 1_000_000), n))


def calibration_documents(n: int, seed: int) -> list[str]:
    """`n` documents of a stream that neither training nor `held_out_documents` uses, for a compressor's Hessians."""
    return list(islice(documents(seed + 2_000_000), n))
