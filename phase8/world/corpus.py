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

# Of `Mix.judged`: where it differs from the last phase. The questions of edge of chaos, without working and nearly too
# hard for the original, have 15 % of the tokens, where they have 6 %; riddles 8 and 18 %.
JUDGED: dict[str, float] = {"level": 40, "riddle": 12, "roles": 8}

# Of `Mix.core`: shares of documents. What no core benchmark asks is not told, and of the rest mini_mmlu's 8,000 facts
# are not, which are too many for the smallest networks. Scripts have 15 times their share of the text that the model
# saw last (2,600 habits of persons are slow to learn), science 7 times, rumours and falsehoods 2.7, riddles 0.6 times,
# the rest about as much (experiments/LOG.md, 2026-11-29).
CORE: dict[str, float] = dict.fromkeys(WEIGHTS, 0.0) | {
    "story": 20, "drill": 9,  # mini_gsm8k: 20 % of the tokens
    "completion": 7, "task": 5.7,  # mini_humaneval: 6 %
    "script": 140,  # mini_hellaswag: 40 %
    "science": 39,  # mini_arc: 13 %
    "rumour": 10, "falsehood": 19.5,  # mini_truthfulqa: 10 %
    "riddle": 17, "roles": 13.8,  # mini_winogrande: 10 %
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
    instead = {Mix.judged: JUDGED, Mix.core: CORE}.get(mix, {})
    for number in count(0 if mix is Mix.first else PHASES[-1]):
        phase = bisect_right(PHASES, number) - 1
        shares = [instead.get(skill, WEIGHTS[skill][0][phase]) for skill in skills]
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
