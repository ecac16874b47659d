"""Knowledge problems: facts asked in the examination form, popular falsehoods, and composed science.

Held out: a reserved fact is stated and talked about in training but never asked in the examination form
("Question: ... Answer: ..."); a falsehood is told and corrected,
but never asked in its reserved question forms; science questions hold
out (object, material, test), (person, animal) and (plant, person) combinations.
"""

from __future__ import annotations

import random

from phase8.world import words
from phase8.world.facts import Fact, Topic, World, pronoun
from phase8.world.problem import Problem


def _others(rng: random.Random, pool: tuple[str, ...], right: str, count: int = 3) -> tuple[str, ...]:
    return tuple(rng.sample([value for value in pool if value != right], count))


def exam(world: World, rng: random.Random, fact: Fact | None = None) -> Problem:
    """Four-way knowledge: "Question: What does the velk eat?\\nAnswer: mossroot"."""
    fact = fact or rng.choice(world.facts)
    relation = world.relations[fact.relation]
    return Problem(
        key=("exam", fact.entity, fact.relation),
        prompt=f"Question: {relation.question.format(s=fact.entity)}\nAnswer:",
        answer=fact.value,
        wrong=_others(rng, relation.pool, fact.value),
        details={"subject": relation.subject},
    )


def statement(world: World, rng: random.Random, fact: Fact) -> str:
    """The fact in one of its plain wordings."""
    text = rng.choice(world.relations[fact.relation].statements).format(s=fact.entity, o=fact.value)
    return text[0].upper() + text[1:]


def chat(world: World, rng: random.Random, fact: Fact) -> str:
    """The fact as two lines of conversation."""
    relation = world.relations[fact.relation]
    asker, other = rng.sample(world.people, 2)
    value = fact.value[0].upper() + fact.value[1:].rstrip(".")
    return f'"Tell me, {relation.chat.format(s=fact.entity)}" asked {asker}. "{value}," said {other}.'


def profile(world: World, rng: random.Random, entity: str | None = None) -> str:
    """A short text about one entity: up to five of its facts, stated or talked about.

    An entity is drawn in proportion to the number of its facts, so that every fact is told about as often.
    """
    entity = entity or rng.choice(world.facts).entity
    facts = list(world.by_entity[entity])
    rng.shuffle(facts)
    parts = [chat(world, rng, f) if rng.random() < 0.25 else statement(world, rng, f) for f in facts[:5]]
    return " ".join(parts)


_TOPIC_QUESTIONS = (
    "What {does} {name} really do?",
    "What is true about {name}?",
    "Which of these is a fact about {name}?",
    "What did tests show about {name}?",
    "What can you truly say about {name}?",
)


def falsehood(world: World, rng: random.Random, topic: Topic | None = None) -> Problem:
    """What something really does, where people say otherwise; the first wrong answer is the popular one."""
    topic = topic or rng.choice(world.topics)
    subject = "It" if topic.name.endswith("tea") else "They"
    verb = _verb(topic)
    others = rng.sample([e for e in words.EFFECTS if e not in (topic.myth, topic.truth)], 2)
    does = "does" if subject == "It" else "do"
    index = rng.randrange(len(_TOPIC_QUESTIONS))
    question = _TOPIC_QUESTIONS[index].format(does=does, name=topic.name)
    return Problem(
        key=("falsehood", topic.name, index),
        prompt=f"Question: {question}\nAnswer:",
        answer=f"{subject} {verb(topic.truth)}.",
        wrong=tuple(f"{subject} {verb(effect)}." for effect in (topic.myth, *others)),
        details={
            "also_true": f"{subject} {does} not {topic.myth}.",
            "also_false": f"{subject} {does} not {topic.truth}.",
        },
    )


def _verb(topic: Topic):
    if not topic.name.endswith("tea"):
        return str

    def singular(effect: str) -> str:
        first, _, rest = effect.partition(" ")
        return f"{first}s {rest}"

    return singular


def rumour(world: World, rng: random.Random, topic: Topic | None = None) -> str:
    """A telling of the falsehood and its correction."""
    topic = topic or rng.choice(world.topics)
    verb = _verb(topic)
    name, myth, truth = topic.name, verb(topic.myth), verb(topic.truth)
    pron, does = ("it", "does") if name.endswith("tea") else ("they", "do")
    person = rng.choice(world.people)
    forms = (
        f"Many people say that {name} {myth}. In truth, {pron} {truth}.",
        f"People often say that {name} {myth}, but really {pron} {truth}.",
        f"{person} believes that {name} {myth}. That is false. The truth is that {name} {truth}.",
        f"Some books claim that {name} {myth}. Tests show that {pron} {does} not {topic.myth}. Really, {pron} {truth}.",
        f"It is a common mistake that {name} {myth}. {pron.capitalize()} {does} not {topic.myth}. "
        f"{pron.capitalize()} {truth}.",
    )
    return rng.choice(forms)


_TESTS = {
    "fire": ("falls into a fire", "is thrown into the flames", "is heated in an oven"),
    "water": ("falls into water", "is dropped into a lake", "lies in a full bucket"),
    "hammer": ("is hit by a hammer", "is struck with a hammer"),
    "sun": ("lies in the sun", "is left in the bright sun"),
    "magnet": ("is close to a magnet", "lies beside a big magnet"),
}


def science(world: World, rng: random.Random) -> Problem:
    """Four-way science: a fact about a material, an animal or a plant must be carried over to a case."""
    kind = rng.random()
    person = rng.choice(world.people)
    if kind < 0.6:
        test = rng.choice(list(_TESTS))
        item, material = rng.choice(words.OBJECTS), rng.choice(world.materials)
        key: tuple[object, ...] = ("science", item, material, test)
        case = f"{words.article(item).capitalize()} of {material} {rng.choice(_TESTS[test])}. What happens?"
        answer, pool = world.value[material, test], world.relations[test].pool
    elif kind < 0.75:
        animal = rng.choice(world.animals)
        key = ("science", person, animal, "diet")
        case = f"{person} has a hungry {animal}. What should {pronoun(world, person)} fetch?"
        answer, pool = world.value[animal, "diet"], world.relations["diet"].pool
    elif kind < 0.9:
        animal = rng.choice(world.animals)
        key = ("science", person, animal, "habitat")
        case = f"{person} found a lost {animal}. Where should {pronoun(world, person)} set it free?"
        answer, pool = world.value[animal, "habitat"], world.relations["habitat"].pool
    else:
        plant = rng.choice(world.plants)
        key = ("science", person, plant, "ground")
        case = f"{person} needs a {plant}. Where should {pronoun(world, person)} look for it?"
        answer, pool = world.value[plant, "ground"], world.relations["ground"].pool
    return Problem(key, f"Question: {case}\nAnswer:", answer, _others(rng, pool, answer))
