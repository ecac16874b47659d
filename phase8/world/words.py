"""Words of the world: invented names, plain English lists, and the rule that holds problems out.

Everything is a pure function of its arguments: `random.Random` with an explicit seed and CRC-32, never
`hash()` of a string (randomised per process) and never the order of a set.

Held-out rule: a problem has a key, the tuple of parts that make it what it is (a fact; a function and its
constants; the operands of a sum; a person, an activity and a place). `is_reserved(key)` is
`crc32("part|part|...") % RESERVED_MODULUS == 0`. Training text shows only problems whose key is not reserved,
benchmark items only problems whose key is. Example: `is_reserved(("sum", 12, 7))` is False, so "12 + 7" may
be drilled; about one sum in five is never drilled and may be asked.
"""

from __future__ import annotations

import random
import zlib

RESERVED_MODULUS = 5

_ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s sk st t tr v w z th sh".split()
_VOWELS = "a e i o u".split()
_CODAS = "l n r s m k x th nd rn sk lm".split()


def is_reserved(key: tuple[object, ...]) -> bool:
    """Whether the problem with this key is kept out of training and may become a benchmark item."""
    return zlib.crc32("|".join(str(part) for part in key).encode()) % RESERVED_MODULUS == 0


class NameMaker:
    """Draws pronounceable invented words that are all different and never contain one another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()
        self._text = ""

    def word(self, endings: tuple[str, ...]) -> str:
        """One new lower-case word: onset, vowel, onset, in half of the words another syllable, then an ending."""
        while True:
            rng = self._rng
            name = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice("bdgklmnprstvz")
            if rng.random() < 0.5:
                name += rng.choice(_VOWELS) + rng.choice("dklmnrstv")
            name += rng.choice(endings)
            within = {name[i:j] for i in range(len(name)) for j in range(i + 1, len(name) + 1)}
            if name not in self._text and not within & self._used:
                self._used.add(name)
                self._text += f" {name}"
                return name


def article(noun: str) -> str:
    """The noun with its indefinite article: "a lamp", "an oven"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


JOBS = (
    "baker carpenter weaver miller potter sailor teacher doctor farmer painter hunter tailor guard cook "
    "smith fisher shepherd gardener singer dancer writer judge nurse pilot clerk mason barber butcher "
    "librarian surveyor"
).split()
FOODS = (
    "bread soup cheese rice honey plums beans stew cakes pears nuts olives noodles eggs apples carrots "
    "figs porridge mushrooms pancakes grapes corn onions butter peas"
).split()
HOBBIES = (
    "chess swimming sewing reading fishing running climbing drawing juggling rowing archery singing "
    "knitting skating riding carving hiking dancing wrestling pottery"
).split()
COLOURS = "red blue green yellow white black grey purple orange brown pink silver".split()
INSTRUMENTS = "flute drum harp violin piano trumpet bell guitar horn banjo".split()
PRODUCTS = (
    "salt wool glass silk paper rope wine coal soap bricks boats carpets clocks lamps hats shoes knives "
    "baskets candles tiles leather pearls tea sugar"
).split()
BUILDINGS = (
    "tower bridge temple castle library market school theatre lighthouse windmill museum harbour garden "
    "fountain hospital station"
).split()
HABITATS = (
    "forest desert river lake swamp cave meadow mountain beach jungle valley pond cliff field island marsh"
).split()
CLASSES = "bird fish insect reptile mammal snail".split()
COVERINGS = "feathers scales fur spines shells skin wool plates".split()
SOUNDS = "barks whistles hums growls clicks sings hisses roars squeaks howls buzzes croaks".split()
TIMES = ["at dawn", "at noon", "at dusk", "at night"]
SOURCES = ("caves rivers deserts forests volcanoes swamps mountains mines lakes cliffs beaches islands").split()
SEASONS = "spring summer autumn winter".split()
TASKS = (
    "cut wood;dig holes;carry water;catch fish;mend roofs;sew cloth;grind corn;lift stones;paint walls;"
    "bend iron;peel fruit;clean windows;measure rooms;cut grass;split rocks;stir soup;open locks;"
    "polish shoes;press flowers;dry clothes;sharpen knives;pump air;pull nails;roll dough;weigh gold;"
    "light fires;crack nuts;tie ropes;sort letters;shear sheep"
).split(";")
THINGS = (
    "apples coins books shells stamps pens marbles cards beads buttons eggs flowers stones cups toys "
    "ribbons seeds candles keys balls"
).split()
OBJECTS = (
    "cup spoon bowl ring key coin knife box lamp bell plate chair table hammer button bottle pipe wheel mask comb"
).split()
EFFECTS = (
    "help against a cough;keep flies away;glow in the dark;calm angry dogs;make milk sour;clean dirty pots;"
    "turn hair grey;heal small cuts;make children sleepy;stop a toothache;smell of fish;keep rain out;"
    "make bread rise;scare wolves;ease sore feet;wake tired people;make cows happy;keep cheese fresh;"
    "cool hot rooms;make paint stick;feed hungry bees;warm cold hands;soften leather;make plants grow;"
    "bring good luck;cure a cold;lead ships home;stop bad dreams;make iron rust;turn water blue;"
    "draw lightning;make hens lay;sweeten tea;clear the mind;make dogs sneeze;bring back lost cats"
).split(";")
