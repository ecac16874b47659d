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
from phase8.world.mix import Mix
from phase8.world.problem import Problem

TRAINING_SEED = 1

Draw = Callable[[World, random.Random], Problem]

# The first document of each phase: facts and programs come first, then arithmetic and riddles get more of the text,
# then who is who in a riddle is told.
PHASES = (0, 110_000, 190_000)

# Share of documents in each phase, and the largest number of problems in one document.
WEIGHTS: dict[str, tuple[tuple[float, float, float], int]] = {
    "profile": ((36, 28, 28), 1),
    "exam": ((26, 22, 22), 3),
    "rumour": ((8, 5, 5), 2),
    "falsehood": ((6, 4, 4), 2),
    "science": ((8, 5, 5), 2),
    "story": ((12, 14, 14), 1),
    "expression": ((14, 14, 14), 2),
    "level": ((18, 16, 16), 3),
    "completion": ((8, 6, 6), 2),
    "task": ((8, 6, 6), 2),
    "script": ((10, 8, 8), 1),
    "ending": ((4, 3, 3), 1),
    "riddle": ((10, 26, 24), 2),
    "passage": ((10, 8, 8), 1),
    "reply": ((3, 3, 3), 1),
    "tale": ((2, 1, 1), 1),
    "drill": ((6, 12, 8), 1),
    "roles": ((0, 0, 20), 3),
}

# Of `Mix.even`: shares of documents, so that the skills of each core benchmark have about as many tokens (an eighth),
# and the others together as many.
EVEN: dict[str, float] = {
    "profile": 8, "exam": 14,  # mini_mmlu
    "story": 10, "drill": 4,  # mini_gsm8k
    "completion": 9, "task": 8,  # mini_humaneval
    "script": 33,  # mini_hellaswag
    "science": 26,  # mini_arc
    "rumour": 10, "falsehood": 18,  # mini_truthfulqa
    "riddle": 18, "roles": 10,  # mini_winogrande
    "expression": 6, "level": 10, "passage": 3, "ending": 2, "reply": 2, "tale": 1,
}  # fmt: skip

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


def documents(seed: int = TRAINING_SEED, mix: Mix = Mix.first) -> Iterator[str]:
    """Endless documents of this seed, each a few dozen to two hundred tokens."""
    world, rng = build_world(), random.Random(seed)
    skills = list(WEIGHTS)
    for number in count(PHASES[-1] if mix is Mix.last else 0):
        phase = bisect_right(PHASES, number) - 1
        shares = [EVEN[skill] if mix is Mix.even else WEIGHTS[skill][0][phase] for skill in skills]
        skill = rng.choices(skills, shares)[0]
        problems = rng.randint(1, WEIGHTS[skill][1])
        if skill in _TEXTS:
            yield " ".join(_TEXTS[skill](world, rng) for _ in range(problems))
        else:
            yield "\n\n".join(training_problem(world, rng, skill).text for _ in range(problems))


def held_out_documents(n: int, seed: int) -> list[str]:
    """`n` documents in the style of training but of another stream, for perplexity."""
    return list(islice(documents(seed + 1_000_000), n))


def calibration_documents(n: int, seed: int, *, mix: Mix = Mix.first) -> list[str]:
    """`n` documents of a stream that neither training nor `held_out_documents` uses, for a compressor."""
    return list(islice(documents(seed + 2_000_000, mix), n))
