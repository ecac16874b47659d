"""What every skill produces: a problem with its answer, its wrong answers and its held-out key."""

from __future__ import annotations

from dataclasses import dataclass, field

from phase8.world.words import is_reserved


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        key: the parts that make it what it is; decides whether training may show it.
        prompt: the text before the answer, without trailing blank.
        answer: the right continuation; `text` says how it is joined to the prompt.
        wrong: wrong continuations of the same type.
        joint: what stands between prompt and answer (a blank, or nothing after a line break).
        details: further fields of the benchmark item (subject, rule, level, tests, ...).
        aliased: the key has a part that the text does not show, so the same text comes under other keys too, some of
            which training shows.
    """

    key: tuple[object, ...]
    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()
    joint: str = " "
    details: dict[str, object] = field(default_factory=dict)
    aliased: bool = False

    @property
    def text(self) -> str:
        """The problem with its answer attached, as training shows it."""
        return self.prompt + self.joint + self.answer

    @property
    def reserved(self) -> bool:
        """Whether the problem is kept out of training; where it is `aliased`, its text need not be."""
        return is_reserved(self.key)
