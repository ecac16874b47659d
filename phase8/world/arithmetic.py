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


# Events stop adding here, so that no count passes the sums of the drills.
_MANY = 130


def _opening(rng: random.Random, person: str, thing: str) -> tuple[str, str, int, tuple[object, ...]]:
    """How many there are at first: sentence, steps of the working, count, and the numbers for the key."""
    if rng.random() < 0.5:
        count = rng.randint(5, 60)
        return f"{person} has {count} {thing}.", "", count, ("has", count)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    text = f"{person} has {a} {rng.choice(_BOXES)} with {b} {thing} in each."
    return text, f"{a} * {b} = {a * b}. ", a * b, ("boxes", a, b)


def story(world: World, rng: random.Random) -> Problem:
    """A story of two or three events that change a count, worked out step by step."""
    person, friend = rng.sample(world.people, 2)
    thing = rng.choice(words.THINGS)
    pron = pronoun(world, person).capitalize()
    text, steps, count, numbers = _opening(rng, person, thing)
    key: list[object] = ["story", *numbers]
    for _ in range(rng.choice((2, 2, 3))):
        kinds = ["gain", "bring", "each"] if count < _MANY else []
        kinds += ["lose", "lose"] if count > 5 else []
        kinds += ["half"] if count % 2 == 0 and count > 3 else []
        kinds += ["again"] if count < 50 else []
        kind = rng.choice(kinds)
        a, b = rng.randint(2, 39), rng.randint(2, 9)
        if kind == "gain":
            text += f" {pron} {rng.choice(_GAIN)} {a} more."
            step, new = f"{count} + {a}", count + a
        elif kind == "bring":
            text += f" Then {friend} brings {a} {thing} to {person}."
            step, new = f"{count} + {a}", count + a
        elif kind == "each":
            a = rng.randint(2, 9)
            text += f" Each of {b} friends gives {person} {a} more."
            steps += f"{b} * {a} = {a * b}. "
            step, new = f"{count} + {a * b}", count + a * b
            key.append(b)
        elif kind == "lose":
            a = rng.randint(2, min(count - 1, 40))
            text += f" Then {pron.lower()} {rng.choice(_LOSE)} {a}."
            step, new = f"{count} - {a}", count - a
        elif kind == "half":
            a = 2
            text += f" {pron} gives half of them to {friend}."
            step, new = f"{count} / 2", count // 2
        else:
            a = count
            text += f" {friend} gives {person} as many again."
            step, new = f"{count} + {count}", 2 * count
        steps += f"{step} = {new}. "
        key += [kind, a]
        count = new
    return Problem(
        key=tuple(key),
        prompt=f"Question: {text} How many {thing} does {person} have now?\nAnswer:",
        answer=f"{steps}#### {count}",
        details={"number": str(count)},
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
    kind = rng.choice(("chain", "nested", "products", "mixed", "words", "linear", "both_sides"))
    a, b = rng.randint(5, 60), rng.randint(3, 39)
    c = d = 0
    if kind == "chain":
        c = rng.randint(2, 39)
        d = rng.randint(2, min(a + b + c - 1, 60))
        task, result = f"Compute {a} + {b} + {c} - {d}.", a + b + c - d
        steps = f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}. {a + b + c} - {d} = {result}."
    elif kind == "nested":
        a, b, c = rng.randint(2, 6), rng.randint(1, 6), rng.randint(2, 9)
        d = rng.randint(1, (a + b) * c - 1)
        task, result = f"Compute ({a} + {b}) * {c} - {d}.", (a + b) * c - d
        steps = f"{a} + {b} = {a + b}. {a + b} * {c} = {(a + b) * c}. {(a + b) * c} - {d} = {result}."
    elif kind == "products":
        a, b, c, d = (rng.randint(2, 9) for _ in range(4))
        task, result = f"Compute {a} * {b} + {c} * {d}.", a * b + c * d
        steps = f"{a} * {b} = {a * b}. {c} * {d} = {c * d}. {a * b} + {c * d} = {result}."
    elif kind == "mixed":
        b, c = rng.randint(2, 9), rng.randint(2, 9)
        d = rng.randint(2, min(a + b * c - 1, 60))
        task, result = f"Compute {a} + {b} * {c} - {d}.", a + b * c - d
        steps = f"{b} * {c} = {b * c}. {a} + {b * c} = {a + b * c}. {a + b * c} - {d} = {result}."
    elif kind == "words":
        c = rng.randint(2, min(a + b - 1, 40))
        task, result = f"Compute {in_words(a)} plus {in_words(b)} minus {in_words(c)}.", a + b - c
        steps = f"{a} + {b} = {a + b}. {a + b} - {c} = {result}."
    elif kind == "linear":
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 39)
        task, result = f"Solve {a} * x + {c} = {a * b + c}.", b
        steps = f"{a * b + c} - {c} = {a * b}. {a * b} / {a} = {b}."
    else:
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 39)
        d = rng.randint(1, a - 1)
        task, result = f"Solve {a} * x + {c} = {d} * x + {(a - d) * b + c}.", b
        steps = f"{a} - {d} = {a - d}. {(a - d) * b + c} - {c} = {(a - d) * b}. {(a - d) * b} / {a - d} = {b}."
    return Problem(
        key=("expression", kind, a, b, c, d),
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
            a, b = rng.randint(2, 170), rng.randint(2, 80)
            if not is_reserved(("level", 1, a, b)):
                steps.append(f"{a} + {b} = {a + b}.")
        elif kind < 0.8:
            a = rng.randint(4, 210)
            b = rng.randint(2, min(a, 80))
            steps.append(f"{a} - {b} = {a - b}.")
        else:
            a, b = rng.randint(2, 12), rng.randint(2, 9)
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
