"""Arithmetic problems: stories with a worked solution, expressions and equations, and levels of difficulty.

Held out: operand tuples. The key is the kind of problem with its numbers, so that a reserved tuple never occurs in
any wording. A worked solution ends in `#### N`: "12 + 7 = 19. 19 - 5 = 14. #### 14".
"""

from __future__ import annotations

import random

from phase8.world import words
from phase8.world.facts import World, pronoun
from phase8.world.problem import Problem
from phase8.world.words import is_reserved

_GAIN = ("gets", "buys", "finds", "wins", "makes")
_LOSE = ("loses", "sells", "gives away", "breaks", "drops")
_BOXES = ("boxes", "bags", "jars", "baskets", "rows")


def story(world: World, rng: random.Random) -> Problem:
    """A short story with two steps of arithmetic."""
    person, friend = rng.sample(world.people, 2)
    thing = rng.choice(words.THINGS)
    pron = pronoun(world, person).capitalize()
    gain, lose, box = rng.choice(_GAIN), rng.choice(_LOSE), rng.choice(_BOXES)
    kind = rng.choice(("add_sub", "sub_add", "mul_sub", "mul_add", "add_mul", "share_add"))
    if kind == "add_sub":
        a, b = rng.randint(5, 60), rng.randint(3, 39)
        c = rng.randint(2, min(a + b - 1, 40))
        text = f"{person} has {a} {thing}. {pron} {gain} {b} more. Then {pron.lower()} {lose} {c}."
        mid, result = a + b, a + b - c
        steps = f"{a} + {b} = {mid}. {mid} - {c} = {result}."
    elif kind == "sub_add":
        a = rng.randint(12, 90)
        b, c = rng.randint(2, min(a - 1, 40)), rng.randint(2, 39)
        text = f"{person} has {a} {thing}. {pron} {lose} {b}. Then {friend} brings {c} {thing} to {person}."
        mid, result = a - b, a - b + c
        steps = f"{a} - {b} = {mid}. {mid} + {c} = {result}."
    elif kind == "mul_sub":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        c = rng.randint(1, a * b - 1)
        text = f"{person} has {a} {box} with {b} {thing} in each. {pron} {lose} {c} {thing}."
        mid, result = a * b, a * b - c
        steps = f"{a} * {b} = {mid}. {mid} - {c} = {result}."
    elif kind == "mul_add":
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 30)
        text = f"{person} has {a} {box} with {b} {thing} in each. {pron} {gain} {c} more {thing}."
        mid, result = a * b, a * b + c
        steps = f"{a} * {b} = {mid}. {mid} + {c} = {result}."
    elif kind == "add_mul":
        a, b, c = rng.randint(2, 50), rng.randint(2, 9), rng.randint(2, 9)
        text = f"{person} has {a} {thing}. Each of {b} friends gives {person} {c} more {thing}."
        mid, result = b * c, a + b * c
        steps = f"{b} * {c} = {mid}. {a} + {mid} = {result}."
    else:
        b, mid, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 40)
        a, result = b * mid, mid + c
        text = f"{b} friends share {a} {thing}. {person} is one of them and {gain} {c} more {thing}."
        steps = f"{a} / {b} = {mid}. {mid} + {c} = {result}."
    return Problem(
        key=("story", kind, a, b, c),
        prompt=f"Question: {text} How many {thing} does {person} have now?\nAnswer:",
        answer=f"{steps} #### {result}",
        details={"number": str(result)},
    )


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = ". . twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number below 100 in English: 42 -> "forty two"."""
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")


def expression(world: World, rng: random.Random) -> Problem:
    """A bare expression, an expression in words, or an equation, with a worked solution."""
    kind = rng.choice(("chain", "chain", "product", "words", "equation", "linear"))
    a, b = rng.randint(5, 60), rng.randint(3, 39)
    c = rng.randint(2, min(a + b - 1, 40))
    if kind == "chain":
        task, mid, result = f"Compute {a} + {b} - {c}.", a + b, a + b - c
        steps = f"{a} + {b} = {mid}. {mid} - {c} = {result}."
    elif kind == "product":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        c = rng.randint(1, 30)
        task, mid, result = f"Compute {a} * {b} + {c}.", a * b, a * b + c
        steps = f"{a} * {b} = {mid}. {mid} + {c} = {result}."
    elif kind == "words":
        c = 0
        if rng.random() < 0.5:
            task, result = f"Compute {in_words(a)} plus {in_words(b)}.", a + b
            steps = f"{a} + {b} = {result}."
        else:
            a, b = a + b, b
            task, result = f"Compute {in_words(a)} minus {in_words(b)}.", a - b
            steps = f"{a} - {b} = {result}."
    elif kind == "equation":
        c = 0
        task, result = f"Solve x + {b} = {a + b}.", a
        steps = f"x = {a + b} - {b}."
    else:
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 20)
        task, result = f"Solve {a} * x + {c} = {a * b + c}.", b
        steps = f"{a} * x = {a * b}. x = {a * b} / {a}."
    return Problem(
        key=("expression", kind, a, b, c),
        prompt=f"{task}\nAnswer:",
        answer=f"{steps} #### {result}",
        details={"number": str(result)},
    )


def drill(world: World, rng: random.Random) -> str:
    """Bare steps in a row, "34 + 12 = 46. 8 * 7 = 56.", without the sums that level 1 holds out."""
    steps: list[str] = []
    while len(steps) < 9:
        kind = rng.random()
        if kind < 0.4:
            a, b = rng.randint(2, 99), rng.randint(2, 60)
            if not is_reserved(("level", 1, a, b)):
                steps.append(f"{a} + {b} = {a + b}.")
        elif kind < 0.8:
            a = rng.randint(4, 130)
            b = rng.randint(2, min(a, 60))
            steps.append(f"{a} - {b} = {a - b}.")
        else:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            steps.append(f"{a} * {b} = {a * b}." if kind < 0.92 else f"{a * b} / {b} = {a}.")
    return " ".join(steps)


def level(world: World, rng: random.Random, level: int | None = None) -> Problem:
    """A question without working, of difficulty 1 to 6; wrong answers are near misses.

    1: a sum; 2: a sum less a number; 3: a product plus a number; 4: the land in which a person lives, through the
    person's town; 5: the difference of two products; 6: a sum of three-digit numbers less another.
    """
    level = level or rng.randint(1, 6)
    if level == 4:
        person = rng.choice(world.people)
        region = world.value[world.value[person, "home"], "region"]
        others = [land for land in world.relations["region"].pool if land != region]
        return Problem(
            key=("level", 4, person),
            prompt=f"Question: In which land does {person} live?\nAnswer:",
            answer=region,
            wrong=tuple(rng.sample(others, 3)),
            details={"level": 4},
        )
    numbers: tuple[int, ...]
    if level == 1:
        a, b = rng.randint(5, 60), rng.randint(3, 39)
        numbers, text, result = (a, b), f"{a} + {b}", a + b
    elif level == 2:
        a, b = rng.randint(5, 60), rng.randint(3, 39)
        c = rng.randint(2, min(a + b - 1, 40))
        numbers, text, result = (a, b, c), f"{a} + {b} - {c}", a + b - c
    elif level == 3:
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 30)
        numbers, text, result = (a, b, c), f"{a} * {b} + {c}", a * b + c
    elif level == 5:
        a, b, c, d = (rng.randint(2, 9) for _ in range(4))
        if a * b < c * d:
            a, b, c, d = c, d, a, b
        numbers, text, result = (a, b, c, d), f"{a} * {b} - {c} * {d}", a * b - c * d
    else:
        a, b = rng.randint(100, 600), rng.randint(100, 399)
        c = rng.randint(100, min(a + b - 10, 499))
        numbers, text, result = (a, b, c), f"{a} + {b} - {c}", a + b - c
    shifts = [s for s in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20) if result + s >= 0]
    return Problem(
        key=("level", level, *numbers),
        prompt=f"Question: What is {text}?\nAnswer:",
        answer=str(result),
        wrong=tuple(str(result + s) for s in rng.sample(shifts, 3)),
        details={"level": level},
    )
