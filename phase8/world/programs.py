"""Tiny Python functions, asked for by a docstring or by a task line, with tests.

Half are single ideas from a table, half are chains of two or three steps drawn one by one ("Take x, add 3, then
multiply by 4."). Held out: (docstring or task line, function or chain, constants) combinations. A row of the table is
(argument kind, docstring, task, body); `{x}` is the argument, `{a}` and `{b}` the constants. Example: ("n", "Return {x}
plus {a}.", "adds {a} to {x}", "return {x} + {a}").
"""

from __future__ import annotations

import random

from phase8.world.facts import World
from phase8.world.problem import Problem

_KINDS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
n|Return {x} plus {a}.|adds {a} to {x}|return {x} + {a}
n|Return {x} minus {a}.|takes {a} from {x}|return {x} - {a}
n|Return {x} times {a}.|multiplies {x} by {a}|return {x} * {a}
n|Return the rest of {x} divided by {a}.|gives the rest of {x} divided by {a}|return {x} % {a}
n|Return {x} divided by {a}, rounded down.|divides {x} by {a}, rounded down|return {x} // {a}
n|Return the square of {x} plus {a}.|adds {a} to the square of {x}|return {x} * {x} + {a}
n|Return whether {x} is greater than {a}.|checks if {x} is greater than {a}|return {x} > {a}
n|Return whether {x} is less than {a}.|checks if {x} is less than {a}|return {x} < {a}
n|Return whether {x} is a multiple of {a}.|checks if {x} is a multiple of {a}|return {x} % {a} == 0
n|Return the larger of {x} and {a}.|finds the larger of {x} and {a}|return max({x}, {a})
n|Return the smaller of {x} and {a}.|finds the smaller of {x} and {a}|return min({x}, {a})
n|Return the distance from {x} to {a}.|finds the distance from {x} to {a}|return abs({x} - {a})
n|Return {x} times {a} plus {b}.|multiplies {x} by {a} and adds {b}|return {x} * {a} + {b}
n|Return {x} plus {a}, times {b}.|adds {a} to {x} and multiplies by {b}|return ({x} + {a}) * {b}
n|Return {a} if {x} is even, else {b}.|gives {a} if {x} is even, else {b}|return {a} if {x} % 2 == 0 else {b}
n|Return {a} if {x} is negative, else {b}.|gives {a} if {x} is negative, else {b}|if {x} < 0:/    return {a}/return {b}
n|Return {x} plus {a} if {x} is even, else {x}.|adds {a} to {x} if it is even|if {x} % 2 == 0:/    return {x} + {a}/return {x}
l|Return the sum of {x} plus {a}.|adds {a} to the sum of {x}|return sum({x}) + {a}
l|Return the length of {x} times {a}.|multiplies the length of {x} by {a}|return len({x}) * {a}
l|Add {a} to each of {x}.|adds {a} to each of {x}|return [v + {a} for v in {x}]
l|Multiply each of {x} by {a}.|multiplies each of {x} by {a}|return [v * {a} for v in {x}]
l|Keep those of {x} greater than {a}.|keeps those of {x} greater than {a}|return [v for v in {x} if v > {a}]
l|Drop those of {x} greater than {a}.|drops those of {x} greater than {a}|return [v for v in {x} if v <= {a}]
l|Count those of {x} equal to {a}.|counts those of {x} equal to {a}|return {x}.count({a})
l|Return whether {a} is in {x}.|checks if {a} is in {x}|return {a} in {x}
l|Append {a} to {x}.|appends {a} to {x}|return {x} + [{a}]
l|Put {a} in front of {x}.|puts {a} in front of {x}|return [{a}] + {x}
l|Return the maximum of {x} minus {a}.|takes {a} from the maximum of {x}|return max({x}) - {a}
l|Sum those of {x} less than {a}.|sums those of {x} less than {a}|total = 0/for v in {x}:/    if v < {a}:/        total += v/return total
""".strip().splitlines()  # noqa: E501
)
_FUNCTIONS = "solve task helper work change handle process run answer step".split()
_ARGUMENTS = {"n": "x n value number".split(), "l": "items values numbers xs".split()}


def _draw(rng: random.Random) -> tuple[int, int, int, str, str]:
    index = rng.randrange(len(_KINDS))
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    if "{b}" not in _KINDS[index][3]:
        b = 0
    return index, a, b, rng.choice(_FUNCTIONS), rng.choice(_ARGUMENTS[_KINDS[index][0]])


def _body(index: int, fields: dict[str, object]) -> str:
    lines = _KINDS[index][3].split("/")
    if "//" in _KINDS[index][3]:
        lines = [_KINDS[index][3]]
    return "\n".join("    " + line for line in lines).format(**fields)


def _tests(rng: random.Random, source: str, function: str, kind: str, a: int) -> list[str]:
    """Assertions whose expected values come from running the reference solution, near the constant."""
    namespace: dict[str, object] = {}
    exec(source, namespace)  # the source is built from the table above, nothing else
    solution = namespace[function]
    tests = []
    for shift in (0, -3, 1, 6, -a - 4):
        value = a + shift + (0 if shift == 0 else rng.randint(0, 1))
        argument = value if kind == "n" else [value, rng.choice((a, 1)), rng.randint(0, 30), value + 2]
        tests.append(f"assert {function}({argument!r}) == {solution(argument)!r}")  # type: ignore[operator]
    return tests


def _single(rng: random.Random, *, docstring: bool, with_tests: bool) -> Problem:
    """A function of the table."""
    index, a, b, function, argument = _draw(rng)
    fields = {"x": argument, "a": a, "b": b}
    head, body = f"def {function}({argument}):\n", _body(index, fields)
    details: dict[str, object] = {}
    if docstring:
        prompt, answer = f'{head}    """{_KINDS[index][1].format(**fields)}"""', "\n" + body
    else:
        task = _KINDS[index][2].format(**fields)
        prompt, answer = f"# Write a function {function} of {argument} that {task}.\n", head + body
    if with_tests:
        tests = _tests(rng, head + body, function, _KINDS[index][0], a)
        details = {"tests": tests, "entry_point": function}
    return Problem(("program", "docstring" if docstring else "task", index, a, b), prompt, answer, (), "", details)


# imperative | third person | expression; {x} is what it is applied to, {a} the constant.
_NUMBER_STEPS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
add {a}|adds {a}|{x} + {a}
subtract {a}|subtracts {a}|{x} - {a}
multiply by {a}|multiplies by {a}|{x} * {a}
take the rest by {a}|takes the rest by {a}|{x} % {a}
divide by {a}, rounded down|divides by {a}, rounded down|{x} // {a}
take the larger with {a}|takes the larger with {a}|max({x}, {a})
take the smaller with {a}|takes the smaller with {a}|min({x}, {a})
take the distance to {a}|takes the distance to {a}|abs({x} - {a})
""".strip().splitlines()
)
_FILTERS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
keep those greater than {a}|keeps those greater than {a}|v > {a}
keep those less than {a}|keeps those less than {a}|v < {a}
keep the multiples of {a}|keeps the multiples of {a}|v % {a} == 0
drop those equal to {a}|drops those equal to {a}|v != {a}
keep the even ones|keeps the even ones|v % 2 == 0
""".strip().splitlines()
)
_MAPS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
add {a} to each|adds {a} to each|v + {a}
subtract {a} from each|subtracts {a} from each|v - {a}
multiply each by {a}|multiplies each by {a}|v * {a}
square each|squares each|v * v
take the rest of each by {a}|takes the rest of each by {a}|v % {a}
""".strip().splitlines()
)
_REDUCTIONS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
return the list|returns the list|{x}
return the sum|returns the sum|sum({x})
return them sorted|returns them sorted|sorted({x})
return how many there are|returns how many there are|len({x})
""".strip().splitlines()
)


_Chain = tuple[tuple[object, ...], list[tuple[str, str]], str, bool]
"""Parts of the key, wordings (imperative, third person), the expression, and whether the key is aliased."""


def _number_chain(rng: random.Random, argument: str) -> _Chain:
    """Two or three steps on one number."""
    key: list[object] = []
    wordings: list[tuple[str, str]] = []
    inner = argument
    for _ in range(rng.choice((2, 2, 3))):
        index, a = rng.randrange(len(_NUMBER_STEPS)), rng.randint(2, 20)
        imperative, third, formula = _NUMBER_STEPS[index]
        bare = formula.startswith(("max", "min")) or inner.isidentifier() or inner.startswith(("max", "min", "abs"))
        inner = formula.format(x=inner if bare else f"({inner})", a=a)
        wordings.append((imperative.format(a=a), third.format(a=a)))
        key += [index, a]
    return tuple(key), wordings, inner, False


def _list_chain(rng: random.Random, argument: str) -> _Chain:
    """A filter, a map and a reduction of a list.

    The constants are part of the key even where no wording shows them ("keep the even ones"): so the stream was drawn
    that the reference model read. Such a chain is aliased.
    """
    f, m, r = rng.randrange(len(_FILTERS)), rng.randrange(len(_MAPS)), rng.randrange(len(_REDUCTIONS))
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    rows = ((_FILTERS[f], a), (_MAPS[m], b), (_REDUCTIONS[r], 0))
    wordings = [(row[0].format(a=number), row[1].format(a=number)) for row, number in rows]
    listed = f"[{_MAPS[m][2].format(a=b)} for v in {argument} if {_FILTERS[f][2].format(a=a)}]"
    aliased = not all("{a}" in row[0] for row in (_FILTERS[f], _MAPS[m]))
    return (f, a, m, b, r), wordings, _REDUCTIONS[r][2].format(x=listed), aliased


def _chain(rng: random.Random, *, docstring: bool, with_tests: bool) -> Problem:
    """A function of several steps in a row, each drawn on its own: "Take x, add 3, then multiply by 4."."""
    kind = rng.choice("nl")
    function, argument = rng.choice(_FUNCTIONS), rng.choice(_ARGUMENTS[kind])
    numbers, wordings, value, aliased = (_number_chain if kind == "n" else _list_chain)(rng, argument)
    *first, last = [pair[0 if docstring else 1] for pair in wordings]
    told = f"{', '.join(first)}, then {last}"
    head, body = f"def {function}({argument}):\n", f"    return {value}"
    if docstring:
        prompt, answer = f'{head}    """Take {argument}, {told}."""', "\n" + body
    else:
        prompt, answer = f"# Write a function {function} that takes {argument}, {told}.\n", head + body
    details: dict[str, object] = {}
    if with_tests:
        a = next(number for number in numbers[1:2] if isinstance(number, int))
        details = {"tests": _tests(rng, head + body, function, kind, a), "entry_point": function}
    key = ("chain", "docstring" if docstring else "task", kind, *numbers)
    return Problem(key, prompt, answer, (), "", details, aliased)


def _draw_program(rng: random.Random, *, docstring: bool, with_tests: bool) -> Problem:
    return (_chain if rng.random() < 0.5 else _single)(rng, docstring=docstring, with_tests=with_tests)


def completion(world: World, rng: random.Random, with_tests: bool = False) -> Problem:
    """A def line and docstring; the answer is the body, with the line break before it: a prompt that ended in one would
    part it from the indentation, which the tokenizer joins to it."""
    return _draw_program(rng, docstring=True, with_tests=with_tests)


def task(world: World, rng: random.Random, with_tests: bool = False) -> Problem:
    """A task line; the answer is the whole function."""
    return _draw_program(rng, docstring=False, with_tests=with_tests)
